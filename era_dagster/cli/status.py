"""`era status`: what the knowledge base holds, book by book, and what needs a look."""

from dataclasses import asdict

import click

from era_dagster.cli.knowledge_base import open_knowledge_base
from era_dagster.cli.options import Seconds
from era_dagster.cli.output import print_json, print_table, settings_from_environment, stdout
from era_dagster.pipeline.checks import Check, Verdict, run_checks
from era_dagster.storage.drops import QuarantineRecord
from era_dagster.storage.overview import Overview, overview
from era_dagster.storage.spaces import live_space


@click.command()
@click.option("--watch", is_flag=True, help="Show the runs that go now, until Ctrl-C; with --json a line each time.")
@click.option("--every", type=Seconds(0.1), default=2.0, show_default=True, help="Seconds between two looks.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def status(watch: bool, every: float, as_json: bool) -> int:
    """Show books, counts, the model, and everything that waits for attention."""
    settings = settings_from_environment()
    if watch:
        from era_dagster.cli.watch import watch_runs

        return watch_runs(settings, every_seconds=every, as_json=as_json)
    with open_knowledge_base(settings) as database:
        found, space = overview(database), live_space(database)
        judged = run_checks(settings, database)
    if as_json:
        checks = [{"name": check.name, "asset": check.asset, **asdict(verdict)} for check, verdict in judged]
        print_json({**asdict(found), "model": asdict(space) if space else None, "checks": checks})
        return 0
    if not found.books:
        stdout.print("The knowledge base is empty. Put books into the drop folder and run `era ingest`.")
    else:
        _print_books(found)
    if space:
        stdout.print(f"Model: {space.model} ({space.dimension} dimensions, {space.provider})", markup=False)
    _print_attention(found)
    _print_checks(judged)
    return 0


def _print_books(found: Overview) -> None:
    print_table(
        "Books",
        ("book", "chapters", "chunks", "entries", "embedded", "in tables", "in files", "dead", "notes"),
        [
            (
                b["book"],
                b["chapters"],
                b["chunks"],
                b["entries"],
                b["embedded"],
                b["in_tables"],
                b["in_files"],
                b["dead"],
                b["notes"],
            )
            for b in found.books
        ],
    )
    stdout.print(", ".join(f"{name.replace('_', ' ')}: {number:,}" for name, number in found.totals.items()))


def _print_attention(found: Overview) -> None:
    for source in found.sources:
        # Why a source is unreadable stands in the quarantine.
        if source["reason"] and source["state"] != "unreadable":
            state = "hidden" if source["state"] == "read" else source["state"]
            stdout.print(f"{state}: {source['source_path']}: {source['reason']}", markup=False)
        for note in source["notes"]:
            stdout.print(f"note: {source['source_path']}: {note}", markup=False)
    for record in found.quarantine:
        place = f" {record['location']}" if record["location"] else ""
        cause = QuarantineRecord(**{name: record[name] for name in ("file", "location", "reason")}).cause
        stdout.print(f"quarantined: {record['file']}{place}: {cause}", markup=False)
    for chapter in found.failed:
        stdout.print(f"failed: {chapter['partition_key']}: {chapter['failure']}", markup=False)
    for letter in found.dead_letters:
        stdout.print(f"dead letters: {letter['letters']} x {letter['error_class']}: {letter['message']}", markup=False)
    for note in found.notes:
        stdout.print(
            f"note: {note['code'].replace('_', ' ')}: {note['chapters']:,} chapters"
            f" ({', '.join(note['examples'])}{', ...' if note['chapters'] > 3 else ''}), first: {note['message']}",
            markup=False,
        )


def _print_checks(judged: list[tuple[Check, Verdict]]) -> None:
    """The claims that do not hold, each with the first of its offenders; `--json` has all of them."""
    for check, verdict in judged:
        if verdict.passed:
            continue
        style = "red" if check.is_error(verdict) else "yellow"
        stdout.print(f"check {check.name}: {verdict.said}", style=style, markup=False)
        for row in verdict.named[:3]:
            stdout.print(f"    {', '.join(f'{name} {value}' for name, value in row.items())}", markup=False)
    held = sum(verdict.passed for _, verdict in judged)
    stdout.print(f"{held} of {len(judged)} checks hold.")
