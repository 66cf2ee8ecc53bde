"""`model` and `model:latest` are one model to Ollama, and so they are to a database, whichever of the two it has recorded."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from era_dagster.domain.errors import ConfigurationError
from era_dagster.domain.space import Space
from era_dagster.knowledge import KnowledgeBase
from era_dagster.pipeline.health import model as look_at_model
from era_dagster.pipeline.space_build import build_space
from era_dagster.storage.space_register import list_spaces, space_beside
from era_dagster.storage.spaces import live_space, record_space
from era_dagster.storage.table_audit import table_faults
from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer, FakeTransport, Reply, serving
from era_dagster_tests.pipeline.workbench import Workbench, chapter

SPELLINGS = [("test-model", "test-model:latest"), ("test-model:latest", "test-model")]


class AsOllama(FakeEmbeddingServer):
    """Takes either spelling, and remembers under which it was asked."""

    def __init__(self, *, dimension: int) -> None:
        super().__init__(dimension=dimension)
        self.names: set[str] = set()

    async def _embed(self, openai: bool, payload: dict) -> Reply:
        self.names.add(payload["model"])
        return await super()._embed(openai, {**payload, "model": self.model})


@pytest.fixture(params=SPELLINGS, ids=["to latest", "from latest"])
def respelt(request: pytest.FixtureRequest, bench: Workbench) -> Iterator[tuple[Workbench, Workbench, str]]:
    """A database filled under one spelling, the same one configured with the other, and the address of the server."""
    recorded, configured = request.param
    bench.server = AsOllama(dimension=16)
    with serving(bench.server) as url:
        bench.settings = replace(bench.settings, embedding_model=recorded, embedding_urls=(url,))
        bench.drop("ferry", chapter(1, "The ferry leaves. " * 60, ["risk"], rules=["Count.", "Wait for the tide."]))
        bench.ingest()
        other = Workbench(bench.settings, bench.database, server=bench.server)
        other.settings = replace(bench.settings, embedding_model=configured)
        yield bench, other, recorded


def test_another_spelling_makes_nothing_due_and_what_is_new_joins_the_rest(
    respelt: tuple[Workbench, Workbench, str],
) -> None:
    bench, other, recorded = respelt
    before = bench.tables(versions=True)
    assert other.pending() == []
    other.ingest()
    assert other.asked == []
    assert {name for name, rows in bench.tables(versions=True).items() if rows != before[name]} <= {
        "public.drop_chapters",
        "public.drop_files",
        "public.drop_folders",
    }

    other.drop("harbour", chapter(1, "The harbour sleeps. " * 60, ["risk"], rules=["Moor twice."]))
    assert isinstance(bench.server, AsOllama)
    bench.server.names.clear()
    assert other.ingest().chapters_failed == {}
    assert other.asked and not any("ferry" in text for text in other.asked)
    assert bench.server.names == {other.settings.embedding_model}
    assert [space.space.model for space in list_spaces(bench.database)] == [recorded]
    assert bench.rows("SELECT DISTINCT model FROM doctrine_sources") == [recorded]
    assert table_faults(bench.database) == []
    for each in (bench, other, replace(bench, settings=replace(bench.settings, embedding_model=None))):
        assert each.pending() == []


def test_texts_are_found_under_either_spelling_and_the_doctor_has_nothing_to_say(
    respelt: tuple[Workbench, Workbench, str],
) -> None:
    for each in respelt[:2]:
        with KnowledgeBase.open(each.settings) as base:
            assert base.search("Count.")[0].text == "Count."
            assert base.search("Moor twice.") != []
        findings = look_at_model(each.settings, live_space(each.database))
        assert [finding.level for finding in findings] == ["ok", "ok"]


def test_the_live_model_is_not_built_beside_itself_for_its_spelling(respelt: tuple[Workbench, Workbench, str]) -> None:
    _, other, _ = respelt
    with pytest.raises(ConfigurationError, match="is the live model already"):
        build_space(other.settings, other.database, transport=FakeTransport(other.server))


def test_of_two_spaces_that_were_made_for_two_spellings_each_is_found_by_its_own(bench: Workbench) -> None:
    bench.drop("ferry", chapter(1))
    bench.ingest()
    plain = Space(provider="ollama", model="m", digest="d", dimension=4, document_prefix="", query_prefix="")
    latest = replace(plain, model="m:latest")
    assert space_beside(bench.database, plain).space_id == space_beside(bench.database, latest).space_id
    with bench.database.connection() as connection:
        made = record_space(connection, latest, state="building", schema="vectors_of_old")
    assert space_beside(bench.database, latest).space_id == made
    assert space_beside(bench.database, plain).space == plain
    other = replace(latest, digest="e")
    assert space_beside(bench.database, other).space == other
