"""Which endpoints other processes work at: real connections, a real process killed."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import psycopg
import pytest

from era_dagster.domain.errors import DatabaseUnavailable
from era_dagster.storage import company as company_module
from era_dagster.storage.company import Company
from era_dagster.storage.database import with_database
from era_dagster_tests.waiting import wait_until

HERE, THERE = "http://127.0.0.1:11434", "http://gpu.example:11434"
STAYS = """
import sys, time
from era_dagster.storage.company import Company
company = Company(sys.argv[1], [sys.argv[2]])
company.others()
print("here", flush=True)
time.sleep(600)
"""


@pytest.fixture
def at(database_url: str) -> Iterator[Callable[..., Company]]:
    with ExitStack() as stack:

        def come(*urls: str, database: str = database_url) -> Company:
            company = stack.enter_context(Company(database, urls))
            company.others()
            return company

        yield come


def test_whoever_is_alone_sees_nobody_not_even_itself(at: Callable[..., Company]) -> None:
    assert at(HERE, THERE).others() == frozenset()


def test_two_see_each_other_at_the_endpoints_they_have_in_common(at: Callable[..., Company]) -> None:
    one, other, third = at(HERE, THERE), at(HERE), at("http://elsewhere.example")
    assert one.others() == other.others() == {HERE}
    assert third.others() == frozenset()


def test_whoever_leaves_is_not_seen_any_more_and_may_come_back(at: Callable[..., Company]) -> None:
    one, other = at(HERE), at(HERE)
    other.close()
    wait_until(lambda: not one.others())
    assert other.others() == {HERE}
    assert one.others() == {HERE}


def test_other_databases_of_the_same_server_are_other_companies(
    at: Callable[..., Company], new_database_url: Callable[[], str]
) -> None:
    one = at(HERE)
    assert at(HERE, database=new_database_url()).others() == frozenset()
    assert one.others() == frozenset()


def test_locks_of_other_things_are_nobody(at: Callable[..., Company], database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock_shared(hashtextextended('else', 0))")
        # The same 64 bits, as a lock of two keys.
        connection.execute(
            "SELECT pg_advisory_lock_shared((key >> 32)::int, ((key << 32) >> 32)::int)"
            " FROM hashtextextended('embedding at ' || %s, 0) AS h (key)",
            (HERE,),
        )
        assert at(HERE).others() == frozenset()


def test_whoever_only_waits_for_a_lock_is_nobody(at: Callable[..., Company], database_url: str) -> None:
    one = at(HERE)
    with (
        psycopg.connect(database_url, autocommit=True) as waits,
        psycopg.connect(database_url, autocommit=True) as sees,
    ):
        pid = waits.info.backend_pid

        def wait() -> None:
            with pytest.raises(psycopg.errors.QueryCanceled):
                waits.execute("SELECT pg_advisory_lock(hashtextextended('embedding at ' || %s, 0))", (HERE,))

        waiting = threading.Thread(target=wait)
        waiting.start()
        asked = "SELECT count(*) FROM pg_locks WHERE pid = %s AND locktype = 'advisory' AND NOT granted"
        while sees.execute(asked, (pid,)).fetchone() != (1,):
            time.sleep(0.01)
        found = one.others()
        sees.execute("SELECT pg_cancel_backend(%s)", (pid,))
        waiting.join()
    assert found == frozenset()


def test_a_process_that_is_killed_is_gone(at: Callable[..., Company], database_url: str) -> None:
    one = at(HERE)
    with subprocess.Popen(
        [sys.executable, "-c", STAYS, database_url, HERE], stdout=subprocess.PIPE, encoding="utf-8"
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "here"
        assert one.others() == {HERE}
        process.kill()
    wait_until(lambda: not one.others())


def test_a_process_that_the_network_lost_is_gone_after_a_while(
    at: Callable[..., Company], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = at(HERE)
    monkeypatch.setattr(company_module, "_SILENT_SECONDS", 1)
    at(HERE)  # asks no more
    assert one.others() == {HERE}
    wait_until(lambda: not one.others())


def test_a_connection_that_was_cut_is_an_error_once_and_made_anew_after_it(
    at: Callable[..., Company], database_url: str
) -> None:
    one, other = at(HERE), at(HERE)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND datname = current_database()"
        )
    with pytest.raises(DatabaseUnavailable):
        one.others()
    assert one.others() == frozenset()
    with pytest.raises(DatabaseUnavailable):
        other.others()
    assert other.others() == {HERE}


def test_without_a_database_it_says_so(database_url: str) -> None:
    with Company(with_database(database_url, "there is none"), [HERE]) as company, pytest.raises(DatabaseUnavailable):
        company.others()


def test_a_database_that_refuses_to_tell_is_an_error_of_the_project(
    at: Callable[..., Company], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = at(HERE)
    monkeypatch.setattr(company_module, "_OTHERS", "SELECT %s::text[] FROM pg_locks_of_another_kind")
    with pytest.raises(DatabaseUnavailable, match="pg_locks_of_another_kind"):
        one.others()
