"""Which embedding endpoints other processes of this knowledge base work at now.

Each process holds a shared advisory lock for every endpoint it sends to, on a connection of its own, so that a killed one is
gone with its connection; one that the network lost, after `_SILENT_SECONDS`. Nothing is written.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

import psycopg

from era_dagster.domain.errors import DatabaseUnavailable

_CONNECT_SECONDS = 10
_SILENT_SECONDS = 30
"""PostgreSQL takes a process that asks nothing for so long for gone: its connection may be dead without a word."""
_ANSWER_SECONDS = 8
_LIMITS = """
SELECT set_config('idle_session_timeout', %s, false), set_config('statement_timeout', %s, false)
"""
_LOCKS = (
    "SELECT pg_advisory_lock_shared(hashtextextended('embedding at ' || url, 0)) FROM unnest(%s::text[]) AS u (url)"
)
# A lock whose key is one 64-bit number shows as its two halves, with objsubid 1.
_OTHERS = """
SELECT DISTINCT u.url FROM unnest(%s::text[]) AS u (url)
JOIN pg_locks l ON (l.classid::bigint << 32) | l.objid::bigint = hashtextextended('embedding at ' || u.url, 0)
WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted AND l.pid <> pg_backend_pid()
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


class Company:
    """Says at `urls` that this process is there, and asks who else is; a context manager.

    Connects with the first `others`, and again with the next one after a failure. Not for several threads at a time.
    """

    def __init__(self, database_url: str, urls: Sequence[str]) -> None:
        self._database_url = database_url
        self._urls = list(urls)
        self._connection: psycopg.Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def others(self) -> frozenset[str]:
        """The URLs at which another process works too. Raises `DatabaseUnavailable`; from then on nobody knows of this one."""
        try:
            if self._connection is None:
                self._connection = psycopg.connect(
                    self._database_url,
                    autocommit=True,
                    connect_timeout=_CONNECT_SECONDS,
                    tcp_user_timeout=1000 * _ANSWER_SECONDS,
                    application_name="era_dagster",
                )
                self._connection.execute(_LIMITS, (f"{_SILENT_SECONDS}s", f"{_ANSWER_SECONDS}s"))
                self._connection.execute(_LOCKS, (self._urls,))
            return frozenset(url for (url,) in self._connection.execute(_OTHERS, (self._urls,)))
        except psycopg.Error as error:
            self.close()
            raise DatabaseUnavailable(f"PostgreSQL does not tell who else is there: {error}.") from error

    def close(self) -> None:
        """This process has left, as far as the others can see."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
