"""`era demo`: the sample books through the whole system, ending with answers."""

import os
import shutil
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path

import click

from era_dagster.cli.ingest import ingest_paths
from era_dagster.cli.output import settings_from_environment, stdout
from era_dagster.cli.search import show_results
from era_dagster.settings import Settings
from era_dagster.storage.database import Database, database_url
from era_dagster.storage.migrations import migrate
from era_dagster.storage.spaces import live_space

QUESTIONS = (
    "How do I keep a small debt from growing?",
    "When is it wise to wait before acting?",
    "How can I calm an argument about who is right?",
)


@click.command()
def demo() -> int:
    """Drop the sample books, ingest them, and ask three questions.

    Uses the local model unless another is configured or already in the database. A second run finds nothing to do.
    """
    settings = settings_from_environment()
    settings = _with_local_model(settings)
    for book in _drop_samples(settings.drop_dir):
        stdout.print(f"Sample book: {book}", markup=False)
    code = ingest_paths(settings, [])
    if code:
        return code
    for question in QUESTIONS:
        stdout.print()
        stdout.print(f"? {question}", style="bold", markup=False)
        show_results(settings, question, top_k=3)
    stdout.print()
    folder = _folder_of_commands()
    # Where only the package is installed there is nothing that tells `dagster dev` what to load.
    what = "" if Path("workspace.yaml").is_file() else " -m era_dagster.definitions"
    stdout.print(
        f'Next: {folder}era search "your question", {folder}era status, or {folder}dagster dev{what} for the UI at'
        " http://127.0.0.1:3000",
        markup=False,
    )
    return 0


def _folder_of_commands() -> str:
    """What must stand before `era` to be found: nothing where the shell finds it, else the folder it was started from."""
    started = Path(sys.argv[0])
    if shutil.which("era") or started.stem != "era":
        return ""
    return f"{started.parent}{os.sep}"


def _with_local_model(settings: Settings) -> Settings:
    if settings.embedding_provider or settings.embedding_model:
        return settings
    url = database_url(settings)
    migrate(url)
    with Database(url, pool_size=1) as database:
        if live_space(database) is not None:
            return settings
    return replace(settings, embedding_provider="local")


def _drop_samples(drop_dir: Path) -> list[str]:
    """Copy the sample books into the drop folder, doctrine last as an extractor would; what is there stays."""
    names: list[str] = []
    with resources.as_file(resources.files("era_dagster").joinpath("samples")) as samples:
        for book in sorted(folder for folder in samples.iterdir() if folder.is_dir() and folder.name[0] not in "._"):
            target = drop_dir / book.name
            target.mkdir(parents=True, exist_ok=True)
            for name in ("01_chapters.json", "02_doctrine.json"):
                if not (target / name).exists():
                    part = target / f"{name}.part"
                    shutil.copyfile(book / name, part)
                    part.replace(target / name)
            names.append(book.name)
    return names
