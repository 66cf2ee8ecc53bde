"""`era doctor`: is everything there that an ingest needs, and what to do where it is not. Looks, and changes nothing."""

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict

import click

from era_dagster.cli.output import FAILED, print_json, print_table, settings_from_environment, stdout
from era_dagster.domain.errors import EraError
from era_dagster.pipeline import health
from era_dagster.pipeline.drop import check_not_away
from era_dagster.pipeline.health import Finding
from era_dagster.settings import Settings, misspelt
from era_dagster.storage.database import Database, database_url
from era_dagster.storage.inspection import inspect_database
from era_dagster.storage.spaces import live_space

_MARKS = {"ok": "[green]ok     [/green]", "warning": "[yellow]warning[/yellow]", "failed": "[red]failed [/red]"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.option("--settings", "show_settings", is_flag=True, help="Also list every setting and where it comes from.")
def doctor(as_json: bool, show_settings: bool) -> int:
    """Check folders, database, model and Dagster; each finding with the next step.

    Exit codes: 0 well (warnings included), 1 something failed, 2 a setting is wrong.
    """
    settings = settings_from_environment()
    shown = {name: {"value": value, "source": settings.sources[name]} for name, value in settings.public().items()}
    findings: list[Finding] = []
    for finding in _look(settings):
        findings.append(finding)
        if not as_json:
            stdout.print(f"{_MARKS[finding.level]} {finding.name}: ", end="")
            stop = "." if finding.next_step and not finding.found.endswith(".") else ""
            stdout.print(f"{finding.found}{stop} {finding.next_step}".strip(), markup=False)
    well = all(finding.level != "failed" for finding in findings)
    if as_json:
        print_json({"ok": well, "checks": [asdict(finding) for finding in findings], "settings": shown})
    elif show_settings:
        rows = [(f"ERA_{name.upper()}", str(s["value"]), s["source"]) for name, s in shown.items()]
        print_table("Settings", ("variable", "value", "from"), rows)
    else:
        stdout.print("`era doctor --settings` lists every setting and where it comes from.")
    return 0 if well else FAILED


def _look(settings: Settings) -> Iterator[Finding]:
    """One finding after the other, so that a slow one does not hold back the rest."""
    yield from health.versions()
    yield from health.names_of_settings(misspelt(os.environ))
    yield health.folder("home folder", settings.home)
    yield health.folder("data folder", settings.data_dir)
    yield health.folder("model folder", settings.model_dir, read_only_serves=True)
    if settings.log_file is not None:
        yield health.log_file(settings.log_file)
    yield health.drop_folder(settings.drop_dir)
    yield from health.aliases(settings)
    try:
        url = database_url(settings)
        facts = inspect_database(url)
    except EraError as error:
        yield health.failed("database", error)
        yield from health.model(settings, None, known=False)
        return
    yield from health.judge_database(facts, embedded=settings.database_url is None)
    if facts.pending:
        yield from health.model(settings, None, known=not facts.columns)
        return
    with Database(url, pool_size=1) as database:
        live = live_space(database)
        yield from _guarded("books", lambda: _not_away(settings, database))
        yield from _guarded("intake", lambda: [health.intake(database)])
        yield health.vector_tables(facts, live)
        yield from health.model(settings, live, database)
    yield from _guarded("daemon", lambda: _dagster(settings))


def _not_away(settings: Settings, database: Database) -> list[Finding]:
    check_not_away(database, settings.drop_dir)
    return []


def _dagster(settings: Settings) -> list[Finding]:
    from era_dagster.defs.health import daemon, never_started, sensor
    from era_dagster.defs.instance import look_at_instance

    with look_at_instance(settings) as instance:
        return never_started() if instance is None else [daemon(instance), sensor(instance)]


def _guarded(name: str, look: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return look()
    except EraError as error:
        return [health.failed(name, error)]
