"""The register of the drop: what is recorded, what is pending, and who failed."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from era_dagster.domain.stages import STAGES, Stage
from era_dagster.storage.attempts import note_failures, note_requested
from era_dagster.storage.database import Database
from era_dagster.storage.drops import (
    KnownChapter,
    QuarantineRecord,
    SourceLook,
    find_chapters,
    known_sources,
    pending_chapters,
    record_look,
    source_troubles,
)
from era_dagster.storage.stamps import set_stamp
from era_dagster_tests.pipeline.workbench import dump_tables
from era_dagster_tests.storage.chapter_rows import make_chapter, store
from era_dagster_tests.waiting import wait_until

ROOT = Path("/drop").absolute()
FERRY = str(ROOT / "ferry")
SUFFIXES: Mapping[Stage, str] = dict.fromkeys(STAGES, "")


def look(source: str = FERRY, *, chapters: Mapping[str, bytes] | None = None, **changes: object) -> SourceLook:
    fields = {"signature": "s1", "state": "read", "reason": "", "sha256": b"1", "chapters": chapters}
    return SourceLook(source_path=source, **{**fields, **changes})  # type: ignore[arg-type]


def record(database: Database, *looks: SourceLook, **more: object) -> None:
    record_look(database, **{"looks": looks, "vanished": (), "gone": (), "shadowed": {}, **more})  # type: ignore[arg-type]


def pending(database: Database, **changes: object) -> list[str]:
    options = {"stages": STAGES, "suffixes": SUFFIXES, "root": ROOT, **changes}
    return [chapter.partition_key for chapter in pending_chapters(database, **options)]  # type: ignore[arg-type]


def only(database: Database, key: str = "ferry/0001") -> KnownChapter:
    return find_chapters(database, [key])[0]


def test_what_was_recorded_is_known_under_its_folder_and_under_itself(database: Database) -> None:
    record(database, look(chapters={"ferry/0001": b"a", "ferry/0002": b"b"}), look(str(ROOT / "deep" / "inn")))
    for root in (ROOT, Path(FERRY)):
        known = known_sources(database, root)
        assert known.keys() == {FERRY}
        assert (known[FERRY].signature, known[FERRY].state) == ("s1", "read")
        assert known[FERRY].chapters == {"ferry/0001": b"a", "ferry/0002": b"b"}
    assert known_sources(database, ROOT.parent) == {}


def test_the_same_look_again_changes_no_row(database: Database) -> None:
    trouble = QuarantineRecord(file="f", location="[0]", reason="no object")
    looks = [look(chapters={"ferry/0001": b"a"}, quarantined=[trouble]), look(str(ROOT / "inn"), state="waiting")]
    record(database, *looks)
    before = dump_tables(database, versions=True)
    record(database, *looks, shadowed={})
    assert dump_tables(database, versions=True) == before


def test_quarantine_ends_with_the_trouble_and_keeps_its_first_time(database: Database) -> None:
    troubles = [QuarantineRecord(file="f", location=f"[{place}]", reason="no object") for place in range(2)]
    record(database, look(quarantined=troubles))
    kept = [row for row in dump_tables(database)["public.quarantine"] if "[1]" in row]
    record(database, look(signature="s2", quarantined=troubles[1:]))
    assert source_troubles(database, ROOT) == troubles[1:]
    assert dump_tables(database)["public.quarantine"] == kept
    record(database, look(signature="s3"))
    assert source_troubles(database, ROOT) == []


def test_an_unreadable_look_keeps_the_chapters_of_the_source(database: Database) -> None:
    record(database, look(chapters={"ferry/0001": b"a"}))
    record(database, look(signature="s2", state="unreadable", reason="broken", sha256=None))
    assert known_sources(database, ROOT)[FERRY].chapters == {"ferry/0001": b"a"}
    assert only(database).content_hash == b"a"


def test_a_chapter_that_moves_to_another_source_is_known_there(database: Database) -> None:
    record(database, look(chapters={"ferry/0001": b"a"}))
    record(database, look(f"{FERRY}.json", chapters={"ferry/0001": b"a"}))
    assert only(database).source_path == f"{FERRY}.json"
    assert known_sources(database, ROOT)[FERRY].chapters == {}


def test_the_reason_of_a_shadowed_source_is_recorded_without_reading_it(database: Database) -> None:
    record(database, look(), look(str(ROOT / "inn"), state="unreadable", reason="broken"))
    record(database, shadowed={FERRY: "newer drops", str(ROOT / "inn"): "newer drops"})
    known = known_sources(database, ROOT)
    assert (known[FERRY].state, known[FERRY].reason, known[FERRY].signature) == ("read", "newer drops", "s1")
    assert known[str(ROOT / "inn")].reason == "broken"


def test_a_vanished_source_stays_until_its_chapters_are_retired_and_is_read_when_it_returns(database: Database) -> None:
    record(database, look(chapters={"ferry/0001": b"a"}), look(str(ROOT / "inn")))
    record(database, vanished=[FERRY, str(ROOT / "inn")], gone=["ferry/0001"])
    known = known_sources(database, ROOT)
    assert list(known) == [FERRY]
    assert (known[FERRY].chapters, known[FERRY].signature) == ({}, "")
    assert only(database).gone


def test_a_chapter_that_comes_back_is_not_gone_any_more(database: Database) -> None:
    record(database, look(chapters={"ferry/0001": b"a"}))
    record(database, gone=["ferry/0001"])
    record(database, look(chapters={"ferry/0001": b"a"}))
    assert not only(database).gone


def test_a_chapter_is_pending_until_every_stage_has_its_stamp(database: Database) -> None:
    chapter = make_chapter(rules=["Wait."])
    record(database, look(chapters={"ferry/0001": chapter.content_hash}))
    assert pending(database) == ["ferry/0001"]
    stamp = chapter.content_hash.hex()
    store(database, chapter, stamps=dict.fromkeys(set(STAGES) - {"minister_files"}, stamp))
    assert pending(database) == ["ferry/0001"]
    assert pending(database, stages=["chapters", "embeddings"]) == []
    set_stamp(database, "minister_files", {"ferry/0001": stamp})
    assert pending(database) == []


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_whose_rules_changed_makes_chapters_pending(database: Database, stage: Stage) -> None:
    chapter = make_chapter(rules=["Wait."])
    record(database, look(chapters={"ferry/0001": chapter.content_hash}))
    store(database, chapter, stamps=dict.fromkeys(STAGES, chapter.content_hash.hex()))
    assert pending(database, suffixes={**SUFFIXES, stage: ":2"}) == ["ferry/0001"]
    assert pending(database, suffixes={name: "" for name in STAGES if name != stage}) == ["ferry/0001"]


def test_gone_chapters_are_pending_and_a_root_limits_the_answer(database: Database) -> None:
    record(database, look(chapters={"ferry/0001": b"a"}), look(str(ROOT / "deep" / "inn"), chapters={"inn/0001": b"b"}))
    record(database, gone=["ferry/0001"])
    assert pending(database) == ["ferry/0001"]
    assert pending(database, root=None) == ["ferry/0001", "inn/0001"]


def test_requests_are_counted_until_the_content_changes(database: Database) -> None:
    record(database, look(chapters={"ferry/0001": b"a"}))
    note_requested(database, ["ferry/0001"])
    note_requested(database, ["ferry/0001"])
    assert only(database).attempts == 2
    assert only(database).requested_at is not None
    record(database, look(chapters={"ferry/0001": b"b"}))
    assert (only(database).attempts, only(database).requested_at) == (0, None)


def test_a_failure_is_kept_until_the_chapter_is_finished(database: Database) -> None:
    record(database, look(chapters={"ferry/0001": b"a", "ferry/0002": b"b"}))
    tried = find_chapters(database, ["ferry/0001", "ferry/0002"])
    note_failures(database, tried, {"ferry/0001": "no", "ferry/0002": "no"}, [])
    note_failures(database, tried, {"ferry/0001": "still no"}, ["ferry/0002"])
    with database.connection() as connection:
        assert connection.execute("SELECT failure FROM drop_chapters ORDER BY partition_key").fetchall() == [
            ("still no",),
            (None,),
        ]


@pytest.mark.parametrize(("well", "stored", "attempts"), [(True, True, 0), (False, True, 1), (True, False, 1)])
def test_a_run_that_finished_a_chapter_leaves_no_attempts_behind(
    database: Database, well: bool, stored: bool, attempts: int
) -> None:
    """They count runs that did not: the next one, for another reason, need not wait for them. Where the run itself failed, or
    stored another text than is there, the chapter is pending still."""
    finished, failed = make_chapter(1), make_chapter(2)
    store(database, finished if stored else make_chapter(1, "Another text."))
    keys = ["ferry/0001", "ferry/0002"]
    record(database, look(chapters=dict(zip(keys, (finished.content_hash, failed.content_hash), strict=True))))
    note_requested(database, keys)
    note_failures(database, find_chapters(database, keys), {"ferry/0002": "no"}, ["ferry/0001"], well=well)
    assert [only(database, key).attempts for key in keys] == [attempts, 1]


@pytest.mark.parametrize("noted", ["failures", "requests"])
def test_who_notes_something_of_several_chapters_takes_them_in_one_order(database: Database, noted: str) -> None:
    record(database, look(chapters={"ferry/0001": b"a", "ferry/0002": b"b"}))
    tried = find_chapters(database, ["ferry/0001", "ferry/0002"])

    def note() -> None:
        if noted == "failures":
            note_failures(database, tried, {"ferry/0002": "no"}, ["ferry/0001"])
        else:
            note_requested(database, ["ferry/0002", "ferry/0001"])

    held = "SELECT FROM drop_chapters WHERE partition_key = %s FOR UPDATE"
    waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with ThreadPoolExecutor() as pool, database.connection() as connection:
        connection.execute(held, ("ferry/0001",))
        noting = pool.submit(note)
        with psycopg.connect(database.url, autocommit=True) as other:
            wait_until(lambda: other.execute(waits).fetchone() == (1,))
            other.execute(held + " NOWAIT", ("ferry/0002",))
        connection.commit()
        noting.result()
