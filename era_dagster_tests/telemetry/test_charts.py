"""The pictures in the UI: whole SVG, and small, because they lie in events."""

from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest

from era_dagster.control.trace import TraceRecord
from era_dagster.telemetry.charts import chunk_chars_svg, count_table, decisions_svg, image
from era_dagster.telemetry.tape import Tape

EVENT_BYTES = 40_000


def record(at: float, **numbers: float | None) -> TraceRecord:
    values = {"concurrency": 4, "batch_items": 8, "rate": None, **numbers}
    return TraceRecord(at=at, mode="hold", reason="", **values)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("count", [1, 7, 1200])
def test_the_controller_s_plot_is_whole_and_small_however_long_the_run(count: int) -> None:
    decisions = [
        (f"http://server-{at % 2}/<&>", record(100.0 + at, latency_seconds=0.1 + at % 7, throughput=50.0 * at, rate=at))
        for at in range(count)
    ]
    svg = decisions_svg(decisions, began_at=100.0)
    ET.fromstring(svg)
    assert "http://server-0/&lt;&amp;&gt;" in svg
    assert len(image(svg, "words")) < EVENT_BYTES


def test_a_limit_is_drawn_as_steps_and_what_was_not_measured_is_not_drawn() -> None:
    svg = decisions_svg([("u", record(0.0)), ("u", record(1.0, concurrency=2))], began_at=0.0)
    paths = [path.get("d", "") for path in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}path")]
    assert len(paths) == 2  # limit and batch; neither rate, nor throughput, nor latency
    assert "H" in paths[0]
    assert "V" in paths[0]


def test_bars_and_tables_show_every_count() -> None:
    svg = chunk_chars_svg({512.0: 3, 1024.0: 1470, float("inf"): 1})
    texts = [text.text for text in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert {"≤512", "3", "≤1,024", "1,470", "more", "1"} <= set(texts)
    assert count_table(("domain", "entries"), {"a": 1, "b": 2}).splitlines()[2:] == ["| b | 2 |", "| a | 1 |"]
    many = count_table(("domain", "entries"), {f"d{number}": number for number in range(1, 80)}).splitlines()
    assert len(many) == 2 + 30
    assert many[-1] == "| 50 others | 1,275 |"


def test_a_tape_keeps_a_bounded_even_sample_of_all_it_was_given() -> None:
    tape = Tape[int](8)
    for number in range(1000):
        tape.add(number)
    kept = tape.kept()
    assert 4 <= len(kept) <= 8
    steps = {later - earlier for earlier, later in pairwise(kept)}
    assert len(steps) == 1
    assert kept[-1] >= 1000 - 2 * steps.pop()
