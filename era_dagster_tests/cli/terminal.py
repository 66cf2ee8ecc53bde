"""A terminal with a person before it: `era` in a pseudo-terminal of its own, what it shows, and Ctrl-C."""

import os
import re
import select
import subprocess
import sys
import time
from typing import Any

from era_dagster_tests.cli.shell import Shell

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
_PATIENCE_SECONDS = 60.0
# A test runner in the background may have SIGINT ignored.
_IN_THE_FOREGROUND = (
    "import fcntl, os, signal, sys, termios\n"
    "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
    "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    "os.execv(sys.argv[1], sys.argv[1:])\n"
)


class Terminal:
    """Runs `era` with the given words as the foreground program of a terminal. POSIX only."""

    def __init__(self, shell: Shell, *words: str, columns: int = 120) -> None:
        import pty

        self.shown = ""
        self._read_to = 0
        # The program's side stays open here, so that the terminal outlives the program.
        self._screen, self._inside = pty.openpty()
        self._program = subprocess.Popen(
            [sys.executable, "-c", _IN_THE_FOREGROUND, sys.executable, "-m", "era_dagster.cli", *words],
            cwd=shell.folder,
            env=shell.environment | {"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "40"},
            stdin=self._inside,
            stdout=self._inside,
            stderr=self._inside,
            start_new_session=True,
        )

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self._program.kill()
        self._program.wait()
        os.close(self._screen)
        os.close(self._inside)

    def read_until(self, pattern: str) -> None:
        """Wait until the program shows what the pattern says, behind that of the call before."""
        until = time.monotonic() + _PATIENCE_SECONDS
        while (found := re.compile(pattern).search(self.shown, self._read_to)) is None:
            assert time.monotonic() < until, f"{pattern!r} is not in {self.shown[self._read_to :][:2000]!r}"
            self._take(0.2)
        self._read_to = found.end()

    def press_ctrl_c(self) -> int:
        """As the key does: through the terminal. The program's exit code."""
        os.write(self._screen, b"\x03")
        code = self._program.wait(timeout=_PATIENCE_SECONDS)
        while self._take(0.0):
            pass
        return code

    def attributes(self) -> list[Any]:
        """Echo, line mode and the like."""
        import termios

        return termios.tcgetattr(self._inside)

    def _take(self, seconds: float) -> bool:
        ready, _, _ = select.select([self._screen], [], [], seconds)
        if ready:
            self.shown += os.read(self._screen, 65536).decode("utf-8", errors="replace")
        return bool(ready)
