"""The minister files as bytes: the layout old readers take, true totals, and the same bytes for the same entries."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from era_dagster.domain.doctrine import CATEGORIES
from era_dagster.domain.ministers import MinisterEntry, render_category, render_combined_index, render_summary

NOW = "2026-01-02T03:04:05Z"


def entry(text: str, book: str = "Ferry Notes", chapter: int = 1) -> MinisterEntry:
    identifier = f"{book}/{chapter}/{text}"
    return MinisterEntry(id=identifier, text=text, book=book, chapter=chapter, weight=1.0, embedding_id=identifier)


def test_a_category_file_is_what_the_old_readers_take() -> None:
    content = render_category(
        "risk", "rules", [entry("Wägen.", "Zoll", 3), entry("Count.", chapter=2), entry("Wait.")], NOW
    )
    assert content.endswith(b"}\n")
    assert "Wägen.".encode() in content
    assert b'\n  "domain": "risk"' in content
    read: dict[str, Any] = json.loads(content)
    assert list(read) == ["domain", "category", "entries", "meta"]
    assert read["category"] == "rules"
    assert [found["text"] for found in read["entries"]] == ["Wait.", "Count.", "Wägen."]
    assert read["entries"][0] == {
        "id": "Ferry Notes/1/Wait.",
        "text": "Wait.",
        "source": {"book": "Ferry Notes", "chapter": 1},
        "weight": 1.0,
        "embedding_id": "Ferry Notes/1/Wait.",
    }
    assert read["meta"] == {
        "total_entries": 3,
        "last_updated": NOW,
        "aggregated_from": [
            {"book": "Ferry Notes", "chapter": 1},
            {"book": "Ferry Notes", "chapter": 2},
            {"book": "Zoll", "chapter": 3},
        ],
    }


def test_a_category_without_entries_is_a_file_all_the_same() -> None:
    read = json.loads(render_category("risk", "claims", [], NOW))
    assert (read["entries"], read["meta"]["total_entries"], read["meta"]["aggregated_from"]) == ([], 0, [])


def test_the_summary_has_true_totals() -> None:
    read = json.loads(render_summary("risk", {"rules": [entry("A."), entry("B.")], "claims": [entry("C.")]}, NOW))
    assert (read["domain"], read["type"], read["consolidated"]) == ("risk", "domain_summary", True)
    assert read["rules"] == [{"id": "Ferry Notes/1/A.", "text": "A."}, {"id": "Ferry Notes/1/B.", "text": "B."}]
    assert read["warnings"] == []
    assert read["meta"] == {
        "total_entries": 3,
        "principles": 0,
        "rules": 2,
        "claims": 1,
        "warnings": 0,
        "last_updated": NOW,
    }


def test_the_combined_index_adds_up() -> None:
    read = json.loads(render_combined_index({"timing": (2, NOW), "base": (5, NOW)}, created=NOW))
    assert read == {
        "domain": "all",
        "combined": True,
        "domains_included": ["base", "timing"],
        "domain_statistics": {
            "base": {"total_entries": 5, "last_updated": NOW},
            "timing": {"total_entries": 2, "last_updated": NOW},
        },
        "metadata": {"created": NOW, "total_domains": 2, "total_entries": 7},
    }


ENTRIES = st.lists(
    st.builds(
        entry, st.text(st.characters(exclude_categories=["Cs"])), st.sampled_from(["A", "b", "é"]), st.integers(0, 9)
    ),
    max_size=12,
)


@given(ENTRIES, st.sampled_from(CATEGORIES))
def test_reading_a_rendered_file_gives_the_entries_back(entries: list[MinisterEntry], category: Any) -> None:
    content = render_category("risk", category, entries, NOW)
    found = [
        MinisterEntry(
            id=read["id"],
            text=read["text"],
            book=read["source"]["book"],
            chapter=read["source"]["chapter"],
            weight=read["weight"],
            embedding_id=read["embedding_id"],
        )
        for read in json.loads(content)["entries"]
    ]
    assert sorted(found, key=repr) == sorted(entries, key=repr)
    assert [(e.book, e.chapter) for e in found] == sorted((e.book, e.chapter) for e in found)
    assert render_category("risk", category, found, NOW) == content


@given(st.dictionaries(st.sampled_from(CATEGORIES), ENTRIES))
def test_reading_a_rendered_summary_gives_ids_texts_and_totals_back(entries: dict[Any, list[MinisterEntry]]) -> None:
    read = json.loads(render_summary("risk", entries, NOW))
    for category in CATEGORIES:
        given_entries = entries.get(category, [])
        assert sorted((e["id"], e["text"]) for e in read[category]) == sorted((e.id, e.text) for e in given_entries)
        assert read["meta"][category] == len(given_entries)
    assert read["meta"]["total_entries"] == sum(len(found) for found in entries.values())
