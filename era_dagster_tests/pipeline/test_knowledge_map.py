"""The pictures: entries near their like in the colours of their domains, and domains as bars."""

import re
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from pgvector import HalfVector

from era_dagster.domain.errors import ConfigurationError
from era_dagster.pipeline.knowledge_map import domain_of_each, draw_domains, draw_map
from era_dagster.pipeline.map_svg import COLOURS, OTHERS, domains_svg
from era_dagster.storage.database import Database
from era_dagster.storage.map_rows import DomainCount, domain_counts
from era_dagster_tests.pipeline.workbench import Workbench, chapter

SVG = "{http://www.w3.org/2000/svg}"
DOT = re.compile(r"M(\d+) (\d+)h0")


def dots(svg: str) -> dict[str, list[tuple[int, int]]]:
    """The points by colour."""
    return {
        path.attrib["stroke"]: [(int(x), int(y)) for x, y in DOT.findall(path.attrib["d"])]
        for path in ElementTree.fromstring(svg).iter(f"{SVG}path")
    }


def words(svg: str) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@pytest.fixture
def filled(bench: Workbench) -> Workbench:
    for domain in ("risk", "timing"):
        bench.drop(domain, chapter(1, domains=[domain], rules=[f"{domain} rule {n}." for n in range(20)]))
    bench.drop("both", chapter(1, domains=["risk", "timing", "a < b"], warnings=["Both."]))
    bench.ingest()
    return bench


def test_the_map_has_a_dot_for_each_entry_in_the_colour_of_its_domain(filled: Workbench) -> None:
    counts = {count.domain: count for count in domain_counts(filled.database)}
    svg = draw_map(filled.database)
    drawn = dots(svg)
    # One entry of three domains: it is of the smallest.
    assert sorted(map(len, drawn.values())) == [1, 20, 20]
    assert set(drawn) == set(COLOURS[:3])
    assert words(svg)[0].startswith(f"41 entries of {len(counts)} domains")
    assert [word for word in words(svg) if "(" in word] == ["risk (20)", "timing (20)", "a_b (1)", "other domains (0)"]
    assert all(0 <= value <= 900 for group in drawn.values() for point in group for value in point)
    assert draw_map(filled.database) == svg


def test_entries_whose_vectors_are_near_are_near_on_the_map(filled: Workbench) -> None:
    centres = {"risk": np.eye(16)[0], "timing": np.eye(16)[1]}
    noise = np.random.default_rng(1)
    with filled.database.connection() as connection:
        for identifier, domains in connection.execute(
            "SELECT doctrine_id, domains FROM doctrine_embeddings_all"
        ).fetchall():
            vector = centres[domains[-1]] + noise.normal(0, 0.05, 16)
            connection.execute(
                "UPDATE doctrine_embeddings_all SET embedding = %s WHERE doctrine_id = %s",
                (HalfVector(vector), identifier),
            )
    groups = [np.array(points) for points in dots(draw_map(filled.database)).values() if len(points) == 20]
    apart = np.linalg.norm(groups[0].mean(axis=0) - groups[1].mean(axis=0))
    assert all(np.linalg.norm(group - group.mean(axis=0), axis=1).max() < apart / 2 for group in groups)


def test_an_entry_is_coloured_by_its_rarest_domain_among_those_shown() -> None:
    domains = [("big", "small"), ("big",), ("big", "hidden"), ("hidden",)]
    assert domain_of_each(domains, ["big", "small"]) == ["small", "big", "big", None]


def test_domains_are_bars_by_size_and_category_and_the_rest_is_counted() -> None:
    counts = [
        DomainCount(domain=f"domain_{n:02}", by_category={"principles": 60 - n, "rules": 2, "claims": 0, "warnings": 1})
        for n in range(30)
    ]
    svg = domains_svg(counts)
    bars = [rect for rect in ElementTree.fromstring(svg).iter(f"{SVG}rect") if rect.attrib["height"] == "15"]
    assert len(bars) == 25 * 3
    assert [word for word in words(svg) if word.startswith("domain_")] == [f"domain_{n:02}" for n in range(25)]
    assert "and 5 more domains with 180 entries" in words(svg)
    assert domains_svg([]).startswith("<svg")


def test_the_pictures_are_drawn_of_what_is_stored(filled: Workbench) -> None:
    assert {"risk", "timing", "21"} <= set(words(draw_domains(filled.database)))
    assert OTHERS not in dots(draw_map(filled.database))


def test_too_few_entries_make_no_map(database: Database) -> None:
    with pytest.raises(ConfigurationError, match="0 entries with vectors"):
        draw_map(database)
    assert draw_domains(database).startswith("<svg")


def test_without_scikit_learn_the_map_says_what_to_install(filled: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(ConfigurationError, match="needs scikit-learn") as refused:
        draw_map(filled.database)
    assert "era-dagster[map]" in refused.value.hint
