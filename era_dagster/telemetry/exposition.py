"""Turns added-up figures into the families of `prometheus_client`, and serves them. Reads no database itself.

The exporter's shape: a source that is asked at every scrape, nothing kept between two.
"""

import errno
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Thread
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    UntypedMetricFamily,
)
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from era_dagster.domain.errors import ConfigurationError
from era_dagster.telemetry import catalogue
from era_dagster.telemetry.catalogue import Metric
from era_dagster.telemetry.tally import OVER, PLAIN, SUM, Part

Gauges = Sequence[tuple[Metric, tuple[str, ...], float]]
"""Gauges that were read: metric, label values, value."""

_NOT_THIS_MACHINE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_ENDED_WELL = ("stored", "unchanged", "removed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one scrape shows: the sums over all runs, and the gauges of this moment."""

    totals: Mapping[Part, float] = field(default_factory=dict[Part, float])
    gauges: Gauges = ()


class EraCollector(Collector):
    """Asks `read` at every scrape."""

    def __init__(self, read: Callable[[], Figures]) -> None:
        self._read = read

    def describe(self) -> Iterable[Family]:
        """Nothing: asking would read the database when the registry is made."""
        return ()

    def collect(self) -> Iterator[Family]:
        """All families, those without a figure as well, so that a dashboard finds its names from the first scrape."""
        figures = self._read()
        yield from families(figures)


def families(figures: Figures) -> Iterator[Family]:
    """The families of a scrape. Figures that fit no metric of this release are left out."""
    by_metric: dict[str, dict[tuple[str, ...], dict[str, float]]] = {}
    for part, value in figures.totals.items():
        by_metric.setdefault(part.metric, {}).setdefault(part.labels, {})[part.part] = value
    for metric in catalogue.COUNTED:
        found = {
            labels: parts
            for labels, parts in by_metric.get(metric.name, {}).items()
            if len(labels) == len(metric.labels)
        }
        if not metric.labels:
            found.setdefault((), {})
        yield _histogram(metric, found) if metric.kind == "histogram" else _counter(metric, found)
    for metric in catalogue.GAUGES:
        family = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
        for gauge, labels, value in figures.gauges:
            if gauge is metric:
                family.add_metric(labels, value)
        yield family
    yield from _earlier_names(by_metric, figures.gauges)


def serve(read: Callable[[], Figures], *, host: str, port: int) -> tuple[WSGIServer, Thread]:
    """Start to serve scrapes in a thread. Raises `ConfigurationError` when the address cannot be had."""
    try:
        return start_http_server(port, addr=host, registry=_registry(read))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        hint = "Choose another port with --port or ERA_PROMETHEUS_PORT."
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            reason = "something else listens there"
            hint = "Stop the other program, or choose another port with --port or ERA_PROMETHEUS_PORT."
        elif isinstance(error, socket.gaierror) or getattr(error, "errno", None) in _NOT_THIS_MACHINE:
            hint = "Give --host an address or a name of this machine, or 0.0.0.0 for all of its addresses."
        raise ConfigurationError(
            f"The metrics cannot be served on {address(host, port)}: {reason}.", hint=hint
        ) from error


def address(host: str, port: int) -> str:
    """Host and port as a URL has them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def page(read: Callable[[], Figures]) -> str:
    """One scrape as text."""
    return generate_latest(_registry(read)).decode("utf-8")


def _registry(read: Callable[[], Figures]) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(EraCollector(read))
    return registry


def _counter(metric: Metric, found: Mapping[tuple[str, ...], Mapping[str, float]]) -> Family:
    family = CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
    for labels, parts in sorted(found.items()):
        family.add_metric(labels, parts.get(PLAIN, 0.0))
    return family


def _histogram(metric: Metric, found: Mapping[tuple[str, ...], Mapping[str, float]]) -> Family:
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    for labels, parts in sorted(found.items()):
        family.add_metric(labels, _accumulated(metric.buckets, parts), parts.get(SUM, 0.0))
    return family


def _accumulated(bounds: Sequence[float], parts: Mapping[str, float], factor: float = 1.0) -> list[tuple[str, float]]:
    """Buckets as Prometheus wants them: each holds all below its bound. Bounds of other releases keep their place."""
    alone = {float(part): value for part, value in parts.items() if part not in (SUM, PLAIN, OVER)}
    buckets: list[tuple[str, float]] = []
    total = 0.0
    for bound in sorted({*bounds, *alone}):
        total += alone.get(bound, 0.0)
        buckets.append((f"{bound * factor:g}", total))
    return [*buckets, (OVER, total + parts.get(OVER, 0.0))]


def _earlier_names(
    by_metric: Mapping[str, Mapping[tuple[str, ...], Mapping[str, float]]], gauges: Gauges
) -> Iterator[Family]:
    """The four names of the earlier pipeline; a job was one chapter."""
    submitted = by_metric.get(catalogue.CHAPTERS_SUBMITTED.name, {}).get((), {}).get(PLAIN, 0.0)
    ended = by_metric.get(catalogue.CHAPTERS.name, {})
    completed = sum(ended.get((outcome,), {}).get(PLAIN, 0.0) for outcome in _ENDED_WELL)
    seconds = by_metric.get(catalogue.CHAPTER_SECONDS.name, {}).get((), {})
    yield UntypedMetricFamily("ingestion_jobs_submitted", "Chapters that runs took up.", value=submitted)
    yield UntypedMetricFamily("ingestion_jobs_completed", "Chapters that runs ended well.", value=completed)
    yield HistogramMetricFamily(
        "ingestion_latency_ms",
        "From taking up a chapter to its rows in the tables, in milliseconds.",
        buckets=_accumulated(catalogue.CHAPTER_SECONDS.buckets, seconds, 1000.0),
        sum_value=seconds.get(SUM, 0.0) * 1000.0,
    )
    depth = GaugeMetricFamily("ingestion_queue_depth", "Chapters that are new, changed or unfinished.")
    for gauge, labels, value in gauges:
        if gauge is catalogue.CHAPTERS_PENDING:
            depth.add_metric(labels, value)
    yield depth
