"""Writes what a run counts into the database, from a thread of its own, at intervals and at the end; never harms the run.

Nothing here raises into the run: a database that is away leaves the figures waiting in memory, figures that it never takes are
dropped, a webhook that is slow or down is tried again by whoever writes next. Durations come from the monotonic clock, times
from the database.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from typing import Any

from era_dagster.domain.errors import EraError, PermanentError, StorageError
from era_dagster.domain.identity import safe_name
from era_dagster.settings import Settings
from era_dagster.storage.database import driver_errors
from era_dagster.storage.errors import ErrorGroup, ErrorNote, claim_untold, mark_told
from era_dagster.storage.telemetry import FigureWrite, RunState, connect_to_tell, write_figures
from era_dagster.telemetry.logs import RunLog, redactor
from era_dagster.telemetry.tally import Tally
from era_dagster.telemetry.webhook import post_json

_log = RunLog(logging.getLogger("era_dagster.telemetry"))
_TOLD_AT_ONCE = 5
# At the end of a run the webhook gets this long, however many groups are new.
_LAST_WORDS_SECONDS = 5.0


@dataclass(slots=True)
class ErrorTape:
    """Errors since the last `take`, by fingerprint; any thread may add."""

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _notes: dict[str, ErrorNote] = field(default_factory=dict[str, ErrorNote])

    def add(self, note: ErrorNote) -> None:
        """One more; of equal ones the first stays as the example."""
        with self._lock:
            known = self._notes.get(note.fingerprint)
            self._notes[note.fingerprint] = (
                note if known is None else replace(known, occurrences=known.occurrences + note.occurrences)
            )

    def take(self) -> Sequence[ErrorNote]:
        """What was added since the last call."""
        with self._lock:
            taken, self._notes = list(self._notes.values()), {}
        return taken


class Recorder:
    """Counts for one run: `tally` and `errors` are to be filled, `figures` is asked for the run's state at each write.

    `start` and `stop` enclose the run. With `settings.metrics_interval_seconds` 0 nothing is ever written.
    """

    def __init__(
        self,
        settings: Settings,
        url: str,
        run_id: str,
        *,
        figures: Callable[[], Mapping[str, Any]],
        each_interval: Callable[[], None] = lambda: None,
    ) -> None:
        self.tally = Tally()
        self.errors = ErrorTape()
        self._url = url
        self._run_id = run_id
        self._figures = figures
        self._each_interval = each_interval
        self._interval = settings.metrics_interval_seconds
        self._webhook = settings.error_webhook_url
        self._redact = redactor(settings)
        self._session = uuid.uuid4()
        self._written = 0
        self._waiting: FigureWrite | None = None
        self._away = False
        self._dropped_for = ""
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def on(self) -> bool:
        """Whether anything is written at all."""
        return self._interval > 0

    def start(self) -> None:
        """Tell that the run goes, and go on telling."""
        if self.on:
            context = copy_context()
            self._thread = threading.Thread(target=context.run, args=(self._loop,), name="era-telemetry", daemon=True)
            self._thread.start()

    def stop(self, state: RunState) -> None:
        """Write what is left with the run's end; waits a few seconds at most."""
        if self._thread is None:
            return
        self._ended.set()
        self._thread.join()
        # A write whose answer was lost goes first, as it was; then what is new since, with the end.
        if (self._waiting is None or self._write("running")) and self._write(state):
            self._tell_new_errors(_LAST_WORDS_SECONDS)
        else:
            _log.warning(
                "The last figures of this run could not be written; the run itself is not touched by that.",
                extra={"event": "figures_lost"},
            )

    def _loop(self) -> None:
        while True:
            self._write("running")
            self._tell_new_errors(_LAST_WORDS_SECONDS)
            if self._ended.wait(self._interval):
                return
            self._each_interval()

    def _write(self, state: RunState) -> bool:
        """Send what waits, else what is new; True when nothing waits any more: the database has it, or never takes it."""
        if self._waiting is None:
            self._waiting = FigureWrite(
                session_id=self._session,
                run_id=self._run_id,
                number=self._written + 1,
                interval_seconds=self._interval,
                state=state,
                figures=self._figures(),
                parts=self.tally.take(),
                errors=[replace(note, message=safe_name(self._redact(note.message))) for note in self.errors.take()],
            )
        try:
            write_figures(self._url, self._waiting)
        except EraError as error:
            if isinstance(error, PermanentError) and not isinstance(error, StorageError):
                self._drop(error)
                return True
            if not self._away:
                _log.warning("Figures wait for the database: %s", error.message, extra={"event": "figures_wait"})
            self._away = True
            return False
        self._away = False
        self._waiting = None
        self._written += 1
        return True

    def _drop(self, error: PermanentError) -> None:
        """Give up the write that waits, or it would keep all later ones from the database; its number is free again."""
        self._away = False
        self._waiting = None
        if error.message != self._dropped_for:
            _log.warning("Figures of this run are lost: %s", error.message, extra={"event": "figures_dropped"})
        self._dropped_for = error.message

    def _tell_new_errors(self, seconds: float) -> None:
        """POST each new group to the webhook; one that fails is tried again after a minute by any run."""
        if self._webhook is None or self._away:
            return
        until = time.monotonic() + seconds
        try:
            with driver_errors(), connect_to_tell(self._url, autocommit=True) as connection:
                for group in claim_untold(connection, most=_TOLD_AT_ONCE):
                    left = until - time.monotonic()
                    if left <= 0:
                        return
                    post_json(self._webhook, message_of(group), timeout_seconds=left)
                    mark_told(connection, [group.fingerprint])
        except EraError as error:
            _log.warning("Nobody was told of new errors: %s", error.message, extra={"event": "webhook_failed"})


def message_of(group: ErrorGroup) -> dict[str, Any]:
    """What the webhook gets: `text` for people, the rest for programs."""
    where = f" in {group.partition_key}" if group.partition_key else ""
    return {
        "text": f"New error in era_dagster ({group.stage}{where}): {group.error_class}: {group.message}",
        "fingerprint": group.fingerprint,
        "stage": group.stage,
        "error_class": group.error_class,
        "message": group.message,
        "run_id": group.run_id,
        "partition": group.partition_key,
        "occurrences": group.occurrences,
        "first_at": group.first_at.isoformat(),
    }
