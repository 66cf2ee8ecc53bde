"""One chapter in all its tables: written by difference, whole or not at all, and removed without a trace."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from era_dagster.domain.errors import PermanentError
from era_dagster.storage.chapters import (
    retire_chapter,
    write_chapter,
)
from era_dagster.storage.database import Database
from era_dagster.storage.stamps import set_stamp, stored_stamps
from era_dagster.storage.vectors import Difference
from era_dagster_tests.pipeline.workbench import PER_RUN, dump_tables
from era_dagster_tests.storage.chapter_rows import make_chapter, make_write, store

TEXT = "The pilot waits for the tide. " * 12
KEY = "ferry/0001"


def rows(database: Database, query: str) -> list[Any]:
    with database.connection() as connection:
        return [row[0] if len(row) == 1 else row for row in connection.execute(query.encode())]


def test_a_chapter_is_written_to_every_table(database: Database) -> None:
    written = store(
        database, make_chapter(text=TEXT, domains=["risk", "timing"], rules=["Wait."], claims=["Tides turn."])
    )
    chunks = rows(database, "SELECT count(*) FROM chapter_chunks")[0]
    assert written.entries == written.domain_vectors == Difference(written=4)
    assert written.entry_vectors == Difference(written=2)
    assert written.chunks == written.chunk_vectors == Difference(written=chunks)
    assert written.domains == {"risk", "timing"}
    assert rows(database, "SELECT domains FROM doctrine_embeddings_all") == [["risk", "timing"]] * 2
    assert rows(database, "SELECT DISTINCT source_book, source_chapter, weight FROM doctrine_embeddings") == [
        ("ferry", 1, 1.0)
    ]


def test_the_same_chapter_again_writes_no_row(database: Database) -> None:
    chapter = make_chapter(text=TEXT, rules=["Wait.", {"text": "Count.", "example": "sacks"}], claims=["Tides turn."])
    store(database, chapter)
    before = dump_tables(database, versions=True)
    again = store(database, chapter, run_id="another run")
    assert again.entries == again.entry_vectors == Difference(unchanged=3)
    assert again.domains == frozenset()
    after = dump_tables(database, versions=True)
    receipts = "public.chapter_receipts"
    assert [row for row in after.pop(receipts) if "another run" not in row] == before.pop(receipts)
    assert after == before


def test_only_rows_that_differ_are_written(database: Database) -> None:
    store(database, make_chapter(text=TEXT, rules=["Wait.", "Count."], claims=["Tides turn."]))
    before = set(dump_tables(database, versions=True)["vectors.doctrine_embeddings_risk"])
    written = store(database, make_chapter(text=TEXT, rules=["Wait.", "Ask."], claims=["Tides turn."]))
    assert written.entries == written.domain_vectors == Difference(written=1, unchanged=2, removed=1)
    assert written.chunks == Difference(unchanged=len(rows(database, "SELECT 1 FROM chapter_chunks")))
    assert len(before & set(dump_tables(database, versions=True)["vectors.doctrine_embeddings_risk"])) == 2


def test_a_shorter_text_loses_its_last_chunks_and_their_vectors(database: Database) -> None:
    store(database, make_chapter(text=TEXT))
    store(database, make_chapter(text="Short."))
    assert rows(database, "SELECT text FROM chapter_chunks") == ["Short."]
    assert rows(database, "SELECT position FROM chunk_embeddings") == [0]


def test_a_changed_order_of_items_reaches_the_tables_and_makes_files_due(database: Database) -> None:
    store(database, make_chapter(rules=["Wait.", "Count."]))
    written = store(database, make_chapter(rules=["Count.", "Wait."]))
    assert written.domains == {"risk"}
    assert rows(database, "SELECT text FROM minister_entries ORDER BY position") == ["Count.", "Wait."]


def test_a_dropped_domain_loses_its_rows_and_is_due(database: Database) -> None:
    store(database, make_chapter(domains=["risk", "timing"], rules=["Wait."]))
    written = store(database, make_chapter(domains=["risk"], rules=["Wait."]))
    assert written.domains == {"timing"}
    assert rows(database, "SELECT domain FROM doctrine_embeddings") == ["risk"]
    assert rows(database, "SELECT domains FROM doctrine_embeddings_all") == [["risk"]]


def test_a_text_without_a_vector_is_a_dead_letter_and_no_vector_row(database: Database) -> None:
    store(database, make_chapter(rules=["Wait.", "Count."]), dead=["Count."])
    assert rows(database, "SELECT text FROM doctrine_embeddings_all") == ["Wait."]
    assert rows(database, "SELECT payload, partition_key, attempts, state FROM dead_letters") == [
        ("Count.", KEY, 1, "open")
    ]
    assert rows(database, "SELECT dead_count FROM doctrine_sources") == [1]


def test_the_same_failure_again_is_the_same_letter(database: Database) -> None:
    store(database, make_chapter(rules=["Wait."]), dead=["Wait."])
    store(database, make_chapter(rules=["Wait."]), dead=["Wait."])
    assert rows(database, "SELECT attempts, state FROM dead_letters") == [(2, "open")]


def test_a_letter_is_resolved_when_its_text_has_a_vector_or_is_gone(database: Database) -> None:
    store(database, make_chapter(rules=["Wait.", "Count."]), dead=["Wait.", "Count."])
    store(database, make_chapter(rules=["Wait."]))
    assert rows(database, "SELECT state FROM dead_letters") == ["resolved", "resolved"]


def test_a_write_without_vectors_leaves_vectors_and_letters_alone(database: Database) -> None:
    store(database, make_chapter(rules=["Wait.", "Count."]), dead=["Count."])
    store(database, make_chapter(rules=["Wait."]), vectors=False, stamps={})
    assert rows(database, "SELECT text FROM minister_entries") == ["Wait."]
    assert rows(database, "SELECT text FROM doctrine_embeddings_all") == ["Wait."]
    assert rows(database, "SELECT state FROM dead_letters") == ["open"]


def test_a_write_that_fails_in_the_middle_leaves_everything_as_it_was(database: Database) -> None:
    store(database, make_chapter(rules=["Wait."]))
    before = dump_tables(database, versions=True)
    changed = make_chapter(text="Other words.", rules=["Count."])
    wrong = make_write(changed, entry_vectors=[make_write(changed).entry_vectors[0][:5]])  # type: ignore[index]
    with pytest.raises(PermanentError, match="dimensions"):
        write_chapter(database, wrong)
    assert dump_tables(database, versions=True) == before


def test_stamps_are_set_with_the_rows_and_only_for_the_stages_written(database: Database) -> None:
    chapter = make_chapter(rules=["Wait."])
    store(database, chapter, stamps={"chapters": "a", "chunks": "b"})
    stamps = stored_stamps(database, [KEY, "unknown/0001"])
    assert stamps == {
        KEY: {"chapters": "a", "chunks": "b", "embeddings": None, "vector_tables": None, "minister_files": None}
    }


def test_a_later_stamp_changes_nothing_else_and_an_equal_one_nothing(database: Database) -> None:
    store(database, make_chapter(rules=["Wait."]))
    set_stamp(database, "minister_files", {KEY: "done"})
    before = dump_tables(database, versions=True)
    set_stamp(database, "minister_files", {KEY: "done", "unknown/0001": "done"})
    assert stored_stamps(database, [KEY])[KEY]["minister_files"] == "done"
    assert dump_tables(database, versions=True) == before


def test_a_retired_chapter_leaves_nothing_but_what_it_taught(database: Database) -> None:
    store(database, make_chapter(2, rules=["Stay."]))
    before = dump_tables(database, without=PER_RUN)
    store(database, make_chapter(1, text=TEXT, rules=["Wait.", "Count."]), dead=["Count."])
    assert retire_chapter(database, KEY) == {"risk"}
    assert dump_tables(database, without=PER_RUN) == before


def test_a_chapter_can_be_retired_before_any_model_was_used(database: Database) -> None:
    with database.connection() as connection:
        connection.execute("INSERT INTO minister_domains (domain, table_name) VALUES ('risk', 'r')")
    write_chapter(database, make_write(make_chapter(rules=["Wait."]), vectors=False))
    assert retire_chapter(database, KEY) == {"risk"}
    assert rows(database, "SELECT count(*) FROM doctrine_sources") == [0]


def test_writers_and_removers_of_one_chapter_at_once_leave_a_whole_version_or_none(database: Database) -> None:
    versions = [make_chapter(text=f"Version {n}. " * 30, rules=[f"Rule {n}.", "Wait."]) for n in range(3)]
    store(database, versions[0])
    failures: list[BaseException] = []

    def repeatedly(work: Callable[[], object]) -> None:
        try:
            for _ in range(15):
                work()
        except Exception as error:  # noqa: BLE001 - to be told by the main thread
            failures.append(error)

    works: list[Callable[[], object]] = [partial(write_chapter, database, make_write(version)) for version in versions]
    works.append(partial(retire_chapter, database, KEY))
    threads = [threading.Thread(target=repeatedly, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    texts = rows(database, "SELECT text FROM doctrine_sources")
    expected = sorted(entry.text for version in versions if [version.text] == texts for entry in version.entries)
    for table in ("minister_entries", "doctrine_embeddings", "doctrine_embeddings_all"):
        assert rows(database, f"SELECT text FROM {table} ORDER BY text") == expected
    assert "".join(rows(database, "SELECT text FROM chapter_chunks")).count("Version") == 30 * len(texts)
