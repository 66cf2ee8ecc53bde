"""What `era` prints, whatever the names in it and wherever it goes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from era_dagster_tests.cli.shell import Shell


@pytest.mark.parametrize("name", ["Notes [b] on [red]things", "Ends [/b] here"])
def test_brackets_in_a_book_s_name_are_shown_and_no_markup(shell: Shell, name: str) -> None:
    record = {"book": name, "chapter_index": 1, "text": "Wait.", "domains": ["truth"], "rules": ["Wait."]}
    (shell.folder / "data" / "drop" / "one.json").write_text(json.dumps(record), encoding="utf-8")
    assert shell.era("ingest").returncode == 0
    done = shell.era("status")
    assert done.returncode == 0, done.stderr
    assert f" {name} " in done.stdout


def test_a_table_in_a_pipe_is_folded_nowhere(shell: Shell) -> None:
    done = shell.era("doctor", "--settings", COLUMNS="40")
    assert "ERA_METRICS_INTERVAL_SECONDS" in done.stdout
    assert str(shell.folder / "data" / "drop") in done.stdout.split("Settings")[1]


@pytest.mark.parametrize(
    "words", [("search", "wait", "-k", "0"), ("verify", "--fix"), ("ingest", "nowhere"), ("spaces", "promote", "9")]
)
def test_wrong_use_is_told_as_json_to_who_asked_for_json(shell: Shell, words: tuple[str, ...]) -> None:
    done = shell.era(*words, "--json")
    assert done.returncode == 2
    said = json.loads(done.stdout)["error"]
    assert said in done.stderr
    assert "Error: " in done.stderr
    assert "Error:  " not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("words", [("search", "wait", "--json"), ("spaces", "list", "--json"), ("db", "url")])
def test_an_answer_that_cannot_be_written_is_one_sentence_and_exit_code_1(shell: Shell, words: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "era_dagster.cli", *words],
            cwd=shell.folder,
            env=shell.environment,
            stdout=full,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "Error: The system refused: No space left on device. Free some space, then run again.\n"
