"""Reads one source of the drop (a book folder, or a single JSON file) into source chapters, with every oddity named.

Reading and validating only: no cleaning (`domain.cleaning`), no decision what to run (`intake.plan`). A file that cannot
be read at all raises `CorruptInput`; a record that cannot is quarantined as a `Problem` and the others go through.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from era_dagster.domain.doctrine import Note, SourceChapter
from era_dagster.domain.errors import CorruptInput
from era_dagster.domain.identity import DOCTRINE_FIELDS, LAST_CHAPTER, book_slug, partition_key, safe_name
from era_dagster.intake.json_files import RepeatedKeys, as_list, kind_of, parse_json, read_bytes

CHAPTERS_FILE = "01_chapters.json"
DOCTRINE_FILE = "02_doctrine.json"
# Holds one whole number: which of several books should run first (higher runs earlier).
PRIORITY_FILE = "priority"

_DEEPEST = 50
_LARGEST_PRIORITY = 2**31 - 1
_Form = Literal["folder", "file"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A record that was left out: the file, the place in it ("[3].chapter_index") and the reason.

    `partition_key` is set where the record is known to belong to that chapter: then the whole chapter is left out, and
    what an earlier version of it stored stays.
    """

    path: Path
    location: str
    reason: str
    partition_key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BookRead:
    """One book of one source. `chapters` are sorted by index; `sha256` is of the source's input files, in order.

    `book` is the original name, with only what PostgreSQL cannot hold (NUL, control characters, lone surrogates) written
    as `\\x00` or `\\udc80`. A file may hold several books; its problems are with its first.
    """

    path: Path
    form: _Form
    book: str
    slug: str
    sha256: bytes
    priority: int | None
    chapters: tuple[SourceChapter, ...]
    problems: tuple[Problem, ...]
    notes: tuple[Note, ...]


def read_source(path: Path) -> tuple[BookRead, ...]:
    """Read a book folder (`01_chapters.json` and `02_doctrine.json`, joined by index) or a JSON file of chapters.

    Always at least one book, perhaps without chapters. Accepted: UTF-8, with or without byte order mark; indexes 0 to
    9999, also written "3" or 3.0. Raises `CorruptInput`, naming file, line and column, for a file that is missing, empty,
    not UTF-8 (guessing another encoding would mangle names silently), not whole JSON, or not of the right shape.
    """
    return (_read_folder(path),) if path.is_dir() else _read_file(path)


def _read_folder(path: Path) -> BookRead:
    files = (path / CHAPTERS_FILE, path / DOCTRINE_FILE)
    buffers = [read_bytes(file) for file in files]
    texts, doctrines = (as_list(parse_json(data, file), file) for file, data in zip(files, buffers, strict=True))
    name = safe_name(path.name)
    slug = book_slug(path.name)
    shelf = _Shelf(files[0], name, slug)
    held: dict[int, tuple[Any, str | None]] = {}
    for position, record in enumerate(texts):
        index = shelf.index(record, position)
        if index is None:
            continue
        text, reason = _text(record)
        if reason:
            shelf.reject(f"[{position}].{_text_key(record)}", reason, index)
        elif index in held:
            shelf.reject_repeat(position, index)
        else:
            held[index] = (record, text)
    stated = _doctrine_records(shelf, files[1], doctrines)
    for index in sorted(held.keys() | stated.keys()):
        record, text = held.get(index, (None, None))
        title = _title(record) or _title(stated.get(index))
        doctrine = _doctrine(stated[index]) if index in stated else None
        shelf.add(name, slug, index, title, text, doctrine)
    priorities = [_priority(record) for record in (*texts, *doctrines)]
    note, from_file = _priority_file(path / PRIORITY_FILE)
    return shelf.books(
        path, "folder", hashlib.sha256(b"".join(buffers)).digest(), [from_file, *priorities], [note] if note else []
    )[0]


def _doctrine_records(shelf: "_Shelf", file: Path, records: list[Any]) -> dict[int, Mapping[str, Any]]:
    shelf.turn_to(file)
    stated: dict[int, Mapping[str, Any]] = {}
    for position, record in enumerate(records):
        index = shelf.index(record, position)
        if index is None:
            continue
        defect = _defect(record)
        if defect:
            shelf.reject(f"[{position}]", defect, index)
        elif index in stated:
            shelf.reject_repeat(position, index)
        else:
            stated[index] = record
    return stated


def _read_file(path: Path) -> tuple[BookRead, ...]:
    data = read_bytes(path)
    content = parse_json(data, path)
    records = [content] if isinstance(content, dict) else as_list(content, path)
    shelf = _Shelf(path, safe_name(path.stem), book_slug(path.stem))
    for position, record in enumerate(records):
        named = record if isinstance(record, dict) else {}
        name = next((named[key] for key in ("book", "book_slug") if _is_name(named.get(key))), path.stem)
        slug = book_slug(name)
        index = shelf.index(record, position, slug)
        if index is None:
            continue
        text, reason = _text(record)
        defect = _defect(record)
        doctrine = _doctrine(record)
        if reason or defect:
            location = f"[{position}]" if defect else f"[{position}].{_text_key(record)}"
            shelf.reject(location, reason or defect, index, slug)
        elif text is None and not doctrine:
            shelf.reject(f"[{position}]", "it holds neither text nor doctrine", index, slug)
        elif not shelf.add(safe_name(name), slug, index, _title(record), text, doctrine or None):
            shelf.reject_repeat(position, index)
    return shelf.books(path, "file", hashlib.sha256(data).digest(), [_priority(record) for record in records], [])


class _Shelf:
    """Gathers the chapters and the problems of one source while its records are read."""

    def __init__(self, file: Path, book: str, slug: str) -> None:
        self._file = file
        self._names = {slug: book}
        self._own_slug = slug
        self._chapters: dict[tuple[str, int], SourceChapter] = {}
        self._problems: list[Problem] = []
        self._left_out: set[str] = set()
        self._shared: Counter[str] = Counter()

    def turn_to(self, file: Path) -> None:
        """Problems found from now on are in `file`."""
        self._shared = Counter(problem.reason for problem in self._problems)
        self._file = file

    def index(self, record: Any, position: int, slug: str | None = None) -> int | None:
        """The chapter index of a record of the book `slug`; None, with the problem noted, when it has none, or is of no use."""
        if not isinstance(record, dict):
            self._problem(f"[{position}]", f"{kind_of(record)} stands where a chapter's object should")
            return None
        twice = sorted(record.keys_twice.intersection(_READ_KEYS)) if isinstance(record, RepeatedKeys) else ()
        raw = record.get("chapter_index")
        index = _whole_number(raw)
        if index is not None and not 0 <= index <= LAST_CHAPTER:
            index = None
        if twice:
            location, reason = f"[{position}].{twice[0]}", "the key occurs twice in one object"
            if index is None or _SAYS_WHICH_CHAPTER.intersection(twice):
                self._problem(location, reason)
            else:
                self.reject(location, reason, index, slug)
            return None
        if index is not None:
            return index
        reason = "it is missing" if raw is None else f"{_shown(raw)} is no whole number from 0 to {LAST_CHAPTER}"
        self._index_problem(position, reason)
        return None

    def reject(self, location: str, reason: str, index: int, slug: str | None = None) -> None:
        """Leave a chapter out, with all its records."""
        key = partition_key(slug or self._own_slug, index)
        self._left_out.add(key)
        self._problem(location, reason, key)

    def reject_repeat(self, position: int, index: int) -> None:
        """Leave out a second record for an index; the first one stands."""
        self._index_problem(position, f"a second record for chapter {index}; the first one counts")

    def add(
        self, book: str, slug: str, index: int, title: str | None, text: str | None, doctrine: Mapping[str, Any] | None
    ) -> bool:
        """Take a chapter; False when the book has that index already."""
        if (slug, index) in self._chapters:
            return False
        self._names.setdefault(slug, book)
        self._chapters[slug, index] = SourceChapter(
            book=book, book_slug=slug, chapter=index, title=title, text=text, doctrine=doctrine
        )
        return True

    def books(
        self, path: Path, form: _Form, sha256: bytes, priorities: list[int | None], notes: list[Note]
    ) -> tuple[BookRead, ...]:
        """The books read; the source's own name stands for it when it holds no chapter."""
        by_slug: dict[str, list[SourceChapter]] = {}
        for (slug, index), chapter in sorted(self._chapters.items()):
            if partition_key(slug, index) not in self._left_out:
                by_slug.setdefault(slug, []).append(chapter)
        slugs = sorted(by_slug) or [self._own_slug]
        priority = max((number for number in priorities if number is not None), default=None)
        return tuple(
            BookRead(
                path=path,
                form=form,
                book=self._names[slug],
                slug=slug,
                sha256=sha256,
                priority=priority,
                chapters=tuple(by_slug.get(slug, ())),
                problems=tuple(self._problems) if slug == slugs[0] else (),
                notes=(*(notes if slug == slugs[0] else ()), *_book_notes(self._names[slug], by_slug.get(slug, []))),
            )
            for slug in slugs
        )

    def _index_problem(self, position: int, reason: str) -> None:
        # The text record and the doctrine record of one chapter share this fault: it is one chapter that is left out.
        if self._shared[reason]:
            self._shared[reason] -= 1
        else:
            self._problem(f"[{position}].chapter_index", reason)

    def _problem(self, location: str, reason: str, key: str | None = None) -> None:
        self._problems.append(Problem(path=self._file, location=location, reason=reason, partition_key=key))


_SAYS_WHICH_CHAPTER = frozenset({"chapter_index", "book", "book_slug"})
_READ_KEYS = (*DOCTRINE_FIELDS, "chapter_index", "chapter_title", "raw_text", "text", "book", "book_slug")


def _book_notes(book: str, chapters: list[SourceChapter]) -> list[Note]:
    if not chapters:
        return [Note(code="no_chapters", message=f"no chapters in {book}")]
    if not any(_says_something(chapter.doctrine) for chapter in chapters):
        return [Note(code="book_without_doctrine", message=f"the book has no doctrine at all: {book}")]
    return []


def _says_something(doctrine: Mapping[str, Any] | None) -> bool:
    return doctrine is not None and any(value for name, value in doctrine.items() if name != "domains")


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return kind_of(value)
    shown = repr(value) if not isinstance(value, int) else hex(value) if abs(value) > 2**64 else str(value)
    return shown if len(shown) <= 40 else f"{shown[:39]}…"


def _whole_number(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, str):
        digits = value.strip().removesuffix(".0")
        return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 9 else None
    return int(value) if isinstance(value, float) and value.is_integer() else None


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _text_key(record: Mapping[str, Any]) -> str:
    return "raw_text" if record.get("raw_text") is not None else "text"


def _text(record: Mapping[str, Any]) -> tuple[str | None, str]:
    """The text (None: the record holds none) and why it cannot be used."""
    value = record.get(_text_key(record))
    if value is None:
        # A chapter record without text is a blank chapter; only a file of both may have doctrine without text.
        return ("" if {"raw_text", "text"} & record.keys() else None), ""
    return (value, "") if isinstance(value, str) else (None, f"the text is {kind_of(value)}")


def _title(record: Mapping[str, Any] | None) -> str | None:
    title = record.get("chapter_title") if record is not None else None
    return title if isinstance(title, str) else None


def _doctrine(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: record[name] for name in DOCTRINE_FIELDS if name in record}


def _defect(record: Mapping[str, Any]) -> str:
    """Why the doctrine in a record cannot be trusted; empty when it can."""
    stack = [(value, 1) for value in _doctrine(record).values()]
    while stack:
        value, depth = stack.pop()
        if depth > _DEEPEST:
            return f"its doctrine is nested more than {_DEEPEST} levels deep"
        if isinstance(value, RepeatedKeys):
            return "a key occurs twice in one of its doctrine objects"
        members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        stack += [(member, depth + 1) for member in members]
    return ""


def _priority(record: Any) -> int | None:
    number = _whole_number(record.get("priority")) if isinstance(record, dict) else None
    return number if number is not None and abs(number) <= _LARGEST_PRIORITY else None


def _priority_file(file: Path) -> tuple[Note | None, int | None]:
    if not file.exists():
        return None, None
    try:
        content = read_bytes(file)[:64].decode("utf-8-sig", "replace").strip()
    except CorruptInput as error:
        return Note(code="bad_priority", message=f"{file.name} is ignored: {error.message}"), None
    sign = -1 if content.startswith("-") else 1
    number = _priority({"priority": content.removeprefix("-")})
    if number is None:
        return Note(code="bad_priority", message=f"{file.name} holds no whole number, so it is ignored"), None
    return None, sign * number
