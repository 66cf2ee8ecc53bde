"""How `era` speaks: tables for people on standard output, JSON for scripts, one clear sentence for errors.

The only modules that print are in this package. Exit codes: 0 all well, 1 something failed, 2 wrong use, 130
stopped.
"""

import errno
import json
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import click
import orjson
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from era_dagster.domain.errors import ConfigurationError, EraError
from era_dagster.settings import Settings, load_settings

T = TypeVar("T")
FAILED = 1
WRONG_USE = 2
INTERRUPTED = 130
STOPPED = "Stopped. What was finished is kept; run again to go on."

stdout = Console(soft_wrap=True, highlight=False)
stderr = Console(stderr=True, soft_wrap=True, highlight=False)
_MOMENT_SECONDS = 0.05
_NO_FOLD = 1000
"""A file or a pipe has no width: names that are folded cannot be searched for."""
_FOLDED_TO = 20
"""A long text may be folded into so many letters, no narrower."""


def typed(path: object) -> str:
    """A path as it is typed in a command: in double quotes, which every shell knows (cmd.exe no others), unless it holds
    what they do not keep a POSIX shell from reading."""
    text = str(path)
    if os.name == "nt":
        # The root of a drive ends with a backslash, and one alone would make the quote after it part of the path.
        return f'"{text}\\"' if text.endswith("\\") else f'"{text}"'
    return shlex.quote(text) if re.search(r'["$`\\!]', text) else f'"{text}"'


def settings_from_environment(**overrides: Any) -> Settings:
    """The settings of this process."""
    return load_settings(os.environ, **overrides)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2, default=str) + "\n")


def print_table(title: str, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """A small table; numbers to the right. On a screen that is too narrow for it a line or two for each row instead."""
    cells = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(columns, *cells, strict=True)]
    if stdout.is_terminal and sum(min(width, _FOLDED_TO) + 3 for width in widths) + 1 > stdout.width:
        stdout.print(title, style="italic", markup=False)
        for first, *others in cells:
            stdout.print(f"{columns[0]} {first}", style="bold", markup=False)
            told = [f"{name} {cell}" for name, cell in zip(columns[1:], others, strict=True) if cell]
            stdout.print(f"    {', '.join(told)}", markup=False)
        return
    table = Table(title=title, title_justify="left", header_style="bold")
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        # As text: the name of a book or an error's words are no markup.
        table.add_row(*map(Text, row))
    (stdout if stdout.is_terminal else Console(width=_NO_FOLD)).print(table)


def ask(question: str) -> None:
    """Ask before what cannot be taken back. All but a yes ends the command, which has changed nothing; exit code 130."""
    told = "Nothing was changed."
    try:
        if click.confirm(question):
            return
    except click.Abort:
        stderr.print()
        if not sys.stdin.isatty():
            told += " Nobody can be asked here: add --yes."
    stderr.print(told)
    raise click.exceptions.Exit(INTERRUPTED)


def exit_code(*, failed: bool, failure: str | None) -> int:
    """The code of a command that ran a job whose `failure` is told already."""
    return INTERRUPTED if failure == STOPPED else FAILED if failed else 0


def run_guarded(command: Callable[[], int | None], *, debug: bool) -> int:
    """Run a command at the process's top: every error becomes one sentence and an exit code."""
    code = _guarded(command, debug=debug)
    try:
        sys.stdout.flush()
    except OSError:
        # Told already. Python would try once more at the end of the process, and complain in its own words.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _guarded(command: Callable[[], int | None], *, debug: bool) -> int:
    try:
        code = command() or 0
        # While an answer that cannot be written is still an error of the command.
        sys.stdout.flush()
        return code
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except click.ClickException as error:
        error.show()
        _answer_json(error.format_message(), "")
        return error.exit_code
    except EraError as error:
        return _complain(error, WRONG_USE if isinstance(error, ConfigurationError) else FAILED)
    except (KeyboardInterrupt, click.Abort):
        stderr.print(STOPPED)
        _answer_json(STOPPED, "")
        return INTERRUPTED
    except BrokenPipeError:
        if debug:
            raise
        # Who read the answer has enough of it (`| head -1`): nothing to complain of.
        return FAILED
    except OSError as error:
        if debug:
            raise
        place = f" at {error.filename}" if error.filename else ""
        hint = "Free some space, then run again." if error.errno == errno.ENOSPC else "Check the path and its rights."
        return _complain(EraError(f"The system refused{place}: {error.strerror or error}.", hint=hint), FAILED)
    except Exception as error:
        if debug:
            raise
        return _complain(
            EraError(
                f"Unexpected {type(error).__name__}: {' '.join(str(error).split())[:300]}.",
                hint="Run `era --debug ...` for the details and report them.",
            ),
            FAILED,
        )


def open_closed_streams() -> None:
    """Read from and print to nowhere where a standard stream was closed (`>&-`). Else its number would go to the next file or
    connection, and what libraries print there with it."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115


def hear_lost_interrupts() -> None:
    """Have Ctrl-C arrive again where it came while Python ran what lets no exception out, a finalizer or the callback of a
    weak reference: it was printed as ignored there, and the command went on to its end."""

    def arrived(lost: Any) -> None:
        if issubclass(lost.exc_type, KeyboardInterrupt):
            # A moment later, when that has ended.
            threading.Timer(_MOMENT_SECONDS, _interrupt).start()
        else:
            sys.__unraisablehook__(lost)

    sys.unraisablehook = arrived


def _interrupt() -> None:
    if os.name == "nt":
        signal.raise_signal(signal.SIGINT)
    else:
        # To the process, so that a system call of its main thread ends, too.
        os.kill(os.getpid(), signal.SIGINT)


def _complain(error: EraError, code: int) -> int:
    stderr.print("Error:", error.message, style="red", end="", markup=False)
    stderr.print(f" {error.hint}" if error.hint else "", markup=False)
    _answer_json(error.message, error.hint)
    return code


def _answer_json(message: str, hint: str) -> None:
    """Who asked for JSON gets JSON, unless it is standard output that fails."""
    if "--json" in sys.argv:
        with suppress(OSError):
            sys.stdout.write(orjson.dumps({"error": message, "hint": hint}).decode() + "\n")
            sys.stdout.flush()
