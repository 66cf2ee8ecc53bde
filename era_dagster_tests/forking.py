"""Runs Python in processes of its own without their dearest part: a process starts with the large libraries imported.

Each is forked from a server that has imported them and nothing of ours, so what is ours is imported anew in every process,
under that process's own environment and folder. Its output are pipes, read until the last process that holds them is gone.
"""

import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

LIBRARIES = [
    "click",
    "dagster",
    "dagster_postgres",
    "httpx",
    "era_dagster_tests.single_threaded_numpy",
    "pgvector.psycopg",
    "psycopg",
    "psycopg_pool",
    "rich.progress",
    "sqlalchemy.dialects.postgresql.psycopg2",
    "psycopg2",
]
"""None of them starts a thread, which a fork would lose; numpy by itself does."""

LONGEST_SECONDS = 240

OF_THE_INTERPRETER = ("PYTHON", "LC_", "LANG", "TZ")
"""Variables that count only for an interpreter that starts anew."""


def run_forked(
    work: Callable[..., None], *arguments: str, folder: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Call `work`, a function of a module that imports nothing of ours, in a process; `sys.exit` in it sets its exit code.

    Where a fork is not safe or would not do, as with variables of the interpreter, the process starts from nothing.
    """
    changed = {name for name, value in environment.items() if os.environ.get(name) != value}
    if sys.platform != "linux" or any(name.startswith(OF_THE_INTERPRETER) for name in changed):
        code = f"import sys; from {work.__module__} import {work.__name__} as work; work(*sys.argv[1:])"
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(
            command,
            cwd=folder,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            timeout=LONGEST_SECONDS,
            check=False,
        )
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    (said, out), (complained, err) = (multiprocessing.Pipe(duplex=False) for _ in range(2))
    with said, complained:
        with out, err:
            process = context.Process(target=_begin, args=(work, arguments, str(folder), dict(environment), out, err))
            process.start()
        # One that hangs ends as a failure, and not with the whole run of the tests.
        killing = threading.Timer(LONGEST_SECONDS, process.kill)
        killing.start()
        with ThreadPoolExecutor(1) as beside:
            errors = beside.submit(_all, complained)
            output = _all(said)
    process.join()
    killing.cancel()
    code = process.exitcode
    process.close()
    assert code is not None
    return subprocess.CompletedProcess(arguments, code, output, errors.result())


def _all(pipe: Connection) -> str:
    with open(pipe.fileno(), encoding="utf-8", closefd=False) as stream:
        return stream.read()


def _begin(
    work: Callable[..., None],
    arguments: tuple[str, ...],
    folder: str,
    environment: Mapping[str, str],
    out: Connection,
    err: Connection,
) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for pipe, number in ((out, 1), (err, 2)):
        os.dup2(pipe.fileno(), number)
        pipe.close()
    # As an interpreter makes them that starts with these pipes.
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    assert not any(name.startswith("era_dagster.") for name in sys.modules)
    work(*arguments)
