"""What a server says of its own limits: the `x-ratelimit-*` headers, read."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

PARTS = ("limit", "remaining", "reset")
LONGEST_RESET_SECONDS = 366 * 86400.0
"""A longer time is a moment, in seconds since 1970, and no duration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What a server says of one of its limits: `limit` in all, `remaining` of it, full again after `reset_seconds`."""

    limit: float
    remaining: float
    reset_seconds: float


def announced_allowances(headers: Mapping[str, str]) -> dict[str, Allowance]:
    """The `x-ratelimit-*` headers by what they count, `requests` or `tokens`; those that cannot be read are left out.

    Without a kind in their names they count requests. Resets are seconds ("12", "0.5"), or durations as in "6m0s", "1.5s",
    "20ms". A date, or the seconds since 1970, is none: it would take the server's clock to read it.
    """
    found: dict[str, Allowance] = {}
    for kind, suffix in (("requests", "-requests"), ("requests", ""), ("tokens", "-tokens")):
        limit, remaining, reset = (headers.get(f"x-ratelimit-{part}{suffix}", "") for part in PARTS)
        most, left, seconds = _number(limit), _number(remaining), _duration(reset)
        if kind not in found and most and left is not None and seconds is not None:
            found[kind] = Allowance(limit=most, remaining=min(left, most), reset_seconds=seconds)
    return found


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _duration(text: str) -> float | None:
    seconds = _spelled_duration(text)
    return None if seconds is None or seconds > LONGEST_RESET_SECONDS else seconds


def _spelled_duration(text: str) -> float | None:
    total, digits = 0.0, ""
    units = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    rest = text.strip().lower()
    if _number(rest) is not None:
        return _number(rest)
    while rest:
        size = len(rest) - len(rest.lstrip("0123456789."))
        digits, rest = rest[:size], rest[size:]
        unit = "ms" if rest.startswith("ms") else rest[:1]
        number = _number(digits)
        if number is None or unit not in units:
            return None
        total += number * units[unit]
        rest = rest[len(unit) :]
    return total if text.strip() else None
