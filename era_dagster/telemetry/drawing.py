"""Small plots as SVG text, written out by hand: a plotting library would be the project's largest dependency for a few lines.

Coordinates in pixels. Pure; `bench.plot` and `telemetry.charts` put panels together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, log10

BLUE, ORANGE, GREY, INK, SHADE = "#1f6feb", "#d9730d", "#8c959f", "#1f2328", "#f0f3f6"

Points = Sequence[tuple[float, float | None]]
"""(seconds, value); the line is broken where there is no value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One curve of a panel; `stepped` holds each value until the next."""

    colour: str
    points: Points
    width: float = 1.4
    stepped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """Where a panel stands."""

    left: int
    top: int
    width: int
    height: int


def document(width: int, height: int, content: str) -> str:
    """A whole SVG file."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        f' font-family="system-ui, sans-serif" font-size="12" fill="{INK}">'
        f'<rect width="100%" height="100%" fill="white"/>{content}</svg>\n'
    )


def panel(box: Box, end: float, lines: Sequence[Line], *, shaded: tuple[float, float] | None = None) -> str:
    """Curves from 0 s to `end` and from 0 to a round number; `shaded` marks a stretch of time."""
    most = round_up(max((value for line in lines for _, value in line.points if value is not None), default=1.0))

    def across(at: float) -> float:
        return box.left + min(at, end) / end * box.width

    def up(value: float) -> float:
        return box.top + box.height - min(value, most) / most * box.height

    floor = box.top + box.height
    parts: list[str] = []
    if shaded is not None:
        begin, stop = across(shaded[0]), across(shaded[1])
        parts.append(
            f'<rect x="{begin:.1f}" y="{box.top}" width="{stop - begin:.1f}" height="{box.height}" fill="{SHADE}"/>'
        )
    parts += [
        f'<line x1="{box.left}" x2="{box.left + box.width}" y1="{floor}" y2="{floor}" stroke="{GREY}"/>',
        f'<text x="{box.left - 4}" y="{box.top + 8}" text-anchor="end" font-size="10" fill="{GREY}">{most:,g}</text>',
        f'<text x="{box.left - 4}" y="{floor}" text-anchor="end" font-size="10" fill="{GREY}">0</text>',
    ]
    step = round_up(end / 6.0)
    for tick in range(ceil(end / step)):
        parts.append(
            f'<text x="{across(tick * step):.1f}" y="{floor + 12}" text-anchor="middle" font-size="10" fill="{GREY}">'
            f"{tick * step:g}{' s' if tick == 0 else ''}</text>"
        )
    parts += [_curve(line, across, up) for line in lines]
    return "".join(parts)


def bars(box: Box, counts: Sequence[tuple[str, int]], colour: str) -> str:
    """One bar for each (name, count), with the count above it."""
    most = max((count for _, count in counts), default=1) or 1
    slot = box.width / max(len(counts), 1)
    floor = box.top + box.height
    parts = [f'<line x1="{box.left}" x2="{box.left + box.width}" y1="{floor}" y2="{floor}" stroke="{GREY}"/>']
    for place, (name, count) in enumerate(counts):
        height = count / most * (box.height - 14)
        left, middle = box.left + place * slot + slot * 0.1, box.left + place * slot + slot / 2
        parts.append(
            f'<rect x="{left:.1f}" y="{floor - height:.1f}" width="{slot * 0.8:.1f}" height="{height:.1f}" fill="{colour}"/>'
            f'<text x="{middle:.1f}" y="{floor - height - 3:.1f}" text-anchor="middle" font-size="10">{count:,}</text>'
            f'<text x="{middle:.1f}" y="{floor + 12}" text-anchor="middle" font-size="10" fill="{GREY}">{name}</text>'
        )
    return "".join(parts)


def round_up(value: float) -> float:
    """The next of 1, 2, 3, 5 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** int(log10(value) // 1)
    return next(step * power for step in (1, 2, 3, 5, 10) if step * power >= value * 0.999)


def _curve(line: Line, across: Callable[[float], float], up: Callable[[float], float]) -> str:
    path: list[str] = []
    pen_down = False
    for at, value in line.points:
        if value is not None:
            if pen_down and line.stepped:
                path.append(f"H{across(at):.0f}V{up(value):.0f}")
            else:
                path.append(f"{'L' if pen_down else 'M'}{across(at):.1f} {up(value):.1f}")
        pen_down = value is not None
    if not path:
        return ""
    return f'<path d="{"".join(path)}" fill="none" stroke="{line.colour}" stroke-width="{line.width}"/>'
