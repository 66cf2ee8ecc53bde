"""Look-ups with bad questions and a failing database: a clear error or nothing found, and the next look-up works.

The rows were ingested as any user's are, so that what other programs may send to the tables runs on these too.
"""

import asyncio
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import LiteralString

import psycopg
import pytest
from pgvector import HalfVector
from psycopg import sql
from psycopg.conninfo import make_conninfo

from era_dagster import knowledge
from era_dagster.domain.errors import ConfigurationError, DatabaseUnavailable
from era_dagster.domain.identity import book_slug
from era_dagster.knowledge import AsyncKnowledgeBase, KnowledgeBase
from era_dagster.settings import Settings
from era_dagster.storage.database import Database
from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer, serving, vector_of
from era_dagster_tests.fakes.hanging_database import hanging_database
from era_dagster_tests.pipeline.workbench import Workbench, chapter
from era_dagster_tests.waiting import wait_until

DIMENSION = 16
POOL = 3
RULES = ("Sound the bell in fog.", "Tie up before the tide turns.", "Count the crew at dusk.")
WARNING = "A calm sea hides the reef."
DOMAIN = "decision_making"
# As a shell hands over a byte that is no UTF-8, and with what PDFs leave in names.
ODD_NAME = "Logs\0 of\x07 the\udcff Ferry"
ODD_TEXT = "The ferry crosses at noon, whatever the weather says."
ODD_CLAIM = "A ferry is a promise."
ENTRIES = len(RULES) + 2
HOSTILE = (
    "x'; DROP TABLE minister_entries; --",
    'x"; DELETE FROM doctrine_embeddings_all; --',
    "' OR '1'='1",
    "%(query)s",
    "%",
    "\\",
    "../../etc/passwd",
    "a" * 10_000,
)
WATCHED = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


@pytest.fixture
def asked(settings: Settings, database_url: str) -> Iterator[Settings]:
    """Settings for a filled knowledge base that nobody is connected to; its embedding server is up."""
    server = FakeEmbeddingServer(dimension=DIMENSION)
    with serving(server) as url:
        with Database(database_url, pool_size=2) as database:
            bench = Workbench(settings, database, server)
            bench.drop("harbour", chapter(1, domains=["Decision-Making"], rules=list(RULES), warnings=[WARNING]))
            bench.write("odd.json", [{"book": ODD_NAME, "chapter_index": 1, "text": ODD_TEXT, "claims": [ODD_CLAIM]}])
            bench.look()
            bench.run()
        yield replace(bench.settings, embedding_urls=(url,), database_pool=POOL)


@pytest.fixture
def base(asked: Settings) -> Iterator[KnowledgeBase]:
    with KnowledgeBase.open(asked) as opened:
        yield opened


@pytest.fixture
def admin(database_url: str) -> Iterator[psycopg.Connection]:
    """A connection beside the knowledge base's own."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def query() -> list[float]:
    return vector_of(RULES[0], DIMENSION).tolist()


def count(connection: psycopg.Connection, statement: LiteralString) -> int:
    row = connection.execute(statement).fetchone()
    assert row is not None
    return row[0]


@pytest.mark.parametrize(
    "vector",
    [
        [1.0] * (DIMENSION - 1),
        [1.0] * (DIMENSION + 1),
        [0.0] * DIMENSION,
        [float("nan")] * DIMENSION,
        [float("-inf")] + [1.0] * (DIMENSION - 1),
        [],
    ],
    ids=["short", "long", "zero", "nan", "infinite", "empty"],
)
def test_a_bad_vector_is_refused_by_every_function_and_the_next_look_up_works(
    base: KnowledgeBase, vector: Sequence[float]
) -> None:
    for ask in (
        lambda: base.lookup(vector),
        lambda: base.lookup(vector, within="chunks"),
        lambda: base.semantic_similarity_lookup(vector, DOMAIN),
        lambda: base.judgment_prior_features(vector, DOMAIN),
    ):
        for _ in range(POOL + 1):  # a connection lost at each refusal would leave none
            with pytest.raises(ConfigurationError, match="query vector"):
                ask()
    assert base.lookup(query())[0].text == RULES[0]


@pytest.mark.parametrize("domain", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_find_nothing_and_change_nothing(
    base: KnowledgeBase, admin: psycopg.Connection, domain: str
) -> None:
    assert base.lookup(query(), domain) == base.lookup(query(), domain, within="chunks") == []
    assert base.lookup(query(), book=domain) == base.lookup(query(), book=domain, within="chunks") == []
    assert base.search(RULES[0], domain, hybrid=True) == []
    # As the words of a question they are only words.
    assert len(base.search(domain, top_k=10, hybrid=True)) == ENTRIES
    assert base.judgment_prior_features(query(), domain)["prior"] == 1.0
    for table in ("minister_entries", "vectors.doctrine_embeddings_all", "vectors.doctrine_embeddings"):
        assert count(admin, f"SELECT count(*) FROM {table}") == ENTRIES


@pytest.mark.parametrize("name", ["har\0bour", "harbour\udcff"], ids=["nul", "surrogate"])
def test_an_unknown_name_that_no_database_can_hold_is_the_name_of_nothing(base: KnowledgeBase, name: str) -> None:
    assert base.lookup(query(), book="harbour")[0].text == RULES[0]
    for within in ("entries", "chunks"):
        assert base.lookup(query(), book=name, within=within) == base.lookup(query(), name, within=within) == []
    assert base.search(RULES[0], book=name, hybrid=True) == []


def test_a_book_is_found_by_its_raw_name_by_the_name_it_is_shown_with_and_by_its_slug(base: KnowledgeBase) -> None:
    for name in (ODD_NAME, "Logs\\x00 of\\x07 the\\udcff Ferry", book_slug(ODD_NAME)):
        assert [hit.text for hit in base.lookup(query(), book=name)] == [ODD_CLAIM]
        assert [hit.text for hit in base.lookup(query(), book=name, within="chunks")] == [ODD_TEXT]
        assert [hit.text for hit in base.search("ferry", book=name, hybrid=True)] == [ODD_CLAIM]


def test_a_question_is_cleaned_like_the_texts_it_is_compared_with(base: KnowledgeBase) -> None:
    plain = base.search(RULES[0], hybrid=True)
    assert plain[0].text == RULES[0]
    assert base.search("Sound\0 the\u00a0bell \udcff\n in fo\u00adg.", hybrid=True) == plain
    for nothing in ("", " \n", "\0", "\u00ad\udcff"):
        with pytest.raises(ConfigurationError, match="blank"):
            base.search(nothing)


def test_a_domain_that_ingestion_would_store_under_its_alias_is_looked_for_there(
    asked: Settings, tmp_path: Path
) -> None:
    table = tmp_path / "aliases.json"
    table.write_text('{"Choosing Well": "Decision-Making"}', encoding="utf-8")
    with KnowledgeBase.open(replace(asked, domain_aliases=table)) as base:
        assert {hit.text for hit in base.lookup(query(), "choosing-well")} == {*RULES, WARNING}
        assert base.lookup(query(), "choosing") == []
    with pytest.raises(ConfigurationError, match="nowhere"):
        KnowledgeBase.open(replace(asked, domain_aliases=tmp_path / "nowhere.json"))


def test_any_number_of_results_may_be_asked_for(base: KnowledgeBase) -> None:
    for top_k, found in ((-1, 0), (0, 0), (1, 1), (4, 4), (1_000_000, 4)):
        assert len(base.lookup(query(), DOMAIN, top_k)) == found
        assert len(base.search(RULES[0], DOMAIN, top_k, hybrid=True)) == found
        assert len(base.semantic_similarity_lookup(query(), DOMAIN, top_k)) == found


@pytest.mark.parametrize("domain", ["Decision-Making", "decision making", "DECISION_MAKING", " Decision – Making "])
def test_a_domain_is_found_in_the_spellings_ingestion_folds(base: KnowledgeBase, domain: str) -> None:
    hits = base.lookup(query(), domain)
    assert {hit.text for hit in hits} == {*RULES, WARNING}
    assert {hit.domains for hit in hits} == {(DOMAIN,)}


def test_the_statement_promised_to_other_programs_runs_on_the_tables(
    base: KnowledgeBase, admin: psycopg.Connection
) -> None:
    admin.execute("SET search_path = public, vectors")
    admin.execute(
        sql.SQL(
            "PREPARE promised (halfvec({}), text, int) AS"
            " SELECT doctrine_id, similarity(embedding, $1) AS score"
            " FROM doctrine_embeddings WHERE domain = $2 ORDER BY embedding <=> $1 LIMIT $3"
        ).format(sql.Literal(DIMENSION))
    )
    rows = psycopg.ClientCursor(admin).execute(
        "EXECUTE promised (%s, %s, %s)", (str(HalfVector(query()).to_list()), DOMAIN, 3)
    )
    hits = base.lookup(query(), DOMAIN, 3)
    assert [(str(identifier), pytest.approx(score, abs=1e-3)) for identifier, score in rows] == [
        (hit.doctrine_id, hit.score) for hit in hits
    ]
    assert len(hits) == 3


def test_the_awaited_functions_answer_as_the_others_do_and_nothing_is_open_after_closing(
    asked: Settings, admin: psycopg.Connection
) -> None:
    async def ask() -> tuple[object, ...]:
        async with AsyncKnowledgeBase.open(asked) as base:
            persona = SimpleNamespace(domain="Decision-Making")
            returned = await base.enrich_context_with_doctrine(persona, WARNING, top_k=1)
            assert returned is persona.doctrine_context
            assert [hit.text for hit in returned] == [WARNING]
            for vector in ([float("nan")] * DIMENSION, [1.0]):
                with pytest.raises(ConfigurationError):
                    await base.lookup(vector)
            with pytest.raises(ConfigurationError, match="blank"):
                await base.search("  ")
            answers = (
                await base.semantic_similarity_lookup(query(), DOMAIN),
                await base.judgment_prior_features(query(), DOMAIN),
                await base.search(RULES[1], category="rules"),
                await base.lookup(query(), book="harbour", within="chunks"),
            )
        await base.close()  # a second time does no harm
        with pytest.raises(ConfigurationError, match="is closed"):
            await base.lookup(query())
        return answers

    answers = asyncio.run(ask())
    wait_until(lambda: count(admin, f"SELECT count(*) {WATCHED}") == 0)
    with KnowledgeBase.open(asked) as base:
        assert answers == (
            base.semantic_similarity_lookup(query(), DOMAIN),
            base.judgment_prior_features(query(), DOMAIN),
            base.search(RULES[1], category="rules"),
            base.lookup(query(), book="harbour", within="chunks"),
        )
    assert all(answers)


def test_look_ups_that_wait_for_the_same_opening_share_its_failure(settings: Settings) -> None:
    """Of a database that hangs the first was told after ten seconds, the second after twenty, the third after thirty."""

    async def ask(url: str, connected: list[socket.socket]) -> None:
        base = AsyncKnowledgeBase.open(settings, url=url)
        for attempts in (1, 2):
            answers = await asyncio.gather(*(base.lookup(query()) for _ in range(POOL)), return_exceptions=True)
            assert [type(answer) for answer in answers] == [DatabaseUnavailable] * POOL
            assert len(connected) == attempts
        await base.close()

    with hanging_database(seconds=0.2) as (url, connected):
        asyncio.run(ask(url, connected))


def test_the_options_in_the_url_of_the_database_hold_beside_ours(database_url: str) -> None:
    url = make_conninfo(database_url, options="-c statement_timeout=7s -c lock_timeout=6s -c search_path=elsewhere")
    with Database(url, pool_size=1, longest_wait_seconds=5) as database, database.connection() as connection:
        for name, value in (
            ("statement_timeout", "7s"),
            ("lock_timeout", "6s"),
            ("search_path", "public,vectors"),
            ("hnsw.ef_search", "100"),
        ):
            assert connection.execute("SELECT current_setting(%s)", (name,)).fetchone() == (value,)


def test_look_ups_cut_in_the_middle_fail_clearly_and_the_pool_is_whole_again(
    asked: Settings, database_url: str, admin: psycopg.Connection
) -> None:
    """Every connection of the pool is held inside its query by a lock, and then ended by the server."""
    with ThreadPoolExecutor(POOL) as threads:
        with KnowledgeBase.open(asked) as base:

            def at_once() -> list[Future[int]]:
                return [threads.submit(lambda: len(base.lookup(query(), top_k=10))) for _ in range(POOL)]

            assert [done.result() for done in at_once()] == [ENTRIES] * POOL
            with psycopg.connect(database_url) as locking:
                locking.execute("LOCK TABLE vectors.doctrine_embeddings_all IN ACCESS EXCLUSIVE MODE")
                caught = at_once()
                blocked = f"{WATCHED} AND wait_event_type = 'Lock'"
                wait_until(lambda: count(admin, f"SELECT count(*) {blocked}") == POOL)
                assert count(admin, f"SELECT count(pg_terminate_backend(pid)) {blocked}") == POOL
                for done in caught:
                    with pytest.raises(DatabaseUnavailable, match="cannot be reached"):
                        done.result(timeout=30)
            assert [done.result() for done in at_once()] == [ENTRIES] * POOL
            assert 1 <= count(admin, f"SELECT count(*) {WATCHED}") <= POOL
        wait_until(lambda: count(admin, f"SELECT count(*) {WATCHED}") == 0)


def test_a_look_up_that_waits_for_a_lock_says_so_and_the_next_one_works(
    asked: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waited as long as somebody's VACUUM FULL took, and for ever where a session in the middle of one was forgotten."""
    monkeypatch.setattr(knowledge, "_LONGEST_WAIT_SECONDS", 2.0)
    with KnowledgeBase.open(asked) as base:
        with psycopg.connect(database_url) as locking:
            locking.execute("LOCK TABLE vectors.doctrine_embeddings_all IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(DatabaseUnavailable, match=r"gave no lock in time: .* VACUUM FULL"):
                base.lookup(query(), top_k=10)
        assert len(base.lookup(query(), top_k=10)) == ENTRIES


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="a process is made to hang by a signal")
def test_connections_that_fell_silent_are_given_up_for_a_new_one(asked: Settings, admin: psycopg.Connection) -> None:
    """As after a laptop's sleep, or behind a firewall that forgot them: nothing is refused, and no answer ever comes."""
    with KnowledgeBase.open(asked) as base, ThreadPoolExecutor(1) as threads:
        assert len(base.lookup(query(), top_k=10)) == ENTRIES
        silent = [pid for (pid,) in admin.execute(f"SELECT pid {WATCHED} AND backend_type = 'client backend'")]
        assert silent
        try:
            for pid in silent:
                os.kill(pid, signal.SIGSTOP)
            found = threads.submit(base.lookup, query(), top_k=10).result(timeout=30)
        finally:
            for pid in silent:
                os.kill(pid, signal.SIGCONT)
        assert len(found) == ENTRIES
