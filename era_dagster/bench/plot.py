"""Draws benchmark runs as one self-contained SVG: throughput, limit, batch and latency over time, a row for each run.

Written out by hand: a plotting library would be the largest dependency of the project for four lines a row.
"""

from collections.abc import Callable, Sequence
from html import escape
from math import ceil, log10

from era_dagster.bench.result import Run

WIDTH, ROW, TOP, LEFT, GAP = 1280, 168, 64, 16, 40
PANEL, PLOT = 276, 104
_BLUE, _ORANGE, _GREEN, _GREY, _INK, _SHADE = "#1f6feb", "#d9730d", "#2da44e", "#8c959f", "#1f2328", "#f0f3f6"

Points = Sequence[tuple[float, float | None]]


def svg(runs: Sequence[Run]) -> str:
    """The picture of all runs, as the text of an SVG file."""
    height = TOP + ROW * len(runs) + 8
    rows = "".join(_row(run, TOP + ROW * place) for place, run in enumerate(runs))
    heads = ("texts a second", "requests in flight", "texts in a request", "latency, ms")
    keys = (
        f'<tspan fill="{_BLUE}">delivered</tspan>, <tspan fill="{_GREY}">server’s limit</tspan>,'
        f' <tspan fill="{_ORANGE}">pace</tspan>',
        f'<tspan fill="{_BLUE}">in flight</tspan>, <tspan fill="{_ORANGE}">limit</tspan>',
        f'<tspan fill="{_BLUE}">batch</tspan>',
        f'<tspan fill="{_BLUE}">P50</tspan>, <tspan fill="{_ORANGE}">P95</tspan>',
    )
    titles = "".join(
        f'<text x="{_x(place)}" y="26" font-weight="600">{head}</text><text x="{_x(place)}" y="44">{key}</text>'
        for place, (head, key) in enumerate(zip(heads, keys, strict=True))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
        f' font-family="system-ui, sans-serif" font-size="12" fill="{_INK}">'
        f'<rect width="100%" height="100%" fill="white"/>{titles}{rows}</svg>\n'
    )


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
            (_GREY, limits, 3.0),
            (_ORANGE, [(s.at, s.rate) for s in run.samples], 1.2),
            (_BLUE, [(s.at, s.texts_per_second) for s in run.samples], 1.2),
        ),
        (
            (_ORANGE, [(s.at, float(s.limit)) for s in run.samples], 1.6),
            (_BLUE, [(s.at, float(s.in_flight)) for s in run.samples], 1.0),
        ),
        ((_BLUE, [(s.at, s.batch) for s in run.samples], 1.4),),
        (
            (_ORANGE, [(b.at, b.p95 * 1000.0) for b in run.latencies], 1.4),
            (_BLUE, [(b.at, b.p50 * 1000.0) for b in run.latencies], 1.4),
        ),
    )
    window = (run.warm_up_seconds, run.warm_up_seconds + run.window_seconds)
    drawn = "".join(_panel(_x(place), top + 22, end, window, curves) for place, curves in enumerate(panels))
    return f'<text x="{_x(0)}" y="{top + 10}" font-weight="600">{title}</text>{drawn}'


def _panel(
    left: int, top: int, end: float, window: tuple[float, float], curves: Sequence[tuple[str, Points, float]]
) -> str:
    """One small plot from 0 to a round number; the measured window is shaded."""
    values = [value for _, points, _ in curves for _, value in points if value is not None]
    most = _round_up(max(values, default=1.0))

    def across(at: float) -> float:
        return left + min(at, end) / end * PANEL

    def up(value: float) -> float:
        return top + PLOT - min(value, most) / most * PLOT

    begin, stop = across(window[0]), across(window[1])
    parts = [
        f'<rect x="{begin:.1f}" y="{top}" width="{stop - begin:.1f}" height="{PLOT}" fill="{_SHADE}"/>',
        f'<line x1="{left}" x2="{left + PANEL}" y1="{top + PLOT}" y2="{top + PLOT}" stroke="{_GREY}"/>',
        f'<text x="{left - 4}" y="{top + 8}" text-anchor="end" font-size="10" fill="{_GREY}">{most:,g}</text>',
        f'<text x="{left - 4}" y="{top + PLOT}" text-anchor="end" font-size="10" fill="{_GREY}">0</text>',
    ]
    step = _round_up(end / 6.0)
    for tick in range(ceil(end / step)):
        at = across(tick * step)
        parts.append(
            f'<text x="{at:.1f}" y="{top + PLOT + 12}" text-anchor="middle" font-size="10" fill="{_GREY}">'
            f"{tick * step:g}{' s' if tick == 0 else ''}</text>"
        )
    parts += [_curve(points, colour, width, across, up) for colour, points, width in curves]
    return "".join(parts)


def _curve(
    points: Points, colour: str, width: float, across: Callable[[float], float], up: Callable[[float], float]
) -> str:
    """A line that is broken where there is no value."""
    path, pen_down = [], False
    for at, value in points:
        if value is not None:
            path.append(f"{'L' if pen_down else 'M'}{across(at):.1f} {up(value):.1f}")
        pen_down = value is not None
    return f'<path d="{"".join(path)}" fill="none" stroke="{colour}" stroke-width="{width}"/>' if path else ""


def _round_up(value: float) -> float:
    """The next of 1, 2, 3, 5 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** int(log10(value) // 1)
    return next(step * power for step in (1, 2, 3, 5, 10) if step * power >= value * 0.999)
