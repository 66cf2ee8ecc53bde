"""`era errors`: what went wrong so far, equal errors together."""

from dataclasses import asdict

import click

from era_dagster.cli.knowledge_base import open_knowledge_base
from era_dagster.cli.output import ask, print_json, settings_from_environment, stdout
from era_dagster.domain.errors import ConfigurationError
from era_dagster.storage.errors import ErrorGroup, error_groups, forget_errors


@click.command()
@click.argument("fingerprint", required=False)
@click.option("--run", "run_id", help="Only errors whose first or last occurrence was in this run.")
@click.option("--forget", is_flag=True, help="Forget the group FINGERPRINT (without one: all): the next is new again.")
@click.option("--yes", is_flag=True, help="Do not ask before forgetting.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON; with --forget it needs --yes.")
def errors(fingerprint: str | None, run_id: str | None, forget: bool, yes: bool, as_json: bool) -> int:
    """Show errors grouped by FINGERPRINT: how often, first and last time, an example. The latest is first."""
    if forget and as_json and not yes:
        raise click.UsageError("With --json nothing can be asked: add --yes.")
    with open_knowledge_base(settings_from_environment()) as database:
        found = [group for group in error_groups(database, run_id=run_id) if fingerprint in (None, group.fingerprint)]
        if fingerprint is not None and not found:
            raise ConfigurationError(f"No error has the fingerprint {fingerprint}.", hint="`era errors` lists them.")
        if forget:
            if found and not yes:
                ask(f"Forget {len(found)} kinds of errors?")
            gone = forget_errors(database, [group.fingerprint for group in found]) if found else 0
            if as_json:
                print_json({"forgotten": gone})
            else:
                stdout.print(f"Forgotten: {gone}")
            return 0
    if as_json:
        print_json({"errors": [asdict(group) for group in found]})
    elif fingerprint is not None:
        _print_one(found[0])
    elif not found:
        of_run = f"No kind of error was first or last met in a run {run_id}; `era errors` lists all."
        stdout.print("No errors so far." if run_id is None else of_run, markup=False)
    else:
        for group in found:
            stdout.print(
                f"{group.fingerprint}  {group.occurrences:,} x {group.error_class} ({group.stage}),"
                f" last {group.last_at:%Y-%m-%d %H:%M:%S} UTC\n    {group.message}",
                markup=False,
            )
    return 0


def _print_one(group: ErrorGroup) -> None:
    where = f", chapter {group.partition_key}" if group.partition_key else ""
    for name, value in (
        ("fingerprint", group.fingerprint),
        ("error", group.error_class),
        ("stage", group.stage),
        ("count", f"{group.occurrences:,}"),
        ("first", f"{group.first_at:%Y-%m-%d %H:%M:%S} UTC, run {group.run_id}{where}"),
        ("last", f"{group.last_at:%Y-%m-%d %H:%M:%S} UTC, run {group.last_run_id}"),
        ("webhook", f"told {group.told_at:%Y-%m-%d %H:%M:%S} UTC" if group.told_at else "not told"),
        ("example", group.message),
    ):
        stdout.print(f"{name:12} {value}", markup=False)
