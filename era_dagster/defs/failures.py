"""Maps the project's errors to Dagster's, once: what may be retried is raised as it is, the rest forbids a retry."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from era_dagster.domain.errors import ChaptersFailed, EraError, TransientError


@contextmanager
def as_dagster_failures() -> Iterator[None]:
    """Inside an op: turn an `EraError` into a `dg.Failure` with its message; transient ones stay retryable."""
    try:
        yield
    except ChaptersFailed as error:
        raise dg.Failure(
            description=str(error),
            metadata={"failed_chapters": dg.MetadataValue.json(error.failures)},
            allow_retries=False,
        ) from error
    except EraError as error:
        raise dg.Failure(description=str(error), allow_retries=isinstance(error, TransientError)) from error
