"""What a run did, in numbers that add up: every item seen is stored, unchanged, dead or unusable.

An item is one text that is embedded and stored: a chunk or a doctrine entry. Pure values; the runner fills them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from era_dagster.domain.receipt import ItemCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetCounts:
    """What happened to the rows (or files) of one asset: written, left as they were, removed, failed."""

    stored: int = 0
    unchanged: int = 0
    removed: int = 0
    dead: int = 0

    def plus(self, **more: int) -> "AssetCounts":
        """These counts with `more` added."""
        return replace(self, **{name: getattr(self, name) + number for name, number in more.items()})


@dataclass(slots=True)
class Receipt:
    """The running totals of one run. `chapters_failed` and `quarantined` map a name to its reason."""

    chapters_seen: int = 0
    chapters_stored: int = 0
    chapters_unchanged: int = 0
    chapters_retired: int = 0
    chapters_failed: dict[str, str] = field(default_factory=dict[str, str])
    items: ItemCounts = field(default_factory=ItemCounts)
    assets: dict[str, AssetCounts] = field(default_factory=dict[str, AssetCounts])
    texts_from_cache: int = 0
    texts_embedded: int = 0
    texts_failed: int = 0
    tokens: int = 0
    embedding_requests: int = 0
    embedding_retries: int = 0
    embedding_refusals: int = 0
    request_seconds: Mapping[str, float | None] = field(default_factory=dict[str, float | None])
    seconds: float = 0.0

    @property
    def chapters_left(self) -> int:
        """Chapters that a run which was stopped did not come to, or not to the end of: they stay pending."""
        ended = self.chapters_stored + self.chapters_unchanged + self.chapters_retired + len(self.chapters_failed)
        return max(0, self.chapters_seen - ended)

    def count(self, asset: str, **more: int) -> None:
        """Add to the counts of one asset."""
        self.assets[asset] = self.assets.get(asset, AssetCounts()).plus(**more)

    def add_items(self, **more: int) -> None:
        """Add to the item counts."""
        self.items = replace(self.items, **{name: getattr(self.items, name) + n for name, n in more.items()})

    def as_json(self) -> dict[str, Any]:
        """JSON-ready totals for `--json`, asset metadata and logs."""
        return {
            "chapters": {
                "seen": self.chapters_seen,
                "stored": self.chapters_stored,
                "unchanged": self.chapters_unchanged,
                "retired": self.chapters_retired,
                "failed": dict(self.chapters_failed),
                "left": self.chapters_left,
            },
            "items": {
                "seen": self.items.seen,
                "stored": self.items.stored,
                "unchanged": self.items.unchanged,
                "dead": self.items.dead,
                "unusable": self.items.unusable,
                "adds_up": self.items.adds_up,
            },
            "assets": {
                name: {
                    "stored": counts.stored,
                    "unchanged": counts.unchanged,
                    "removed": counts.removed,
                    "dead": counts.dead,
                }
                for name, counts in self.assets.items()
            },
            "embedding": {
                "requests": self.embedding_requests,
                "texts_embedded": self.texts_embedded,
                "texts_from_cache": self.texts_from_cache,
                "texts_failed": self.texts_failed,
                "tokens": self.tokens,
                "retries": self.embedding_retries,
                "refusals": self.embedding_refusals,
                "request_seconds": dict(self.request_seconds),
            },
            "seconds": round(self.seconds, 3),
        }
