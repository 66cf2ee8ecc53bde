"""A second embedding space: built from stored text, caught up, promoted, gone back from, dropped; and what is refused."""

import asyncio
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import psycopg
import pytest

from era_dagster.domain.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    EndpointUnavailable,
    PermanentError,
    TransientError,
)
from era_dagster.domain.stages import STAGES
from era_dagster.pipeline.ingest import run_stages
from era_dagster.pipeline.space_build import BuildReport, build_space
from era_dagster.settings import load_settings
from era_dagster.storage import indexes
from era_dagster.storage.database import Database
from era_dagster.storage.indexes import exact_rows, indexed_tables
from era_dagster.storage.space_check import check_space
from era_dagster.storage.space_register import RegisteredSpace, list_spaces, working_on
from era_dagster.storage.space_rows import due_chapters, stored_texts, write_space_chapter
from era_dagster.storage.space_switch import drop_space, promote_space
from era_dagster.storage.table_audit import table_faults
from era_dagster_tests.fakes.embedding_server import (
    FakeEmbeddingServer,
    FakeTransport,
    Fault,
    Reply,
    serving,
    vector_of,
)
from era_dagster_tests.pipeline.workbench import PER_RUN, Workbench, chapter
from era_dagster_tests.waiting import wait_until

RULES = [f"Count to {number} before you answer." for number in range(3)]


class OtherModel(FakeEmbeddingServer):
    """Another model: other vectors for the same texts."""

    def _encoded_vector(self, text: str, dimension: int) -> bytes:
        return super()._encoded_vector(f"{self.model}: {text}", dimension)


def second(bench: Workbench, *, model: str = "second-model", dimension: int = 16) -> Workbench:
    """The same knowledge base, configured for another model."""
    return Workbench(bench.settings, bench.database, server=OtherModel(model=model, dimension=dimension))


def filled(bench: Workbench) -> Workbench:
    for book in ("ferry", "harbour"):
        bench.drop(
            book,
            *(
                chapter(i, f"{book} {i}. " * 60, ["risk", "timing"], rules=[f"{r} {book} {i}" for r in RULES])
                for i in (1, 2)
            ),
        )
    bench.ingest()
    return bench


def build(bench: Workbench, **options) -> BuildReport:
    bench.server.batches.clear()
    return build_space(bench.settings, bench.database, transport=FakeTransport(bench.server), **options)


def number(report: BuildReport) -> int:
    assert report.space is not None
    return report.space.space_id


def states(bench: Workbench) -> dict[int, tuple[str, str]]:
    return {found.space_id: (found.state, found.space.model) for found in list_spaces(bench.database)}


def space(bench: Workbench, space_id: int) -> RegisteredSpace:
    return next(found for found in list_spaces(bench.database) if found.space_id == space_id)


def test_the_smallest_pool_is_enough_for_a_build(bench: Workbench) -> None:
    other = second(filled(bench))
    settings = load_settings({"ERA_DATABASE_POOL": "2"})
    with Database(bench.database.url, pool_size=settings.database_pool) as database:
        built = build_space(other.settings, database, transport=FakeTransport(other.server))
    assert built.space is not None and built.space.complete


def test_a_space_is_built_from_stored_texts_alone_and_holds_what_an_ingest_would(
    bench: Workbench, another_bench: Callable[[str], Workbench]
) -> None:
    filled(bench)
    for source in bench.settings.drop_dir.rglob("*.json"):
        source.write_bytes(b"nobody may read this")
    before = bench.tables(versions=True)
    built = build(second(bench, dimension=24))
    assert built.space is not None and built.space.complete
    assert (built.chapters, built.dead, built.from_cache) == (4, [], 0)
    after = bench.tables(versions=True)
    assert {name for name in after if after[name] != before[name]} == {
        "public.embedding_cache",
        "public.embedding_spaces",
        "public.space_chapters",
    }
    promote_space(bench.database, number(built))

    fresh = another_bench("fresh")
    fresh.server = OtherModel(model="second-model", dimension=24)
    fresh.settings = replace(fresh.settings, embedding_model="second-model")
    for source in bench.settings.drop_dir.rglob("*.json"):
        source.unlink()
    filled(fresh)
    ignored = PER_RUN | {"source_path", "recorded"}
    promoted, ingested = (
        {
            name: rows
            for name, rows in each.tables(without=ignored).items()
            if "cache" not in name and "spaces" not in name
        }
        for each in (bench, fresh)
    )
    assert promoted.keys() == ingested.keys()
    assert {name for name in promoted if promoted[name] != ingested[name]} == {
        "public.drop_sources",  # the files were written anew
        "public.space_chapters",
    }


def test_after_a_promotion_nothing_is_pending_and_the_tables_are_sound(bench: Workbench) -> None:
    filled(bench)
    other = second(bench)
    promote_space(bench.database, number(build(other)))
    other.server.batches.clear()
    assert other.pending() == []
    assert other.ingest().chapters_stored == 0
    assert other.asked == []
    assert table_faults(bench.database) == []
    assert set(bench.rows("SELECT model FROM doctrine_sources")) == {"second-model"}
    with pytest.raises(ConfigurationError, match=r"second-model .*test-model is configured") as refused:
        bench.pending()
    assert "era spaces build" in refused.value.hint
    assert "era spaces promote" in refused.value.hint


def test_a_space_is_gone_back_from_the_way_it_was_come_to(bench: Workbench) -> None:
    filled(bench)
    before = bench.tables(without=PER_RUN)
    promote_space(bench.database, number(build(second(bench))))
    assert states(bench) == {1: ("retired", "test-model"), 2: ("live", "second-model")}
    promote_space(bench.database, 1)
    assert states(bench) == {1: ("live", "test-model"), 2: ("retired", "second-model")}
    after = bench.tables(without=PER_RUN)
    assert {name for name in after if after[name] != before[name]} == {
        "public.embedding_cache",
        "public.embedding_spaces",
        "public.space_chapters",
    }
    assert bench.pending() == []


def test_a_second_build_does_only_what_an_ingest_changed_meanwhile(bench: Workbench) -> None:
    filled(bench)
    other = second(bench)
    beside = number(build(other))
    bench.drop("ferry", chapter(1, "ferry 1. " * 60, ["risk", "power"], rules=["A new rule."]))  # 2 has left, 1 differs
    bench.drop("inn", chapter(1, domains=["data"], claims=["A new book."]))
    bench.ingest()
    assert not space(bench, beside).complete
    with pytest.raises(PermanentError, match=r"not complete: 2 of 4 chapters .* and 1 have left") as refused:
        promote_space(bench.database, beside)
    assert "era spaces build --model second-model" in refused.value.hint
    again = build(other)
    assert (again.chapters, again.chapters_removed) == (2, 1)
    assert {text for text in other.asked if text.startswith(("A new", "Count"))} == {"A new rule.", "A new book."}
    assert check_space(bench.database, beside).sound
    promote_space(bench.database, beside)
    assert table_faults(bench.database) == []
    assert other.pending() == []


def test_the_way_back_is_refused_when_the_old_space_missed_an_ingest_until_a_build_catches_it_up(
    bench: Workbench,
) -> None:
    filled(bench)
    other = second(bench)
    promote_space(bench.database, number(build(other)))
    other.drop("inn", chapter(1, domains=["data"], claims=["A new book."]))
    other.ingest()
    with pytest.raises(PermanentError, match="1 of 5 chapters are missing or changed since"):
        promote_space(bench.database, 1)
    assert build(bench).chapters == 1
    promote_space(bench.database, 1)
    assert table_faults(bench.database) == []
    assert bench.pending() == []


def test_an_ingest_while_a_space_is_built_is_caught_up_before_the_build_ends(bench: Workbench) -> None:
    filled(bench)
    other = second(bench)
    dropped = False

    def meanwhile(report: BuildReport) -> None:
        nonlocal dropped
        if report.chapters == 3 and not dropped:
            dropped = True
            bench.drop("inn", chapter(1, domains=["data"], claims=["Dropped while it was built."]))
            ingest_elsewhere(bench, url)

    with serving(bench.server) as url:
        built = build(other, on_progress=meanwhile)
    assert built.chapters == 5
    assert built.space is not None and built.space.complete
    promote_space(bench.database, number(built))
    assert bench.rows("SELECT text FROM doctrine_embeddings WHERE domain = 'data'") == ["Dropped while it was built."]


def test_texts_that_change_between_reading_and_writing_are_not_written_and_still_due(bench: Workbench) -> None:
    filled(bench)
    beside = number(build(second(bench)))
    read = stored_texts(bench.database, "ferry/0001")
    assert read is not None
    bench.drop("ferry", chapter(1, "ferry 1. " * 60, ["risk", "timing"], rules=["A new rule."]))
    bench.ingest()
    rows = bench.rows("SELECT doctrine_id FROM vectors_2.doctrine_embeddings_all ORDER BY 1")
    vectors = [vector_of(text, 16) for text in read.texts]
    assert write_space_chapter(bench.database, beside, read, vectors, []) is False
    assert bench.rows("SELECT doctrine_id FROM vectors_2.doctrine_embeddings_all ORDER BY 1") == rows
    assert "ferry/0001" in due_chapters(bench.database, beside).write


def test_a_space_that_was_promoted_or_dropped_meanwhile_takes_no_more_rows(bench: Workbench) -> None:
    filled(bench)
    beside = number(build(second(bench)))
    read = stored_texts(bench.database, "ferry/0001")
    assert read is not None
    vectors = [vector_of(text, 16) for text in read.texts]
    promote_space(bench.database, beside)
    with pytest.raises(ConfigurationError, match="promoted or dropped"):
        write_space_chapter(bench.database, beside, read, vectors, [])
    promote_space(bench.database, 1)
    drop_space(bench.database, beside)
    with pytest.raises(ConfigurationError, match="promoted or dropped"):
        write_space_chapter(bench.database, beside, read, vectors, [])


def test_a_run_that_began_before_a_promotion_writes_nothing_of_the_old_model_after_it(bench: Workbench) -> None:
    filled(bench)
    beside = number(build(second(bench)))
    bench.drop("inn", chapter(1, domains=["data"], claims=["Too late."]))
    bench.look()
    pending = bench.pending()

    class Promoting(FakeTransport):
        """Promotes when the run's first text arrives: its model is settled by then."""

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if b"Too late" in request.content:
                await asyncio.to_thread(promote_space, bench.database, beside)
            return await super().handle_async_request(request)

    with pytest.raises(ConfigurationError, match=r"test-model .*the database was switched to second-model"):
        run_stages(
            bench.settings,
            bench.database,
            chapters=pending,
            selected=STAGES,
            run_id="late",
            listener=bench.heard,
            transport=Promoting(bench.server),
        )
    assert bench.count("doctrine_embeddings", "domain = 'data'") == 0
    assert table_faults(bench.database) == []
    other = second(bench)
    other.ingest()
    assert bench.rows("SELECT text FROM doctrine_embeddings WHERE domain = 'data'") == ["Too late."]


def test_a_killed_build_goes_on_where_it_was(bench: Workbench) -> None:
    filled(bench)
    other = second(bench)
    with serving(other.server) as url:
        killed = start_build(other, url, after=2)
        assert killed.wait(timeout=60) == (-signal.SIGKILL if os.name != "nt" else 15)
        other.server.batches.clear()
        built = build_space(replace(other.settings, embedding_urls=(url,)), other.database)
    assert 0 < built.chapters < 4
    assert built.space is not None and built.space.complete
    assert set(states(bench)) == {1, 2}
    assert check_space(bench.database, number(built)).sound


def test_two_builds_of_one_space_are_not_done_at_once(bench: Workbench) -> None:
    filled(bench)
    other = second(bench)
    beside = number(build(other))
    with (
        working_on(bench.database, beside),
        pytest.raises(TransientError, match="being built by another process"),
    ):
        build(other)
    with working_on(bench.database, beside):
        for work in (promote_space, drop_space):
            with pytest.raises(TransientError, match="being built by another process"):
                work(bench.database, beside)
    assert build(other).chapters == 0


def test_a_space_too_large_to_scan_has_its_index_before_it_is_live(bench: Workbench) -> None:
    """Also when its build was killed over the index, or a load dropped it while the space was live."""
    filled(bench)
    other = second(bench, dimension=4000)
    beside = number(build(other))
    with bench.database.connection() as connection:
        connection.execute(
            "INSERT INTO vectors_2.chunk_embeddings SELECT 'ferry/0001', 1000 + n, (SELECT array_agg(sin(n * i))"
            " FROM generate_series(1, 4000) AS i)::real[]::halfvec FROM generate_series(1, %s) AS n",
            (exact_rows(4000),),
        )
    assert build(other).indexes == ["chunk_embeddings"]
    with bench.database.connection() as connection:
        connection.execute("DROP INDEX vectors_2.chunk_embeddings_nn")
    assert promote_space(bench.database, beside).indexes == ["chunk_embeddings"]
    assert indexed_tables(bench.database) == ["chunk_embeddings"]
    with bench.database.connection() as connection:
        plan = connection.execute(
            "EXPLAIN SELECT position FROM chunk_embeddings ORDER BY embedding <=>"
            " (SELECT embedding FROM chunk_embeddings WHERE position = 1001) LIMIT 5"
        ).fetchall()
    assert any("chunk_embeddings_nn" in line for (line,) in plan)


def test_a_space_with_indexes_is_caught_up_as_a_load_is(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen with 2,400 entries that had all changed: row by row into the index it took 68 s instead of 25, and afterwards
    a look-up found 92 % of the ten nearest among the dead rows, instead of 99 %."""
    monkeypatch.setattr(indexes, "_EXACT_NUMBERS", 16)  # one row is enough for an index
    for i in range(9):
        bench.drop(f"book-{i}", chapter(1, f"Text {i}. " * 60, rules=[f"Rule {i}"]))
    bench.ingest()
    other = second(bench)
    every = build(other).indexes
    assert every == ["chunk_embeddings", "doctrine_embeddings_all", "doctrine_embeddings_risk"]
    bench.drop("book-0", chapter(1, "Another text. " * 60, rules=["Another rule"]))
    bench.ingest()
    assert build(other).indexes == []  # of a few changes an index takes account
    bench.drop("book-1", chapter(1, "Yet another text. " * 60, rules=["Yet another rule"]))
    bench.drop("book-2", chapter(1, "And another text. " * 60, rules=["And another rule"]))
    bench.ingest()
    assert build(other).indexes == every
    vacuumed = "SELECT relname FROM pg_stat_user_tables WHERE schemaname = 'vectors_2' AND vacuum_count = 3 ORDER BY 1"
    assert bench.rows(vacuumed) == every


def test_a_build_that_is_stopped_while_it_makes_an_index_stops_at_once(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It went on until the index was done: half a minute for 100,000 entries, and for as long as it waits for somebody."""
    filled(bench)
    other = second(bench)
    build(other)
    monkeypatch.setattr(indexes, "_EXACT_NUMBERS", 16)  # one row is enough for an index
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        " AND query LIKE 'CREATE INDEX CONCURRENTLY%'"
    )
    ended = threading.Event()
    with (
        psycopg.connect(bench.database.url) as writer,
        psycopg.connect(bench.database.url, autocommit=True) as onlooker,
        ThreadPoolExecutor(1) as threads,
    ):
        writer.execute("LOCK TABLE vectors_2.chunk_embeddings IN ROW EXCLUSIVE MODE")

        def stop() -> bool:
            wait_until(lambda: onlooker.execute(waiting).fetchone() == (1,))
            signal.raise_signal(signal.SIGINT)
            in_time = ended.wait(10)
            writer.rollback()
            return in_time

        stopping = threads.submit(stop)
        try:
            with pytest.raises(KeyboardInterrupt):
                build(other)
        finally:
            ended.set()
            signal.signal(signal.SIGINT, before)
        assert stopping.result()
    assert "chunk_embeddings" in build(other).indexes


def test_two_models_can_be_built_and_promoted_one_after_the_other(bench: Workbench) -> None:
    filled(bench)
    second_space, third_space = (number(build(second(bench, model=name))) for name in ("second-model", "third-model"))
    promote_space(bench.database, second_space)
    promote_space(bench.database, third_space)
    assert states(bench) == {
        1: ("retired", "test-model"),
        2: ("retired", "second-model"),
        3: ("live", "third-model"),
    }
    drop_space(bench.database, second_space)
    assert set(states(bench)) == {1, 3}
    assert bench.rows("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'vectors%' ORDER BY 1") == [
        "vectors",
        "vectors_1",
    ]
    promote_space(bench.database, 1)
    assert table_faults(bench.database) == []


def test_the_live_space_is_neither_dropped_nor_promoted_nor_built_again(bench: Workbench) -> None:
    filled(bench)
    with pytest.raises(ConfigurationError, match="is live: look-ups read it"):
        drop_space(bench.database, 1)
    with pytest.raises(ConfigurationError, match="is live already"):
        promote_space(bench.database, 1)
    with pytest.raises(ConfigurationError, match="is the live model already"):
        build(bench)
    assert states(bench) == {1: ("live", "test-model")}


@pytest.mark.parametrize("work", [promote_space, drop_space, check_space])
def test_a_space_there_is_not_is_said(bench: Workbench, work: Callable[[Database, int], object]) -> None:
    filled(bench)
    with pytest.raises(ConfigurationError, match="no embedding space 9") as refused:
        work(bench.database, 9)
    assert "era spaces list" in refused.value.hint


def test_without_a_live_space_there_is_nothing_to_build_beside(bench: Workbench) -> None:
    with pytest.raises(ConfigurationError, match="nothing has been embedded yet"):
        build(bench)
    assert states(bench) == {}


def test_a_dimension_that_cannot_be_stored_makes_no_space(bench: Workbench) -> None:
    filled(bench)
    with pytest.raises(ConfigurationError, match="5000 dimensions"):
        build(second(bench, dimension=5000))
    assert states(bench) == {1: ("live", "test-model")}


def test_vectors_of_another_dimension_than_the_space_stop_its_building_and_are_not_in_its_tables(
    bench: Workbench,
) -> None:
    filled(bench)
    other = second(bench)
    other.server.faults.extend([None, None])  # asked which model it is, it answers well
    other.server.always = Fault(answer="wrong_dimension")
    with pytest.raises(EndpointUnavailable, match="8 dimensions"):
        build(other)
    assert check_space(bench.database, 2).counts[0].beside == 0
    other.server.always = None
    built = build(other)
    assert built.dead == []
    promote_space(bench.database, number(built))


def test_texts_the_new_model_refuses_are_dead_letters_once_it_is_live_and_none_when_it_is_left_again(
    bench: Workbench,
) -> None:
    filled(bench)
    other = second(bench)
    other.server.poison = {"Count to 1"}
    beside = number(build(other))
    assert bench.count("dead_letters") == 0
    with pytest.raises(PermanentError, match="4 texts have no vector"):
        promote_space(bench.database, beside)
    assert promote_space(bench.database, beside, accept_dead=True).dead == 4
    assert bench.count("dead_letters", "state = 'open'") == 4
    assert bench.rows("SELECT sum(dead_count) FROM doctrine_sources") == [4]
    assert table_faults(bench.database) == []
    promote_space(bench.database, 1)
    assert bench.count("dead_letters", "state = 'open'") == 0
    assert space(bench, beside).dead == 4


def test_a_database_that_goes_away_in_the_middle_of_a_build_loses_nothing(bench: Workbench) -> None:
    filled(bench)
    other = second(bench)

    def away(report: BuildReport) -> None:
        if report.chapters == 2:
            with psycopg.connect(bench.settings.database_url or "", autocommit=True) as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )

    with pytest.raises(DatabaseUnavailable):
        build(replace_in_flight(other), on_progress=away)
    built = build(other)
    assert built.space is not None and built.space.complete
    assert check_space(bench.database, number(built)).sound


class DyingModel(OtherModel):
    """Refuses connections once it has answered `life` texts."""

    life = math.inf

    async def _embed(self, openai: bool, payload: dict) -> Reply:
        reply = await super()._embed(openai, payload)
        self.down = len(self.texts) >= self.life
        return reply


def test_an_embedding_server_that_dies_in_the_middle_leaves_what_was_built(bench: Workbench) -> None:
    filled(bench)
    other = Workbench(bench.settings, bench.database, server=DyingModel(model="second-model", dimension=16))
    other.server.life = 10
    with pytest.raises(EndpointUnavailable):
        build(replace_in_flight(other))
    answered = set(other.server.texts)
    other.server.life, other.server.down = math.inf, False
    assert build(other).space is not None
    assert space(bench, 2).complete
    assert answered - set(other.server.texts)


def test_which_model_is_meant_must_be_said_unless_one_is_being_built(bench: Workbench) -> None:
    filled(bench)
    other = second(bench)
    unnamed = replace(other.settings, embedding_model=None, embedding_provider=None)
    with pytest.raises(ConfigurationError, match="Which model"):
        build_space(unnamed, bench.database, transport=FakeTransport(other.server))
    build(other)
    assert build_space(unnamed, bench.database, transport=FakeTransport(other.server)).chapters == 0


def test_a_comparison_shows_how_both_models_answer(bench: Workbench) -> None:
    filled(bench)
    check = check_space(bench.database, number(build(second(bench))))
    assert check.sound
    assert [(count.table, count.live) for count in check.counts] == [
        (count.table, count.beside) for count in check.counts
    ]
    assert check.recall == 1.0
    assert check.shared is not None and 0 < check.shared < 1
    assert all(len(comparison.live) == len(comparison.beside) == 3 for comparison in check.comparisons)
    assert any(comparison.live != comparison.beside for comparison in check.comparisons)
    with bench.database.connection() as connection:
        connection.execute("DELETE FROM vectors_2.chunk_embeddings WHERE partition_key = 'ferry/0001'")
    assert not check_space(bench.database, 2).sound


def replace_in_flight(bench: Workbench) -> Workbench:
    """Four chapters are all under way at once: one writer, so that some are left when trouble comes."""
    bench.settings = replace(bench.settings, store_workers=1, queue_limit=1)
    return bench


def ingest_elsewhere(bench: Workbench, url: str) -> None:
    """An ingest in a process of its own."""
    settings = bench.settings
    arguments = (settings.database_url, settings.data_dir, settings.drop_dir, url, 0)
    subprocess.run(
        [sys.executable, "-m", "era_dagster_tests.pipeline.ingest_process", *map(str, arguments)],
        check=True,
        cwd=Path(__file__).parents[2],
    )


_BUILD = """
import os, signal, sys
from dataclasses import replace
from era_dagster.pipeline.space_build import build_space
from era_dagster.settings import load_settings
from era_dagster.storage.database import Database

url, model, server, after = sys.argv[1:]
settings = load_settings({"ERA_EMBEDDING_PROVIDER": "ollama", "ERA_EMBEDDING_MODEL": model, "ERA_EMBEDDING_URLS": server})
settings = replace(settings, store_workers=1, queue_limit=1)

def die(report):
    if report.chapters == int(after):
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))

with Database(url, pool_size=4) as database:
    build_space(settings, database, on_progress=die)
"""


def start_build(bench: Workbench, url: str, *, after: int) -> subprocess.Popen[bytes]:
    """A build in a process of its own that dies by -9 once it has written so many chapters."""
    return subprocess.Popen(
        [sys.executable, "-c", _BUILD, bench.settings.database_url or "", bench.server.model, url, str(after)],
        cwd=Path(__file__).parents[2],
    )


def test_texts_that_changed_before_a_promotion_and_are_again_what_they_were_get_their_vectors(bench: Workbench) -> None:
    """The new vectors are of the entries that lay there then; that the chunks are of the text from before made them count."""
    before, between = (chapter(1, "Text. " * 60, rules=[rule]) for rule in ("Count the coins.", "Trust no wind."))
    bench.drop("ferry", before)
    bench.ingest()
    bench.drop("ferry", between)
    bench.look()
    bench.run(["chapters"])
    other = second(bench)
    promote_space(bench.database, number(build(other)))
    other.drop("ferry", before)
    other.look()
    other.run(["chapters"])
    assert [known.partition_key for known in other.pending()] == ["ferry/0001"]
    other.run()
    assert table_faults(bench.database) == []
