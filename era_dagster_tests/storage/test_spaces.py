"""The live space and its tables: one model, made once, refused to any other."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from era_dagster.domain.domains import slugify_domain
from era_dagster.domain.errors import ConfigurationError
from era_dagster.storage import spaces
from era_dagster.storage.database import Database
from era_dagster.storage.spaces import (
    LARGEST_DIMENSION,
    check_configured,
    domain_table,
    ensure_domain_tables,
    ensure_space,
    live_space,
)
from era_dagster_tests.pipeline.workbench import dump_tables
from era_dagster_tests.storage.chapter_rows import SPACE
from era_dagster_tests.waiting import wait_until

# Makes the space and some domains when told to go; arguments: URL, number of this process.
MAKE = """
import sys
from era_dagster.storage.database import Database
from era_dagster.storage.spaces import ensure_domain_tables, ensure_space
from era_dagster_tests.storage.chapter_rows import SPACE

with Database(sys.argv[1], pool_size=2) as database:
    print("ready", flush=True)
    sys.stdin.readline()
    ensure_space(database, SPACE)
    ensure_domain_tables(database, [(f"shared_{n}", f"Shared {sys.argv[2]}") for n in range(6)])
    ensure_domain_tables(database, [(f"own_{sys.argv[2]}", "Own")])
"""


def tables(database: Database) -> list[str]:
    return [name for name in dump_tables(database) if name.startswith("vectors.doctrine_embeddings_")]


def test_the_first_model_makes_the_space_and_its_tables(database: Database) -> None:
    assert live_space(database) is None
    ensure_space(database, SPACE)
    assert live_space(database) == SPACE
    with database.connection() as connection:
        found = connection.execute(
            "SELECT attrelid::regclass::text, format_type(atttypid, atttypmod), attstorage::text FROM pg_attribute"
            " WHERE attname = 'embedding' AND attrelid::regclass::text LIKE '%embeddings%' ORDER BY 1"
        ).fetchall()
    assert [row for row in found if "pkey" not in row[0]] == [
        ("chunk_embeddings", "halfvec(16)", "p"),
        ("doctrine_embeddings", "halfvec(16)", "p"),
        ("doctrine_embeddings_all", "halfvec(16)", "p"),
    ]


def test_the_same_model_again_changes_nothing(database: Database) -> None:
    ensure_space(database, SPACE)
    before = dump_tables(database, versions=True)
    ensure_space(database, SPACE)
    assert dump_tables(database, versions=True) == before


@pytest.mark.parametrize(
    "other",
    [
        replace(SPACE, model="large"),
        replace(SPACE, dimension=32),
        replace(SPACE, digest="d2"),
        replace(SPACE, document_prefix="search_document: "),
    ],
)
def test_anything_else_is_refused(database: Database, other: object) -> None:
    ensure_space(database, SPACE)
    with pytest.raises(ConfigurationError, match=r"tiny \(16 dimensions") as caught:
        ensure_space(database, other)  # type: ignore[arg-type]
    assert "ERA_EMBEDDING_MODEL=tiny" in caught.value.hint
    assert live_space(database) == SPACE


def test_settings_that_name_another_model_are_refused_naming_both() -> None:
    with pytest.raises(ConfigurationError, match=r"tiny .*large"):
        check_configured(SPACE, model="large")


@pytest.mark.parametrize("model", [None, "tiny", "tiny:latest"])
def test_settings_that_name_the_model_or_none_are_taken(model: str | None) -> None:
    check_configured(SPACE, model=model)
    check_configured(None, model="large")


def test_a_dimension_that_cannot_be_stored_is_refused_and_makes_nothing(database: Database) -> None:
    with pytest.raises(ConfigurationError, match="4001 dimensions"):
        ensure_space(database, replace(SPACE, dimension=LARGEST_DIMENSION + 1))
    assert live_space(database) is None


def test_vectors_too_wide_for_a_page_are_stored_beside_the_row(database: Database) -> None:
    ensure_space(database, replace(SPACE, dimension=LARGEST_DIMENSION))
    with database.connection() as connection:
        connection.execute(
            "INSERT INTO chunk_embeddings VALUES ('k', 0, (SELECT array_agg(0.5) FROM generate_series(1, 4000))::halfvec)"
        )


def test_a_domain_gets_its_table_and_keeps_its_spellings(database: Database) -> None:
    ensure_space(database, SPACE)
    ensure_domain_tables(database, [("risk", "Risk"), ("risk", "risk"), ("timing", "timing")])
    ensure_domain_tables(database, [("risk", "RISK"), ("risk", "Risk")])
    assert tables(database) == [
        "vectors.doctrine_embeddings_all",
        "vectors.doctrine_embeddings_risk",
        "vectors.doctrine_embeddings_timing",
    ]
    with database.connection() as connection:
        assert connection.execute(
            "SELECT domain, spellings, table_name FROM minister_domains ORDER BY 1"
        ).fetchall() == [
            ("risk", ["RISK", "Risk", "risk"], "doctrine_embeddings_risk"),
            ("timing", ["timing"], "doctrine_embeddings_timing"),
        ]


def test_domains_registered_again_change_nothing(database: Database) -> None:
    ensure_space(database, SPACE)
    ensure_domain_tables(database, [("risk", "Risk")])
    before = dump_tables(database, versions=True)
    ensure_domain_tables(database, [("risk", "Risk")])
    assert dump_tables(database, versions=True) == before


def test_domains_registered_before_any_model_get_their_tables_later(database: Database) -> None:
    ensure_domain_tables(database, [("risk", "Risk")])
    ensure_space(database, SPACE)
    assert tables(database) == ["vectors.doctrine_embeddings_all"]
    ensure_domain_tables(database, [("risk", "Risk")])
    assert tables(database) == ["vectors.doctrine_embeddings_all", "vectors.doctrine_embeddings_risk"]


def test_writers_that_meet_the_same_new_domains_at_once_all_register_them(database: Database) -> None:
    """A chapter in some hundred failed: the conflict showed at the table's unique name, not at the domain."""
    together = threading.Barrier(4)

    def register(writer: int) -> None:
        for number in range(200):
            together.wait(timeout=20)
            try:
                ensure_domain_tables(database, [(f"domain_{number}", f"Domain {writer}")])
            except BaseException:
                together.abort()
                raise

    with ThreadPoolExecutor(4) as threads:
        done = [threads.submit(register, writer) for writer in range(4)]
    assert [str(writer.exception()) for writer in done] == ["None"] * 4
    with database.connection() as connection:
        found = connection.execute("SELECT spellings, count(*) FROM minister_domains GROUP BY 1").fetchall()
    assert found == [([f"Domain {writer}" for writer in range(4)], 200)]


def test_a_table_that_another_process_has_just_made_is_used_only_when_that_process_has_told_everyone(
    database: Database, database_url: str
) -> None:
    """Seen in a run of 60 chapters: "no partition of relation doctrine_embeddings found for row".

    Its maker's commit was visible, and the server had not yet told other connections to look at the partitions anew.
    """
    ensure_space(database, SPACE)
    ensure_domain_tables(database, [("risk", "Risk")])
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    with psycopg.connect(database_url, autocommit=True) as maker, ThreadPoolExecutor(1) as threads:
        maker.execute("SELECT pg_advisory_lock(hashtextextended('domain table vectors risk', 0))")
        writer = threads.submit(ensure_domain_tables, database, [("risk", "Risk")])
        wait_until(lambda: maker.execute(waiting).fetchone() == (1,))
        assert not writer.done()
        maker.execute("SELECT pg_advisory_unlock_all()")
        writer.result(timeout=20)


def test_a_new_domain_waits_for_who_reads_all_domains_so_that_nobody_misses_it(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen in a test: a session that had asked while a domain got its table missed that domain from then on."""
    monkeypatch.setattr(spaces, "_USERS_WAIT_MS", 60_000)
    ensure_space(database, SPACE)
    waiting = (
        "SELECT count(*) FROM pg_locks WHERE relation = 'doctrine_embeddings'::regclass AND NOT granted"
        " AND mode = 'AccessExclusiveLock'"
    )
    with psycopg.connect(database_url) as reader, ThreadPoolExecutor(1) as threads:
        reader.execute("SELECT count(*) FROM doctrine_embeddings")
        writer = threads.submit(ensure_domain_tables, database, [("risk", "Risk")])
        wait_until(lambda: reader.execute(waiting).fetchone() == (1,))
        assert not writer.done()
        reader.commit()
        writer.result(timeout=20)
    assert "vectors.doctrine_embeddings_risk" in tables(database)


def test_a_session_that_keeps_its_transaction_open_does_not_hold_up_new_domains(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spaces, "_USERS_WAIT_MS", 50)
    ensure_space(database, SPACE)
    with psycopg.connect(database_url) as reader:
        reader.execute("SELECT count(*) FROM doctrine_embeddings")
        ensure_domain_tables(database, [("risk", "Risk"), ("timing", "Timing")])
        assert len(tables(database)) == 3


def test_a_new_domain_waits_for_nobody_who_uses_another_domains_table_alone(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the build of its vector index does for minutes: all look-ups of all domains would wait behind that."""
    monkeypatch.setattr(spaces, "_USERS_WAIT_MS", 60_000)
    ensure_space(database, SPACE)
    ensure_domain_tables(database, [("risk", "Risk")])
    with psycopg.connect(database_url) as builder, ThreadPoolExecutor(1) as threads:
        builder.execute("LOCK TABLE doctrine_embeddings_risk IN SHARE UPDATE EXCLUSIVE MODE")
        try:
            threads.submit(ensure_domain_tables, database, [("timing", "Timing")]).result(timeout=20)
        finally:
            builder.rollback()
    assert "vectors.doctrine_embeddings_timing" in tables(database)


def test_the_longest_slug_is_a_legal_table_name(database: Database) -> None:
    slug = slugify_domain("an extremely long domain name that never seems to come to its end")
    ensure_space(database, SPACE)
    ensure_domain_tables(database, [(slug, "x")])
    assert len(domain_table(slug)) <= 63
    assert f"vectors.{domain_table(slug)}" in tables(database)


def test_processes_that_make_space_and_domains_at_once_agree(database: Database, database_url: str) -> None:
    running = [
        subprocess.Popen(
            [sys.executable, "-c", MAKE, database_url, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for number in range(4)
    ]
    for process in running:
        assert process.stdout is not None
        process.stdout.readline()
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert len(tables(database)) == 1 + 6 + 4
    with database.connection() as connection:
        spellings = connection.execute("SELECT DISTINCT spellings FROM minister_domains WHERE domain LIKE 'shared%'")
        assert spellings.fetchall() == [([f"Shared {number}" for number in range(4)],)]
