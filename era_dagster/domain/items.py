"""Finds the sentence in a doctrine item, whatever shape the extractor gave it.

Items are strings or one of a few known objects; anything else is named as unusable, never turned into text. Cleaning of
characters is `text`; ids, domains and repeats are `cleaning`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from era_dagster.domain.doctrine import Category, UnusableItem
from era_dagster.domain.domains import looks_like_object, parsed_object
from era_dagster.domain.text import clean_line

# What an item calls itself in the category's own words; the old extractor's keys follow.
_SINGULAR: Mapping[Category, str] = {
    "principles": "principle",
    "rules": "rule",
    "claims": "claim",
    "warnings": "warning",
}
_SENTENCE_KEYS = ("text", "extraction", "statement")
_PLACEHOLDER = re.compile(
    r"(?:none|null|nil|nan|n/?a|not applicable|undefined|if none,? then none)?[\s.]*", re.IGNORECASE
)
_CONJUNCTION = re.compile(r"(?:if|when|whenever|unless|while|before|after|once|until|in case)\b", re.IGNORECASE)
_SHOWN_KEYS = 10
_SHOWN_KEY_CHARS = 40
_DETAIL_DEPTH = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One usable item: its sentence, cleaned, and what else it said, as JSON-ready values; `position` in its list."""

    position: int
    text: str
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemsRead:
    """The items of one category of one chapter."""

    items: tuple[Item, ...]
    unusable: tuple[UnusableItem, ...]


def read_items(category: Category, value: object) -> ItemsRead:
    """Read a category's value: a list, one item instead of a list, or null. Total for anything JSON can hold.

    Usable: a string; `{<category's singular>: str, ...}`; `{text | extraction | statement: str, ...}`; `{condition,
    action}` (becomes "If <condition>, then <action>"); `{situation, risk}` (becomes "<situation>: <risk>"); and any of
    these written out as a string. Nothing, blanks and placeholders ("N/A", "None") are unusable.
    """
    if value is None:
        return ItemsRead(items=(), unusable=())
    members = cast("list[Any]", value) if isinstance(value, list) else [value]
    items: list[Item] = []
    unusable: list[UnusableItem] = []
    for position, member in enumerate(members):
        found = _read_item(category, member)
        if isinstance(found, str):
            unusable.append(UnusableItem(category=category, position=position, reason=found))
        else:
            text, details = found
            items.append(Item(position=position, text=text, details=details))
    return ItemsRead(items=tuple(items), unusable=tuple(unusable))


def _read_item(category: Category, raw: object) -> tuple[str, Mapping[str, Any]] | str:
    """The sentence and the details, or why there is none."""
    if isinstance(raw, str):
        if looks_like_object(raw):
            found = parsed_object(raw)
            if isinstance(found, dict):
                return _read_object(category, cast("dict[Any, Any]", found))
            return "an object written out as text"
        text = clean_line(raw)
        if _is_placeholder(text):
            return "a placeholder, not a sentence" if text else "empty"
        return text, {}
    if isinstance(raw, Mapping):
        return _read_object(category, cast("Mapping[Any, Any]", raw))
    if raw is None:
        return "null"
    return f"{'a list' if isinstance(raw, list) else 'a number or a truth value'}, not a sentence"


def _read_object(category: Category, raw: Mapping[Any, Any]) -> tuple[str, Mapping[str, Any]] | str:
    for key in (_SINGULAR[category], *_SENTENCE_KEYS):
        if key in raw:
            text = _sentence(raw[key])
            if text:
                return text, _details(raw, {key})
    if "action" in raw:
        action = _sentence(raw["action"])
        if action:
            return _rule(_sentence(raw.get("condition")), action), _details(raw, {"condition", "action"})
    if "situation" in raw or "risk" in raw:
        parts = [part for part in (_sentence(raw.get("situation")), _sentence(raw.get("risk"))) if part]
        if parts:
            return ": ".join(parts), _details(raw, {"situation", "risk"})
    names = sorted(clean_line(str(key))[:_SHOWN_KEY_CHARS] for key in raw)
    shown = ", ".join(names[:_SHOWN_KEYS]) or "none"
    more = f" and {len(names) - _SHOWN_KEYS} more" if len(names) > _SHOWN_KEYS else ""
    return f"an object without a sentence; its keys: {shown}{more}"


def _rule(condition: str, action: str) -> str:
    if not condition:
        return action
    begun = condition if _CONJUNCTION.match(condition) else f"If {condition}"
    rest = action[5:] if action[:5].lower() == "then " else action
    return f"{begun.rstrip(' ,.')}, then {rest}"


def _sentence(value: object) -> str:
    """The cleaned sentence, or an empty string for anything that is none."""
    if not isinstance(value, str) or looks_like_object(value):
        return ""
    text = clean_line(value)
    return "" if _is_placeholder(text) else text


def _is_placeholder(text: str) -> bool:
    return _PLACEHOLDER.fullmatch(text) is not None or not any(character.isalnum() for character in text)


def _details(raw: Mapping[Any, Any], used: set[str]) -> Mapping[str, Any]:
    # `type` only repeats the category; null says nothing.
    return {
        clean_line(str(key)): _plain(value, _DETAIL_DEPTH)
        for key, value in raw.items()
        if key not in used and key != "type" and value is not None
    }


def _plain(value: object, depth: int) -> Any:
    """The value as PostgreSQL's jsonb takes it: no NUL, no lone surrogate, no NaN, and not nested without end."""
    if isinstance(value, str):
        return clean_line(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if depth == 0:
        return "(nested too deeply to keep)"
    if isinstance(value, Mapping):
        pairs = cast("Mapping[Any, Any]", value)
        return {clean_line(str(key)): _plain(member, depth - 1) for key, member in pairs.items()}
    if isinstance(value, Sequence):
        return [_plain(member, depth - 1) for member in cast("Sequence[Any]", value)]
    return clean_line(str(value))
