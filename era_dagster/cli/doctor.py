"""`era doctor`: is everything there that an ingest needs, and what to do where it is not."""

import asyncio
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from era_dagster.cli.output import FAILED, print_json, print_table, settings_from_environment, stdout
from era_dagster.domain.errors import EraError
from era_dagster.embedding.factory import open_embedder
from era_dagster.pipeline.ingest import space_of
from era_dagster.settings import Settings, configured_model
from era_dagster.storage.database import Database, database_url
from era_dagster.storage.migrations import migrate
from era_dagster.storage.overview import overview
from era_dagster.storage.spaces import check_configured, check_same_model, live_space

_LEAST_FREE_BYTES = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at: fine or not, what was found, and the next step."""

    name: str
    ok: bool
    found: str
    next_step: str = ""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.option("--settings", "show_settings", is_flag=True, help="Also list every setting and where it comes from.")
def doctor(as_json: bool, show_settings: bool) -> int:
    """Check settings, folders, database and embedding model; exit 1 when something is missing."""
    settings = settings_from_environment()
    findings = [
        Finding(name="python", ok=sys.version_info >= (3, 11), found=sys.version.split()[0]),
        *(_folder(name, path) for name, path in (("home", settings.home), ("data", settings.data_dir))),
        _guarded("drop folder", lambda: _drop_folder(settings.drop_dir)),
        _guarded("database", lambda: _database(settings)),
    ]
    if findings[-1].ok:
        findings.append(_guarded("intake", lambda: _intake(settings)))
        findings.append(_guarded("embedding", lambda: _embedding(settings)))
    well = all(finding.ok for finding in findings)
    shown = {name: {"value": value, "source": settings.sources[name]} for name, value in settings.public().items()}
    if as_json:
        print_json(
            {
                "ok": well,
                "checks": [{"name": f.name, "ok": f.ok, "found": f.found, "next_step": f.next_step} for f in findings],
                "settings": shown,
            }
        )
        return 0 if well else FAILED
    for finding in findings:
        mark = "[green]ok     [/green]" if finding.ok else "[red]missing[/red]"
        stdout.print(f"{mark} {finding.name}: ", end="")
        stdout.print(f"{finding.found} {finding.next_step}".strip(), markup=False)
    if show_settings:
        rows = [(f"ERA_{name.upper()}", str(s["value"]), s["source"]) for name, s in shown.items()]
        print_table("Settings", ("variable", "value", "from"), rows)
    else:
        stdout.print("`era doctor --settings` lists every setting and where it comes from.")
    return 0 if well else FAILED


def _guarded(name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except EraError as error:
        return Finding(name=name, ok=False, found=error.message, next_step=error.hint)


def _folder(name: str, path: Path) -> Finding:
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    return Finding(
        name=f"{name} folder",
        ok=free >= _LEAST_FREE_BYTES,
        found=f"{path}, {free / 1e9:,.1f} GB free",
        next_step="" if free >= _LEAST_FREE_BYTES else "Free at least 1 GB.",
    )


def _drop_folder(path: Path) -> Finding:
    if not path.exists():
        return Finding(
            name="drop folder", ok=True, found=f"{path} does not exist yet; `era demo` or the sensor makes it"
        )
    return Finding(name="drop folder", ok=True, found=f"{path}, {sum(1 for _ in path.iterdir()):,} entries")


def _database(settings: Settings) -> Finding:
    url = database_url(settings)
    migrate(url)
    with Database(url, pool_size=1) as database, database.connection() as connection:
        row = connection.execute(
            "SELECT current_setting('server_version'), extversion FROM pg_extension WHERE extname = 'vector'"
        ).fetchone()
    server, vector = row or ("?", "?")
    kind = "configured" if settings.database_url else "embedded"
    return Finding(name="database", ok=True, found=f"{kind} PostgreSQL {server}, pgvector {vector}, schema up to date")


def _intake(settings: Settings) -> Finding:
    with Database(database_url(settings), pool_size=1) as database:
        found = overview(database)
    letters = found.totals.get("open_dead_letters", 0)
    troubles = len(found.quarantine) + len(found.failed) + letters
    unreadable = sorted({record["file"] for record in found.quarantine})
    named = f" ({', '.join(unreadable[:3])}{', ...' if len(unreadable) > 3 else ''})" if unreadable else ""
    return Finding(
        name="intake",
        ok=troubles == 0,
        found=f"{len(found.quarantine)} quarantined{named}, {len(found.failed)} failed chapters, {letters} open dead letters.",
        next_step=""
        if troubles == 0
        else "`era status` names them; `era dead-letters redrive` tries the letters again.",
    )


def _embedding(settings: Settings) -> Finding:
    with Database(database_url(settings), pool_size=1) as database:
        live = live_space(database)
    check_configured(live, model=configured_model(settings))

    async def ask() -> str:
        async with open_embedder(settings, known=live) as embedder:
            identity = await embedder.identify()
            if live is not None:
                check_same_model(live, space_of(identity))
            return f"{identity.model} by {identity.provider}, {identity.dimension} dimensions"

    return Finding(name="embedding", ok=True, found=asyncio.run(ask()))
