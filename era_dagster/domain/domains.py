"""Domain names: what the input calls a domain becomes one safe slug per fold class.

A slug is a folder name, part of a table name and a search filter, so the rule is strict and lives only here. Which
entries carry which domains is `cleaning`; folders and tables are made elsewhere.
"""

import ast
import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from typing import Any, cast

from era_dagster.domain.doctrine import DomainName
from era_dagster.domain.errors import ConfigurationError
from era_dagster.domain.text import clean_line

# The 18 names that hold 94.6 % of the rows of the 59 measured books, and `intelligence`, the minister without doctrine.
CANONICAL_DOMAINS = frozenset(
    {
        "adaptation",
        "base",
        "conflict",
        "constraints",
        "data",
        "diplomacy",
        "discipline",
        "executor",
        "intelligence",
        "legitimacy",
        "optionality",
        "power",
        "psychology",
        "registry",
        "risk",
        "strategy",
        "technology",
        "timing",
        "truth",
    }
)
CATCH_ALL = "base"

_SLUG_CHARS = 40
_HASH_DIGITS = 8
_SPELLING_CHARS = 200
_NAME_KEYS = ("name", "domain", "text")
_NOT_SLUG = re.compile(r"[^a-z0-9]+")
_NAME_IN_BROKEN_OBJECT = re.compile(r"""["'](?:name|domain|text)["']\s*:\s*(["'])(.{1,200}?)\1\s*[,}]""", re.DOTALL)
_WINDOWS_RESERVED = frozenset(
    {"con", "prn", "aux", "nul", *(f"{port}{digit}" for port in ("com", "lpt") for digit in range(10))}
)
# "all" is the name of the table and of the index over every domain.
_RESERVED = _WINDOWS_RESERVED | {"all"}
# What PostgreSQL and we call the indexes of a domain's table: an index and a table cannot have one name.
_INDEX_NAME = re.compile(r"(?:^|_)(?:pkey|idx[0-9]*|nn)$")
_DOMAIN = "_domain"
_LETTER_APOSTROPHE = "\u02bc"


def fold_domain(raw: object) -> DomainName | None:
    """The domain that `raw` (a string, or an object that holds its name) names; None when nothing usable is in it.

    The slug: NFKD to ASCII, lower case, `&` = `and`, every other run of characters = `_`, at most 40 characters (a
    longer one is cut and ends in 8 hex digits of its SHA-256). Reserved names (`all`; `con`, `aux`, ... on Windows; what ends
    as the names of indexes do) end in `_domain`. `spelling` is the cleaned name as written, at most 200 characters.
    """
    name = _name(raw)
    if name is None:
        return None
    spelling = clean_line(name)
    slug = slugify_domain(spelling)
    return DomainName(slug=slug, spelling=spelling[:_SPELLING_CHARS]) if slug else None


def slugify_domain(name: str) -> str:
    """The slug of a domain name as in `fold_domain`; empty when no ASCII letter or digit is left. Idempotent."""
    decomposed = "".join(map(_in_ascii, unicodedata.normalize("NFKD", name)))
    ascii_name = decomposed.encode("ascii", "ignore").decode("ascii").lower()
    slug = _NOT_SLUG.sub("_", ascii_name.replace("&", " and ")).strip("_")
    if slug in _RESERVED or (len(slug) <= _SLUG_CHARS and _INDEX_NAME.search(slug)):
        slug += _DOMAIN
    if len(slug) > _SLUG_CHARS:
        digest = hashlib.sha256(slug.encode("ascii")).hexdigest()[:_HASH_DIGITS]
        return f"{slug[: _SLUG_CHARS - _HASH_DIGITS - 1].rstrip('_')}_{digest}"
    return slug


def fold_aliases(table: Mapping[str, str]) -> dict[str, str]:
    """An alias table (domain name -> name to use instead, in any spelling) as slug -> final slug; chains are followed.

    Raises `ConfigurationError` for a name that folds to nothing, a name with two targets, and names in a circle.
    """
    direct: dict[str, str] = {}
    for name, target in table.items():
        slug, wanted = slugify_domain(clean_line(name)), slugify_domain(clean_line(target))
        if not slug or not wanted:
            raise ConfigurationError(
                f"The domain alias {name!r} = {target!r} names no usable domain.", hint="Correct or remove that pair."
            )
        if direct.setdefault(slug, wanted) != wanted:
            raise ConfigurationError(
                f"The domain {slug} has two aliases, {direct[slug]} and {wanted}.", hint="Keep one of them."
            )
    folded: dict[str, str] = {}
    for slug, first in direct.items():
        target, seen = first, {slug}
        while target in direct and direct[target] != target:
            if target in seen:
                raise ConfigurationError(
                    f"The domain aliases {' and '.join(sorted(seen))} lead to each other.",
                    hint="Remove one of the pairs.",
                )
            seen.add(target)
            target = direct[target]
        if target != slug:
            folded[slug] = target
    return folded


def parsed_object(text: str) -> object:
    """The object or list (JSON or Python) that a string writes out; None when it is not one, or damaged."""
    trimmed = text.strip()
    if trimmed[:1] + trimmed[-1:] not in ("{}", "[]"):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(trimmed)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return None


def looks_like_object(text: str) -> bool:
    """Whether a string is a written-out object (`{'a': ...`), whole or damaged, and so no name and no sentence."""
    return re.match(r"""\s*(?:\{\s*["']|\[\s*[{"'])""", text) is not None


def _in_ascii(character: str) -> str:
    """A dash, quote or other sign as the `-` that its twin on a keyboard counts for; all else as it is."""
    is_sign = not character.isascii() and unicodedata.category(character)[0] in "PSZ"
    return "-" if is_sign or character == _LETTER_APOSTROPHE else character


def _name(raw: object) -> str | None:
    if isinstance(raw, str):
        if not looks_like_object(raw):
            return raw
        found = parsed_object(raw)
        if isinstance(found, dict):
            return _name(cast("dict[Any, Any]", found))
        damaged = _NAME_IN_BROKEN_OBJECT.search(raw)
        return damaged[2] if damaged else None
    if isinstance(raw, Mapping):
        named = cast("Mapping[Any, Any]", raw)
        for key in _NAME_KEYS:
            value = named.get(key)
            if isinstance(value, str) and value.strip() and not looks_like_object(value):
                return value
    return None
