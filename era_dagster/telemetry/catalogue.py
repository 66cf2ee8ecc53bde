"""Every metric the project exports: name, kind, labels, unit and meaning. Names here are promises: dashboards use them.

The one list that counting, storing, exporting and the documentation (docs/metrics.md, held against it by a test) share.
Counters and histograms are added up over all runs in the database; gauges are read when somebody scrapes.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric. `name` as a scrape shows it (a histogram's without `_bucket`); `labels` in order; `help` one sentence.

    `buckets` are the upper bounds of a histogram, ascending, without infinity.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...] = ()
    help: str
    buckets: tuple[float, ...] = ()


_REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0, 60.0)
_CHAPTER_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_RUN_SECONDS = (1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)
_TEXTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)
_CHARS = (64.0, 128.0, 256.0, 384.0, 512.0, 640.0, 768.0, 896.0, 1024.0, 1280.0, 2048.0, 4096.0)

RUNS_STARTED = Metric(name="era_runs_started_total", kind="counter", help="Runs that took up chapters.")
RUNS_ENDED = Metric(
    name="era_runs_ended_total",
    kind="counter",
    labels=("outcome",),
    help="Runs that ended: succeeded, failed, stopped (Ctrl-C, terminated), or killed (its process is gone; noticed by the"
    " next scrape, tick or run).",
)
CHAPTERS_SUBMITTED = Metric(name="era_chapters_submitted_total", kind="counter", help="Chapters that runs took up.")
CHAPTERS = Metric(
    name="era_chapters_total",
    kind="counter",
    labels=("outcome",),
    help="Chapters that runs ended: stored, unchanged, removed or failed.",
)
ITEMS_SEEN = Metric(
    name="era_items_seen_total", kind="counter", help="Items (chunks and entries) of the chapters that were stored."
)
ITEMS = Metric(
    name="era_items_total",
    kind="counter",
    labels=("outcome",),
    help="What became of the items: stored, unchanged, dead or unusable; their sum is era_items_seen_total.",
)
ROWS = Metric(
    name="era_rows_total",
    kind="counter",
    labels=("asset", "outcome"),
    help="Rows (for minister_files: files) of each asset: stored, unchanged, removed or dead, as in the receipts.",
)
TEXTS = Metric(
    name="era_texts_total",
    kind="counter",
    labels=("outcome",),
    help="Texts that needed a vector: embedded, from_cache or failed. A text that several chapters share is embedded once.",
)
REQUESTS = Metric(
    name="era_embedding_requests_total",
    kind="counter",
    labels=("endpoint", "outcome"),
    help="Embedding requests by how they ended: success, texts, too_large, rate_limited (429), overloaded (503),"
    " timed_out, failed (5xx, reset, no connection), abandoned (the run stopped first).",
)
PROBES = Metric(
    name="era_embedding_probes_total",
    kind="counter",
    labels=("endpoint", "outcome"),
    help="Requests with a text of our own that ask whether a silent endpoint lives again; outcomes as above.",
)
TEXTS_SENT = Metric(
    name="era_embedding_texts_sent_total",
    kind="counter",
    labels=("endpoint",),
    help="Texts in embedding requests, those sent again included.",
)
TEXTS_RETRIED = Metric(
    name="era_embedding_texts_retried_total",
    kind="counter",
    labels=("endpoint",),
    help="Texts sent again after trouble.",
)
TOKENS = Metric(
    name="era_embedding_tokens_total",
    kind="counter",
    labels=("endpoint",),
    help="Tokens of answered requests: the server's own count where it gives one, else four characters a token.",
)
ERRORS = Metric(
    name="era_errors_total",
    kind="counter",
    labels=("stage", "error_class"),
    help="Errors that were recorded; `era errors` groups them.",
)
REQUEST_SECONDS = Metric(
    name="era_embedding_request_seconds",
    kind="histogram",
    labels=("endpoint",),
    help="From sending an embedding request to its vectors, of successful requests.",
    buckets=_REQUEST_SECONDS,
)
REQUEST_TEXTS = Metric(
    name="era_embedding_request_texts",
    kind="histogram",
    labels=("endpoint",),
    help="Texts in one embedding request (the batch the controller chose).",
    buckets=_TEXTS,
)
CHAPTER_SECONDS = Metric(
    name="era_chapter_seconds",
    kind="histogram",
    help="From taking up a chapter to its rows in the tables, of chapters that were stored.",
    buckets=_CHAPTER_SECONDS,
)
CHUNK_CHARS = Metric(
    name="era_chunk_chars", kind="histogram", help="Length of the chunks that were cut, in characters.", buckets=_CHARS
)
RUN_SECONDS = Metric(name="era_run_seconds", kind="histogram", help="How long runs took.", buckets=_RUN_SECONDS)

RUNS = Metric(
    name="era_runs",
    kind="gauge",
    labels=("state",),
    help="Runs that go now: running, or stale (no sign of life for three intervals, but not known to be gone).",
)
RUN_CHAPTERS = Metric(
    name="era_run_chapters", kind="gauge", labels=("run_id",), help="Chapters a living run has to do."
)
RUN_CHAPTERS_DONE = Metric(
    name="era_run_chapters_done", kind="gauge", labels=("run_id",), help="Chapters it has ended, well or not."
)
RUN_ITEMS_PER_SECOND = Metric(
    name="era_run_items_per_second", kind="gauge", labels=("run_id",), help="Items it saw a second, since it began."
)
RUN_SECONDS_LEFT = Metric(
    name="era_run_seconds_left", kind="gauge", labels=("run_id",), help="Time it will still take, at its pace so far."
)
RUN_HEARTBEAT = Metric(
    name="era_run_heartbeat_age_seconds",
    kind="gauge",
    labels=("run_id",),
    help="Time since a living run last wrote its figures, by the database's clock; above three intervals it is stale.",
)
ENDPOINT_LIMIT = Metric(
    name="era_endpoint_limit",
    kind="gauge",
    labels=("endpoint",),
    help="Most requests in flight the controllers allow now, summed over living runs.",
)
ENDPOINT_IN_FLIGHT = Metric(
    name="era_endpoint_in_flight",
    kind="gauge",
    labels=("endpoint",),
    help="Requests in flight now, summed over living runs.",
)
ENDPOINT_BATCH = Metric(
    name="era_endpoint_batch_texts",
    kind="gauge",
    labels=("endpoint",),
    help="Most texts in one request the controllers allow now; the largest of the living runs.",
)
ENDPOINT_RATE = Metric(
    name="era_endpoint_rate_texts_per_second",
    kind="gauge",
    labels=("endpoint",),
    help="Most texts a second the controllers allow now, summed over living runs; absent while unpaced.",
)
ENDPOINT_UP = Metric(
    name="era_endpoint_up",
    kind="gauge",
    labels=("endpoint",),
    help="1 while the endpoint answers a living run, 0 while the run waits for it.",
)
QUEUE_TEXTS = Metric(
    name="era_queue_texts", kind="gauge", help="Texts accepted by embedders and not settled, over living runs."
)
QUEUE_LIMIT = Metric(name="era_queue_limit_texts", kind="gauge", help="Most texts these queues take.")
CHAPTERS_KNOWN = Metric(name="era_chapters_known", kind="gauge", help="Chapters registered from the drop folders.")
CHAPTERS_PENDING = Metric(
    name="era_chapters_pending",
    kind="gauge",
    help="Registered chapters that are new, changed or unfinished: what runs still have to do.",
)
CHAPTERS_FAILED = Metric(
    name="era_chapters_failed", kind="gauge", help="Chapters whose last run could not finish them."
)
DEAD_LETTERS = Metric(
    name="era_dead_letters", kind="gauge", labels=("state",), help="Dead letters that are open, or dropped."
)
QUARANTINED = Metric(name="era_quarantined", kind="gauge", help="Files and records of the drop that cannot be read.")
STORED = Metric(
    name="era_stored",
    kind="gauge",
    labels=("what",),
    help="What the knowledge base holds: books, chapters, chunks, entries.",
)
ERROR_GROUPS = Metric(name="era_error_groups", kind="gauge", help="Different errors recorded so far, by fingerprint.")
DAGSTER_RUNS = Metric(
    name="era_dagster_runs",
    kind="gauge",
    labels=("status",),
    help="Dagster's unfinished runs: queued, not_started, starting, started, canceling.",
)
LAST_RUN_END = Metric(
    name="era_last_run_end_timestamp_seconds",
    kind="gauge",
    labels=("outcome",),
    help="When the last run of each outcome ended, in seconds since 1970, by the database's clock.",
)
DATABASE_UP = Metric(
    name="era_database_up", kind="gauge", help="1 when the scrape could read the database; 0: all else is absent."
)
BUILD_INFO = Metric(name="era_build_info", kind="gauge", labels=("version",), help="1; the release that exports.")

COUNTED: tuple[Metric, ...] = (
    RUNS_STARTED,
    RUNS_ENDED,
    CHAPTERS_SUBMITTED,
    CHAPTERS,
    ITEMS_SEEN,
    ITEMS,
    ROWS,
    TEXTS,
    REQUESTS,
    PROBES,
    TEXTS_SENT,
    TEXTS_RETRIED,
    TOKENS,
    ERRORS,
    REQUEST_SECONDS,
    REQUEST_TEXTS,
    CHAPTER_SECONDS,
    CHUNK_CHARS,
    RUN_SECONDS,
)
"""Counters and histograms: runs count them, the database adds them up."""

GAUGES: tuple[Metric, ...] = (
    RUNS,
    RUN_CHAPTERS,
    RUN_CHAPTERS_DONE,
    RUN_ITEMS_PER_SECOND,
    RUN_SECONDS_LEFT,
    RUN_HEARTBEAT,
    ENDPOINT_LIMIT,
    ENDPOINT_IN_FLIGHT,
    ENDPOINT_BATCH,
    ENDPOINT_RATE,
    ENDPOINT_UP,
    QUEUE_TEXTS,
    QUEUE_LIMIT,
    CHAPTERS_KNOWN,
    CHAPTERS_PENDING,
    CHAPTERS_FAILED,
    DEAD_LETTERS,
    QUARANTINED,
    STORED,
    ERROR_GROUPS,
    DAGSTER_RUNS,
    LAST_RUN_END,
    DATABASE_UP,
    BUILD_INFO,
)
