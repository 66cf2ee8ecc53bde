"""Turns a chapter as the files state it into the chapter the system believes: cleaned, folded, without repeats.

One pure function; whatever the input did wrong becomes a note, an unusable item or a counted repair, never an exception
and never silence. Reading files is `intake`; cutting text is `chunking`.
"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, cast

from era_dagster.domain.doctrine import (
    CATEGORIES,
    Chapter,
    DomainName,
    Entry,
    Note,
    SourceChapter,
    UnusableItem,
)
from era_dagster.domain.domains import CANONICAL_DOMAINS, CATCH_ALL, fold_domain
from era_dagster.domain.identity import content_hash, doctrine_id, partition_key
from era_dagster.domain.items import read_items
from era_dagster.domain.text import clean_line, clean_text

# An empty record for a text of this size is more likely a failed extraction: 981 of 1,121 in the measured books.
LONG_TEXT_CHARS = 1500
# Above this share of damaged or foreign-font characters the text is named unreadable; sound books stay below 1 %.
_ODD_SHARE = 0.05
_DAMAGE = ("control_characters", "c1_controls", "private_use", "replacement_characters", "surrogates")
# Latin Extended-B without the letters of Romanian, Vietnamese and Pinyin: in prose it comes from a broken font table.
_ODD_LETTERS = re.compile("[\u0180-\u019f\u01a2-\u01ae\u01b1-\u01cc\u01dd-\u0217\u021c-\u024f]")
_PROMPT_ECHO = re.compile(
    r"operational (?:content|guidance|doctrine)|(?:provided|given|source|input) (?:text|passage|chapter|content)"
    r"|(?:extract\w*|no) (?:\w+ )?(?:guidance|doctrine)|actionable doctrine|requires content to be extracted",
    re.IGNORECASE,
)
_NO_ALIASES: Mapping[str, str] = {}


def clean_chapter(source: SourceChapter, aliases: Mapping[str, str] = _NO_ALIASES) -> Chapter:
    """Clean one chapter. `aliases` maps domain slugs to the slugs to use instead.

    Every entry carries all domains of its chapter; a chapter whose doctrine names no usable domain has the catch-all
    `base`. Never raises for anything JSON can hold, given an index the reader accepts (0 to 9999).
    """
    cleaned = clean_text(source.text or "")
    doctrine: Mapping[str, Any] = source.doctrine or {}
    notes: list[Note] = []
    domains = _domains(doctrine.get("domains"), aliases, notes)
    slugs = tuple(sorted({domain.slug for domain in domains})) or (CATCH_ALL,)
    entries, unusable, repeated = _entries(source, doctrine, slugs)
    if repeated:
        notes.append(
            Note(code="repeated_item", message="items repeated word for word count once", count=sum(repeated.values()))
        )
    if entries and not domains:
        domains = (DomainName(slug=CATCH_ALL, spelling=CATCH_ALL),)
    else:
        notes = [note for note in notes if entries or note.code != "no_domain"]
    notes += _text_notes(source, cleaned.text, cleaned.repairs, entries)
    echoes = [entry for entry in entries if _PROMPT_ECHO.search(entry.text)]
    if echoes:
        message = f"possible prompt echo among the items, first: {_short(echoes[0].text)}"
        notes.append(Note(code="prompt_echo", message=message, count=len(echoes)))
    return Chapter(
        partition_key=partition_key(source.book_slug, source.chapter),
        book=source.book,
        book_slug=source.book_slug,
        chapter=source.chapter,
        title=clean_line(source.title or "") or None,
        text=cleaned.text,
        domains=domains,
        entries=entries,
        unusable=unusable,
        notes=tuple(notes),
        repairs=cleaned.repairs,
        content_hash=content_hash(source),
    )


def _domains(value: object, aliases: Mapping[str, str], notes: list[Note]) -> tuple[DomainName, ...]:
    raw = cast("list[Any]", value) if isinstance(value, list) else [] if value is None else [value]
    found: set[tuple[str, str]] = set()
    unusable = 0
    for member in raw:
        name = fold_domain(member)
        if name is None:
            unusable += 1
        else:
            found.add((aliases.get(name.slug, name.slug), name.spelling))
    if unusable:
        message = f"no usable domain in {unusable} of the {len(raw)} names given"
        notes.append(Note(code="unusable_domain", message=message, count=unusable))
    if not found:
        notes.append(Note(code="no_domain", message=f"no domain is named, so the entries are filed under {CATCH_ALL}"))
    unknown = sorted({spelling for slug, spelling in found if slug not in CANONICAL_DOMAINS})
    if unknown:
        names = ", ".join(_short(name) for name in unknown)
        message = f"not one of the {len(CANONICAL_DOMAINS)} minister domains: {names}"
        notes.append(Note(code="unknown_domain", message=message, count=len(unknown)))
    return tuple(DomainName(slug=slug, spelling=spelling) for slug, spelling in sorted(found))


def _entries(
    source: SourceChapter, doctrine: Mapping[str, Any], domains: tuple[str, ...]
) -> tuple[tuple[Entry, ...], tuple[UnusableItem, ...], Counter[str]]:
    entries: list[Entry] = []
    unusable: list[UnusableItem] = []
    repeated: Counter[str] = Counter()
    for category in CATEGORIES:
        read = read_items(category, doctrine.get(category))
        unusable += read.unusable
        seen: set[str] = set()
        for item in read.items:
            if item.text in seen:
                repeated[category] += 1
                continue
            entries.append(
                Entry(
                    doctrine_id=doctrine_id(source.book, source.chapter, category, item.text),
                    category=category,
                    position=len(seen),
                    text=item.text,
                    domains=domains,
                    details=item.details,
                )
            )
            seen.add(item.text)
    return tuple(entries), tuple(unusable), repeated


def _text_notes(source: SourceChapter, text: str, repairs: Mapping[str, int], entries: tuple[Entry, ...]) -> list[Note]:
    notes: list[Note] = []
    chapter = f"chapter {source.chapter}"
    if source.text is None:
        notes.append(Note(code="text_missing", message=f"{chapter} has doctrine but no text"))
    elif not text:
        notes.append(Note(code="no_text", message=f"no text in {chapter}: it is blank"))
    if entries and not text:
        message = f"doctrine for a chapter without text: {len(entries)} entries of {chapter} are kept, but unproven"
        notes.append(Note(code="doctrine_without_text", message=message, count=len(entries)))
    if text and source.doctrine is None:
        notes.append(Note(code="no_doctrine", message=f"{chapter} has text but no doctrine"))
    elif not entries and len(text) >= LONG_TEXT_CHARS:
        message = (
            f"empty doctrine for a long chapter: {chapter} has {len(text):,} characters; the extractor may have failed"
        )
        notes.append(Note(code="empty_doctrine", message=message))
    odd = sum(repairs.get(kind, 0) for kind in _DAMAGE) + len(_ODD_LETTERS.findall(text))
    size = len(source.text or "")
    if odd > size * _ODD_SHARE:
        message = (
            f"unreadable text: {odd:,} of the {size:,} characters of {chapter} come from a broken font or encoding"
        )
        notes.append(Note(code="unreadable_text", message=message, count=odd))
    return notes


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:79]}…"
