"""What a server says of its own limits: the `x-ratelimit-*` and `ratelimit-*` headers, read."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

LONGEST_RESET_SECONDS = 366 * 86400.0
"""A longer time is a moment, in seconds since 1970, and no duration."""
_IN_MILLISECONDS = 1e11
"""A later moment is in milliseconds since 1970: in seconds it would be in the year 5138."""
NAMES = [
    (kind, [name.format(part) for part in ("limit", "remaining", "reset")])
    for kind, name in (
        ("requests", "x-ratelimit-{}-requests"),
        ("requests", "x-ratelimit-{}"),
        ("requests", "ratelimit-{}"),
        ("tokens", "x-ratelimit-{}-tokens"),
    )
]
"""What each three count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What a server says of one of its limits: `limit` in all, `remaining` of it, full again after `reset_seconds`."""

    limit: float
    remaining: float
    reset_seconds: float


def announced_allowances(headers: Mapping[str, str]) -> dict[str, Allowance]:
    """The headers about limits by what they count, `requests` or `tokens`; those that cannot be read are left out.

    Without a kind in their names they count requests; of several, as of a gateway and of the server behind it, that
    counts of which least is left. Resets are seconds ("12", "0.5"), durations as in "6m0s", "1.5s", "20ms", or seconds or
    milliseconds since 1970 where the server's own clock stands in `Date`. A limit may name its windows ("100, 100;w=60").
    `RateLimit` as one field is read as draft 7 of the IETF has it, and as draft 8 with `RateLimit-Policy`.
    """
    said: list[tuple[str, Allowance | None]] = []
    if "ratelimit" in headers:
        said.append(("requests", _combined(headers["ratelimit"], headers.get("ratelimit-policy", ""))))
    for kind, names in NAMES:
        if names[0] in headers:
            limit, remaining, reset = (headers.get(name, "") for name in names)
            said.append((kind, _allowance(re.split("[,;]", limit)[0], remaining, reset, headers.get("date", ""))))
    found: dict[str, Allowance] = {}
    for kind, each in said:
        if each is not None and (kind not in found or each.remaining < found[kind].remaining):
            found[kind] = each
    return found


def seconds_until(moment: float, now: datetime) -> float | None:
    """How long until a moment in seconds or milliseconds since 1970, negative where it is over; None for one that is further
    from `now` than any pause."""
    seconds = moment / 1000.0 if moment > _IN_MILLISECONDS else moment
    # A date with the zone -0000 comes without one; it is UTC.
    left = seconds - (now if now.tzinfo else now.replace(tzinfo=UTC)).timestamp()
    return left if abs(left) <= LONGEST_RESET_SECONDS else None


def _allowance(limit: str, remaining: str, reset: str, date: str = "") -> Allowance | None:
    most, left, seconds = _number(limit), _number(remaining), _duration(reset, date)
    if not most or left is None or seconds is None:
        return None
    return Allowance(limit=most, remaining=min(left, most), reset_seconds=seconds)


def _combined(fields: str, policies: str) -> Allowance | None:
    """Draft 7: `limit=100, remaining=50, reset=30`. Draft 8: `"default";r=50;t=30`, `"default";q=100;w=60`; of several that
    of which least is left."""
    plain = dict(re.findall(r"(limit|remaining|reset)=([\d.]+)", fields))
    if plain:
        return _allowance(plain.get("limit", ""), plain.get("remaining", ""), plain.get("reset", ""))
    quotas = _by_name(policies)
    known = (
        _allowance(quotas.get(name, {}).get("q", ""), said.get("r", ""), said.get("t", ""))
        for name, said in _by_name(fields).items()
    )
    return min((each for each in known if each is not None), key=lambda each: each.remaining, default=None)


def _by_name(text: str) -> dict[str, dict[str, str]]:
    """The parameters of each item of a list as in RFC 9651: `"default";r=50;t=30, "daily";r=900;t=3600`."""
    items = (part.partition(";") for part in text.split(","))
    return {name.strip(): dict(re.findall(r"(\w+)=([\d.]+)", parameters)) for name, _, parameters in items}


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _duration(text: str, date: str) -> float | None:
    seconds = _spelled_duration(text)
    if seconds is None or seconds <= LONGEST_RESET_SECONDS:
        return seconds
    try:
        now = parsedate_to_datetime(date)
    except (ValueError, OverflowError):
        return None
    left = seconds_until(seconds, now)
    return left if left is not None and left >= 0.0 else None


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
