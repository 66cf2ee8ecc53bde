"""The records that travel through the pipeline: what a chapter is, before and after cleaning.

Frozen values only; no parsing (`intake.reader`), no cleaning (`domain.text`), no I/O. A `SourceChapter` is what the
files say; a `Chapter` is what the system believes; `domain.cleaning.clean_chapter` turns one into the other.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

Category = Literal["principles", "rules", "claims", "warnings"]
CATEGORIES: tuple[Category, ...] = ("principles", "rules", "claims", "warnings")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceChapter:
    """One chapter exactly as the input states it, before any cleaning.

    `text` is None where the book has doctrine but no text record for this index; `doctrine` is None where it has text
    but no doctrine record. `doctrine` holds only the known fields: `domains` and the four categories, values as read.
    """

    book: str
    book_slug: str
    chapter: int
    title: str | None
    text: str | None
    doctrine: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Something a user must be able to see about a chapter; never a reason to stop."""

    code: str
    message: str
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class UnusableItem:
    """A doctrine item that holds no sentence: counted and named, never stored as text."""

    category: Category
    position: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainName:
    """A domain as the input spells it and the slug it folds to."""

    slug: str
    spelling: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One doctrine sentence. Identity is (book, chapter, category, text); `doctrine_id` is its uuid5.

    `position` is its place among the entries of its category in the chapter; `details` keeps what else the item said
    (example, confidence, ...), as JSON-ready values.
    """

    doctrine_id: UUID
    category: Category
    position: int
    text: str
    domains: tuple[str, ...]
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chapter:
    """One chapter, cleaned and validated: what the tables and files are made of."""

    partition_key: str
    book: str
    book_slug: str
    chapter: int
    title: str | None
    text: str
    domains: tuple[DomainName, ...]
    entries: tuple[Entry, ...]
    unusable: tuple[UnusableItem, ...]
    notes: tuple[Note, ...]
    repairs: Mapping[str, int]
    content_hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A piece of a chapter's cleaned text: `text == chapter.text[start:end]` (code points)."""

    position: int
    start: int
    end: int
    text: str
