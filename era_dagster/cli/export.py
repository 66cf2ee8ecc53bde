"""`era export`: what the knowledge base holds, as files for other programs."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from era_dagster.cli.knowledge_base import open_knowledge_base
from era_dagster.cli.options import no_dash
from era_dagster.cli.output import print_json, settings_from_environment, stderr, stdout
from era_dagster.storage.database import Database
from era_dagster.storage.export import Exported, export_items, export_vectors
from era_dagster.storage.export import Progress as Heard

_overwrite = click.option("--overwrite", is_flag=True, help="Replace an export that is there.")
_as_json = click.option("--json", "as_json", is_flag=True, help="Print as JSON, without a progress bar.")


@click.group()
def export() -> None:
    """Write entries to files for other programs. Files appear whole; nothing that is there is replaced unasked."""


@export.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), callback=no_dash)
@_overwrite
@_as_json
def kis(folder: Path, overwrite: bool, as_json: bool) -> int:
    """Lists of knowledge items: FOLDER/<domain>/<category>.json, for consumers that want a list instead of a minister file."""
    return _export(
        "Domains",
        lambda database, progress: export_items(database, folder, overwrite=overwrite, progress=progress),
        as_json=as_json,
    )


@export.command()
@click.argument("file", type=click.Path(path_type=Path), callback=no_dash)
@_overwrite
@_as_json
def vectors(file: Path, overwrite: bool, as_json: bool) -> int:
    """Every entry with its vector, one JSON object a line (FILE, usually named *.jsonl).

    `pandas.read_json(FILE, lines=True)` reads it.
    """
    return _export(
        "Entries",
        lambda database, progress: export_vectors(database, file, overwrite=overwrite, progress=progress),
        as_json=as_json,
    )


def _export(what: str, work: Callable[[Database, Heard], Exported], *, as_json: bool) -> int:
    with (
        Progress(
            TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=stderr, disable=as_json
        ) as bar,
        open_knowledge_base(settings_from_environment()) as database,
    ):
        task = bar.add_task(what, total=None)
        done = work(database, lambda finished, total: bar.update(task, completed=finished, total=total))
    if as_json:
        print_json(asdict(done))
    else:
        of_model = f", vectors of {done.model}" if done.model else ""
        stdout.print(
            f"{done.path}: {done.items:,} items in {done.files:,} files, {done.bytes / 1e6:,.1f} MB{of_model}.",
            markup=False,
        )
    return 0
