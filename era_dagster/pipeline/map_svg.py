"""Draws the pictures of the knowledge base as self-contained SVG: a map of its entries, and its domains as bars.

Pure: numbers in, text out; by hand, as `telemetry.drawing` says why.
"""

from collections.abc import Sequence
from html import escape

from era_dagster.domain.doctrine import CATEGORIES
from era_dagster.storage.map_rows import DomainCount
from era_dagster.telemetry.drawing import GREY, document

# Ten colours that stay apart for most kinds of colour blindness, and grey for what is none of the ten.
COLOURS = (
    "#1f6feb", "#d9730d", "#2da44e", "#cf222e", "#8250df", "#0aa5b5", "#bf3989", "#9a6700", "#57606a", "#84b6eb"
)  # fmt: skip
OTHERS = "#d0d7de"
_MAP, _LEGEND, _MARGIN = 900, 260, 40
_BAR, _BARS_WIDTH, _LABEL = 20, 620, 230
MOST_BARS = 25
_CATEGORY_COLOURS: dict[str, str] = dict(zip(CATEGORIES, COLOURS, strict=False))


def map_svg(
    points: Sequence[tuple[float, float]], groups: Sequence[str | None], names: Sequence[str], title: str
) -> str:
    """Each point (0 to 1 on both axes) in the colour of its group; `names` are the groups in the order of the colours,
    at most ten, and a point of group None is grey and behind the others."""
    dots: dict[str | None, list[str]] = {None: [], **{name: [] for name in names}}
    for (x, y), group in zip(points, groups, strict=True):
        # A line of no length with a round end is a dot in a dozen bytes.
        dots[group].append(f"M{_MARGIN + x * (_MAP - 2 * _MARGIN):.0f} {_MARGIN + y * (_MAP - 2 * _MARGIN):.0f}h0")
    colours = {None: OTHERS, **dict(zip(names, COLOURS, strict=False))}
    layers = "".join(
        f'<path d="{"".join(dots[group])}" stroke="{colour}" stroke-width="7" stroke-linecap="round" fill="none"'
        f' stroke-opacity="0.75"/>'
        for group, colour in colours.items()
        if dots[group]
    )
    legend = "".join(
        _legend(place, colour, f"{name or 'other domains'} ({len(dots[name]):,})")
        for place, (name, colour) in enumerate([*((n, colours[n]) for n in names), (None, OTHERS)])
    )
    return document(
        _MAP + _LEGEND, _MAP, f'<text x="{_MARGIN}" y="24" font-weight="600">{escape(title)}</text>{layers}{legend}'
    )


def domains_svg(counts: Sequence[DomainCount]) -> str:
    """The largest domains as bars, stacked by category; the others in one line of text."""
    shown = counts[:MOST_BARS]
    most = max((count.entries for count in shown), default=1)
    keys = "".join(
        f'<rect x="{_LABEL + place * 110}" y="8" width="12" height="12" fill="{colour}"/>'
        f'<text x="{_LABEL + 18 + place * 110}" y="18">{category}</text>'
        for place, (category, colour) in enumerate(_CATEGORY_COLOURS.items())
    )
    bars = "".join(_bar(count, most, 32 + place * _BAR) for place, count in enumerate(shown))
    left = counts[MOST_BARS:]
    rest = ""
    height = 32 + len(shown) * _BAR + 12
    if left:
        entries = sum(count.entries for count in left)
        said = f"and {len(left):,} more domains with {entries:,} entries"
        rest = f'<text x="{_LABEL}" y="{height + 4}" fill="{GREY}">{said}</text>'
        height += 20
    return document(_LABEL + _BARS_WIDTH + 80, height, keys + bars + rest)


def _bar(count: DomainCount, most: int, top: int) -> str:
    parts = [
        f'<text x="{_LABEL - 8}" y="{top + 13}" text-anchor="end">{escape(_short(count.domain))}</text>',
        f'<text x="{_LABEL + count.entries / most * _BARS_WIDTH + 6:.0f}" y="{top + 13}" fill="{GREY}">'
        f"{count.entries:,}</text>",
    ]
    left = float(_LABEL)
    for category, number in count.by_category.items():
        width = number / most * _BARS_WIDTH
        if number:
            parts.append(
                f'<rect x="{left:.1f}" y="{top + 2}" width="{width:.1f}" height="{_BAR - 5}"'
                f' fill="{_CATEGORY_COLOURS[category]}"/>'
            )
        left += width
    return "".join(parts)


def _legend(place: int, colour: str, text: str) -> str:
    y = 60 + place * 24
    return (
        f'<circle cx="{_MAP + 10}" cy="{y - 4}" r="6" fill="{colour}"/>'
        f'<text x="{_MAP + 24}" y="{y}">{escape(_short(text))}</text>'
    )


def _short(name: str) -> str:
    return name if len(name) <= 32 else f"{name[:31]}…"
