"""A second embedding space: built from stored text, caught up, promoted, gone back from, dropped; and what is refused."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psycopg
import pytest

from era_dagster.domain.errors import ConfigurationError, DatabaseUnavailable, EndpointUnavailable, TransientError
from era_dagster.domain.stages import STAGES
from era_dagster.embedding.provider import CANARY
from era_dagster.pipeline.space_build import BuildReport, build_space
from era_dagster.storage.database import Database
from era_dagster.storage.space_check import check_space
from era_dagster.storage.space_register import RegisteredSpace, list_spaces, working_on
from era_dagster.storage.space_switch import drop_space, promote_space
from era_dagster.storage.table_audit import table_faults
from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer, FakeTransport, serving, vector_of
from era_dagster_tests.pipeline.workbench import PER_RUN, Workbench, chapter

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
    ignored = PER_RUN | {"space_id", "source_path", "recorded"}
    promoted, ingested = (
        {
            name: rows
            for name, rows in each.tables(without=ignored).items()
            if "cache" not in name and "spaces" not in name
        }
        for each in (bench, fresh)
    )
    for ours, theirs in ((promoted, ingested),):
        del ours["public.space_chapters"], theirs["public.space_chapters"]
        assert ours.keys() == theirs.keys()
        assert {name for name in ours if ours[name] != theirs[name]} <= {
            "public.drop_sources",
            "public.drop_chapters",
            "public.schema_migrations",
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
    ignored = PER_RUN | {"space_id"}
    before = bench.tables(without=ignored)
    promote_space(bench.database, number(build(second(bench))))
    assert states(bench) == {1: ("retired", "test-model"), 2: ("live", "second-model")}
    promote_space(bench.database, 1)
    assert states(bench) == {1: ("live", "test-model"), 2: ("retired", "second-model")}
    after = bench.tables(without=ignored)
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
    with pytest.raises(ConfigurationError, match=r"not complete: 2 of 4 chapters .* and 1 have left") as refused:
        promote_space(bench.database, beside)
    assert "era spaces build --model second-model" in refused.value.hint
    again = build(other)
    assert (again.chapters, again.chapters_removed) == (2, 1)
    assert [text for text in other.asked if text.startswith(("A new", "Count"))] == ["A new rule.", "A new book."]
    assert check_space(bench.database, beside).sound
    promote_space(bench.database, beside)
    assert table_faults(bench.database) == []
    assert other.pending() == []
    assert not space(bench, 1).complete or space(bench, 1).complete  # the way back is judged like the way here
    assert build(other := bench).chapters == 0
    promote_space(other.database, 1)


def test_an_ingest_while_a_space_is_built_is_caught_up_before_the_build_ends(bench: Workbench) -> None:
    filled(bench)
    other = second(bench)
    changed = False

    def meanwhile(report: BuildReport) -> None:
        nonlocal changed
        if report.chapters == 3 and not changed:
            changed = True
            bench.drop("inn", chapter(1, domains=["data"], claims=["Dropped while it was built."]))
            bench.look()

    def ingest_too(report: BuildReport) -> None:
        meanwhile(report)
        if changed and bench.count("doctrine_sources") == 4:
            subprocess.run(
                [sys.executable, "-c", _INGEST, bench.settings.database_url or "", str(bench.settings.drop_dir), url],
                check=True,
                cwd=Path(__file__).parents[2],
            )

    with serving(bench.server) as url:
        built = build(other, on_progress=ingest_too)
    assert built.chapters == 5
    assert built.space is not None and built.space.complete
    promote_space(bench.database, number(built))
    assert bench.rows("SELECT text FROM doctrine_embeddings WHERE domain = 'data'") == ["Dropped while it was built."]


_INGEST = """
import sys
from era_dagster_tests.pipeline.ingest_process import main
from pathlib import Path
main(sys.argv[1], str(Path(sys.argv[2]).parent / "data"), sys.argv[2], sys.argv[3], "0")
"""
