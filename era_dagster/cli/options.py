"""Kinds of values that several commands take and click does not know."""

import math
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
