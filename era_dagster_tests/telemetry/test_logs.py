"""Log lines: for machines they parse, for people they read, and no secret is in either."""

import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from era_dagster.settings import Settings, load_settings
from era_dagster.telemetry.logs import FIELDS, ITEMS, ROOT, current_run, logging_to, redactor

SECRET = "s3cret-token-of-mine"
ODD = 'with "quotes" and \\'


@pytest.fixture
def quiet_settings(tmp_path: Path) -> Settings:
    return load_settings({}, log_file=tmp_path / "logs" / "era.log", database_url=f"postgresql://u:{SECRET}@host/db")


def lines(settings: Settings) -> list[str]:
    assert settings.log_file is not None
    return settings.log_file.read_text(encoding="utf-8").splitlines()


def test_a_json_line_has_time_level_event_run_partition_stage_and_request(quiet_settings: Settings) -> None:
    settings = replace(quiet_settings, json_logs=True, log_level="DEBUG")
    token = current_run.set("run-1")
    try:
        with logging_to(settings):
            logging.getLogger(f"{ROOT}.run").info("two\nlines", extra={"event": "progress", "chapters": 3})
            logging.getLogger(ITEMS).debug(
                "a request",
                extra={"event": "request", "partition": "b/0001", "stage": "embeddings", "request_id": "r-1"},
            )
    finally:
        current_run.reset(token)
    first, second = (json.loads(line) for line in lines(settings))
    assert set(FIELDS) <= first.keys()
    assert (first["level"], first["event"], first["run_id"], first["chapters"]) == ("INFO", "progress", "run-1", 3)
    assert first["message"] == "two\nlines"
    assert first["time"].endswith("+00:00")
    assert (second["partition"], second["stage"], second["request_id"]) == ("b/0001", "embeddings", "r-1")


def test_an_error_s_traceback_is_one_field_of_its_line(quiet_settings: Settings) -> None:
    settings = replace(quiet_settings, json_logs=True)
    with logging_to(settings):
        try:
            raise ValueError(f"with {SECRET}")
        except ValueError:
            logging.getLogger(ROOT).exception("it broke")
    (line,) = (json.loads(line) for line in lines(settings))
    assert "ValueError" in line["traceback"]
    assert SECRET not in json.dumps(line)


@pytest.mark.parametrize("as_json", [True, False])
def test_secrets_and_passwords_in_urls_never_reach_a_line(quiet_settings: Settings, as_json: bool) -> None:
    settings = replace(quiet_settings, json_logs=as_json, embedding_api_key=ODD, error_webhook_url="https://h/T0K")
    with logging_to(settings):
        logging.getLogger(ROOT).warning(
            "%s and %s",
            settings.database_url,
            "ftp://me:hidden@h",
            extra={"event": "x", "key": ODD, "at": "https://h/T0K"},
        )
    text = "\n".join(lines(settings))
    for secret in (SECRET, "hidden", "quotes", "T0K"):
        assert secret not in text
    assert "***" in text


@pytest.mark.parametrize(
    ("address", "password"),
    [
        ("postgresql://era@host/db?password=pa55%23word", "pa55#word"),
        ("postgresql://era@host/db?sslmode=require&password=pa55word", "pa55word"),
        ("host=host password=pa55word dbname=db", "pa55word"),
        ("postgresql://era:pa55#word@host/db", "pa55#word"),
        ("postgresql://era:pa/5@5word@host/db", "pa/5@5word"),
        ("postgresql://era:pa@55word@host/db?options=a@b", "pa@55word"),
        ("postgresql://era:[pa55word@host/db", "[pa55word"),
        ("postgresql://era:pa55\udcffword@host/db", "pa55\udcffword"),
        ("https://[pa55word", "https://[pa55word"),
    ],
)
@pytest.mark.parametrize("setting", ["database_url", "dagster_database_url", "error_webhook_url"])
def test_the_password_of_any_address_is_known_be_it_a_right_one_or_not(
    quiet_settings: Settings, setting: str, address: str, password: str
) -> None:
    redact = redactor(replace(quiet_settings, **{setting: address}))
    assert redact(f"FATAL: {password} is wrong, {address} too") == "FATAL: *** is wrong, *** too"


def test_a_password_in_the_query_of_any_url_is_taken_out(quiet_settings: Settings) -> None:
    line = (
        '{"at": "postgresql://era@host/db?password=hidden&sslmode=require", "or": "postgres://host/db?password=hidden"}'
    )
    assert json.loads(redactor(quiet_settings)(line)) == {
        "at": "postgresql://era@host/db?password=***&sslmode=require",
        "or": "postgres://host/db?password=***",
    }


def test_lines_about_single_items_are_written_at_debug_only(quiet_settings: Settings) -> None:
    for level, expected in (("INFO", ["the run"]), ("DEBUG", ["the run", "one chapter"])):
        settings = replace(quiet_settings, log_level=level, log_file=quiet_settings.log_file.with_name(f"{level}.log"))
        with logging_to(settings):
            logging.getLogger(f"{ROOT}.run").info("the run")
            logging.getLogger(ITEMS).debug("one chapter")
        assert [line.split(" ", 3)[-1].strip() for line in lines(settings)] == expected


def test_lines_about_single_items_never_reach_the_loggers_that_dagster_collects() -> None:
    assert not ITEMS.startswith(f"{ROOT}.")
    assert ITEMS != ROOT


def test_a_log_file_that_cannot_be_opened_is_told_and_the_work_goes_on(
    quiet_settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with logging_to(replace(quiet_settings, log_file=tmp_path / "file" / "era.log")):
        logging.getLogger(ROOT).info("still here")
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps the folder of an open file")
def test_a_log_folder_that_is_moved_away_is_made_anew_and_one_that_cannot_be_harms_nothing(
    quiet_settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line raised where it was written: a run that logs its requests, or a failed chapter, ended with it."""
    with logging_to(replace(quiet_settings, log_level="DEBUG")):
        logging.getLogger(ITEMS).debug("first")
        (tmp_path / "logs").rename(tmp_path / "before")
        logging.getLogger(ITEMS).debug("second")
        assert [line[-6:] for line in lines(quiet_settings)] == ["second"]
        shutil.rmtree(tmp_path / "logs")
        (tmp_path / "logs").write_text("", encoding="utf-8")
        logging.getLogger(ITEMS).debug("third")
        assert "third (not in " in capsys.readouterr().err
        (tmp_path / "logs").unlink()
        logging.getLogger(ITEMS).debug("fourth")
    assert [line[-6:] for line in lines(quiet_settings)] == ["fourth"]


def test_a_context_inside_another_writes_no_line_twice(quiet_settings: Settings) -> None:
    with logging_to(quiet_settings), logging_to(quiet_settings):
        logging.getLogger(ROOT).info("once")
    assert len(lines(quiet_settings)) == 1
    assert not [handler for handler in logging.getLogger(ROOT).handlers if isinstance(handler, logging.FileHandler)]
