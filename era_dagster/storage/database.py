"""Connections to PostgreSQL: one place that knows the URL, the session settings and the driver's errors.

Everything else in `storage` receives a `Database` and asks it for connections. No SQL of the knowledge base lives here
except the migrations' bookkeeping in `storage.migrations`.
"""

import logging
import selectors
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self, TypeVar

import psycopg
from pgvector.psycopg import register_vector
from psycopg import errors as pg_errors
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import ExecStatus
from psycopg_pool import ConnectionPool, PoolTimeout

from era_dagster.domain.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    EraError,
    PermanentError,
    StorageError,
    TransientError,
)
from era_dagster.settings import Settings
from era_dagster.storage.server import EmbeddedServer

# random_page_cost: with PostgreSQL's 4, meant for discs that seek, it reads whole tables for words that its index finds in
# a tenth of the time.
# Live vector tables stand in their own schema so that a rebuilt set can be swapped in by renaming it.
SEARCH_SETTINGS = {"hnsw.iterative_scan": "strict_order", "hnsw.ef_search": "100"}
_SESSION_OPTIONS = " ".join(
    f"-c {name}={value}"
    for name, value in (
        {"search_path": "public,vectors", "timezone": "UTC", "random_page_cost": "1.1"} | SEARCH_SETTINGS
    ).items()
)
T = TypeVar("T")

_LONGEST_WAIT_SECONDS = 30.0
_FIRST_CONNECT_SECONDS = 10
_RUN_PREFIX = "era_dagster run "
_PRESENT_SECONDS = 5.0
_LEAVING_SECONDS = 1.0
# Whoever needs a database that is away says so once; the pool tells of each of its attempts, in the middle of a progress bar.
logging.getLogger("psycopg.pool").addHandler(logging.NullHandler())
# A pooled connection that is silent for this share of the longest wait is given up: there is time left for a new one.
_SHARE_OF_SILENCE = 1 / 5
# And one that is silent for so many longest waits in the middle of a statement. The longest wait alone would end what a cold disk
# makes slow.
_WAITS_FOR_A_STATEMENT = 4


def database_url(settings: Settings) -> str:
    """The URL of the knowledge base; starts the embedded server when no other database is configured.

    Raises `ConfigurationError` for a URL that is none, and that or `StorageError` when the embedded server cannot start.
    """
    if settings.database_url is None:
        return EmbeddedServer(settings.home).ensure_running()
    return checked_address(settings.database_url, "ERA_DATABASE_URL")


def checked_address(url: str, variable: str) -> str:
    """The URL, when all who get it read the same from it. Their own errors would quote it: at times the password."""
    if not _is_address(url):
        raise ConfigurationError(
            f"{variable} is not the address of a PostgreSQL database.",
            hint="Write postgresql://USER@HOST:5432/DATABASE, with %XX for special characters; PGPASSWORD can hold the password.",
        )
    return url


def _is_address(url: str) -> bool:
    """Does libpq, which connects, read the same from it as the standard library, with which `with_database` takes it apart?

    Where a password holds `#`, `/`, `?`, `@` or brackets as they are, each finds another host in the URL, or none.
    """
    if not url.startswith(("postgresql://", "postgres://")):
        return False
    try:
        theirs = {name: str(value) for name, value in conninfo_to_dict(url).items()}
        parts = urllib.parse.urlsplit(url)
        ours = {
            "user": parts.username,
            "password": parts.password,
            "host": parts.hostname,
            "port": parts.port,
            "dbname": parts.path[1:],
        }
    except (psycopg.ProgrammingError, ValueError):
        return False
    if "#" in url or "@" in parts.path or parts.netloc.endswith(":"):
        return False
    ours |= {name: value for name, value in _query(parts.query) if name in ours}
    # The standard library writes host names small; libpq has a comma for each further host that is given no port.
    theirs |= {"host": theirs.get("host", "").lower(), "port": theirs.get("port", "").strip(",")}
    ours = {name: urllib.parse.unquote(str(value or "")) for name, value in ours.items()}
    ours |= {"host": ours["host"].lower(), "port": ours["port"].strip(",")}
    return "@" not in theirs["host"] and all(value == theirs.get(name, "") for name, value in ours.items())


def _query(query: str) -> Iterator[tuple[str, str]]:
    """Names and values as libpq has them: only `&` separates, and a plus sign is one."""
    for pair in query.split("&"):
        name, _, value = pair.partition("=")
        yield urllib.parse.unquote(name), value


def with_database(url: str, name: str) -> str:
    """The same server's URL for another database."""
    parts = urllib.parse.urlsplit(url)
    # In the query the old name would count, not the new one in the path.
    query = "&".join(pair for pair in parts.query.split("&") if next(_query(pair))[0] != "dbname")
    # Put together by hand: `urlunsplit` loses the two slashes before an empty host, as in postgresql:///era?host=/tmp.
    return f"{parts.scheme}://{parts.netloc}/{urllib.parse.quote(name)}{query and '?'}{query}"


@contextmanager
def driver_errors() -> Iterator[None]:
    """Turn the driver's exceptions into the project's tree, keeping the server's own first line."""
    try:
        yield
    except pg_errors.DiskFull as error:
        raise StorageError(
            f"PostgreSQL refuses to write: {_first_line(error)}.", hint="Free space, then run again."
        ) from error
    except (pg_errors.InsufficientPrivilege, pg_errors.UndefinedTable) as error:
        # PostgreSQL passes over a schema that an account may not use: its tables are not there for it.
        raise StorageError(
            f"PostgreSQL refuses the account it was asked by: {_first_line(error)}.",
            hint="Grant it what it needs (for a reader: docs/output.md, Tables), then run again.",
        ) from error
    except pg_errors.LockNotAvailable as error:
        raise DatabaseUnavailable(
            f"PostgreSQL gave no lock in time: {_first_line(error)}.",
            hint="Try again when VACUUM FULL, a restore or what else keeps the table locked has ended.",
        ) from error
    except (pg_errors.DeadlockDetected, pg_errors.SerializationFailure) as error:
        raise TransientError(
            f"PostgreSQL gave way to another writer: {_first_line(error)}.", hint="Run again; nothing was half-written."
        ) from error
    except (psycopg.DataError, psycopg.IntegrityError) as error:
        raise PermanentError(f"PostgreSQL refuses a value: {_first_line(error)}.") from error
    except (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout) as error:
        raise DatabaseUnavailable(
            f"PostgreSQL cannot be reached: {_first_line(error)}.", hint="Run `era doctor`, then try again."
        ) from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


class _Connection(psycopg.Connection):
    """Gives up a server that says nothing to a statement for `patience_seconds`, if it is not None: of one that hangs, or that a
    network has lost, nothing ever comes, and whoever asked would wait for ever."""

    patience_seconds: float | None = None

    def wait(self, gen: PQGen[T], *arguments: Any, **options: Any) -> T:
        return super().wait(gen if self.patience_seconds is None else self._patient(gen), *arguments, **options)

    def _patient(self, gen: PQGen[T]) -> PQGen[T]:
        until = time.monotonic() + (self.patience_seconds or 0)
        try:
            waiting_for = next(gen)
            while True:
                ready = yield waiting_for
                if not ready and time.monotonic() > until:
                    self.close()
                    raise psycopg.OperationalError(f"it has not answered for {self.patience_seconds:g} s")
                waiting_for = gen.send(ready)
        except StopIteration as ended:
            return ended.value


class Database:
    """A pool of connections to the knowledge base; `with Database(url, pool_size=5) as database: ...`.

    `connection()` lends one connection inside one transaction (commit on success, rollback on error), with the vector
    types registered. With a `run_id` the connections carry it, and one that is lost is soon replaced, so that `live_runs`
    can tell a running run from a killed one. Raises `DatabaseUnavailable` when the server is away, or no connection is
    free, for 30 s or for `longest_wait_seconds`, which then bound each wait for a lock too, and four times as long each
    statement; `StorageError` when it cannot write.
    """

    def __init__(
        self, url: str, *, pool_size: int, run_id: str | None = None, longest_wait_seconds: float | None = None
    ) -> None:
        options = _session_options(url, lock_timeout_seconds=longest_wait_seconds)
        self._patience_seconds = longest_wait_seconds and longest_wait_seconds * _WAITS_FOR_A_STATEMENT
        longest_wait_seconds = longest_wait_seconds or _LONGEST_WAIT_SECONDS
        connect_seconds = max(2, round(longest_wait_seconds))
        self._first_connect_seconds = min(connect_seconds, _FIRST_CONNECT_SECONDS)
        self._longest_silence_seconds = longest_wait_seconds * _SHARE_OF_SILENCE
        self._pool = ConnectionPool(
            url,
            connection_class=_Connection,
            min_size=1,
            max_size=pool_size,
            open=False,
            timeout=longest_wait_seconds,
            # Given up as soon as nobody waits any longer: after a long outage the next caller connects at once instead of
            # waiting for the end of a pause between attempts that have grown rare.
            reconnect_timeout=longest_wait_seconds,
            kwargs={
                "options": options,
                "application_name": _RUN_PREFIX + run_id if run_id else "era_dagster",
                "connect_timeout": connect_seconds,
            },
            configure=self._configure,
            check=self._check,
        )
        self._lent: set[psycopg.Connection] = set()
        self._closed = threading.Event()
        self._presence = threading.Thread(target=self._stay, name="era-presence", daemon=True) if run_id else None
        self.url = url

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> None:
        """Connect once, so that a wrong URL is one clear error instead of a time-out."""
        with driver_errors():
            psycopg.connect(self.url, connect_timeout=self._first_connect_seconds).close()
            self._pool.open()
        if self._presence is not None:
            self._presence.start()

    def close(self) -> None:
        """Close all connections."""
        self._closed.set()
        self._pool.close()
        if self._presence is not None and self._presence.is_alive():
            # No longer, where a server hangs: it would be until the patience with it is over.
            self._presence.join(_LEAVING_SECONDS)

    def _stay(self) -> None:
        """A pool notices that its connections are lost when it is asked for one, which a run may not do for minutes."""
        while not self._closed.wait(_PRESENT_SECONDS):
            with suppress(EraError), self.connection():
                pass

    def _configure(self, connection: _Connection) -> None:
        connection.patience_seconds = self._patience_seconds
        connection.autocommit = True
        installed = connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'vector'").fetchone()
        if installed is None:
            raise psycopg.OperationalError("the vector extension is missing; run `era db migrate`")
        register_vector(connection)
        connection.autocommit = False

    def _check(self, connection: psycopg.Connection) -> None:
        try:
            _check_answers(connection, self._longest_silence_seconds)
        except psycopg.OperationalError:
            # Mostly all are lost at once, as when the server was started again. Found one by one, each would cost its caller
            # a pause twice as long as the one before, which is more than the longest wait with three or five of them.
            self._pool.drain()
            raise

    @contextmanager
    def connection(self) -> Iterator[psycopg.Connection]:
        """Lend a connection in one transaction."""
        with driver_errors():
            try:
                with self._pool.connection() as connection:
                    self._lent.add(connection)
                    try:
                        yield connection
                    finally:
                        self._lent.discard(connection)
            except PoolTimeout as error:
                if len(self._lent) < self._pool.max_size:
                    raise  # there is room for one more: the server gives none
                raise DatabaseUnavailable(
                    f"No connection to PostgreSQL was free for {self._pool.timeout:g} s: all {len(self._lent)} are in use.",
                    hint="Try again when less goes on in this process, or raise ERA_DATABASE_POOL.",
                ) from error


def live_runs(database: Database) -> frozenset[str]:
    """The ids of the runs that hold a connection now: a killed run holds none."""
    with database.connection() as connection:
        return frozenset(
            name.removeprefix(_RUN_PREFIX)
            for (name,) in connection.execute(
                "SELECT DISTINCT application_name FROM pg_stat_activity WHERE datname = current_database()"
                " AND starts_with(application_name, %s)",
                (_RUN_PREFIX,),
            )
        )


def server_started_at(database: Database) -> float:
    """When PostgreSQL was started, in seconds since 1970 by its own clock: nobody has been connected for longer."""
    with database.connection() as connection:
        row = connection.execute("SELECT extract(epoch FROM pg_postmaster_start_time())::float8").fetchone()
    return row[0] if row else 0.0


def set_lock_timeout(connection: psycopg.Connection, milliseconds: int) -> None:
    """Wait for no lock longer than that until the transaction ends, or the savepoint in which it was set is rolled back."""
    connection.execute("SELECT set_config('lock_timeout', %s, true)", (str(milliseconds),))


def options_beside(url: str, ours: str) -> str:
    """Session options for a connection to `url`: its own (a role, a time-out), and ours, which count where both set one.

    Given beside a URL, options would take the place of its own.
    """
    try:
        theirs = conninfo_to_dict(url).get("options")
    except psycopg.ProgrammingError:
        theirs = None  # connecting says what is wrong with it
    return f"{theirs or ''} {ours}"


def _session_options(url: str, *, lock_timeout_seconds: float | None) -> str:
    """A time-out of the URL's is kept, what our SQL relies on is not left to it."""
    patience = "" if lock_timeout_seconds is None else f"-c lock_timeout={round(1000 * lock_timeout_seconds)}"
    return f"{patience} {options_beside(url, _SESSION_OPTIONS)}"


def _check_answers(connection: psycopg.Connection, seconds: float) -> None:
    """Send an empty query, as the pool's own check does, but with an end to the waiting; `OperationalError` without an answer.

    Of a server that hangs, and of a connection that a firewall or a suspended laptop has lost, no error ever comes.
    """
    server = connection.pgconn
    server.send_query(b"")
    until = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        selector.register(server.socket, selectors.EVENT_READ)
        while server.is_busy():
            if not selector.select(until - time.monotonic()):
                raise psycopg.OperationalError(f"the server has not answered for {seconds:g} s")
            server.consume_input()
    while (result := server.get_result()) is not None:
        if result.status != ExecStatus.EMPTY_QUERY:
            raise psycopg.OperationalError("the server has ended the connection")
