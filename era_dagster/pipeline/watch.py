"""Watches one run: turns what the pipeline does into metrics, log lines, error groups and the numbers people look at.

The pipeline calls it and never waits for it. What is counted agrees with the receipt, because it is counted from the
receipt; requests are counted from the embedder's own records. Writing is the recorder's.
"""

import asyncio
import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from era_dagster.control.trace import TraceRecord
from era_dagster.domain.errors import ChaptersFailed, EraError, TransientError
from era_dagster.domain.fingerprint import fingerprint
from era_dagster.embedding.observer import RequestRecord
from era_dagster.embedding.report import EmbedStats, EndpointStats, TextFailure
from era_dagster.embedding.responses import excerpt
from era_dagster.pipeline.receipt import Receipt
from era_dagster.pipeline.recorder import Recorder
from era_dagster.settings import Settings
from era_dagster.storage.errors import ErrorNote
from era_dagster.telemetry import catalogue
from era_dagster.telemetry.catalogue import Metric
from era_dagster.telemetry.logs import ITEMS, RunLog, current_run, logging_to
from era_dagster.telemetry.tally import Part
from era_dagster.telemetry.tape import Tape

_log = RunLog(logging.getLogger("era_dagster.run"))
_items_log = logging.getLogger(ITEMS)
# Enough for a line of 1,200 pixels; a long run keeps every n-th decision.
_MOST_DECISIONS = 1200
_ABANDONED = "abandoned"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """How a run went, for whoever shows it. `decisions`: (endpoint, record) over the run's time, thinned out evenly;
    `chunk_chars`: number of chunks by the upper bound of their length; `began_at` on the clock of the decisions."""

    receipt: Receipt
    stats: EmbedStats | None
    decisions: tuple[tuple[str, TraceRecord], ...] = ()
    began_at: float = 0.0
    chunk_chars: Mapping[float, int] = field(default_factory=dict[float, int])
    seconds: float = 0.0


class RunWatch:
    """What the pipeline tells, from its event loop unless said otherwise; nothing here raises or waits."""

    def __init__(self, settings: Settings, url: str, *, run_id: str, chapters: int) -> None:
        self._total = chapters
        self._run_id = run_id
        self._queue_limit = settings.queue_limit
        self._recorder = Recorder(settings, url, run_id, figures=self.figures, each_interval=self._say_progress)
        self._started = time.monotonic()
        self._next_line = max(settings.metrics_interval_seconds, 1.0)
        self._receipt = Receipt(chapters_seen=chapters)
        self._stats: EmbedStats | None = None
        self._away: Sequence[EndpointStats] = ()
        self._counted: dict[Part, float] = {}
        self._decisions: Tape[tuple[str, TraceRecord]] = Tape(_MOST_DECISIONS)
        self._modes: dict[str, str] = {}
        self._began_at = 0.0
        self._chunk_chars: dict[float, int] = dict.fromkeys((*catalogue.CHUNK_CHARS.buckets, float("inf")), 0)
        self._noted: set[str] = set()

    def request(self, record: RequestRecord) -> None:
        """The embedder's observer."""
        tally, at = self._recorder.tally, record.endpoint
        outcome = record.outcome.value if record.outcome else _ABANDONED
        if record.probe:
            tally.add(catalogue.PROBES, at, outcome)
        else:
            tally.add(catalogue.REQUESTS, at, outcome)
            tally.add(catalogue.TEXTS_SENT, at, by=record.texts)
            tally.add(catalogue.TEXTS_RETRIED, at, by=record.retried)
            tally.observe(catalogue.REQUEST_TEXTS, at, value=record.texts)
            if outcome == "success":
                tally.add(catalogue.TOKENS, at, by=record.tokens)
                tally.observe(catalogue.REQUEST_SECONDS, at, value=record.seconds)
        # What is wrong with texts is told when they become dead letters.
        if isinstance(record.error, TransientError):
            self._note("requests", type(record.error).__name__, record.error.message, None)
        if _items_log.isEnabledFor(logging.DEBUG):
            _items_log.debug(
                "%s: %d texts, %s after %.0f ms", at, record.texts, outcome, record.seconds * 1000.0,
                extra={"event": "request", "stage": "embeddings", "request_id": f"{self._run_id[:8]}-{record.number}",
                       "endpoint": at, "texts": record.texts, "tokens": record.tokens, "outcome": outcome,
                       "seconds": round(record.seconds, 6)},
            )  # fmt: skip

    def decision(self, endpoint: str, record: TraceRecord) -> None:
        """The controllers' trace."""
        self._decisions.add((endpoint, record))
        if self._modes.get(endpoint) == record.mode:
            return
        down = "down" in (record.mode, self._modes.get(endpoint))
        self._modes[endpoint] = record.mode
        (_log if down else _items_log).log(
            logging.WARNING if down else logging.DEBUG,
            "%s: %s (%s), %d requests of %d texts",
            endpoint, record.mode, record.reason, record.concurrency, record.batch_items,
            extra={"event": "controller", "stage": "embeddings", "endpoint": endpoint, "mode": record.mode,
                   "reason": record.reason, "limit": record.concurrency, "batch": record.batch_items, "rate": record.rate},
        )  # fmt: skip

    def waits_for_server(self, error: EraError, seconds: float, endpoints: Sequence[EndpointStats]) -> None:
        """None of the embedding servers has said who it is yet; the run gives them so long."""
        self._away = [replace(endpoint, mode="down") for endpoint in endpoints]
        _log.warning(
            "Waiting up to %s: %s", duration(seconds), error.message,
            extra={"event": "waiting", "stage": "embeddings", "seconds": seconds},
        )  # fmt: skip

    def chunks_cut(self, lengths: Collection[int]) -> None:
        """The chunks of one chapter, by their lengths in characters."""
        for length in lengths:
            self._recorder.tally.observe(catalogue.CHUNK_CHARS, value=length)
            bound = next((bound for bound in catalogue.CHUNK_CHARS.buckets if length <= bound), float("inf"))
            self._chunk_chars[bound] += 1

    def chapter_stored(self, key: str, seconds: float) -> None:
        """One chapter went from its file to the tables."""
        self._recorder.tally.observe(catalogue.CHAPTER_SECONDS, value=seconds)
        _items_log.debug(
            "%s is stored", key, extra={"event": "chapter_stored", "partition": key, "seconds": round(seconds, 4)}
        )

    def text_failed(self, key: str, failure: TextFailure) -> None:
        """One text of a chapter ended in the dead letters."""
        self._note(failure.stage, failure.error_class, failure.message, key, group=failure.fingerprint)
        _items_log.debug(
            "A text of %s is dead: %s", key, failure.message,
            extra={"event": "dead_letter", "partition": key, "stage": failure.stage, "fingerprint": failure.fingerprint},
        )  # fmt: skip

    def chapter_failed(self, key: str, error: EraError) -> None:
        """One chapter could not be finished."""
        self._note("chapters", type(error).__name__, error.message, key)
        _items_log.warning("%s failed: %s", key, error, extra={"event": "chapter_failed", "partition": key})

    def progress(self, receipt: Receipt, stats: EmbedStats | None) -> None:
        """The totals changed; also called once at the very end."""
        self._receipt = receipt
        self._stats = stats or self._stats
        parts = receipt_parts(receipt)
        self._recorder.tally.add_all((part, value - self._counted.get(part, 0.0)) for part, value in parts.items())
        self._counted = parts

    def report(self) -> RunReport:
        """What there is to show of the run so far."""
        met = [bound for bound, count in self._chunk_chars.items() if count]
        return RunReport(
            receipt=self._receipt,
            stats=self._stats,
            decisions=self._decisions.kept(),
            began_at=self._began_at,
            # An empty bound between two others stays: left out, the bar behind it would seem to cover it.
            chunk_chars={
                bound: count for bound, count in self._chunk_chars.items() if met and met[0] <= bound <= met[-1]
            },
            seconds=time.monotonic() - self._started,
        )

    def figures(self) -> dict[str, Any]:
        """The run at this moment, JSON-ready: for gauges, `era status --watch` and the log. Any thread may ask."""
        receipt, stats = self._receipt, self._stats
        seconds = max(time.monotonic() - self._started, 1e-3)
        done = chapters_done(receipt)
        return {
            "chapters": self._total,
            "chapters_done": done,
            "chapters_failed": len(receipt.chapters_failed),
            "items": receipt.items.seen,
            "items_per_second": round(receipt.items.seen / seconds, 2),
            "dead_letters": receipt.items.dead,
            "seconds": round(seconds, 1),
            "seconds_left": round(seconds / done * (self._total - done), 1) if done else None,
            "queue_texts": stats.waiting if stats else 0,
            "queue_limit": self._queue_limit,
            "retries": receipt.embedding_retries,
            "refusals": stats.refusals if stats else 0,
            "p95_ms": _ms(stats.latency.p95_seconds) if stats else None,
            "endpoints": [
                {
                    "url": endpoint.url,
                    "mode": endpoint.mode,
                    "in_flight": endpoint.in_flight,
                    "limit": endpoint.limit,
                    "batch": endpoint.batch,
                    "rate": endpoint.rate,
                }
                for endpoint in (stats.endpoints if stats else self._away)
            ],
        }

    @contextmanager
    def running(self) -> Iterator[None]:
        """Encloses the run: what it raises is recorded and raised on."""
        tally = self._recorder.tally
        tally.add(catalogue.RUNS_STARTED)
        tally.add(catalogue.CHAPTERS_SUBMITTED, by=self._total)
        _log.info("%d chapters to do", self._total, extra={"event": "run_started", "chapters": self._total})
        self._recorder.start()
        # What is no `Exception` is a signal: somebody ended the run.
        state = "stopped"
        try:
            yield
            state = "succeeded"
        except Exception as error:
            state = "failed"
            self._note_end(error)
            raise
        finally:
            tally.add(catalogue.RUNS_ENDED, state)
            tally.observe(catalogue.RUN_SECONDS, value=time.monotonic() - self._started)
            figures = self.figures()
            _log.info(
                "%s: %s", state.capitalize(), describe(figures), extra={"event": "run_ended", "state": state, **figures}
            )
            self._recorder.stop(state)

    def loop_started(self) -> None:
        """The event loop runs: its clock is that of the decisions."""
        self._began_at = asyncio.get_running_loop().time()

    def _note_end(self, error: BaseException) -> None:
        """What ended the run, unless a chapter or a request told of it already."""
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        error_class = type(error).__name__
        message = error.message if isinstance(error, EraError) else excerpt(str(error))
        if not isinstance(error, ChaptersFailed) and fingerprint(error_class, message) not in self._noted:
            self._note("run", error_class, message, None)

    def _note(self, stage: str, error_class: str, message: str, key: str | None, group: str | None = None) -> None:
        group = group or fingerprint(error_class, message)
        self._noted.add(group)
        self._recorder.tally.add(catalogue.ERRORS, stage, error_class)
        self._recorder.errors.add(
            ErrorNote(
                fingerprint=group,
                stage=stage,
                error_class=error_class,
                message=message,
                partition_key=key,
                occurrences=1,
            )
        )

    def _say_progress(self) -> None:
        """A line now and then: the longer a run goes, the fewer, so that a log of any run stays readable."""
        seconds = time.monotonic() - self._started
        if seconds < self._next_line * 0.95:
            return
        self._next_line = seconds + min(300.0, max(self._next_line, seconds / 10.0))
        figures = self.figures()
        _log.info("%s", describe(figures), extra={"event": "progress", **figures})


@contextmanager
def watching(settings: Settings, url: str, *, run_id: str, chapters: int) -> Iterator[RunWatch]:
    """A watch over one run, its log lines going where the settings want them."""
    token = current_run.set(run_id)
    try:
        with logging_to(settings):
            watch = RunWatch(settings, url, run_id=run_id, chapters=chapters)
            with watch.running():
                yield watch
    finally:
        current_run.reset(token)


def describe(figures: Mapping[str, Any]) -> str:
    """One line of progress for people."""
    words = [
        f"{figures['chapters_done']:,} of {figures['chapters']:,} chapters",
        f"{figures['items']:,} items, {figures['items_per_second']:,.0f} a second",
    ]
    left = figures["seconds_left"]
    if left and figures["chapters_done"] < figures["chapters"]:
        words.append(f"about {duration(left)} left")
    if figures["endpoints"]:
        words.append(f"limit {sum(endpoint['limit'] for endpoint in figures['endpoints'])}")
        words.append(f"batch {max(endpoint['batch'] for endpoint in figures['endpoints'])}")
    for name, word in (("retries", "retries"), ("refusals", "refusals"), ("dead_letters", "dead letters")):
        if figures[name]:
            words.append(f"{figures[name]:,} {word}")
    if figures["chapters_failed"]:
        failed = figures["chapters_failed"]
        words.append(f"{failed:,} {'chapter' if failed == 1 else 'chapters'} failed")
    return ", ".join(words)


def duration(seconds: float) -> str:
    """`95` as `1 min 35 s`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def chapters_done(receipt: Receipt) -> int:
    """Chapters that were ended, well or not."""
    well = receipt.chapters_stored + receipt.chapters_unchanged + receipt.chapters_retired
    return well + len(receipt.chapters_failed)


def receipt_parts(receipt: Receipt) -> dict[Part, float]:
    """A receipt as counters, so that what a scrape adds up is what receipts say."""
    found: dict[Part, float] = {}

    def put(metric: Metric, *labels: str, value: float) -> None:
        found[Part(metric.name, labels)] = float(value)

    chapters = {
        "stored": receipt.chapters_stored,
        "unchanged": receipt.chapters_unchanged,
        "removed": receipt.chapters_retired,
        "failed": len(receipt.chapters_failed),
    }
    items = {name: getattr(receipt.items, name) for name in ("stored", "unchanged", "dead", "unusable")}
    texts = {"embedded": receipt.texts_embedded, "from_cache": receipt.texts_from_cache, "failed": receipt.texts_failed}
    for metric, counts in ((catalogue.CHAPTERS, chapters), (catalogue.ITEMS, items), (catalogue.TEXTS, texts)):
        for outcome, count in counts.items():
            put(metric, outcome, value=count)
    put(catalogue.ITEMS_SEEN, value=receipt.items.seen)
    for asset, rows in receipt.assets.items():
        for outcome in ("stored", "unchanged", "removed", "dead"):
            put(catalogue.ROWS, asset, outcome, value=getattr(rows, outcome))
    return found


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000.0, 2)
