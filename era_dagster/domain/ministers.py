"""Renders the minister files: the JSON that older consumers read, one domain at a time, as bytes.

Pure: the same entries give the same bytes. Which entries there are, when they last changed and how bytes reach the disk
is `storage.minister_files`. Layout of the files: indent 2, UTF-8 not ASCII-escaped, one newline at the end.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from era_dagster.domain.doctrine import CATEGORIES, Category


@dataclass(frozen=True, slots=True, kw_only=True)
class MinisterEntry:
    """One entry as a minister file shows it. `id` and `embedding_id` are doctrine ids as text; `weight` is 1.0 as a
    rule (readers turn it into a score)."""

    id: str
    text: str
    book: str
    chapter: int
    weight: float
    embedding_id: str


def render_category(domain: str, category: Category, entries: Sequence[MinisterEntry], last_updated: str) -> bytes:
    """`<domain>/<category>.json`. Shown by book and chapter, within a chapter in the order given; `last_updated` is
    ISO 8601 in UTC with Z."""
    ordered = _ordered(entries)
    sources = dict.fromkeys((entry.book, entry.chapter) for entry in ordered)
    return _json(
        {
            "domain": domain,
            "category": category,
            "entries": [
                {
                    "id": entry.id,
                    "text": entry.text,
                    "source": {"book": entry.book, "chapter": entry.chapter},
                    "weight": entry.weight,
                    "embedding_id": entry.embedding_id,
                }
                for entry in ordered
            ],
            "meta": {
                "total_entries": len(ordered),
                "last_updated": last_updated,
                "aggregated_from": [{"book": book, "chapter": chapter} for book, chapter in sources],
            },
        }
    )


def render_summary(domain: str, entries: Mapping[Any, Sequence[MinisterEntry]], last_updated: str) -> bytes:
    """`<domain>/doctrine.json`: every entry's id and text by category (a missing one is empty), with true totals."""
    ordered = {category: _ordered(entries.get(category, ())) for category in CATEGORIES}
    return _json(
        {
            "domain": domain,
            "type": "domain_summary",
            "consolidated": True,
            **{
                category: [{"id": entry.id, "text": entry.text} for entry in found]
                for category, found in ordered.items()
            },
            "meta": {
                "total_entries": sum(len(found) for found in ordered.values()),
                **{category: len(found) for category, found in ordered.items()},
                "last_updated": last_updated,
            },
        }
    )


def render_combined_index(domains: Mapping[str, tuple[int, str]], *, created: str) -> bytes:
    """`combined_vector.index`: for each domain its number of entries and when it last changed; `created` as those."""
    names = sorted(domains)
    return _json(
        {
            "domain": "all",
            "combined": True,
            "domains_included": names,
            "domain_statistics": {
                name: {"total_entries": domains[name][0], "last_updated": domains[name][1]} for name in names
            },
            "metadata": {
                "created": created,
                "total_domains": len(names),
                "total_entries": sum(count for count, _ in domains.values()),
            },
        }
    )


def _ordered(entries: Sequence[MinisterEntry]) -> list[MinisterEntry]:
    return sorted(entries, key=lambda entry: (entry.book, entry.chapter))


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
