"""The `era` command. Commands import what they need when they run, so that `era --help` and `era search` stay quick."""

import sys
from importlib import import_module

import click

from era_dagster.cli.output import hear_lost_interrupts, open_closed_streams, run_guarded

_COMMANDS = {
    "ingest": "ingest",
    "search": "search",
    "status": "status",
    "dead-letters": "dead_letters",
    "errors": "errors",
    "verify": "verify",
    "spaces": "spaces",
    "export": "export",
    "map": "map",
    "doctor": "doctor",
    "metrics": "metrics",
    "db": "database",
    "demo": "demo",
    "simulate": "simulate",
    "bench": "bench",
}
"""Each command's name and the module of this package that holds it."""


class LazyGroup(click.Group):
    """Imports a command's module when the command is asked for: a simulated server needs no database driver."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, most used first."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name; None where there is none."""
        if cmd_name not in _COMMANDS:
            return None
        return getattr(import_module(f"era_dagster.cli.{_COMMANDS[cmd_name]}"), cmd_name.replace("-", "_"))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="era-dagster", prog_name="era")
@click.option("--debug", is_flag=True, help="Show the full traceback of an error.")
def era(debug: bool) -> None:
    """Turn books into a searchable knowledge base.

    Exit codes: 0 all well, 1 something failed (it is named), 2 wrong use, 130 stopped.
    """


def main() -> None:
    """Do what the command line says, and end the process."""
    open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    hear_lost_interrupts()
    sys.exit(run_guarded(lambda: era.main(standalone_mode=False), debug="--debug" in sys.argv))
