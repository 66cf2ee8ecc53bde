"""The sensor on a real instance: what a tick registers, what it requests, and what it leaves alone."""

import shutil
import time
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill

from era_dagster.defs.partitions import BOOK_CHAPTERS
from era_dagster.domain.errors import ConfigurationError
from era_dagster.domain.stages import STAGES
from era_dagster.storage.drops import SourceLook, record_look
from era_dagster_tests.defs.desk import Desk


def test_a_new_book_becomes_partitions_and_runs_of_at_most_chapters_per_run(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERA_CHAPTERS_PER_RUN", "2")
    desk.drop("level", [1, 2, 3])
    assert desk.asked() == [["level/0001", "level/0002"], ["level/0003"]]
    assert desk.partitions() == ["level/0001", "level/0002", "level/0003"]
    for request in desk.requested:
        assert request.tags["dagster/max_retries"] == "0"
        assert desk.execute(request).success
    for stage in STAGES:
        assert desk.marked(stage) == {"level/0001", "level/0002", "level/0003"}


def test_when_nothing_is_new_the_tick_says_what_it_saw(desk: Desk) -> None:
    desk.drop("level", [1, 2])
    desk.tick()
    desk.execute()
    result = desk.tick()
    assert not result.run_requests
    assert result.skip_reason is not None
    assert "2 chapters, 0 new, 0 changed, 0 gone" in (result.skip_reason.skip_message or "")


def test_a_tick_reads_the_partitions_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """8,640 times a day, all chapters there are."""
    desk.drop("level", [1, 2])
    desk.tick()
    desk.execute()
    read: list[str] = []
    answer = desk.instance.get_dynamic_partitions
    monkeypatch.setattr(desk.instance, "get_dynamic_partitions", lambda name: read.append(name) or answer(name))
    assert desk.asked() == []
    assert read == [BOOK_CHAPTERS]


def test_an_empty_drop_folder_starts_nothing(desk: Desk) -> None:
    assert desk.asked() == []
    assert desk.partitions() == []


def test_a_half_written_file_is_left_alone_until_it_has_looked_the_same_for_a_while(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERA_SETTLE_SECONDS", "600")
    path = desk.drop("level", [1], settled=False)
    assert desk.asked() == []
    assert str(path) in (desk.cursor or "")
    assert desk.partitions() == []
    desk.set_age(path, 601)
    assert desk.asked() == [["level/0001"]]
    assert str(path) not in (desk.cursor or "")


def test_a_clock_that_runs_ahead_does_not_hold_a_file_back_for_ever(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERA_SETTLE_SECONDS", "0.5")
    desk.set_age(desk.drop("level", [1], settled=False), -3600)
    assert desk.asked() == []
    time.sleep(0.6)
    assert desk.asked() == [["level/0001"]]


def test_touched_files_with_the_same_content_start_nothing(desk: Desk) -> None:
    path = desk.drop("level", [1, 2])
    desk.tick()
    desk.execute()
    desk.set_age(path, 30)
    assert desk.asked() == []


def test_only_the_chapters_that_changed_get_a_run(desk: Desk) -> None:
    desk.drop("level", [1])
    desk.drop("gate", [1, 2])
    desk.tick()
    desk.execute()
    desk.drop("gate", [1, 2, 3])
    desk.drop("level", [1], extra=", revised")
    assert desk.asked() == [["gate/0003", "level/0001"]]


def test_a_failed_chapter_is_requested_again_after_a_wait_and_the_good_ones_are_not(desk: Desk) -> None:
    desk.server.poison.add("level 2")
    desk.drop("level", [1, 2])
    desk.tick()
    failed = desk.execute()
    assert not failed.success
    assert desk.marked("vector_tables") == {"level/0001"}
    skipped = desk.tick().skip_reason
    assert skipped is not None
    assert "1 pending: 1 that a run did not finish, tried again in" in (skipped.skip_message or "")
    assert desk.asked() == []
    desk.sql("UPDATE drop_chapters SET requested_at = now() - interval '61 seconds'")
    assert desk.asked() == [["level/0002"]]
    # The second wait is longer.
    assert not desk.execute().success
    desk.sql("UPDATE drop_chapters SET requested_at = now() - interval '61 seconds'")
    assert desk.asked() == []
    desk.sql("UPDATE drop_chapters SET requested_at = now() - interval '301 seconds'")
    assert desk.asked() == [["level/0002"]]


def test_a_repaired_chapter_is_requested_at_once_and_succeeds(desk: Desk) -> None:
    desk.server.poison.add("poisonous")
    desk.drop("level", [1], extra=" poisonous")
    desk.tick()
    assert not desk.execute().success
    desk.drop("level", [1], extra=" mended")
    assert desk.asked() == [["level/0001"]]
    assert desk.execute().success
    assert desk.marked("vector_tables") == {"level/0001"}


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING])
def test_chapters_of_a_waiting_run_are_not_requested_twice(desk: Desk, status: dg.DagsterRunStatus) -> None:
    desk.drop("level", [1, 2])
    desk.waiting_run(["level/0001"], status)
    assert desk.asked() == [["level/0002"]]


def test_chapters_requested_by_the_last_tick_are_not_requested_by_the_next(desk: Desk) -> None:
    desk.drop("level", [1, 2])
    assert desk.asked() == [["level/0001", "level/0002"]]
    desk.waiting_run(["level/0001", "level/0002"], dg.DagsterRunStatus.NOT_STARTED)
    # Long after the wait for failed chapters: the run still waits.
    desk.sql("UPDATE drop_chapters SET requested_at = now() - interval '1 day'")
    assert desk.asked() == []


def test_a_tick_that_is_only_previewed_holds_no_chapter_back(desk: Desk) -> None:
    """After "Preview tick result" in the UI the drop waited for a minute, as if a run had failed over it."""
    desk.drop("level", [1])
    assert len(desk.preview().run_requests or []) == 1
    assert desk.asked() == [["level/0001"]]


def test_a_vanished_chapter_gets_a_run_that_removes_its_rows_and_its_partition(desk: Desk) -> None:
    desk.drop("level", [1, 2])
    desk.tick()
    desk.execute()
    desk.drop("level", [1])
    assert desk.asked() == [["level/0002"]]
    assert desk.execute().success
    assert desk.partitions() == ["level/0001"]
    assert desk.sql("SELECT DISTINCT chapter FROM minister_entries") == [(1,)]
    assert desk.asked() == []


def test_a_partition_leaves_only_when_no_backfill_goes_on(desk: Desk) -> None:
    """Dagster fails a backfill as a whole, and cancels its runs, when a single one of its partitions is removed."""
    desk.drop("level", [1, 2])
    desk.tick()
    desk.execute()
    desk.instance.add_dynamic_partitions(BOOK_CHAPTERS, ["added-by-hand/0001"])
    backfill = PartitionBackfill(
        backfill_id="b",
        status=BulkActionStatus.REQUESTED,
        from_failure=False,
        tags={},
        backfill_timestamp=time.time(),
        asset_selection=[dg.AssetKey("chapters")],
    )
    desk.instance.add_backfill(backfill)
    desk.drop("level", [1])
    desk.tick()
    assert desk.execute().success
    assert desk.asked() == []
    assert desk.partitions() == ["level/0001", "level/0002", "added-by-hand/0001"]
    desk.instance.update_backfill(backfill.with_status(BulkActionStatus.COMPLETED_SUCCESS))
    assert desk.asked() == []
    assert desk.partitions() == ["level/0001", "added-by-hand/0001"]


def test_a_partition_that_somebody_deleted_comes_back_with_its_marks(desk: Desk) -> None:
    desk.drop("level", [1, 2])
    desk.tick()
    desk.execute()
    desk.instance.delete_dynamic_partition(BOOK_CHAPTERS, "level/0001")
    desk.sql("UPDATE drop_chapters SET requested_at = now() - interval '61 seconds'")
    assert desk.asked() == [["level/0001"]]
    assert desk.execute().success
    assert set(desk.partitions()) == {"level/0001", "level/0002"}
    assert desk.asked() == []


@pytest.mark.parametrize("cursor", ["none", "7", '{"a": 1}', '["a"]'])
def test_a_cursor_that_somebody_wrote_is_as_good_as_none(desk: Desk, cursor: str) -> None:
    desk.drop("level", [1])
    desk.cursor = cursor
    assert desk.asked() == [["level/0001"]]
    assert desk.cursor == "{}"


def test_a_drop_folder_that_is_not_there_is_an_error_and_nothing_is_removed(desk: Desk) -> None:
    path = desk.drop("level", [1])
    desk.tick()
    desk.execute()
    shutil.rmtree(path.parent)
    with pytest.raises(ConfigurationError, match="drop"):
        desk.tick()
    assert desk.sql("SELECT count(*) FROM drop_chapters WHERE NOT gone") == [(1,)]
    assert not Path(desk.variables["ERA_DROP_DIR"]).exists()


def test_the_priority_of_a_drop_becomes_the_priority_of_its_run(desk: Desk) -> None:
    desk.drop("level", [1])
    desk.drop("urgent", [1], priority=5)
    assert desk.asked() == [["urgent/0001"], ["level/0001"]]
    assert [request.tags["dagster/priority"] for request in desk.requested] == ["5", "0"]


def test_an_unreadable_file_does_not_stop_the_others(desk: Desk) -> None:
    (desk.drop("level", [1]).parent / "broken.json").write_text('[{"chapter_index": 1,', encoding="utf-8")
    desk.set_age(Path(desk.variables["ERA_DROP_DIR"]) / "broken.json", 60)
    assert desk.asked() == [["level/0001"]]
    desk.execute()
    result = desk.tick()
    assert result.skip_reason is not None
    assert "1 unreadable" in (result.skip_reason.skip_message or "")


def test_chapters_that_are_stored_but_not_marked_get_a_run_that_marks_them(desk: Desk) -> None:
    """A kill between a chapter's last commit and its event left it missing in the UI for ever."""
    desk.drop("level", [1, 2])
    desk.tick()
    desk.execute()
    desk.sql("UPDATE drop_chapters SET attempts = 0")
    with dg.instance_for_test() as empty:
        desk.instance = empty
        assert desk.asked() == [["level/0001", "level/0002"]]
        before = desk.server.requests
        assert desk.execute().success
        assert desk.server.requests == before
        for stage in STAGES:
            assert desk.marked(stage) == {"level/0001", "level/0002"}
        assert desk.asked() == []


@pytest.mark.slow
def test_a_tick_over_twenty_thousand_known_chapters_stays_below_dagsters_limit(desk: Desk) -> None:
    """Dagster ends a tick after 60 s. Half of that is asked for, on any machine; it takes a few seconds."""
    books = [f"book{number:03}" for number in range(100)]
    drop = Path(desk.variables["ERA_DROP_DIR"])
    record_look(
        desk.database,
        looks=[
            SourceLook(
                source_path=str(drop.parent / "elsewhere" / f"{book}.json"),
                signature="v1",
                state="read",
                reason="",
                chapters={f"{book}/{number:04}": bytes(32) for number in range(200)},
            )
            for book in books
        ],
        vanished=[],
        gone=[],
        shadowed={},
    )
    started = time.monotonic()
    asked = desk.asked()
    assert sum(len(keys) for keys in asked) == 4000
    assert time.monotonic() - started < 30
    assert len(desk.partitions()) == 4000


def test_files_that_a_killed_run_left_behind_are_mended_by_the_next_quiet_tick(desk: Desk) -> None:
    desk.drop("level", [1])
    desk.tick()
    assert desk.execute().success
    written = Path(desk.variables["ERA_DATA_DIR"]) / "ministers" / "truth" / "principles.json"
    right = written.read_bytes()
    written.write_text("[", encoding="utf-8")
    desk.sql("UPDATE minister_domains SET rendered_at = NULL")
    assert desk.asked() == []
    assert written.read_bytes() == right
