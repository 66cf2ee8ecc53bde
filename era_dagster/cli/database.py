"""`era db`: the embedded PostgreSQL server and the schema."""

from dataclasses import asdict

import click

from era_dagster.cli.output import print_json, settings_from_environment, stdout
from era_dagster.domain.errors import ConfigurationError
from era_dagster.storage.database import Database, database_url
from era_dagster.storage.migrations import migrate as migrate_database
from era_dagster.storage.server import EmbeddedServer
from era_dagster.storage.spaces import complete_settings


@click.group()
def db() -> None:
    """Start, stop and migrate the database."""


@db.command()
def start() -> int:
    """Start the embedded server (or check the configured one) and print its URL."""
    settings = settings_from_environment()
    url = database_url(settings)
    migrate_database(url)
    stdout.print((settings.database_url and "The configured server answers.") or url, markup=False)
    return 0


@db.command()
def stop() -> int:
    """Stop the embedded server. Data stays; the next command starts it again."""
    settings = settings_from_environment()
    if settings.database_url:
        raise ConfigurationError(
            "ERA_DATABASE_URL names a server that `era` did not start.", hint="Stop it with its own tools."
        )
    stopped = EmbeddedServer(settings.home).stop()
    stdout.print("Stopped." if stopped else "It was not running.")
    return 0


@db.command()
@click.option("--json", "as_json", is_flag=True, help="Print the server's state as JSON.")
def url(as_json: bool) -> int:
    """Print the URL of the knowledge base, for psql and other programs; starts nothing."""
    settings = settings_from_environment()
    server = EmbeddedServer(settings.home)
    found = settings.database_url or server.url()
    if as_json:
        print_json({"url": found, "embedded": None if settings.database_url else asdict(server.status())})
    else:
        stdout.print(found, markup=False)
    return 0


@db.command()
def migrate() -> int:
    """Bring the schema up to date, and the database's settings for other programs; does nothing when they are."""
    url = database_url(settings_from_environment())
    applied = migrate_database(url)
    for name in applied:
        stdout.print(f"Applied {name}", markup=False)
    if not applied:
        stdout.print("The schema is up to date.")
    with Database(url, pool_size=1) as database:
        for name in complete_settings(database):
            stdout.print(f"Set {name} for the programs that use this database", markup=False)
    return 0
