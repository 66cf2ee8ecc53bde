"""What became of a chapter's items, in numbers that add up. Pure values: storage writes them, runs and checks add them.

An item is one text that is embedded and stored, a chunk or a doctrine entry, or a doctrine item that holds no sentence.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemCounts:
    """The items of the chapters that were worked on; `seen == stored + unchanged + dead + unusable` when all is well."""

    seen: int = 0
    stored: int = 0
    unchanged: int = 0
    dead: int = 0
    unusable: int = 0

    @property
    def adds_up(self) -> bool:
        """No item was lost on the way."""
        return self.seen == self.stored + self.unchanged + self.dead + self.unusable
