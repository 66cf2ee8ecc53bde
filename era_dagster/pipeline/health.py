"""Is everything there that an ingest needs? Each function looks at one thing and gives findings with the next step.

Nothing is changed by looking. What Dagster itself runs (daemon, sensor) is looked at in `defs.health`.
"""

import asyncio
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from era_dagster.domain.errors import ConfigurationError, DatabaseUnavailable, EraError
from era_dagster.domain.space import Space
from era_dagster.embedding.factory import open_embedder
from era_dagster.intake.aliases import domain_aliases
from era_dagster.settings import Settings, configured_model
from era_dagster.storage.cache import PostgresVectorCache
from era_dagster.storage.database import Database
from era_dagster.storage.inspection import DatabaseFacts
from era_dagster.storage.migrations import unfit_encoding, unfit_vector_schema
from era_dagster.storage.overview import overview
from era_dagster.storage.spaces import check_configured, check_same_model

Level = Literal["ok", "warning", "failed"]

LEAST_FREE_BYTES = 1_000_000_000
_LEAST_POSTGRES = 160000
# 0.8.0 has iterative index scans, without which a filtered search comes back short; 0.8.4 is the oldest we measured.
_LEAST_VECTOR, _MEASURED_VECTOR = (0, 8, 0), (0, 8, 4)
_CLOCK_TOLERANCE_SECONDS = 2.0
# The hint of other commands sends to the doctor.
_DATABASE_AWAY = "Is it started, and do host, port, user, password (PGPASSWORD) and database of its address fit?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at: how it stands, what was found, and the next step where it is not well.

    A warning is what works and deserves a look; failed is what an ingest would stumble over, or already did.
    """

    name: str
    level: Level
    found: str
    next_step: str = ""


def failed(name: str, error: EraError) -> Finding:
    """A look that ended with one of our errors, which say what to do."""
    circular = isinstance(error, DatabaseUnavailable) and "era doctor" in error.hint
    return Finding(name=name, level="failed", found=error.message, next_step=_DATABASE_AWAY if circular else error.hint)


def versions() -> list[Finding]:
    """The versions of Python and of the packages whose behaviour we depend on."""
    named = ("era-dagster", "dagster", "psycopg", "httpx", "onnxruntime")
    found = ", ".join(f"{name} {metadata.version(name)}" for name in named)
    enough = sys.version_info >= (3, 11)
    return [
        Finding(
            name="versions",
            level="ok" if enough else "failed",
            found=f"Python {platform.python_version()} on {platform.system()}, {found}",
            next_step="" if enough else "Use Python 3.11 or newer.",
        )
    ]


def names_of_settings(misspelt: Mapping[str, str]) -> list[Finding]:
    """Variables that nothing reads, with the settings that were probably meant."""
    return [
        Finding(name="settings", level="warning", found=f"{name} is no setting.", next_step=f"Did you mean {meant}?")
        for name, meant in misspelt.items()
    ]


def folder(name: str, path: Path, *, read_only_serves: bool = False) -> Finding:
    """May this user write there, and is there space on its disk? A folder that is not there yet is judged by its parent.

    `read_only_serves`: one that is filled, or that nobody needs, as the finding about the model tells."""
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    if not existing.is_dir():
        return Finding(
            name=name, level="failed", found=f"{existing} is no folder.", next_step="Move it out of the way."
        )
    if not os.access(existing, os.W_OK):
        return Finding(
            name=name,
            level="warning" if read_only_serves else "failed",
            found=f"{existing} is closed to this user.",
            next_step=("Unless the model answers, give" if read_only_serves else "Give")
            + " this user the right to write there, or name another folder.",
        )
    free = shutil.disk_usage(existing).free
    enough = free >= LEAST_FREE_BYTES
    return Finding(
        name=name,
        level="ok" if enough else "failed",
        found=f"{path}, {free / 1e9:,.1f} GB free",
        next_step="" if enough else "Free at least 1 GB.",
    )


def log_file(path: Path) -> Finding:
    """May this user write it? A run says on standard error that it cannot, and goes on without."""
    if path.is_dir():
        found = f"{path} is a folder, and ERA_LOG_FILE a file."
        return Finding(name="log folder", level="failed", found=found, next_step="Name a file in it.")
    return folder("log folder", path.parent)


def drop_folder(path: Path) -> Finding:
    """Can the drop folder be read, and what lies in it?"""
    if not path.exists():
        return Finding(
            name="drop folder",
            level="warning",
            found=f"{path} does not exist.",
            next_step="Make it and put books into it, or set ERA_DROP_DIR.",
        )
    try:
        entries = sum(1 for _ in path.iterdir())
    except OSError as error:
        return Finding(
            name="drop folder",
            level="failed",
            found=f"{path} cannot be read: {error.strerror}.",
            next_step="Set ERA_DROP_DIR to a folder this user may read.",
        )
    return Finding(name="drop folder", level="ok", found=f"{path}, {entries:,} entries")


def aliases(settings: Settings) -> list[Finding]:
    """Can the alias table be read? Nothing to say where none is set."""
    if settings.domain_aliases is None:
        return []
    name = "domain aliases"
    try:
        table = domain_aliases(settings)
    except ConfigurationError as error:
        return [failed(name, error)]
    return [Finding(name=name, level="ok", found=f"{settings.domain_aliases}, {len(table):,} names")]


def judge_database(facts: DatabaseFacts, *, embedded: bool) -> list[Finding]:
    """What was read of the database, judged: the server, pgvector, the schema and the clock."""
    return [_server(facts, embedded=embedded), _extension(facts), _schema(facts), _clock(facts)]


def _server(facts: DatabaseFacts, *, embedded: bool) -> Finding:
    new_enough = facts.server_number >= _LEAST_POSTGRES
    kind = "embedded" if embedded else "configured"
    unfit = unfit_encoding(facts.encoding)
    if unfit is not None:
        return Finding(name="database", level="failed", found=unfit.message, next_step=unfit.hint)
    return Finding(
        name="database",
        level="ok" if new_enough else "failed",
        found=f"{kind} PostgreSQL {facts.server_version}, {facts.size_bytes / 1e6:,.0f} MB",
        next_step="" if new_enough else "Use PostgreSQL 16 or newer.",
    )


def _extension(facts: DatabaseFacts) -> Finding:
    name = "extension"
    if facts.vector_installed is None:
        if facts.vector_available is None:
            return Finding(
                name=name,
                level="failed",
                found="The server has no pgvector.",
                next_step="Install pgvector 0.8.4 or newer there, or unset ERA_DATABASE_URL to use the embedded server.",
            )
        return Finding(
            name=name,
            level="warning",
            found=f"pgvector {facts.vector_available} is on the server and not yet in this database.",
            next_step="`era db migrate` puts it there; where its user may not, a superuser says CREATE EXTENSION vector.",
        )
    unfit = unfit_vector_schema(facts.vector_schema or "")
    if unfit is not None:
        return Finding(name=name, level="failed", found=unfit.message, next_step=unfit.hint)
    version = _numbers(facts.vector_installed)
    update = "Install a newer pgvector on the server, then say ALTER EXTENSION vector UPDATE."
    if version < _LEAST_VECTOR:
        return Finding(
            name=name,
            level="failed",
            found=f"pgvector {facts.vector_installed}: a search within a domain would come back short.",
            next_step=update,
        )
    old = version < _MEASURED_VECTOR
    return Finding(
        name=name,
        level="warning" if old else "ok",
        found=f"pgvector {facts.vector_installed}"
        + (", older than 0.8.4, the oldest this was measured with" if old else ""),
        next_step=update if old else "",
    )


def _schema(facts: DatabaseFacts) -> Finding:
    if facts.pending:
        return Finding(
            name="schema",
            level="warning",
            found=f"not there yet: {', '.join(facts.pending)}.",
            next_step="`era db migrate`, or the next ingest, brings it up to date.",
        )
    if facts.unknown:
        return Finding(
            name="schema",
            level="warning",
            found=f"from a newer release: {', '.join(facts.unknown)}.",
            next_step="Use that release; this one leaves alone what it does not know.",
        )
    return Finding(name="schema", level="ok", found="up to date")


def _clock(facts: DatabaseFacts) -> Finding:
    apart = abs(facts.clock_ahead_seconds)
    well = apart - facts.clock_uncertainty_seconds <= _CLOCK_TOLERANCE_SECONDS
    side = "ahead of" if facts.clock_ahead_seconds > 0 else "behind"
    return Finding(
        name="clock",
        level="ok" if well else "warning",
        found=f"the database's is {apart:,.1f} s {side} ours",
        next_step=""
        if well
        else "Let both machines take their time from the same server: ages and waits are wrong until then.",
    )


def intake(database: Database) -> Finding:
    """Files that could not be read, chapters that failed, and dead letters."""
    found = overview(database)
    letters = found.totals.get("open_dead_letters", 0)
    well = not (found.quarantine or found.failed or letters)
    unreadable = sorted({record["file"] for record in found.quarantine})
    redrive = "; `era dead-letters redrive` tries the letters again" if letters else ""
    named = f" ({', '.join(unreadable[:3])}{', ...' if len(unreadable) > 3 else ''})" if unreadable else ""
    return Finding(
        name="intake",
        level="ok" if well else "failed",
        found=f"{len(found.quarantine)} quarantined{named}, {len(found.failed)} failed chapters, {letters} open dead letters.",
        next_step="" if well else f"`era status` names them{redrive}.",
    )


def model(
    settings: Settings, live: Space | None, database: Database | None = None, *, known: bool = True
) -> list[Finding]:
    """Does a model answer, is it the configured and stored one, and are its vectors of the stored length?

    `live` is the stored one of `database`, None where nothing is stored or, without `known`, where nobody could look."""
    try:
        check_configured(live, model=configured_model(settings))
        found = asyncio.run(_identify(settings, live, database))
        name, dimension = found.model, found.dimension
        if live is not None and live.dimension == dimension:
            check_same_model(live, found)
    except EraError as error:
        return [failed("model", error)]
    unused = found.provider == "local" and bool(settings.embedding_urls)
    findings = [
        Finding(
            name="model",
            level="warning" if unused else "ok",
            found=f"{name} by {found.provider} answers"
            + (", and ERA_EMBEDDING_URLS is set and not used" if unused else ""),
            next_step="Set ERA_EMBEDDING_PROVIDER and ERA_EMBEDDING_MODEL to use that server, or unset it."
            if unused
            else "",
        )
    ]
    if live is not None and live.dimension != dimension:
        return [
            *findings,
            Finding(
                name="dimension",
                level="failed",
                found=f"{name} makes vectors of {dimension} dimensions, and the database holds {live.dimension}.",
                next_step="Let the embedding server hold the model of before, or `era spaces build` the new one beside it.",
            ),
        ]
    stored = "not compared with the database" if not known else "nothing stored yet" if live is None else "as stored"
    return [*findings, Finding(name="dimension", level="ok", found=f"{dimension}, {stored}")]


def vector_tables(facts: DatabaseFacts, live: Space | None) -> Finding:
    """Do the vector tables hold the length that the database says they do, and do other programs find them?"""
    wrong = {table: found for table, found in facts.columns.items() if live is not None and found != live.dimension}
    if live is not None and not wrong and facts.lacking:
        return Finding(
            name="vector tables",
            level="warning",
            found=f"{len(facts.columns):,} tables; the database lacks {', '.join(facts.lacking)} for other programs.",
            next_step="`era db migrate` sets them.",
        )
    if live is None or not wrong:
        return Finding(name="vector tables", level="ok", found=f"{len(facts.columns):,} tables")
    table, found = next(iter(sorted(wrong.items())))
    return Finding(
        name="vector tables",
        level="failed",
        found=f"{table} holds vectors of {found} dimensions, and {live.model} has {live.dimension}.",
        next_step="Something else altered the tables: restore a backup, or `era verify` tells what is missing.",
    )


async def _identify(settings: Settings, live: Space | None, database: Database | None) -> Space:
    recalled_from = None if live is None or database is None else PostgresVectorCache(database, model=live.model)
    async with open_embedder(settings, known=live, recalled_from=recalled_from) as embedder:
        return (await embedder.identify()).space


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
