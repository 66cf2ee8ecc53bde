"""Another model of the same width under the same name, from a server that tells no digest: noticed before a vector is stored."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import orjson
import pytest

from era_dagster.domain.errors import BadVectors
from era_dagster.knowledge import KnowledgeBase
from era_dagster.pipeline.health import model as look_at_model
from era_dagster.pipeline.space_build import build_space
from era_dagster.storage.space_switch import drop_space
from era_dagster.storage.spaces import live_space
from era_dagster.storage.table_audit import damaged_cache_keys, table_faults
from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer, serving, vector_of
from era_dagster_tests.pipeline.workbench import Workbench, chapter


class Changeable(FakeEmbeddingServer):
    """Makes the vectors of whatever `weights` it was given; a little `blurred` where it runs on other hardware."""

    weights = ""
    blurred = 0.0

    def _encoded_vector(self, text: str, dimension: int) -> bytes:
        vector = vector_of(self.weights + text, dimension) + self.blurred * vector_of("blur " + text, dimension)
        return orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY)


@pytest.fixture
def server(bench: Workbench) -> Iterator[Changeable]:
    """The server of the bench, behind a real port and without a digest."""
    changeable = Changeable(dimension=16)
    bench.server = changeable
    with serving(changeable) as url:
        bench.settings = replace(bench.settings, embedding_provider="openai", embedding_urls=(url,))
        yield changeable


def ingest(bench: Workbench, *books: str) -> int:
    """Drop and ingest them over HTTP; gives the number of requests for the embedder's own text."""
    for book in books:
        bench.drop(book, chapter(1, f"The log of {book}. " * 60, ["risk"], rules=[f"Count the crew of {book}."]))
    bench.look()
    bench.server.batches.clear()
    bench.run(with_fake_server=False)
    return len(bench.server.texts) - len(bench.asked)


def test_another_model_under_the_same_name_ends_the_run_and_not_one_vector_of_it_is_stored(
    bench: Workbench, server: Changeable
) -> None:
    first = ingest(bench, "ferry")
    before = bench.tables()
    server.weights = "others "
    with pytest.raises(BadVectors, match=r"answers other vectors than test-model made in earlier runs") as caught:
        ingest(bench, "harbour")
    assert "era spaces build --model" in caught.value.hint
    assert bench.asked == []
    after = bench.tables()
    for table in ("public.embedding_cache", "vectors.doctrine_embeddings_all", "vectors.chunk_embeddings"):
        assert after[table] == before[table]

    server.weights = ""
    assert ingest(bench, "harbour") == first == 2
    stored = bench.rows("SELECT text, embedding FROM doctrine_embeddings_all")
    assert len(stored) == 2
    for text, vector in stored:
        assert np.asarray(vector.to_numpy(), dtype=float) @ vector_of(text, 16) > 0.99
    assert table_faults(bench.database) == []
    assert damaged_cache_keys(bench.database) == []


def test_who_only_reads_knows_the_model_again_too_and_writes_nothing(bench: Workbench, server: Changeable) -> None:
    """A search answered from the vectors of another model, and the doctor found it well."""
    ingest(bench, "ferry")
    live, before = live_space(bench.database), bench.tables()
    with KnowledgeBase.open(bench.settings) as base:
        assert base.search("Count the crew of ferry.")[0].score > 0.99
    server.weights = "others "
    with KnowledgeBase.open(bench.settings) as base:
        with pytest.raises(BadVectors, match=r"answers other vectors than test-model made in earlier runs"):
            base.search("Count the crew of ferry.")
        server.weights = ""
        assert base.search("Count the crew of ferry.")[0].score > 0.99
    assert [finding.level for finding in look_at_model(bench.settings, live, bench.database)] == ["ok", "ok"]
    server.weights = "others "
    (finding,) = look_at_model(bench.settings, live, bench.database)
    assert finding.level == "failed" and "answers other vectors" in finding.found
    assert "era spaces build --model" in finding.next_step
    assert bench.tables() == before


def test_the_same_model_at_another_precision_is_known_again(bench: Workbench, server: Changeable) -> None:
    ingest(bench, "ferry")
    server.blurred = 0.2
    ingest(bench, "harbour")
    assert bench.count("doctrine_embeddings_all") == 2


def test_the_new_model_gets_its_space_under_a_name_of_its_own(bench: Workbench, server: Changeable) -> None:
    ingest(bench, "ferry")
    server.weights, server.model = "others ", "new-model"
    built = build_space(replace(bench.settings, embedding_model="new-model"), bench.database)
    assert built.space is not None and built.space.complete


def test_a_model_is_remembered_once_and_only_where_its_server_tells_no_digest(
    bench: Workbench, server: Changeable
) -> None:
    for books in (["ferry"], ["harbour"]):
        ingest(bench, *books)
    made = 2 * 3  # two chunks and a rule each
    assert bench.count("embedding_cache") == made + 1

    bench.settings = replace(bench.settings, embedding_provider="ollama", embedding_model="second")
    server.model = "second"
    build_space(bench.settings, bench.database)
    assert bench.count("embedding_cache", "model = 'second'") == made


def test_a_model_whose_last_space_is_dropped_is_forgotten_with_its_vectors(
    bench: Workbench, server: Changeable
) -> None:
    """Else those of a wrong model would be taken for the right one's, which would be refused."""
    ingest(bench, "ferry")
    kept = bench.count("embedding_cache")
    server.weights, server.model = "others ", "second"
    settings = replace(bench.settings, embedding_model="second")
    wrong = build_space(settings, bench.database).space
    assert wrong is not None
    drop_space(bench.database, wrong.space_id)
    assert bench.count("embedding_cache") == kept
    server.weights = ""
    right = build_space(settings, bench.database).space
    assert right is not None and right.complete
