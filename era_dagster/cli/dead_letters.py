"""`era dead-letters`: texts that could not be embedded; look at them, try them again, or give them up."""

import warnings
from dataclasses import asdict
from typing import Any

import click

from era_dagster.cli.ingest import knowledge_base_of
from era_dagster.cli.knowledge_base import open_knowledge_base
from era_dagster.cli.output import (
    ask,
    exit_code,
    print_json,
    print_table,
    settings_from_environment,
    stdout,
)
from era_dagster.storage.dead_letters import DeadLetter, drop_letters, find_letters, grouped

_EVERY_STATE = ("open", "dropped", "resolved")
_SHOWN_CHARS = 100


@click.group("dead-letters")
def dead_letters() -> None:
    """Texts that could not be embedded.

    NAME is a fingerprint (all letters with that error), a partition key (all of that chapter), or the id of one letter
    (8 digits are enough).
    """


@dead_letters.command("list")
@click.option("--all", "every", is_flag=True, help="Also the resolved and the dropped ones.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def list_letters(every: bool, as_json: bool) -> int:
    """List the open dead letters, equal errors as one group with its count."""
    with open_knowledge_base(settings_from_environment()) as database:
        letters = find_letters(database, states=_EVERY_STATE if every else ("open",))
    groups = grouped(letters)
    if as_json:
        print_json({"letters": len(letters), "groups": [asdict(group) for group in groups]})
        return 0
    if not groups:
        stdout.print("There are no dead letters." if every else "No dead letter is open.")
        return 0
    print_table(
        "Dead letters",
        ("fingerprint", "count", "error", "message", "attempts", "first", "last", "chapters"),
        [
            (
                group.fingerprint,
                group.letters,
                group.error_class,
                group.message,
                group.attempts,
                f"{group.first_at:%Y-%m-%d %H:%M}",
                f"{group.last_at:%Y-%m-%d %H:%M}",
                ", ".join(group.chapters[:3]) + (", ..." if len(group.chapters) > 3 else ""),
            )
            for group in groups
        ],
    )
    return 0


@dead_letters.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def show(names: tuple[str, ...], as_json: bool) -> int:
    """Show letters in full: stage, chapter, text, error, attempts, first and last time."""
    with open_knowledge_base(settings_from_environment()) as database:
        letters = find_letters(database, names, states=_EVERY_STATE)
    if as_json:
        print_json({"letters": [_as_json(letter) for letter in letters]})
        return 0
    for letter in letters:
        stdout.print(f"{letter.dead_letter_id} ({letter.state})", style="bold", markup=False)
        stdout.print(f"  stage {letter.stage}, chapter {letter.partition_key}", markup=False)
        stdout.print(f"  {letter.error_class} ({letter.fingerprint}): {letter.message}", markup=False)
        stdout.print(f"  {letter.attempts} attempts, first {letter.first_at:%Y-%m-%d %H:%M:%S},", end="")
        stdout.print(f" last {letter.last_at:%Y-%m-%d %H:%M:%S}")
        stdout.print(f"  {letter.payload}", markup=False)
    return 0


@dead_letters.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--dry-run", is_flag=True, help="Say which letters would be tried; change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def redrive(names: tuple[str, ...], dry_run: bool, as_json: bool) -> int:
    """Try letters again: those named, dropped ones too, or without NAME every open one.

    What succeeds is stored like any other text and its letter is resolved. Safe to repeat and to interrupt.
    """
    settings = settings_from_environment()
    states = ("open", "dropped") if names else ("open",)
    with open_knowledge_base(settings) as database:
        letters = find_letters(database, names, states=states)
    failure = None
    if letters and not dry_run:
        warnings.filterwarnings("ignore", module="dagster")
        from era_dagster.cli.launch import run_redrive
        from era_dagster.defs.instance import open_instance

        with open_instance(settings) as instance:
            failure = run_redrive(
                instance, [str(letter.dead_letter_id) for letter in letters], knowledge_base=knowledge_base_of(settings)
            ).failure
    with open_knowledge_base(settings) as database:
        still_open = {letter.dead_letter_id for letter in find_letters(database, states=("open", "dropped"))}
    left = [letter for letter in letters if letter.dead_letter_id in still_open]
    result = {
        "letters": len(letters),
        "resolved": len(letters) - len(left),
        "still_open": [_as_json(letter) for letter in left],
        "failure": failure,
        "dry_run": dry_run,
    }
    failed = not dry_run and bool(left or failure)
    if as_json:
        print_json(result)
        return exit_code(failed=failed, failure=failure)
    _print_letters(left)
    if dry_run:
        stdout.print(f"{len(letters):,} letters would be tried again. Dry run: nothing was changed.")
    else:
        stdout.print(f"{len(letters):,} tried again: {len(letters) - len(left):,} resolved, {len(left):,} still open.")
    if failure:
        stdout.print(failure, style="red", markup=False)
    return exit_code(failed=failed, failure=failure)


@dead_letters.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--all", "every", is_flag=True, help="Every open letter.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Say which letters would be dropped; change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON; needs --yes or --dry-run.")
def drop(names: tuple[str, ...], every: bool, yes: bool, dry_run: bool, as_json: bool) -> int:
    """Give texts up: they stay in their chapters and files, without a vector, and are no longer counted as open."""
    if bool(names) == every:
        raise click.UsageError("Name the letters to drop, or give --all.")
    if as_json and not (yes or dry_run):
        raise click.UsageError("With --json nothing can be asked: add --yes or --dry-run.")
    with open_knowledge_base(settings_from_environment()) as database:
        letters = find_letters(database, names)
        if not as_json:
            _print_letters(letters)
        if not (dry_run or yes or not letters):
            ask(f"Give up {len(letters):,} texts?")
        dropped = 0 if dry_run else drop_letters(database, letters)
    if as_json:
        print_json({"letters": [_as_json(letter) for letter in letters], "dropped": dropped, "dry_run": dry_run})
    elif dry_run:
        stdout.print(f"{len(letters):,} letters would be dropped. Dry run: nothing was changed.")
    else:
        stdout.print(f"{dropped:,} letters dropped; `era dead-letters redrive NAME` still tries them again.")
    return 0


def _print_letters(letters: list[DeadLetter]) -> None:
    for letter in letters[:20]:
        text = letter.payload if len(letter.payload) <= _SHOWN_CHARS else f"{letter.payload[: _SHOWN_CHARS - 1]}…"
        stdout.print(f"{str(letter.dead_letter_id)[:8]} {letter.partition_key}: {text}", markup=False)
        stdout.print(f"         {letter.error_class}: {letter.message}", style="dim", markup=False)
    if len(letters) > 20:
        stdout.print(f"... and {len(letters) - 20:,} more")


def _as_json(letter: DeadLetter) -> dict[str, Any]:
    return {name: str(value) if name.endswith(("_id", "_at")) else value for name, value in asdict(letter).items()}
