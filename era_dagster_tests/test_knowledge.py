"""The knowledge base as a persona uses it: a real PostgreSQL, and a small embedding server on the loopback.

The server's vectors count words, so that equal words are near and nothing else is: enough to see which text was asked.
"""

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import uuid
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import psycopg
import pytest
from pgvector import HalfVector

from era_dagster.domain.errors import ConfigurationError, DatabaseUnavailable, EndpointUnavailable
from era_dagster.domain.space import Space
from era_dagster.knowledge import AsyncKnowledgeBase, KnowledgeBase
from era_dagster.settings import Settings
from era_dagster.storage.database import Database
from era_dagster.storage.search import SearchHit
from era_dagster.storage.spaces import ensure_domain_tables, ensure_space

DIMENSION = 256
MODEL = "nomic-embed-text"
DIGEST = "0a109f422b47"
SPACE = Space(
    provider="ollama",
    model=MODEL,
    digest=DIGEST,
    dimension=DIMENSION,
    document_prefix="search_document: ",
    query_prefix="search_query: ",
)
DOCTRINE = (
    ("Pay yourself first: keep a tenth of all you earn.", "principles", ("wealth", "war_and_peace")),
    ("Lend gold only to those who can repay it.", "rules", ("wealth",)),
    ("Beware of promises of easy gold.", "warnings", ("wealth", "folly")),
    ("Choose the ground before you give battle.", "rules", ("war_and_peace",)),
)


def vector_of(text: str) -> list[float]:
    counts = np.zeros(DIMENSION)
    for word in text.lower().replace(".", " ").replace(",", " ").split():
        counts[int.from_bytes(hashlib.sha256(word.encode("utf-8")).digest()[:4], "big") % DIMENSION] += 1.0
    return list(counts / np.linalg.norm(counts))


class SmallOllama:
    """Answers as Ollama does, for one model; remembers the texts it was asked for."""

    def __init__(self, *, port: int = 0) -> None:
        self.texts: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                listed = {"models": [{"name": f"{MODEL}:latest", "digest": DIGEST}]}
                self.answer({"version": "0.30.0"} if self.path == "/api/version" else listed)

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.texts += asked["input"]
                self.answer({"model": MODEL, "embeddings": [vector_of(text) for text in asked["input"]]})

            def answer(self, content: object) -> None:
                body = json.dumps(content).encode("utf-8")
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def ollama() -> Iterator[SmallOllama]:
    server = SmallOllama()
    yield server
    server.close()


@pytest.fixture
def filled(database: Database) -> Database:
    """A database that holds DOCTRINE, and one chunk, in the space of MODEL."""
    ensure_space(database, SPACE)
    ensure_domain_tables(database, [("wealth", "Wealth"), ("folly", "folly"), ("war_and_peace", "War & Peace")])
    with database.connection() as connection:
        for text, category, domains in DOCTRINE:
            vector = HalfVector(vector_of(SPACE.document_prefix + text))
            row = (uuid.uuid4(), category, text, "A Book", 3, 1.0, "a-book-123456/0003", vector)
            columns = "doctrine_id, category, text, source_book, source_chapter, weight, partition_key, embedding"
            connection.execute(
                f"INSERT INTO doctrine_embeddings_all (domains, {columns}) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
                (list(domains), *row),
            )
            for domain in domains:
                connection.execute(
                    f"INSERT INTO doctrine_embeddings (domain, {columns}) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
                    (domain, *row),
                )
        connection.execute(
            "INSERT INTO doctrine_sources (partition_key, book, book_slug, chapter, path, text, content_hash,"
            " entry_count, pair_count, run_id) VALUES ('a-book-123456/0003', 'A Book', 'a-book-123456', 3, '', '', '',"
            " 4, 5, 'run')"
        )
        connection.execute("INSERT INTO chapter_chunks VALUES ('a-book-123456/0003', 0, 0, 11, 'Once a clerk', '')")
        connection.execute(
            "INSERT INTO chunk_embeddings VALUES ('a-book-123456/0003', 0, %s)",
            (HalfVector(vector_of("Once a clerk")),),
        )
    return database


@pytest.fixture
def configured(settings: Settings, ollama: SmallOllama) -> Settings:
    return replace(settings, embedding_provider="ollama", embedding_urls=(ollama.url,), embedding_model=MODEL)


def texts(hits: Sequence[SearchHit]) -> list[str]:
    return [hit.text for hit in hits]


def test_a_look_up_finds_by_vector_in_a_domain_of_any_spelling(filled: Database, settings: Settings) -> None:
    query = vector_of(SPACE.document_prefix + DOCTRINE[0][0])
    with KnowledgeBase.open(settings) as base:
        (best, *others) = base.lookup(query, domain=" War & Peace ")
        assert (best.text, best.domains) == (DOCTRINE[0][0], ("war_and_peace", "wealth"))
        assert best.score == pytest.approx(1.0, abs=1e-3)
        assert texts(others) == [DOCTRINE[3][0]]
        assert len(base.lookup(query)) == 4
        assert len(base.lookup(query, "wealth", 2)) == 2
        assert texts(base.lookup(query, category="warnings", book="A Book")) == [DOCTRINE[2][0]]
        assert texts(base.lookup(query, within="chunks")) == ["Once a clerk"]
        assert base.lookup(query, domain="unknown") == base.lookup(query, domain="???") == []
        with pytest.raises(ConfigurationError, match="no category"):
            base.lookup(query, category="rules", within="chunks")
        with pytest.raises(ConfigurationError, match="'everything'"):
            base.lookup(query, within="everything")  # type: ignore[arg-type]
        for top_k in (2.5, "3", None):
            with pytest.raises(ConfigurationError, match="no whole number"):
                base.lookup(query, top_k=top_k)  # type: ignore[arg-type]
        assert len(base.lookup(query, top_k=True)) == len(base.lookup(query, top_k=np.int64(1))) == 1  # type: ignore[arg-type]


def test_a_search_asks_the_model_once_with_its_query_prefix(
    filled: Database, configured: Settings, ollama: SmallOllama
) -> None:
    with KnowledgeBase.open(configured) as base:
        assert texts(base.search("promises of easy gold", domain="WEALTH", top_k=1)) == [DOCTRINE[2][0]]
        asked = len(ollama.texts)
        assert ollama.texts[-1] == "search_query: promises of easy gold"
        assert texts(base.search("give battle", top_k=1)) == [DOCTRINE[3][0]]
        assert texts(base.search("clerk", within="chunks")) == ["Once a clerk"]
        # The model was identified once, at the first search.
        assert len(ollama.texts) == asked + 2


def test_a_search_with_nothing_configured_takes_the_model_the_database_holds(
    filled: Database, settings: Settings, ollama: SmallOllama
) -> None:
    with KnowledgeBase.open(replace(settings, embedding_urls=(ollama.url,))) as base:
        assert texts(base.search("who can repay", top_k=1)) == [DOCTRINE[1][0]]


def test_a_search_works_inside_a_running_event_loop_and_from_many_threads(
    filled: Database, configured: Settings
) -> None:
    async def inside(base: KnowledgeBase) -> list[str]:
        return texts(base.search("easy gold", top_k=1))

    with KnowledgeBase.open(configured) as base:
        assert asyncio.run(inside(base)) == [DOCTRINE[2][0]]
        found: list[str] = []
        threads = [
            threading.Thread(target=lambda: found.extend(texts(base.search("easy gold", top_k=1)))) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [DOCTRINE[2][0]] * 8


def test_the_async_knowledge_base_answers_many_at_once_as_the_other_one_does(
    filled: Database, configured: Settings
) -> None:
    query = vector_of(SPACE.document_prefix + DOCTRINE[1][0])

    async def ask() -> None:
        async with AsyncKnowledgeBase.open(configured) as base:
            first, *rest = await asyncio.gather(
                base.lookup(query, "wealth"), *(base.search("easy gold", "wealth", top_k=1) for _ in range(20))
            )
            assert first[0].text == DOCTRINE[1][0]
            assert [texts(hits) for hits in rest] == [[DOCTRINE[2][0]]] * 20
            assert texts(await base.lookup(query, within="chunks")) == ["Once a clerk"]

    asyncio.run(ask())


def test_an_empty_database_gives_nothing_and_asks_no_server(
    database: Database, configured: Settings, ollama: SmallOllama
) -> None:
    with KnowledgeBase.open(configured) as base:
        assert base.search("easy gold") == base.lookup([1.0] * 5) == []
    assert ollama.texts == []


def test_settings_that_name_another_model_are_refused_before_anything_is_asked(
    filled: Database, configured: Settings, ollama: SmallOllama
) -> None:
    with (
        KnowledgeBase.open(replace(configured, embedding_model="all-minilm")) as base,
        pytest.raises(ConfigurationError, match=r"nomic-embed-text .* and all-minilm is configured"),
    ):
        base.search("easy gold")
    assert ollama.texts == []


def test_a_server_whose_model_is_another_than_the_stored_one_is_refused(
    database: Database, configured: Settings
) -> None:
    ensure_space(database, replace(SPACE, digest="another"))
    with (
        KnowledgeBase.open(configured) as base,
        pytest.raises(ConfigurationError, match="The database holds vectors of"),
    ):
        base.search("easy gold")


def test_a_server_that_is_away_is_said_and_found_again_when_it_is_back(
    filled: Database, configured: Settings, ollama: SmallOllama
) -> None:
    ollama.close()
    with KnowledgeBase.open(configured) as base:
        for _ in range(2):
            with pytest.raises(EndpointUnavailable) as caught:
                base.search("easy gold")
            assert ollama.url in caught.value.message
        assert len(base.lookup(vector_of("easy gold"))) == 4
        back = SmallOllama(port=int(ollama.url.rsplit(":", 1)[1]))
        try:
            assert texts(base.search("easy gold", top_k=1)) == [DOCTRINE[2][0]]
        finally:
            back.close()


def test_a_database_that_cuts_every_connection_is_asked_again_and_nothing_is_leaked(
    filled: Database, settings: Settings
) -> None:
    query = vector_of(SPACE.document_prefix + DOCTRINE[0][0])
    cut = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with KnowledgeBase.open(settings) as base:
        for _ in range(3):
            assert len(base.lookup(query)) == 4
            with psycopg.connect(filled.url, autocommit=True) as connection:
                connection.execute(cut)
            try:
                found = base.lookup(query)
            except DatabaseUnavailable:
                found = base.lookup(query)
            assert len(found) == 4
        with psycopg.connect(filled.url, autocommit=True) as connection:
            row = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            ).fetchone()
        assert row is not None
        assert row[0] <= 2 * settings.database_pool + 2


def test_what_is_closed_says_so_and_starts_nothing_again(filled: Database, configured: Settings) -> None:
    """It was PostgreSQL that could not be reached."""
    with KnowledgeBase.open(configured) as base:
        pass
    for ask in (
        lambda: base.search("easy gold"),
        lambda: base.lookup(vector_of("gold")),
        lambda: base._questions.ask("?", SPACE),
    ):
        with pytest.raises(ConfigurationError, match="is closed"):
            ask()
    assert "era-queries" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no process is forked here")
def test_a_forked_process_is_told_to_open_its_own_and_leaves_that_of_its_parent_alone(
    filled: Database, configured: Settings
) -> None:
    """Both talked over one connection: the parent's look-up failed, and the child waited for ever."""
    query = vector_of(SPACE.document_prefix + DOCTRINE[0][0])
    with KnowledgeBase.open(configured) as base:
        assert len(base.search("easy gold")) == 4
        reader, writer = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of threads that the child has not, which is what this is about
            child = os.fork()
        if child == 0:
            try:
                signal.alarm(20)
                for ask in (lambda: base.lookup(query), lambda: base.search("easy gold")):
                    try:
                        ask()
                    except ConfigurationError as error:
                        os.write(writer, f"{error.message}\n".encode())
                base.close()
                with KnowledgeBase.open(configured) as own:
                    os.write(writer, f"{len(own.lookup(query))} found\n".encode())
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader, encoding="utf-8") as said:
            told = said.read().splitlines()
        assert os.waitpid(child, 0)[1] == 0
        refused = "This knowledge base was opened in another process, from which this one was forked."
        assert told == [refused, refused, "4 found"]
        assert len(base.lookup(query)) == len(base.search("easy gold")) == 4


def test_words_count_too_when_a_search_is_hybrid(filled: Database, configured: Settings) -> None:
    async def ask() -> tuple[list[SearchHit], list[SearchHit]]:
        async with AsyncKnowledgeBase.open(configured) as base:
            plain = await base.search("battle", top_k=4)
            return plain, await base.search("battle", top_k=4, hybrid=True)

    plain, hybrid = asyncio.run(ask())
    assert sorted(texts(plain)) == sorted(texts(hybrid))
    assert texts(hybrid)[0] == DOCTRINE[3][0]


def test_a_blank_text_is_refused(filled: Database, configured: Settings) -> None:
    # The last ones are a mark of direction, joiners as in an emoji, and what chooses a glyph: nobody sees them.
    for blank in (" \n", "\u200e", "\u200c\u200d", "\ufe0f \u2066\u2069"):
        with KnowledgeBase.open(configured) as base, pytest.raises(ConfigurationError, match="blank"):
            base.search(blank)


CONSUMER = """
import json, sys, types
from era_dagster.knowledge import (
    enrich_context_with_doctrine, judgment_prior_features, semantic_similarity_lookup
)

heavy = {"dagster", "pandas", "onnxruntime", "httpx", "tokenizers", "numpy", "psycopg", "asyncio"} & set(sys.modules)
vector = json.loads(sys.argv[1])
persona = types.SimpleNamespace(domain="War & Peace")
returned = enrich_context_with_doctrine(persona, "Where to give battle?")
free = types.SimpleNamespace()
enrich_context_with_doctrine(free, "Where to give battle?")
lost = types.SimpleNamespace(domain="cookery")
enrich_context_with_doctrine(lost, "Where to give battle?")
print(json.dumps({
    "heavy": sorted(heavy),
    "same": returned is persona.doctrine_context,
    "context": [hit.text for hit in persona.doctrine_context],
    "free": len(free.doctrine_context),
    "lost": lost.doctrine_context,
    "lookup": [(hit.text, hit.score) for hit in semantic_similarity_lookup(vector, "Wealth", top_k=2)],
    "features": judgment_prior_features(vector, "wealth"),
    "cheered": judgment_prior_features(json.loads(sys.argv[2]), "war and peace")["prior"],
    "warned": judgment_prior_features(vector, "folly")["prior"],
    "nowhere": judgment_prior_features(vector, "cookery"),
    "dagster": "dagster" in sys.modules,
}))
"""


def test_the_users_functions_work_from_the_environment_alone(
    filled: Database, database_url: str, ollama: SmallOllama, tmp_path: Path
) -> None:
    """A process of its own: the shared knowledge base opens by itself, and the process ends clean without closing it."""
    vector = vector_of(SPACE.document_prefix + DOCTRINE[2][0])
    cheering = vector_of(SPACE.document_prefix + DOCTRINE[3][0])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CONSUMER, json.dumps(vector), json.dumps(cheering)],
        cwd=Path(__file__).parents[1],
        env={
            **os.environ,
            "ERA_DATABASE_URL": database_url,
            "ERA_HOME": str(tmp_path),
            "ERA_EMBEDDING_URLS": ollama.url,
        },
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    assert said["heavy"] == []
    assert said["same"] is True
    assert said["context"] == [DOCTRINE[3][0], DOCTRINE[0][0]]
    assert (said["free"], said["lost"]) == (3, [])
    assert said["lookup"][0][0] == DOCTRINE[2][0]
    assert said["lookup"][0][1] == pytest.approx(1.0, abs=1e-3)
    assert said["dagster"] is False
    features = said["features"]
    assert {name: features[f"{name}_count"] for name in ("principles", "rules", "claims", "warnings")} == {
        "principles": 1.0,
        "rules": 1.0,
        "claims": 0.0,
        "warnings": 1.0,
    }
    assert features["warnings_max"] == features["warnings_mean"] == pytest.approx(1.0, abs=1e-3)
    assert features["claims_max"] == 0.0
    total = features["warnings_max"] + features["rules_max"] + features["principles_max"]
    expected = 1 + 0.3 * features["warnings_max"] * (1 - 2 * features["warnings_max"] / total)
    assert features["prior"] == pytest.approx(expected)
    assert features["prior"] < 1.0
    assert said["cheered"] == pytest.approx(1.3, abs=1e-3)
    assert said["cheered"] <= 1.3
    assert said["warned"] == pytest.approx(0.7, abs=1e-3)
    assert said["warned"] >= 0.7
    assert said["nowhere"]["prior"] == 1.0


def test_the_environment_decides_when_no_settings_are_given(
    filled: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERA_DATABASE_URL", database_url)
    with KnowledgeBase.open() as base:
        assert len(base.lookup(vector_of("gold"))) == 4
    monkeypatch.setenv("ERA_DATABASE_URL", "postgresql://nobody@127.0.0.1:9/none")
    with KnowledgeBase.open(url=database_url) as base:
        assert len(base.lookup(vector_of("gold"))) == 4
