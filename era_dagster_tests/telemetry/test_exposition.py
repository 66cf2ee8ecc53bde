"""The page that Prometheus reads: in its format, with every name the documentation promises."""

import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from era_dagster.domain.errors import ConfigurationError
from era_dagster.telemetry import catalogue
from era_dagster.telemetry.exposition import Figures, page, serve
from era_dagster.telemetry.tally import Part, Tally

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


def samples(figures: Figures) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """A page, read back with Prometheus's own parser."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page(lambda: figures))
        for sample in family.samples
    }


def test_the_documentation_lists_exactly_the_metrics_there_are_with_type_labels_and_meaning() -> None:
    rows = re.findall(r"^\| `(era_\w+)` \| (\w+) \| (.*?) \| (.*) \|$", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    listed = {name: (kind, tuple(re.findall(r"`(\w+)`", labels)), said) for name, kind, labels, said in rows}
    exported = {metric.name: metric for metric in (*catalogue.COUNTED, *catalogue.GAUGES)}
    assert listed.keys() == exported.keys()
    for name, (kind, labels, said) in listed.items():
        metric = exported[name]
        assert (kind, labels) == (metric.kind, metric.labels), name
        assert said.startswith(metric.help), name


def test_the_user_s_four_names_are_exported() -> None:
    tally = Tally()
    tally.add(catalogue.CHAPTERS_SUBMITTED, by=5)
    for outcome, count in (("stored", 2), ("unchanged", 1), ("removed", 1), ("failed", 1)):
        tally.add(catalogue.CHAPTERS, outcome, by=count)
    tally.observe(catalogue.CHAPTER_SECONDS, value=0.2)
    found = samples(Figures(totals=tally.take(), gauges=[(catalogue.CHAPTERS_PENDING, (), 7.0)]))
    assert found["ingestion_jobs_submitted", ()] == 5
    assert found["ingestion_jobs_completed", ()] == 4
    assert found["ingestion_queue_depth", ()] == 7
    assert found["ingestion_latency_ms_count", ()] == 1
    assert found["ingestion_latency_ms_sum", ()] == pytest.approx(200.0)
    assert found["ingestion_latency_ms_bucket", (("le", "100"),)] == 0
    assert found["ingestion_latency_ms_bucket", (("le", "250"),)] == 1


def test_a_name_is_there_before_its_first_figure() -> None:
    found = samples(Figures())
    assert found["era_runs_started_total", ()] == 0
    assert found["era_chapter_seconds_count", ()] == 0


def test_buckets_stay_in_order_when_a_former_release_had_other_bounds() -> None:
    name = catalogue.CHAPTER_SECONDS.name
    found = samples(
        Figures(totals={Part(name, (), "0.02"): 3.0, Part(name, (), "0.5"): 2.0, Part(name, (), "sum"): 1.0})
    )
    values = [value for (sample, _), value in found.items() if sample == f"{name}_bucket"]
    assert values == sorted(values)
    assert found[f"{name}_bucket", (("le", "0.025"),)] == 3
    assert found[f"{name}_count", ()] == 5


def test_figures_of_a_metric_this_release_does_not_know_are_left_out() -> None:
    found = samples(Figures(totals={Part("era_gone_total"): 1.0, Part("era_chapters_total", ("a", "b")): 1.0}))
    assert not [name for name, _ in found if name in ("era_gone_total", "era_chapters_total")]


def test_a_label_may_hold_anything() -> None:
    odd = 'http://h/"quoted"\\and\nbroken'
    found = samples(Figures(totals={Part("era_embedding_texts_sent_total", (odd,)): 1.0}))
    assert found["era_embedding_texts_sent_total", (("endpoint", odd),)] == 1


def test_a_port_that_is_taken_is_said_with_the_way_out() -> None:
    server, thread = serve(Figures, host="127.0.0.1", port=0)
    try:
        with pytest.raises(ConfigurationError, match=r"cannot be served on 127\.0\.0\.1:\d+: something else listens"):
            serve(Figures, host="127.0.0.1", port=server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("host", "shown"),
    [("no-such-host.invalid", "no-such-host.invalid:0"), ("", ":0"), ("2001:db8::1", "[2001:db8::1]:0")],
)
def test_a_host_that_is_not_this_machine_is_said_with_the_way_out(host: str, shown: str) -> None:
    """The hint was to stop the other program, or to choose another port."""
    with pytest.raises(ConfigurationError) as raised:
        serve(Figures, host=host, port=0)
    assert raised.value.message.startswith(f"The metrics cannot be served on {shown}: ")
    assert raised.value.hint == "Give --host an address or a name of this machine, or 0.0.0.0 for all of its addresses."
