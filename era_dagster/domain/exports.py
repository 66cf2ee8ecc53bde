"""The entries as a second kind of consumer reads them: a plain list of knowledge items, one list for a domain and category.

Pure: the same entries give the same bytes. The fields are fixed by that consumer.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from era_dagster.domain.doctrine import Category
from era_dagster.domain.ministers import MinisterEntry

# What one item of a category is.
ITEM_TYPES: Mapping[Category, str] = {
    "principles": "principle",
    "rules": "rule",
    "claims": "claim",
    "warnings": "warning",
}


def knowledge_item(domain: str, category: Category, entry: MinisterEntry) -> dict[str, Any]:
    """One entry in one of its domains. Nothing has reinforced or penalised it yet: both counts begin at 0."""
    return {
        "aku_id": entry.id,
        "content": entry.text,
        "type": ITEM_TYPES[category],
        "domain": domain,
        "source": {"book": entry.book, "chapter": entry.chapter},
        "memory": {"reinforcement_count": 0, "penalty_count": 0},
        "id": entry.id,
        "text": entry.text,
        "weight": entry.weight,
    }


def render_items(domain: str, category: Category, entries: Sequence[MinisterEntry]) -> bytes:
    """`<domain>/<category>.json`: a list, indented by 2, UTF-8, one newline at the end."""
    items = [knowledge_item(domain, category, entry) for entry in entries]
    return (json.dumps(items, ensure_ascii=False, indent=2) + "\n").encode("utf-8")
