"""Look-up by vector on a real PostgreSQL: scores, order, filters, pruning, and the queries that are refused."""

import unicodedata
import uuid
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import psycopg
import pytest
from pgvector import HalfVector

from era_dagster.domain.errors import ConfigurationError
from era_dagster.domain.space import Space
from era_dagster.storage.database import Database
from era_dagster.storage.search import SearchHit, search_chunks, search_entries
from era_dagster.storage.spaces import ensure_domain_tables, ensure_space

DIMENSION = 16
SPACE = Space(provider="ollama", model="tiny", digest=None, dimension=DIMENSION, document_prefix="", query_prefix="")
CATEGORIES = ("principles", "rules", "claims", "warnings")
Vectors = npt.NDArray[np.float32]


def random_vectors(count: int, *, seed: int = 7) -> Vectors:
    """Unit vectors, shape (count, DIMENSION)."""
    drawn = np.random.default_rng(seed).normal(size=(count, DIMENSION))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def open_space(database: Database, *domains: str) -> None:
    ensure_space(database, SPACE)
    ensure_domain_tables(database, [(domain, domain) for domain in domains])


def add_entry(
    connection: psycopg.Connection,
    vector: npt.NDArray[np.floating],
    *,
    domains: Sequence[str],
    text: str = "Pay yourself first.",
    category: str = "principles",
    book: str = "Book (1926)",
    key: str = "book-1926-abcdef/0001",
) -> str:
    """One entry in both vector tables; returns its id."""
    identifier = str(uuid.uuid4())
    same = (identifier, category, text, book, 1, 1.0, key, HalfVector(vector))
    connection.execute(
        "INSERT INTO doctrine_embeddings_all (domains, doctrine_id, category, text, source_book, source_chapter,"
        " weight, partition_key, embedding) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
        (list(domains), *same),
    )
    for domain in domains:
        connection.execute(
            "INSERT INTO doctrine_embeddings (domain, doctrine_id, category, text, source_book, source_chapter, weight,"
            " partition_key, embedding) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
            (domain, *same),
        )
    return identifier


def add_chapter(connection: psycopg.Connection, key: str, *, book: str, domains: Sequence[str]) -> None:
    """A chapter's provenance, with one doctrine entry in each of `domains`."""
    slug, chapter = key.split("/")
    connection.execute(
        "INSERT INTO doctrine_sources (partition_key, book, book_slug, chapter, path, text, content_hash, entry_count,"
        " pair_count, run_id) VALUES (%s, %s, %s, %s, '', '', '', 1, 1, 'run')",
        (key, book, slug, int(chapter)),
    )
    for domain in domains:
        connection.execute(
            "INSERT INTO minister_entries (doctrine_id, domain, category, position, text, book, chapter, embedding_id,"
            " content_hash, partition_key) VALUES (%(id)s, %(domain)s, 'rules', 0, 'x', '', 1, %(id)s, '', %(key)s)",
            {"id": uuid.uuid4(), "domain": domain, "key": key},
        )


def add_chunk(connection: psycopg.Connection, key: str, position: int, text: str, vector: Vectors) -> None:
    connection.execute("INSERT INTO chapter_chunks VALUES (%s, %s, 0, %s, %s, '')", (key, position, len(text), text))
    connection.execute("INSERT INTO chunk_embeddings VALUES (%s, %s, %s)", (key, position, HalfVector(vector)))


def test_the_nearest_entries_are_those_numpy_finds_in_the_same_order(database: Database) -> None:
    open_space(database, "wealth", "ethics")
    vectors = random_vectors(300)
    with database.connection() as connection:
        ids = [
            add_entry(connection, vector, domains=["wealth"] if number % 3 else ["wealth", "ethics"])
            for number, vector in enumerate(vectors)
        ]
        query = random_vectors(1, seed=8)[0]
        cosines = vectors @ query
        for domain, members in ((None, range(300)), ("wealth", range(300)), ("ethics", range(0, 300, 3))):
            best = sorted(members, key=lambda number: -cosines[number])[:10]
            hits = search_entries(connection, query, domain=domain, top_k=10)
            assert [hit.doctrine_id for hit in hits] == [ids[number] for number in best]
            assert [hit.score for hit in hits] == pytest.approx([cosines[number] for number in best], abs=1e-3)


def test_the_vector_of_an_entry_finds_it_with_score_one_and_all_its_fields(database: Database) -> None:
    open_space(database, "wealth", "ethics")
    vectors = random_vectors(50)
    with database.connection() as connection:
        for vector in vectors[1:]:
            add_entry(connection, vector, domains=["wealth"])
        identifier = add_entry(
            connection,
            vectors[0],
            domains=["wealth", "ethics"],
            text="Guard against 100 % loss.",
            category="warnings",
        )
        # The length of a query says nothing: cosine similarity is of directions.
        for length in (1.0, 1e-30, 1e30, 7.5):
            for domain in (None, "wealth", "ethics"):
                hit = search_entries(connection, vectors[0].astype(np.float64) * length, domain=domain)[0]
                assert hit.score == pytest.approx(1.0, abs=1e-3)
                assert hit == SearchHit(
                    doctrine_id=identifier,
                    score=hit.score,
                    text="Guard against 100 % loss.",
                    domains=("ethics", "wealth"),
                    category="warnings",
                    book="Book (1926)",
                    chapter=1,
                    weight=1.0,
                    kind="entry",
                )


def test_a_plain_list_of_numbers_is_a_query_too(database: Database) -> None:
    open_space(database, "wealth")
    with database.connection() as connection:
        add_entry(connection, random_vectors(1)[0], domains=["wealth"])
        assert len(search_entries(connection, [1] + [0] * (DIMENSION - 1))) == 1


def test_category_and_book_leave_only_what_they_name(database: Database) -> None:
    open_space(database, "wealth")
    vectors = random_vectors(40)
    with database.connection() as connection:
        add_chapter(connection, "gold-123456/0001", book="100 % Gold; it's %s", domains=[])
        add_chapter(connection, "other-123456/0001", book="Other", domains=[])
        for number, vector in enumerate(vectors):
            add_entry(
                connection,
                vector,
                domains=["wealth"],
                category=CATEGORIES[number % 4],
                book="100 % Gold; it's %s" if number < 8 else "Other",
                key="gold-123456/0001" if number < 8 else "other-123456/0001",
            )
        for domain in (None, "wealth"):
            by_name = search_entries(connection, vectors[0], domain=domain, book="100 % Gold; it's %s", top_k=100)
            by_slug = search_entries(connection, vectors[0], domain=domain, book="gold-123456", top_k=100)
            warnings = search_entries(connection, vectors[0], domain=domain, category="warnings", top_k=100)
            both = search_entries(connection, vectors[0], domain=domain, category="warnings", book="gold-123456")
            assert len(by_name) == 8
            assert by_slug == by_name
            assert [hit.category for hit in warnings] == ["warnings"] * 10
            assert {hit.doctrine_id for hit in both} == {h.doctrine_id for h in by_name if h.category == "warnings"}
            assert search_entries(connection, vectors[0], domain=domain, book="Nobody's") == []


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
def test_a_book_is_found_whichever_way_its_accents_are_written(
    database: Database, stored: Literal["NFC", "NFD"]
) -> None:
    """A Mac writes them apart in the names of folders, a keyboard does not: the book was there and nothing was found."""
    open_space(database, "wealth")
    vector = random_vectors(1)[0]
    key = "evangile-123456/0001"
    with database.connection() as connection:
        add_chapter(connection, key, book=unicodedata.normalize(stored, "L’Évangile"), domains=["wealth"])
        add_entry(connection, vector, domains=["wealth"], key=key)
        add_chunk(connection, key, 0, "In the beginning", vector)
        for asked in ("NFC", "NFD"):
            name = unicodedata.normalize(asked, "L’Évangile")
            assert len(search_entries(connection, vector, book=name)) == 1
            assert len(search_chunks(connection, vector, book=name)) == 1


def test_top_k_is_capped_and_none_below_one_gives_nothing(database: Database) -> None:
    open_space(database, "wealth")
    with database.connection() as connection:
        query = random_vectors(1)[0]
        for _ in range(1005):
            add_entry(connection, query, domains=["wealth"])
        assert len(search_entries(connection, query, top_k=3)) == 3
        assert len(search_entries(connection, query, domain="wealth", top_k=10**9)) == 1000
        assert search_entries(connection, query, top_k=0) == []
        assert search_entries(connection, query, top_k=-1) == []
        assert search_chunks(connection, query, top_k=0) == []


@pytest.mark.parametrize(
    "domain", ["unknown", "", "all", "wealth'; DROP TABLE minister_domains; --", "50%", "%(query)s"]
)
def test_an_unknown_domain_gives_nothing(database: Database, domain: str) -> None:
    open_space(database, "wealth")
    with database.connection() as connection:
        vector = random_vectors(1)[0]
        add_entry(connection, vector, domains=["wealth"])
        assert search_entries(connection, vector, domain=domain) == []
        assert search_chunks(connection, vector, domain=domain) == []
        assert len(search_entries(connection, vector, domain="wealth")) == 1


def test_a_database_without_vectors_gives_nothing(database: Database) -> None:
    with database.connection() as connection:
        assert search_entries(connection, [0.5] * 768, domain="wealth") == []
        assert search_chunks(connection, [0.5] * 768) == []


@pytest.mark.parametrize(
    ("vector", "said"),
    [
        ([1.0] * (DIMENSION + 1), f"has {DIMENSION + 1} dimensions, and the database holds {DIMENSION} of tiny"),
        ([0.0] * DIMENSION, "zero"),
        ([], "empty"),
        ([float("nan")] + [1.0] * (DIMENSION - 1), "not finite"),
        ([float("inf")] + [1.0] * (DIMENSION - 1), "not finite"),
        ([[1.0] * DIMENSION], "2 axes"),
        (["a"] * DIMENSION, "not a list of numbers"),
        ([[1.0], [1.0, 2.0]], "not a list of numbers"),
        (None, "0 axes"),
    ],
)
def test_a_vector_that_cannot_be_compared_is_refused_in_one_sentence(
    database: Database, vector: Sequence[float], said: str
) -> None:
    open_space(database, "wealth")
    with database.connection() as connection:
        for search in (search_entries, search_chunks):
            with pytest.raises(ConfigurationError) as caught:
                search(connection, vector)
            assert said in caught.value.message
            assert caught.value.message.count(". ") == 0


def test_a_category_there_is_not_is_refused(database: Database) -> None:
    with database.connection() as connection, pytest.raises(ConfigurationError, match="'warning'"):
        search_entries(connection, [1.0] * DIMENSION, category="warning")


def test_a_look_up_in_one_domain_opens_no_other_domains_table(database: Database) -> None:
    """PostgreSQL locks every table it plans to read: 150 domains would be 150 locks, also after many look-ups."""
    domains = [f"domain_{number}" for number in range(30)]
    open_space(database, *domains)
    query = random_vectors(1)[0]
    with database.connection() as connection:
        for domain in domains:
            add_entry(connection, query, domains=[domain])
    with database.connection() as connection:
        for _ in range(20):
            search_entries(connection, query, domain="domain_7", category="principles", book="Book (1926)")
        touched = connection.execute(
            "SELECT c.relname FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation"
            " WHERE l.pid = pg_backend_pid() AND c.relname LIKE 'doctrine_embeddings_domain%' AND c.relkind = 'r'"
        ).fetchall()
    assert touched == [("doctrine_embeddings_domain_7",)]


def test_chunks_are_found_with_their_text_book_and_the_domains_of_their_chapter(database: Database) -> None:
    open_space(database, "wealth", "ethics", "war")
    vectors = random_vectors(6)
    with database.connection() as connection:
        add_chapter(connection, "gold-123456/0002", book="Gold, etc.", domains=["wealth", "ethics"])
        add_chapter(connection, "war/0001", book="war", domains=["war"])
        for position in range(3):
            add_chunk(connection, "gold-123456/0002", position, f"gold {position}", vectors[position])
            add_chunk(connection, "war/0001", position, f"war {position}", vectors[3 + position])
        hits = search_chunks(connection, vectors[1])
        assert len(hits) == 5
        assert hits[0] == SearchHit(
            doctrine_id="gold-123456/0002#1",
            score=hits[0].score,
            text="gold 1",
            domains=("ethics", "wealth"),
            category=None,
            book="Gold, etc.",
            chapter=2,
            weight=1.0,
            kind="chunk",
        )
        assert hits[0].score == pytest.approx(1.0, abs=1e-3)
        cosines = sorted(vectors @ vectors[1], reverse=True)[:5]
        assert [hit.score for hit in hits] == pytest.approx(cosines, abs=1e-3)
        assert {hit.text for hit in search_chunks(connection, vectors[1], domain="war")} == {"war 0", "war 1", "war 2"}
        for book in ("Gold, etc.", "gold-123456"):
            assert {hit.book for hit in search_chunks(connection, vectors[4], book=book)} == {"Gold, etc."}
        assert search_chunks(connection, vectors[1], domain="war", book="gold-123456") == []


def test_a_filter_by_book_or_domain_finds_the_best_also_where_an_index_would_give_up(database: Database) -> None:
    """An HNSW index walks from the nearest chunks outwards and stops after a number of rows; the far ones are lost."""
    open_space(database, "war")
    query = random_vectors(1, seed=8)[0]
    near = random_vectors(2000) + 4 * query
    with database.connection() as connection:
        add_chapter(connection, "near/0001", book="near", domains=[])
        add_chapter(connection, "far/0001", book="far", domains=["war"])
        for position, vector in enumerate(near):
            add_chunk(connection, "near/0001", position, "near", vector)
        for position in range(3):
            add_chunk(connection, "far/0001", position, f"far {position}", -query + 0.1 * near[position])
        connection.execute("CREATE INDEX ON chunk_embeddings USING hnsw (embedding halfvec_cosine_ops)")
        connection.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off")
        connection.execute("SET LOCAL hnsw.max_scan_tuples = 100; SET LOCAL hnsw.ef_search = 10")
        assert len(search_chunks(connection, query, top_k=3)) == 3
        for found in (search_chunks(connection, query, book="far"), search_chunks(connection, query, domain="war")):
            assert sorted(hit.text for hit in found) == ["far 0", "far 1", "far 2"]


def test_a_category_far_from_the_question_is_found_also_where_an_index_would_give_up(database: Database) -> None:
    open_space(database, "war")
    query = random_vectors(1, seed=8)[0]
    near = random_vectors(1000) + 4 * query
    with database.connection() as connection:
        for vector in near:
            add_entry(connection, vector, domains=["war"])
        far = {
            add_entry(connection, -query + 0.1 * vector, domains=["war"], category="warnings") for vector in near[:6]
        }
        for table in ("doctrine_embeddings_all", "doctrine_embeddings_war"):
            connection.execute(f"CREATE INDEX ON {table} USING hnsw (embedding halfvec_cosine_ops)".encode())
        connection.execute(
            "SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off; SET LOCAL enable_bitmapscan = off"
        )
        connection.execute("SET LOCAL hnsw.max_scan_tuples = 100; SET LOCAL hnsw.ef_search = 10")
        for domain in (None, "war"):
            found = search_entries(connection, query, domain=domain, category="warnings", top_k=6)
            assert {hit.doctrine_id for hit in found} == far
            assert len(search_entries(connection, query, domain=domain, category="principles", top_k=6)) == 6


def test_of_texts_equally_near_the_same_ones_are_found_wherever_their_rows_lie(database: Database) -> None:
    open_space(database, "war")
    vector = random_vectors(1)[0]
    with database.connection() as connection:
        ids = sorted(add_entry(connection, vector, domains=["war"]) for _ in range(12))
        add_chapter(connection, "twin/0001", book="twin", domains=[])
        for position in reversed(range(12)):
            add_chunk(connection, "twin/0001", position, "again", vector)

        def found() -> list[str]:
            entries = [search_entries(connection, vector, domain=domain, top_k=3) for domain in (None, "war")]
            return [hit.doctrine_id for hits in (*entries, search_chunks(connection, vector, top_k=11)) for hit in hits]

        first = [*ids[:3], *ids[:3], *(f"twin/0001#{position}" for position in range(11))]
        assert found() == first
        for table in ("doctrine_embeddings_all", "doctrine_embeddings"):
            # An update writes a row anew, behind the others.
            connection.execute(f"UPDATE {table} SET weight = 1 WHERE doctrine_id = %s".encode(), (ids[0],))
        assert found() == first


def test_another_program_gets_as_many_rows_as_it_asks_for_also_from_an_index(database: Database) -> None:
    """Without a word to pgvector an index gives 40 at most."""
    open_space(database, "war")
    with database.connection() as connection:
        for vector in random_vectors(200):
            add_entry(connection, vector, domains=["war"])
        connection.execute("CREATE INDEX ON doctrine_embeddings_war USING hnsw (embedding halfvec_cosine_ops)")
    with psycopg.connect(database.url) as program:
        program.execute("SET enable_seqscan = off; SET enable_sort = off; SET enable_bitmapscan = off")
        promised = (
            "SELECT doctrine_id FROM doctrine_embeddings WHERE domain = 'war'"
            " ORDER BY embedding <=> (SELECT embedding FROM doctrine_embeddings LIMIT 1) LIMIT 150"
        )
        plan = program.execute(f"EXPLAIN {promised}".encode()).fetchall()
        assert any("Index Scan using doctrine_embeddings_war_embedding_idx" in line for (line,) in plan)
        assert len(program.execute(promised).fetchall()) == 150
