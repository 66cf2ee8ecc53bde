"""The embedded PostgreSQL: starts it, finds it, stops it; safe from any number of processes.

What is decided here is order: who may start, when the server counts as running (it answered a connection, never a
process id), what is cleared first. Files, programs and processes are `storage.server_cluster`. Schema, pools and
queries live elsewhere; they receive the URL.
"""

import os
import re
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

import filelock
import psycopg
from psycopg import errors as pg_errors
from psycopg import sql

from era_dagster.domain.errors import DatabaseUnavailable, StorageError
from era_dagster.storage.server_cluster import PORT, WINDOWS, Cluster

_DATABASE = "era"
_POLL_SECONDS = 0.05
# What libpq takes from the environment where a URL is silent, and what would keep it from this server or change how it works.
# Host, port, user and database stand in the URL; no password is asked for; whether TLS is wanted means nothing to a socket file.
_NOT_FOR_IT = (
    "PGSERVICE",
    "PGHOSTADDR",
    "PGTARGETSESSIONATTRS",
    "PGLOADBALANCEHOSTS",
    "PGREQUIREAUTH",
    "PGREQUIREPEER",
    "PGCHANNELBINDING",
    "PGGSSENCMODE",
    "PGSSLNEGOTIATION",
    "PGCONNECT_TIMEOUT",
    "PGOPTIONS",
    "PGCLIENTENCODING",
    "PGDATESTYLE",
    "PGTZ",
    "PGGEQO",
)
# A live server nobody can reach for so long has lost its socket (a cleaner of temporary folders) or is stopping anyway.
_UNREACHABLE_SECONDS = 5.0
_LONGEST_STOP_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatus:
    """What is known of the server now.

    `url` and `pid` are None when it does not run; `version` is the cluster's major version, None before there is one.
    """

    running: bool
    url: str | None
    pid: int | None
    data_dir: Path
    version: str | None


class _Answer(Enum):
    READY = auto()
    NO_DATABASE = auto()  # the server is up, our database is not made yet
    BUSY = auto()  # starting, stopping, recovering, or out of connections
    NOBODY = auto()


class EmbeddedServer:
    """The PostgreSQL of one `home`, whoever started it; holds no resource, so it needs no closing.

    Public methods raise `ConfigurationError` (no program files, an account that cannot run it, a cluster of another
    version), `StorageError` (disk full, no rights, a start that failed) and `DatabaseUnavailable` (out of time).
    The home must lie on a local disk. As root, the cluster's files belong to the account `nobody`.
    """

    def __init__(self, home: Path) -> None:
        self._cluster = Cluster(home.resolve() / "postgres")

    def ensure_running(self, *, timeout_seconds: float = 120.0) -> str:
        """Start the server unless it runs, making cluster and database where needed; return the database's URL.

        Any number of processes may call this at once. The server outlives them all; only `stop` ends it.
        """
        deadline = time.monotonic() + timeout_seconds
        with self._disk_errors():
            if self._ask() is not _Answer.READY:
                self._cluster.make_folder()
                with self._lock(deadline):
                    self._bring_up(deadline)
            self._cluster.bound_log()
        return self.url()

    def url(self, database: str = _DATABASE) -> str:
        """The libpq URL of `database` on this server, running or not; user `postgres`, a superuser without password.

        SQLAlchemy takes it with the scheme replaced by `postgresql+psycopg2`.
        """
        host, port = str(self._cluster.sockets), PORT
        if WINDOWS:
            lines = self._cluster.pid_file_lines()
            host, port = "127.0.0.1", int(lines[3]) if len(lines) > 3 else PORT
        # The port is named because PGPORT in a caller's environment would replace the default.
        query = urllib.parse.urlencode({"host": host, "port": port}, quote_via=urllib.parse.quote, safe="")
        return f"postgresql://postgres@/{urllib.parse.quote(database, safe='')}?{query}"

    def status(self) -> ServerStatus:
        """Look, and change nothing."""
        with self._disk_errors():
            running = self._ask() is not _Answer.NOBODY
            pid_lines = self._cluster.pid_file_lines() if running else []
            return ServerStatus(
                running=running,
                url=self.url() if running else None,
                pid=int(pid_lines[0]) if pid_lines else None,
                data_dir=self._cluster.data,
                version=self._cluster.version(),
            )

    def stop(self) -> bool:
        """Shut the server down (open transactions are rolled back) and wait for its end; True if it was running.

        Raises `DatabaseUnavailable` when it has not ended in time; it goes on shutting down then.
        """
        deadline = time.monotonic() + _LONGEST_STOP_SECONDS
        with self._disk_errors():
            if not self._cluster.folder.exists():
                return False
            with self._lock(deadline):
                was_running = False
                while (life := self._cluster.claim()) is None:
                    was_running = self._cluster.end_processes() or was_running
                    self._sleep(deadline, "has not stopped in time")
                self._cluster.remove_socket_folder()
                os.close(life)
                return was_running

    def _ask(self) -> _Answer:
        # Gone for the whole process and what it starts: connections are made later too, by pools, by Dagster, by children.
        # One that is refused for such a variable would look like a server that nobody can reach, and it would be ended.
        for name in _NOT_FOR_IT:
            os.environ.pop(name, None)
        # Without the pid file there is at most the dying server of a home that was deleted under it.
        if not (self._cluster.data / "postmaster.pid").exists():
            return _Answer.NOBODY
        try:
            with psycopg.connect(self.url(), connect_timeout=5, autocommit=True) as connection:
                # On Windows the port may have passed to another server since.
                row = connection.execute("SHOW data_directory").fetchone() if WINDOWS else None
                return _Answer.READY if row is None or Path(row[0]) == self._cluster.data else _Answer.NOBODY
        except pg_errors.ConnectionTimeout:
            return _Answer.BUSY
        except psycopg.OperationalError as error:
            text = str(error)
            if f'database "{_DATABASE}" does not exist' in text:
                return _Answer.NO_DATABASE
            if "FATAL" not in text:
                return _Answer.NOBODY
            if re.search(r"the database system is|terminating|too many clients|remaining connection slots", text):
                return _Answer.BUSY
            raise DatabaseUnavailable(
                f"The embedded PostgreSQL in {self._cluster.folder} refuses connections: {text.splitlines()[0]}."
            ) from error

    def _bring_up(self, deadline: float) -> None:
        launched = False
        answered_at = time.monotonic()
        while (answer := self._ask()) is not _Answer.READY:
            if answer is _Answer.NO_DATABASE:
                self._create_database()
                continue
            if answer is _Answer.BUSY:
                answered_at = time.monotonic()
            elif (life := self._cluster.claim()) is not None:
                try:
                    if launched:
                        raise self._cluster.failure("did not start")
                    self._cluster.prepare(life)
                    self._cluster.launch(life)
                finally:
                    os.close(life)
                launched = True
                continue
            elif not launched:
                silent = time.monotonic() - answered_at > _UNREACHABLE_SECONDS
                if silent or self._cluster.postmaster() is None:
                    self._cluster.end_processes()
            self._sleep(deadline, "cannot be reached, though a process of it lives (in another container, perhaps)")

    def _create_database(self) -> None:
        # template0, because any connection to template1 would be in the way
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(_DATABASE))
        try:
            with psycopg.connect(self.url("postgres"), connect_timeout=10, autocommit=True) as connection:
                connection.execute(statement)
        except psycopg.OperationalError as error:
            reason = str(error).splitlines()[0]
            raise StorageError(
                f"The embedded PostgreSQL in {self._cluster.folder} could not make the database {_DATABASE!r}: {reason}."
            ) from error

    @contextmanager
    def _lock(self, deadline: float) -> Iterator[None]:
        lock = filelock.FileLock(self._cluster.folder / "start.lock", timeout=max(0.0, deadline - time.monotonic()))
        try:
            lock.acquire(poll_interval=_POLL_SECONDS)
        except filelock.Timeout as error:
            raise DatabaseUnavailable(
                f"Another process has been busy starting or stopping the embedded PostgreSQL in {self._cluster.folder} "
                "for too long."
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _sleep(self, deadline: float, what: str) -> None:
        if time.monotonic() > deadline:
            raise DatabaseUnavailable(
                f"The embedded PostgreSQL in {self._cluster.folder} {what}.", hint=f"See {self._cluster.log}."
            )
        time.sleep(_POLL_SECONDS)

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            with suppress(OSError):
                # Another user's folder is closed on purpose: no right to it is to be granted.
                self._cluster.check_owner()
            where = error.filename or self._cluster.folder
            raise StorageError(
                f"The embedded PostgreSQL cannot use {where}: {error.strerror or error}.",
                hint="Free space or grant the rights, or choose another ERA_HOME.",
            ) from error
