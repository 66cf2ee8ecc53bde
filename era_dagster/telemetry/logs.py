"""Log lines for people and for machines: the same events as sentences or as JSON, one a line, with secrets taken out.

An event is logged with `extra={"event": ..., ...}`; its fields become keys of the JSON line. The run's id comes from a
context variable, so that no function passes it on. Nothing here opens a database or knows Dagster.
"""

import json
import logging
import logging.handlers
import os
import re
import sys
import urllib.parse
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import orjson

from era_dagster.settings import SECRETS, Settings

ROOT = "era_dagster"
"""The logger all of ours are below; `dagster.yaml` names it, so that its lines appear in the UI."""

ITEMS = "era_items"
"""The logger of lines about single chapters, texts and requests: of level DEBUG, but for a chapter that failed. It is not
below `ROOT`: in Dagster's event log each line would cost 11 milliseconds of the run."""
# Where nobody asked for lines, a failed chapter is not printed either: runs name it in other ways.
logging.getLogger(ITEMS).addHandler(logging.NullHandler())

current_run: ContextVar[str | None] = ContextVar("era_current_run", default=None)
"""The id of the run this code belongs to."""

FIELDS = ("event", "run_id", "partition", "stage", "request_id")
"""Keys that every JSON line has, null where they mean nothing; an event's own fields follow."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_URL_PASSWORD = re.compile(r"(://[^/\s:@]*:)[^@\s/]+(@)")
_QUERY_PASSWORD = re.compile(r"([?&]password=)[^&\s\"']+")
# A setting may be no right URL, and its password hold what ends one: what may be the password is taken for one, by each reading.
_PASSWORDS = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"://[^/?#:@]*:([^@]+)@",
        r"://[^/?#:@]*:([^/?#]+)@",
        r"://[^/?#:@]*:(.+)@",
        r"(?:^|[?&\s])password\s*=\s*'?([^&\s']+)",
    )
)
_LEAST_SECRET_CHARS = 4


class RunLog(logging.LoggerAdapter[logging.Logger]):
    """A logger of a run: a handler that fails is never the run's trouble.

    Those that write a line to a stream fail without a word to the caller; Dagster's, which writes to its database, raises when
    that is away. Such a line goes to standard error instead.
    """

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        """Each line keeps the `extra` it was given."""
        return msg, kwargs

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Write a line; every other method comes through here."""
        try:
            super().log(level, msg, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - whose handler it is, and what it raises, is not known here
            sys.stderr.write(f"{str(msg) % args if args else msg} (not logged: {type(error).__name__}: {error})\n")


class Redactor:
    """Takes secrets out of text: the values of the secret settings, and passwords in URLs."""

    def __init__(self, secrets: Iterable[str]) -> None:
        # A shorter one would tear holes into ordinary words. In a JSON line a quotation mark stands with its backslash.
        known = {secret for secret in secrets if len(secret) >= _LEAST_SECRET_CHARS}
        in_json = {json.dumps(secret, ensure_ascii=False)[1:-1] for secret in known}
        self._secrets = sorted(known | in_json, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """The text without them."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return _QUERY_PASSWORD.sub(r"\1***", _URL_PASSWORD.sub(r"\1***\2", text))


def redactor(settings: Settings) -> Redactor:
    """One that knows the secrets of these settings, and the passwords inside their URLs, right ones or not."""
    values = [str(value) for name in SECRETS if (value := getattr(settings, name)) is not None]
    passwords = [password for value in values for pattern in _PASSWORDS for password in pattern.findall(value)]
    return Redactor([*values, *passwords, *map(urllib.parse.unquote, passwords)])


class LogFile(logging.handlers.WatchedFileHandler):
    """A file that is made anew, with its folder, where somebody moved it away; a line it cannot take goes to standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; the standard library raises where the file cannot be opened again, in the midst of the run."""
        try:
            super().emit(record)
        except OSError as error:
            sys.stderr.write(f"{self.format(record)} (not in {self.baseFilename}: {error.strerror})\n")

    def _open(self) -> TextIOWrapper:
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        return super()._open()


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, the fields, and the error's traceback if there is one."""

    def __init__(self, redact: Redactor) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        """The line, without a line break inside."""
        own = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **{name: own.pop(name, None) for name in FIELDS},
            **own,
        }
        line["run_id"] = line["run_id"] or current_run.get()
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return self._redact(orjson.dumps(line, default=str).decode())


class Sentences(logging.Formatter):
    """The same for people: time, level, run, message."""

    def __init__(self, redact: Redactor) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        """The line; a traceback follows on lines of its own."""
        run_id = getattr(record, "run_id", None) or current_run.get()
        moment = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%d %H:%M:%S")
        line = f"{moment} {record.levelname:7} {f'[{run_id[:8]}] ' if run_id else ''}{record.getMessage()}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return self._redact(line)


@contextmanager
def logging_to(settings: Settings) -> Iterator[None]:
    """Send our lines to `settings.log_file`, or with `json_logs` to standard error, until the context ends.

    With neither, lines go where the process sends them anyway (in Dagster: the run's log). A file that cannot be opened
    is told on standard error, and the run goes on. Inside another such context nothing changes.
    """
    loggers = [logging.getLogger(ROOT), logging.getLogger(ITEMS)]
    if any(isinstance(handler.formatter, JsonLines | Sentences) for handler in loggers[0].handlers):
        yield
        return
    levels = [logger.level for logger in loggers]
    handler = _handler(settings)
    if handler is not None:
        handler.setFormatter((JsonLines if settings.json_logs else Sentences)(redactor(settings)))
    for logger in loggers:
        logger.setLevel(settings.log_level)
        if handler is not None:
            # Before the handlers that are there: Dagster's rewrites the record it is given.
            logger.handlers.insert(0, handler)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
            if handler is not None:
                logger.removeHandler(handler)
        if handler is not None:
            handler.close()


def _handler(settings: Settings) -> logging.Handler | None:
    if settings.log_file is not None:
        # Whoever rotates the file moves it away; where that is possible, the next line opens a new one.
        kind = logging.FileHandler if os.name == "nt" else LogFile
        try:
            settings.log_file.parent.mkdir(parents=True, exist_ok=True)
            return kind(settings.log_file, encoding="utf-8")
        except OSError as error:
            sys.stderr.write(
                f"The log file {settings.log_file} cannot be written: {error.strerror}. Going on without.\n"
            )
    return logging.StreamHandler(sys.stderr) if settings.json_logs else None
