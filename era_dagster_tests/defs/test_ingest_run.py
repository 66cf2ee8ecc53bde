"""What one run of the graph leaves behind when not all of it goes well, and whom it names."""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG
from psycopg.conninfo import conninfo_to_dict

from era_dagster.definitions import build_defs
from era_dagster.defs.instance import open_instance
from era_dagster.defs.jobs import run_config
from era_dagster.defs.partitions import BOOK_CHAPTERS
from era_dagster.defs.redrive import REDRIVE_JOB, REDRIVE_OP
from era_dagster.defs.runs import EVERYTHING_PENDING, INGEST_JOB, OP_NAME, TAKES_TAG
from era_dagster.domain.errors import ConfigurationError
from era_dagster.embedding.report import EmbedStats
from era_dagster.pipeline.drop import look_at_drop
from era_dagster.pipeline.receipt import Receipt
from era_dagster.settings import load_settings
from era_dagster_tests.defs.desk import Desk


def failure_of(result: dg.ExecuteInProcessResult) -> str:
    """The description of the run's one failure."""
    assert not result.success
    (event,) = result.get_step_failure_events()
    data = event.step_failure_data
    assert data.user_failure_data is not None
    assert data.user_failure_data.description is not None
    return data.user_failure_data.description


def run_until_terminated(
    desk: Desk, keys: list[str], *, first: Callable[[], None] = lambda: None
) -> dg.ExecuteInProcessResult:
    """A run that hears of the stop once the first chapter is stored, and `first` is done; in a callback of its event loop."""
    desk.server.seconds_per_text = 0.05
    heard: list[int] = []

    def terminate(receipt: Receipt, total: int, stats: EmbedStats | None) -> None:
        if receipt.chapters_stored and not heard:
            heard.append(receipt.chapters_stored)
            first()
            asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)

    job = build_defs(on_progress=terminate).resolve_job_def(INGEST_JOB)
    return job.execute_in_process(instance=desk.instance, run_config=run_config(keys), raise_on_error=False)


def test_an_interrupt_that_arrives_in_a_side_task_stops_the_run_and_what_is_done_is_kept(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """Dagster's handler raises wherever the program is: in a callback of the event loop it was logged, and the run went on."""
    desk.drop("level", range(1, 31))
    desk.asked()
    with caplog.at_level(logging.INFO, logger="era_dagster"):
        result = run_until_terminated(desk, desk.partitions())
    (ended,) = [event for event in result.all_events if event.is_job_failure]
    assert ended.job_failure_data.error is not None
    assert ended.job_failure_data.error.cls_name == dg.DagsterExecutionInterruptedError.__name__
    stored = {key for (key,) in desk.sql("SELECT partition_key FROM doctrine_sources")}
    assert 0 < len(stored) < 30
    assert "Stopped: " in caplog.text
    assert desk.sql("SELECT state FROM telemetry_runs") == [("stopped",)]
    assert desk.sql("SELECT labels, value FROM metric_totals WHERE metric = 'era_runs_ended_total'") == [
        ('["stopped"]', 1.0)
    ]
    assert desk.marked("chapters") <= stored


@pytest.mark.parametrize(
    ("job", "op", "config"),
    [(INGEST_JOB, OP_NAME, {"chapters": None, "look": None}), (REDRIVE_JOB, REDRIVE_OP, {"letters": None})],
)
def test_a_field_that_is_cleared_in_the_launchpad_is_as_if_never_given(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str, op: str, config: dict[str, None]
) -> None:
    """Dagster's check let it pass, and the run ended with a stack trace; a blank folder was made, and files written there."""
    monkeypatch.chdir(tmp_path)
    desk.drop("level", [1])
    cleared = {
        "drop_dir": None,
        "data_dir": " ",
        "embedding_provider": "",
        "embedding_urls": None,
        "embedding_model": " ",
    }
    result = (
        build_defs()
        .resolve_job_def(job)
        .execute_in_process(
            instance=desk.instance,
            run_config={"ops": {op: {"config": config}}, "resources": {"knowledge_base": {"config": cleared}}},
            raise_on_error=False,
        )
    )
    assert result.success
    assert desk.partitions() == (["level/0001"] if job == INGEST_JOB else [])
    assert not (tmp_path / " ").exists()


@pytest.mark.parametrize("key", ["", " ", "level", "level/1"])
def test_a_chapter_whose_key_is_none_is_named_before_anything_is_done(desk: Desk, key: str) -> None:
    """ "Not in the drop folder: ; drop the book again, or remove the partition.", after all others were done."""
    desk.drop("level", [1])
    desk.asked()
    result = desk.run(["level/0001", key])
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    assert f"{key.strip()!r} is not a partition key. Keys look like" in str(failed.step_failure_data.user_failure_data)
    assert desk.marked("chapters") == set()
    assert desk.run([" level/0001 "]).success
    assert desk.marked("chapters") == {"level/0001"}


def test_what_a_person_stopped_the_sensor_leaves_alone_for_a_minute(desk: Desk) -> None:
    """It started it again within seconds: what a person had launched, and whatever had gone on for longer than a minute."""
    desk.drop("level", range(1, 31))
    assert not run_until_terminated(desk, []).success
    assert desk.asked() == []
    desk.sql("UPDATE drop_chapters SET requested_at = requested_at - interval '61 seconds' RETURNING 1")
    assert desk.asked() == [[f"level/{number:04}" for number in range(1, 31)]]


def test_a_stop_stays_a_stop_where_the_database_is_away_at_its_end(
    desk: Desk, postgres_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look for partitions to remove met that it is away, and the run had failed, to be tried again."""
    monkeypatch.setattr("era_dagster.storage.database._LONGEST_WAIT_SECONDS", 0.5)
    desk.drop("level", range(1, 31))
    name = conninfo_to_dict(desk.database.url)["dbname"]

    def go_away() -> None:
        with psycopg.connect(postgres_server, autocommit=True) as connection:
            connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'.encode())
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", (name,)
            )

    result = run_until_terminated(desk, [], first=go_away)
    (ended,) = [event for event in result.all_events if event.is_job_failure]
    assert ended.job_failure_data.error is not None
    assert ended.job_failure_data.error.cls_name == dg.DagsterExecutionInterruptedError.__name__


def test_everything_pending_looks_at_the_drop_folder_first(desk: Desk) -> None:
    desk.drop("level", [1, 2])
    result = desk.run([])
    assert result.success
    assert desk.partitions() == ["level/0001", "level/0002"]
    assert desk.marked("minister_files") == {"level/0001", "level/0002"}
    (run,) = desk.instance.get_runs()
    assert run.tags[TAKES_TAG] == EVERYTHING_PENDING


def test_a_book_dropped_a_moment_before_is_waited_for_and_taken(desk: Desk) -> None:
    """The command found nothing to do, and said that all was well, when it started within two seconds of the drop."""
    desk.set_age(desk.drop("level", [1, 2], settled=False), -0.5)
    assert desk.run([]).success
    assert desk.marked("minister_files") == {"level/0001", "level/0002"}


def test_a_run_over_chapters_that_another_run_removed_before_it_began_is_a_success(desk: Desk) -> None:
    """Two ingests at once after a book was taken away: the second failed over what the first had done."""
    book = desk.drop("level", [1, 2])
    desk.tick()
    assert desk.execute().success
    book.unlink()
    desk.tick()
    (request,) = desk.requested
    assert desk.execute(request).success
    assert desk.execute(request).success
    assert desk.partitions() == []


def chosen_in_the_ui(desk: Desk, partition: str) -> dg.ExecuteInProcessResult:
    job = build_defs().resolve_implicit_global_asset_job_def()
    return job.execute_in_process(instance=desk.instance, partition_key=partition, raise_on_error=False)


def test_a_partition_that_a_person_materializes_is_as_the_drop_folder_has_it_now(desk: Desk) -> None:
    """Without a tick of the sensor in between the run was green, and what it stored or left was of the last look."""
    path = desk.drop("level", [1, 2])
    desk.tick()
    assert desk.execute().success
    desk.drop("level", [1], extra=", revised")
    assert chosen_in_the_ui(desk, "level/0001").success
    assert desk.sql("SELECT DISTINCT text FROM minister_entries WHERE chapter = 1") == [
        ("A dated record beats a good memory, level 1, revised.",)
    ]
    assert chosen_in_the_ui(desk, "level/0002").success
    assert desk.partitions() == ["level/0001"]
    path.write_text('[{"chapter_index": 1,', encoding="utf-8")
    desk.set_age(path, 60)
    assert "Everything else is done, but: Cannot read " in failure_of(chosen_in_the_ui(desk, "level/0001"))
    assert desk.sql("SELECT count(*) FROM minister_entries") == [(1,)]


def test_a_partition_whose_file_is_still_being_written_is_not_called_done(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run was green, and had left what the file held before."""
    monkeypatch.setenv("ERA_SETTLE_SECONDS", "1")
    desk.drop("level", [1])
    desk.drop("other", [1])
    desk.tick()
    assert desk.execute().success
    path = desk.drop("level", [1], extra=", revised")
    copied = threading.Event()

    def copy() -> None:
        while not copied.wait(0.02):
            desk.set_age(path, 0)

    with ThreadPoolExecutor(1) as threads:
        threads.submit(copy)
        try:
            assert f"Waiting: {path}: still being written" in failure_of(chosen_in_the_ui(desk, "level/0001"))
            assert chosen_in_the_ui(desk, "other/0001").success
        finally:
            copied.set()


def test_a_partition_that_lies_elsewhere_is_done_while_the_drop_folder_is_away(desk: Desk, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    desk.drop("level", [1]).rename(elsewhere / "level.json")
    look_at_drop(load_settings(os.environ), desk.database, elsewhere)
    desk.instance.add_dynamic_partitions(BOOK_CHAPTERS, ["level/0001"])
    Path(desk.variables["ERA_DROP_DIR"]).rmdir()
    failure = failure_of(chosen_in_the_ui(desk, "level/0001"))
    assert "Everything else is done, but: The drop folder " in failure and "Make it, or set ERA_DROP_DIR" in failure
    assert desk.sql("SELECT count(*) FROM minister_entries") == [(1,)]


def test_a_range_with_its_ends_swapped_is_refused_and_is_not_everything_pending(desk: Desk) -> None:
    desk.drop("level", [1, 2, 3])
    desk.tick()
    job = build_defs().resolve_implicit_global_asset_job_def()
    ends = {ASSET_PARTITION_RANGE_START_TAG: "level/0003", ASSET_PARTITION_RANGE_END_TAG: "level/0001"}
    result = job.execute_in_process(instance=desk.instance, tags=ends, raise_on_error=False)
    assert "No chapter lies between level/0003 and level/0001" in failure_of(result)
    assert desk.marked("chapters") == set()


def test_a_range_says_which_chapters_between_its_ends_it_leaves_out_for_they_came_later(desk: Desk) -> None:
    """A book's second chapter that came after its third was left out of a green run without a word."""
    for chapters in ([1, 3, 5], [1, 2, 3, 5]):
        desk.drop("level", chapters)
        desk.tick()
    job = build_defs().resolve_implicit_global_asset_job_def()
    ends = {ASSET_PARTITION_RANGE_START_TAG: "level/0001", ASSET_PARTITION_RANGE_END_TAG: "level/0003"}

    def said(**tags: str) -> list[str]:
        done = job.execute_in_process(instance=desk.instance, tags=ends | tags)
        return [entry.user_message for entry in desk.instance.all_logs(done.run_id)]

    (warning,) = [line for line in said() if line.startswith("Not in this range")]
    assert warning.startswith("Not in this range: level/0002. ")
    assert desk.marked("chapters") == {"level/0001", "level/0003"}
    assert not [line for line in said(**{"dagster/backfill": "chosen"}) if line.startswith("Not in this range")]


def test_a_file_that_cannot_be_read_fails_the_run_by_name_after_all_else_is_done(desk: Desk) -> None:
    for name, content in (("broken.json", '[{"chapter_index": 1,'), ("words.json", '["one", null]')):
        broken = desk.drop("level", [1]).with_name(name)
        broken.write_text(content, encoding="utf-8")
        desk.set_age(broken, 60)
    # A sentence each: those of records ran into each other.
    told = failure_of(desk.run([])).split(". Cannot read ")
    assert [name for part in told for name in ("broken.json", "words.json") if name in part] == [
        "broken.json",
        *["words.json"] * 2,
    ]
    assert desk.marked("vector_tables") == {"level/0001"}


def test_one_chapter_that_cannot_be_embedded_is_named_and_missing_and_the_others_are_marked(desk: Desk) -> None:
    desk.server.poison.add("level 2")
    desk.drop("level", [1, 2, 3])
    said = failure_of(desk.run([]))
    assert "1 of 3 chapters failed" in said
    assert "level/0002" in said
    for stage in ("embeddings", "vector_tables"):
        assert desk.marked(stage) == {"level/0001", "level/0003"}
    # What needs no vector of it is done all the same.
    for stage in ("chapters", "chunks", "minister_files"):
        assert desk.marked(stage) == {"level/0001", "level/0002", "level/0003"}


def test_a_chapter_nobody_dropped_is_named_and_the_others_of_the_run_are_done(desk: Desk) -> None:
    """A chapter that left the folder while its run stood in the queue took all other chapters of the run with it."""
    desk.drop("level", [1])
    desk.tick()
    said = failure_of(desk.run(["level/0001", "level/0099"]))
    assert "level/0099" in said
    assert "level/0001" not in said
    assert desk.marked("vector_tables") == {"level/0001"}


def test_an_embedding_server_that_is_away_fails_the_run_after_what_needs_no_vectors(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.drop("level", [1])
    desk.tick()
    monkeypatch.setenv("ERA_EMBEDDING_URLS", "http://127.0.0.1:9")
    assert "127.0.0.1:9" in failure_of(desk.execute())
    for stage in ("chapters", "chunks", "minister_files"):
        assert desk.marked(stage) == {"level/0001"}
    assert desk.marked("embeddings") == desk.marked("vector_tables") == set()
    monkeypatch.setenv("ERA_EMBEDDING_URLS", desk.variables["ERA_EMBEDDING_URLS"])
    assert desk.run(["level/0001"]).success


def test_a_run_over_chapters_refreshes_the_totals_too(desk: Desk) -> None:
    desk.drop("level", [1])
    desk.tick()
    assert desk.run(["level/0001"]).success
    assert desk.instance.get_latest_materialization_event(dg.AssetKey("combined_index")) is not None


def test_dagster_home_must_be_a_folder(
    variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "nowhere"))
    with (
        pytest.raises(ConfigurationError, match=r"DAGSTER_HOME is .*nowhere: it is no folder"),
        open_instance(load_settings(variables)),
    ):
        pass


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("storage: {postgres: {postgres_url: {env: NOT_SET_HERE}}}", 'variable "NOT_SET_HERE" which is not set'),
        ("storage: [\n", "line 2, column 1"),
        ("storag: {}", 'unexpected config entry "storag"'),
        ("storage: {custom: {module: nowhere, class: Storage, config: {}}}", "Couldn't import module nowhere"),
        ("a line", 'instead got: "a line"'),
        ("a: \udcff", "byte 0xff in position 3"),
    ],
)
def test_a_dagster_yaml_that_cannot_be_used_is_named_with_what_is_wrong_in_it(
    content: str, said: str, variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each was unexpected, to be reported to us."""
    (tmp_path / "dagster.yaml").write_bytes(content.encode("utf-8", "surrogateescape"))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with pytest.raises(ConfigurationError) as told, open_instance(load_settings(variables)):
        pass
    assert told.value.message.startswith(f"dagster.yaml in {tmp_path} cannot be used: ")
    assert said in told.value.message
    assert "Stack Trace" not in told.value.message


def test_without_dagster_home_the_instance_lives_in_the_projects_home(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    settings = load_settings(variables)
    with open_instance(settings) as instance:
        assert Path(instance.root_directory) == settings.home / "dagster"
        assert type(instance.event_log_storage).__name__ == "PostgresEventLogStorage"
        # The terminal belongs to the command, not to a log file.
        assert type(instance.compute_log_manager).__name__ == "NoOpComputeLogManager"
    assert "DAGSTER_HOME" not in os.environ


def test_what_a_run_with_a_failed_chapter_has_shown_of_the_others_is_not_shown_again(desk: Desk) -> None:
    """It was pending for `era ingest` as long as the other one failed, with all of its events each time."""
    desk.server.poison.add("level 2")
    desk.drop("level", [1, 2, 3])
    desk.asked()
    failure_of(desk.execute())
    assert desk.sql("SELECT partition_key FROM doctrine_sources WHERE NOT recorded ORDER BY 1") in (
        [],
        [("level/0002",)],
    )
