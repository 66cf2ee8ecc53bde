"""The `era` command. Commands import what they need when they run, so that `era --help` and `era search` stay quick."""

import sys

import click

from era_dagster.cli.database import db
from era_dagster.cli.demo import demo
from era_dagster.cli.doctor import doctor
from era_dagster.cli.ingest import ingest
from era_dagster.cli.output import run_guarded
from era_dagster.cli.search import search
from era_dagster.cli.status import status


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="era-dagster", prog_name="era")
@click.option("--debug", is_flag=True, help="Show the full traceback of an error.")
def era(debug: bool) -> None:
    """Turn books into a searchable knowledge base.

    Exit codes: 0 all well, 1 something failed (it is named), 2 wrong use.
    """


for _command in (ingest, search, status, doctor, db, demo):
    era.add_command(_command)


def main() -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    sys.exit(run_guarded(lambda: era.main(standalone_mode=False), debug="--debug" in sys.argv))
