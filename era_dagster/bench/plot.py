"""Draws benchmark runs as one self-contained SVG: throughput, limit, batch and latency over time, a row for each run."""

from collections.abc import Sequence
from html import escape

from era_dagster.bench.result import Run
from era_dagster.telemetry.drawing import BLUE, GREY, ORANGE, Box, Line, document, panel

WIDTH, ROW, TOP, LEFT, GAP = 1280, 168, 64, 16, 40
PANEL, PLOT = 276, 104


def svg(runs: Sequence[Run]) -> str:
    """The picture of all runs, as the text of an SVG file."""
    height = TOP + ROW * len(runs) + 8
    rows = "".join(_row(run, TOP + ROW * place) for place, run in enumerate(runs))
    heads = ("texts a second", "requests in flight", "texts in a request", "latency, ms")
    keys = (
        f'<tspan fill="{BLUE}">delivered</tspan>, <tspan fill="{GREY}">server’s limit</tspan>,'
        f' <tspan fill="{ORANGE}">pace</tspan>',
        f'<tspan fill="{BLUE}">in flight</tspan>, <tspan fill="{ORANGE}">limit</tspan>',
        f'<tspan fill="{BLUE}">batch</tspan>',
        f'<tspan fill="{BLUE}">P50</tspan>, <tspan fill="{ORANGE}">P95</tspan>',
    )
    titles = "".join(
        f'<text x="{_x(place)}" y="26" font-weight="600">{head}</text><text x="{_x(place)}" y="44">{key}</text>'
        for place, (head, key) in enumerate(zip(heads, keys, strict=True))
    )
    return document(WIDTH, height, titles + rows)


def _x(panel: int) -> int:
    return LEFT + 24 + panel * (PANEL + GAP)


def _row(run: Run, top: int) -> str:
    end = max((sample.at for sample in run.samples), default=run.warm_up_seconds + run.window_seconds)
    limits = [
        point
        for stretch in run.limits
        for point in ((stretch.start, stretch.texts_per_second), (stretch.end, stretch.texts_per_second))
    ]
    ratio = "no limit" if run.ratio is None else f"{run.ratio:.3f} of the limit"
    p95 = "" if run.p95_seconds is None else f", P95 {run.p95_seconds * 1000:,.0f} ms"
    lost = f", {run.lost:,} lost" if run.lost else ""
    title = escape(f"{run.scenario} / {run.client}: {ratio}{p95}, {run.refusals:,} refusals{lost}")
    panels = (
        (
            Line(colour=GREY, points=limits, width=3.0),
            Line(colour=ORANGE, points=[(s.at, s.rate) for s in run.samples], width=1.2),
            Line(colour=BLUE, points=[(s.at, s.texts_per_second) for s in run.samples], width=1.2),
        ),
        (
            Line(colour=ORANGE, points=[(s.at, float(s.limit)) for s in run.samples], width=1.6),
            Line(colour=BLUE, points=[(s.at, float(s.in_flight)) for s in run.samples], width=1.0),
        ),
        (Line(colour=BLUE, points=[(s.at, s.batch) for s in run.samples]),),
        (
            Line(colour=ORANGE, points=[(b.at, b.p95 * 1000.0) for b in run.latencies]),
            Line(colour=BLUE, points=[(b.at, b.p50 * 1000.0) for b in run.latencies]),
        ),
    )
    window = (run.warm_up_seconds, run.warm_up_seconds + run.window_seconds)
    drawn = "".join(
        panel(Box(left=_x(place), top=top + 22, width=PANEL, height=PLOT), end, lines, shaded=window)
        for place, lines in enumerate(panels)
    )
    return f'<text x="{_x(0)}" y="{top + 10}" font-weight="600">{title}</text>{drawn}'
