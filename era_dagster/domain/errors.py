"""The error tree: every failure the project names is one of three kinds.

    EraError
    ├── TransientError            the same request may succeed later
    │   ├── EndpointBusy          the embedding server refuses for now (429, 503, overload)
    │   ├── EndpointUnavailable   the embedding server cannot be reached or broke off (reset, timeout, 5xx)
    │   └── DatabaseUnavailable   PostgreSQL cannot be reached or went away
    ├── PermanentError            somebody must change something first
    │   ├── ConfigurationError    a setting, a path, a missing model, a model that differs from the stored one
    │   ├── EndpointRefused       the embedding server says no for good (401, 403, 404 model missing)
    │   ├── TextsTooLarge         a request or a text is over the server's limit: split it
    │   ├── TextsRejected         at least one text of a request is refused: isolate it
    │   ├── BadVectors            an answer holds no usable vector: wrong count, not finite, zero, wrong size
    │   ├── ChaptersFailed        some chapters of a run could not be finished; the others are stored
    │   └── StorageError          the disk or the database refuses to write
    └── CorruptInput              a file or a record of the input cannot be read

`defs/failures.py` maps the tree to Dagster; `cli` maps it to exit codes. A message is one sentence that names the thing;
`hint` is the next step.
"""

from pathlib import Path


class EraError(Exception):
    """Base of all errors the project raises on purpose.

    `message` names what happened and where; `hint` says what to do next (may be empty).
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class TransientError(EraError):
    """The same request may succeed later."""


class EndpointBusy(TransientError):
    """The embedding server refuses for now; `retry_after_seconds` is its own word, where it gave one."""

    def __init__(self, message: str, *, hint: str = "", retry_after_seconds: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_seconds = retry_after_seconds


class EndpointUnavailable(TransientError):
    """The embedding server cannot be reached, broke off, or failed inside."""


class DatabaseUnavailable(TransientError):
    """PostgreSQL cannot be reached, or went away in the middle."""


class PermanentError(EraError):
    """The same input gives the same answer; somebody must change something first."""


class ConfigurationError(PermanentError):
    """A setting, a path or the chosen model is wrong or missing."""


class EndpointRefused(PermanentError):
    """The embedding server refuses every request: no rights, or the model is not there."""


class TextsTooLarge(PermanentError):
    """A request, or one text in it, is over the server's limit."""


class TextsRejected(PermanentError):
    """At least one text of a request is refused; the server does not say which."""


class BadVectors(PermanentError):
    """The server's answer holds no usable vector for at least one text."""


class ChaptersFailed(PermanentError):
    """Some chapters of a run could not be finished; `failures` maps partition key to reason."""

    def __init__(self, message: str, *, failures: dict[str, str], hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.failures = failures


class StorageError(PermanentError):
    """The disk or the database refuses to write (no space, no rights)."""


class CorruptInput(EraError):
    """A file or record of the input cannot be read; `path` is the file, `location` a line or JSON path in it."""

    def __init__(self, message: str, *, path: Path, location: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.path = path
        self.location = location
