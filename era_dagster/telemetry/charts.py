"""The pictures and tables of one run for people who look at it: the controllers' decisions, chunk lengths, domains. Pure.

SVG and Markdown as text; who shows them is somebody else's.
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape

from era_dagster.control.trace import TraceRecord
from era_dagster.telemetry.drawing import BLUE, GREY, ORANGE, Box, Line, bars, document, panel

_WIDTH, _LEFT, _PANEL, _PLOT, _ROW = 1000, 40, 210, 84, 132
_GAP = 36
_MOST_POINTS = 120
"""A curve's points: the plot lies in an event of the run, and a panel is 210 pixels wide."""

_MOST_ROWS = 30
"""A table's rows: what a person reads without scrolling."""


def decisions_svg(decisions: Sequence[tuple[str, TraceRecord]], *, began_at: float) -> str:
    """What each endpoint's controller allowed and saw over the run: limit, batch, rate and throughput, latency."""
    endpoints: dict[str, list[TraceRecord]] = {}
    for endpoint, record in decisions:
        endpoints.setdefault(endpoint, []).append(record)
    end = max((record.at for _, record in decisions), default=began_at) - began_at
    heads = (
        ("requests in flight", f'<tspan fill="{ORANGE}">limit</tspan>'),
        ("texts in a request", f'<tspan fill="{BLUE}">batch</tspan>'),
        ("a second", f'<tspan fill="{ORANGE}">texts allowed</tspan>, <tspan fill="{BLUE}">tokens seen</tspan>'),
        ("latency, ms", f'<tspan fill="{BLUE}">mean</tspan>, <tspan fill="{GREY}">aimed at</tspan>'),
    )
    drawn = "".join(
        f'<text x="{_x(place)}" y="18" font-weight="600">{head}</text><text x="{_x(place)}" y="34">{key}</text>'
        for place, (head, key) in enumerate(heads)
    )
    for row, (endpoint, records) in enumerate(endpoints.items()):
        top = 44 + row * _ROW
        drawn += f'<text x="{_LEFT}" y="{top + 10}" fill="{GREY}">{escape(endpoint)}</text>'
        for place, lines in enumerate(_lines(_thinned(records), began_at)):
            box = Box(left=_x(place), top=top + 18, width=_PANEL, height=_PLOT)
            drawn += panel(box, max(end, 0.001), lines)
    return document(_WIDTH, 52 + _ROW * max(len(endpoints), 1), drawn)


def chunk_chars_svg(counts: Mapping[float, int]) -> str:
    """How many chunks are how long: a bar for each bound."""
    named = [(f"≤{bound:,.0f}" if bound != float("inf") else "more", count) for bound, count in sorted(counts.items())]
    title = '<text x="16" y="18" font-weight="600">chunks by length, characters</text>'
    return document(560, 150, title + bars(Box(left=16, top=28, width=528, height=100), named, BLUE))


def image(svg: str, words: str) -> str:
    """The picture as Markdown that needs no file."""
    return f"![{words}](data:image/svg+xml;base64,{b64encode(svg.encode('utf-8')).decode('ascii')})"


def count_table(head: tuple[str, str], counts: Mapping[str, int]) -> str:
    """Names and counts as a Markdown table, most first; what comes after 30 is one row."""
    rows = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    if len(rows) > _MOST_ROWS:
        rest = rows[_MOST_ROWS - 1 :]
        rows[_MOST_ROWS - 1 :] = [(f"{len(rest):,} others", sum(count for _, count in rest))]
    return "\n".join([f"| {head[0]} | {head[1]} |", "|---|---:|", *(f"| {name} | {count:,} |" for name, count in rows)])


def _x(place: int) -> int:
    return _LEFT + place * (_PANEL + _GAP)


def _thinned(records: Sequence[TraceRecord]) -> Sequence[TraceRecord]:
    every = -(-len(records) // _MOST_POINTS)
    return [*records[::every], *records[-1:]]


def _lines(records: Sequence[TraceRecord], began_at: float) -> tuple[list[Line], ...]:
    times = [record.at - began_at for record in records]

    def line(colour: str, values: Sequence[float | None], *, stepped: bool = True) -> Line:
        return Line(colour=colour, points=list(zip(times, values, strict=True)), stepped=stepped)

    def ms(seconds: float | None) -> float | None:
        return None if seconds is None else seconds * 1000.0

    return (
        [line(ORANGE, [float(record.concurrency) for record in records])],
        [line(BLUE, [float(record.batch_items) for record in records])],
        [
            line(BLUE, [record.throughput for record in records], stepped=False),
            line(ORANGE, [record.rate for record in records]),
        ],
        [
            line(GREY, [ms(record.target_seconds) for record in records]),
            line(BLUE, [ms(record.latency_seconds) for record in records], stepped=False),
        ],
    )
