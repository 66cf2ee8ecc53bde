"""Draws the panels of monitoring/grafana-dashboard.json as one SVG, each from its own queries to a Prometheus.

    python scripts/draw_dashboard.py http://127.0.0.1:9090 --minutes 5 --to docs/dashboard.svg

For a look without Grafana, and for the picture in docs/monitoring.md. Only panels over time are drawn.
"""

import argparse
import html
import json
import math
import time
from pathlib import Path
from typing import Any

import httpx

from era_dagster.telemetry.drawing import BLUE, GREEN, GREY, INK, ORANGE, Box, Line, document, panel

DASHBOARD = Path(__file__).parents[1] / "monitoring" / "grafana-dashboard.json"
COLOURS = (BLUE, ORANGE, GREEN, GREY, INK, "#8250df")
WIDTH, HEIGHT, COLUMNS = 520, 230, 2
POINTS = 240


def series(prometheus: httpx.Client, target: dict[str, Any], begin: float, end: float) -> list[tuple[str, Any]]:
    """The curves of one query, each with its legend, seconds since `begin`."""
    step = max((end - begin) / POINTS, 1.0)
    asked = {"query": target["expr"], "start": begin, "end": end, "step": step}
    answer = prometheus.get("/api/v1/query_range", params=asked).raise_for_status().json()
    found = []
    for curve in answer["data"]["result"]:
        legend = target["legendFormat"]
        for name, value in curve["metric"].items():
            legend = legend.replace("{{" + name + "}}", value)
        points: list[tuple[float, float | None]] = []
        for at, text in curve["values"]:
            value = float(text)
            points.append((at - begin, value if math.isfinite(value) else None))
        found.append((legend, points))
    return found


def drawn(place: int, shown: dict[str, Any], curves: list[tuple[str, Any]], seconds: float) -> str:
    """One panel: title, curves, legend."""
    left, top = (place % COLUMNS) * WIDTH + 45, (place // COLUMNS) * HEIGHT + 34
    lines = [Line(colour=COLOURS[i % len(COLOURS)], points=points) for i, (_, points) in enumerate(curves)]
    parts = [f'<text x="{left}" y="{top - 12}" font-weight="600">{html.escape(shown["title"])}</text>']
    parts.append(panel(Box(left=left, top=top, width=WIDTH - 70, height=HEIGHT - 90), seconds, lines))
    at = left
    for line, (legend, _) in zip(lines, curves, strict=True):
        words = html.escape(legend.replace("http://", "")[:36])
        parts.append(f'<text x="{at}" y="{top + HEIGHT - 56}" font-size="10" fill="{line.colour}">{words}</text>')
        at += 12 + 6 * len(words)
    return "".join(parts)


def main() -> None:
    """Ask, draw, write."""
    parser = argparse.ArgumentParser(description="Draw the dashboard from a Prometheus.")
    parser.add_argument("prometheus", help="its address, http://127.0.0.1:9090")
    parser.add_argument("--minutes", type=float, default=60.0, help="how far back (default 60)")
    parser.add_argument("--to", type=Path, default=Path("dashboard.svg"), help="the file to write")
    given = parser.parse_args()
    end = time.time()
    begin = end - given.minutes * 60
    panels = [p for p in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"] if p["type"] == "timeseries"]
    with httpx.Client(base_url=given.prometheus, timeout=30) as prometheus:
        content = "".join(
            drawn(
                place,
                shown,
                [curve for target in shown["targets"] for curve in series(prometheus, target, begin, end)],
                end - begin,
            )
            for place, shown in enumerate(panels)
        )
    rows = math.ceil(len(panels) / COLUMNS)
    given.to.write_text(document(WIDTH * COLUMNS, HEIGHT * rows + 10, content), encoding="utf-8")
    print(f"{given.to}: {len(panels)} panels of {given.minutes:g} minutes")


if __name__ == "__main__":
    main()
