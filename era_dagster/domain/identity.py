"""Names and hashes that never change between runs: book slugs, partition keys, entry ids, content hashes.

Pure functions of their arguments. What goes into an identity is decided here and nowhere else; a change of any rule
here gives every stored row a new identity, so it needs a new `READER_VERSION` or a migration.
"""

import hashlib
import re
import unicodedata
from typing import Any
from uuid import UUID, uuid5

from era_dagster.domain.doctrine import CATEGORIES, SourceChapter
from era_dagster.domain.errors import ConfigurationError

# Raised when the same files must be read again because reading or cleaning changed.
READER_VERSION = 2
LAST_CHAPTER = 9999
DOCTRINE_FIELDS = ("domains", *CATEGORIES)

_SLUG_CHARS = 60
_HASH_DIGITS = 6
# Fixed for ever: chosen once at random for this project, so that no other program makes the same ids.
_NAMESPACE = UUID("7c2d3d0e-6a0b-4b8e-9d55-3f6f0c7a91e4")
_NOT_SLUG = re.compile(r"[^a-z0-9]+")
_KEY = re.compile(r"([a-z0-9]+(?:-[a-z0-9]+)*)/([0-9]{4})", re.ASCII)


def book_slug(name: str) -> str:
    """The safe name of a book: lower-case ASCII letters, digits and single hyphens, 1 to 60 characters.

    A name that is not already its own slug gets `-` and six hex digits of the SHA-256 of the name (UTF-8), so that
    names that differ only in case or punctuation stay apart. Total: any string has a slug.
    """
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode("ascii").lower()
    slug = _NOT_SLUG.sub("-", ascii_name).strip("-")
    if slug == name and len(slug) <= _SLUG_CHARS and slug:
        return slug
    digest = hashlib.sha256(_utf8(name)).hexdigest()[:_HASH_DIGITS]
    stem = slug[: _SLUG_CHARS - _HASH_DIGITS - 1].strip("-") or "book"
    return f"{stem}-{digest}"


def safe_name(name: str) -> str:
    """The name of a book as it is stored: control characters and lone surrogates written as escapes.

    PostgreSQL takes neither NUL nor half of a surrogate pair, and no reader wants the others. Idempotent.
    """
    escaped = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(f"\\x{ord(c):02x}" if ord(c) < 0x20 or 0x7F <= ord(c) <= 0x9F else c for c in escaped)


def partition_key(book_slug: str, chapter: int) -> str:
    """`<book slug>/<chapter, 4 digits>`; raises `ConfigurationError` outside 0 to 9999 or for a name not a slug."""
    key = f"{book_slug}/{chapter:04d}"
    parse_partition_key(key)
    return key


def parse_partition_key(key: str) -> tuple[str, int]:
    """The book slug and the chapter index of a key; raises `ConfigurationError` for anything else."""
    match = _KEY.fullmatch(key)
    if match is None or len(match[1]) > _SLUG_CHARS:
        raise ConfigurationError(
            f"{key!r} is not a partition key.", hint="Keys look like the-richest-man-in-babylon/0001."
        )
    return match[1], int(match[2])


def doctrine_id(book: str, chapter: int, category: str, text: str) -> UUID:
    """The id of one entry: the same on every run and every machine (uuid5 of its four parts)."""
    return uuid5(_NAMESPACE, _digest([book, chapter, category, text]).hex())


def text_hash(text: str) -> bytes:
    """SHA-256 of a text, 32 bytes: what tells whether a stored text is another one."""
    return hashlib.sha256(_utf8(text)).digest()


def content_hash(source: SourceChapter) -> bytes:
    """SHA-256 (32 bytes) of all that the result depends on: reader version, book, index, title, text, known doctrine.

    Not the given `chapter_id` (in the real data often not the hash of the text) and no unknown key. Total: lone
    surrogates, NaN, huge numbers and deep nesting are hashed like anything else.
    """
    doctrine = source.doctrine
    known = None if doctrine is None else {name: doctrine[name] for name in DOCTRINE_FIELDS if name in doctrine}
    return _digest([READER_VERSION, source.book, source.chapter, source.title, source.text, known])


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _digest(value: Any) -> bytes:
    # Every value goes in with its type and length, so two different values never feed the same bytes. A stack and not
    # recursion: the json module gives up on nesting that its own parser let through.
    digest = hashlib.sha256()
    stack: list[Any] = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            pairs: list[tuple[Any, Any]] = sorted(item.items(), key=lambda pair: str(pair[0]), reverse=True)  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType, reportUnknownLambdaType]
            digest.update(b"d%d:" % len(pairs))
            for name, member in pairs:
                stack += (member, name)
        elif isinstance(item, list | tuple):
            members: list[Any] = list(item)  # pyright: ignore[reportUnknownArgumentType]
            digest.update(b"l%d:" % len(members))
            stack.extend(reversed(members))
        elif isinstance(item, str):
            data = _utf8(item)
            digest.update(b"s%d:" % len(data) + data)
        elif isinstance(item, int) and not isinstance(item, bool):
            digest.update(b"i%x:" % item)
        else:
            digest.update(f"{type(item).__name__}={item!r}:".encode())
    return digest.digest()
