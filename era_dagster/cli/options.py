"""Kinds of values that several commands take and click does not know."""

import math
import os
from pathlib import Path
from typing import Any

import click


class Seconds(click.FloatRange):
    """A number of seconds, `min` at least. NaN and infinity are numbers to click, but nothing that ends."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number; wrong use for anything else."""
        seconds = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value} is no number of seconds.", param, ctx)
        return seconds


def no_dash(context: click.Context, parameter: click.Parameter, value: Path) -> Path:
    """The path; wrong use for `-`, which other programs take for standard output, and which would be made with that name."""
    if str(value) == "-":
        raise click.BadParameter("- is no name: what is written appears whole, so it cannot be printed. Name another.")
    return value


class FileToWrite(click.Path):
    """A file that is written when all is done; that it can be is seen before anything begins."""

    def __init__(self, *, allow_dash: bool = False) -> None:
        super().__init__(dir_okay=False, writable=True, allow_dash=allow_dash)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The path as it was given; wrong use for a folder, and for a file that may not be written or is in no folder."""
        path = os.fsdecode(super().convert(value, param, ctx))
        folder = Path(path).parent
        if not folder.is_dir():
            self.fail(f"There is no folder {folder}. Make it, or name another file.", param, ctx)
        if path != "-" and not os.access(path, os.F_OK) and not os.access(folder, os.W_OK | os.X_OK):
            self.fail(f"Nothing can be written into {folder}. Name another file.", param, ctx)
        return path


json_file = click.option(
    "--json",
    "json_to",
    type=FileToWrite(allow_dash=True),
    metavar="FILE",
    help="Write all figures as JSON; - for standard output.",
)
"""`--json FILE` of the benchmarks."""
