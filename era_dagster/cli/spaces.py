"""`era spaces`: change the embedding model without downtime: build beside the live space, compare, promote, go back."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from era_dagster.cli.knowledge_base import open_knowledge_base
from era_dagster.cli.output import FAILED, ask, print_json, print_table, settings_from_environment, stderr, stdout
from era_dagster.domain.errors import EraError
from era_dagster.pipeline.space_build import BuildReport, build_space
from era_dagster.settings import Settings
from era_dagster.storage.database import Database, database_url
from era_dagster.storage.migrations import migrate
from era_dagster.storage.space_check import SpaceCheck, check_space
from era_dagster.storage.space_register import RegisteredSpace, list_spaces
from era_dagster.storage.space_switch import (
    Promotion,
    check_promotable,
    drop_space,
    droppable_space,
    promote_space,
)

_SHOWN_QUESTIONS = 5
_SHOWN_DEAD = 10
_SHOWN_CHARS = 100


@click.group()
def spaces() -> None:
    """Embedding spaces: one model's vectors each; one is live.

    Another model: `build` makes its vectors beside the live ones, `promote` puts them in their place while look-ups go on,
    `promote` of the old number goes back, `drop` removes what is no longer wanted.
    """


@spaces.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def list_(as_json: bool) -> int:
    """List the spaces: model, state, and how many chapters each holds as they are now."""
    with open_knowledge_base(settings_from_environment()) as database:
        found = list_spaces(database)
    if as_json:
        print_json({"spaces": [_space_json(space) for space in found]})
        return 0
    if not found:
        stdout.print("There is no embedding space yet: `era ingest` makes the first one.")
        return 0
    print_table(
        "Embedding spaces",
        ("number", "state", "model", "chapters", "dead", "made"),
        [
            (
                space.space_id,
                space.state,
                f"{space.space.model} ({space.space.provider}, {space.space.dimension})",
                f"{space.chapters:,} of {space.chapters_wanted:,}",
                space.dead,
                f"{space.created_at:%Y-%m-%d}",
            )
            for space in found
        ],
    )
    return 0


@spaces.command()
@click.option("--model", help="The model [default: ERA_EMBEDDING_MODEL].")
@click.option(
    "--provider",
    type=click.Choice(["ollama", "openai", "local"]),
    help="Who serves it [default: ERA_EMBEDDING_PROVIDER].",
)
@click.option("--url", "urls", multiple=True, help="Where; may be repeated [default: ERA_EMBEDDING_URLS].")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON, without a progress bar.")
def build(model: str | None, provider: Any, urls: tuple[str, ...], as_json: bool) -> int:
    """Make the vectors of another model beside the live ones, from the stored texts.

    Look-ups and ingests go on with the live model meanwhile. Safe to interrupt and to repeat: it does what is missing,
    and afterwards what an ingest changed. Ends with a comparison of the two spaces. Exit code 1 when texts got no vector.
    """
    settings = _configured_for(settings_from_environment(), model, provider, urls)
    url = database_url(settings)
    migrate(url)
    with Database(url, pool_size=settings.database_pool) as database:
        with _options_named({"MODEL": model, "PROVIDER": provider, "URLS": urls}):
            report = _build(settings, database, quiet=as_json)
        space = _built(report)
        check = check_space(database, space.space_id)
    failed = bool(report.dead) or not check.sound
    if as_json:
        print_json({**_build_json(report), "check": asdict(check)})
        return FAILED if failed else 0
    stdout.print(
        f"Space {space.name}: {report.chapters:,} chapters written, {report.chapters_removed:,} removed;"
        f" {report.texts:,} texts, {report.from_cache:,} of them from the cache, {report.requests:,} requests,"
        f" {report.seconds:,.1f} s.",
        markup=False,
    )
    for text, reason in report.dead[:_SHOWN_DEAD]:
        stdout.print(f"no vector: {_short(text)} ({reason})", style="yellow", markup=False)
    if len(report.dead) > _SHOWN_DEAD:
        stdout.print(f"... and {len(report.dead) - _SHOWN_DEAD:,} more texts without a vector")
    _print_check(check)
    stdout.print(f"`era spaces promote {space.space_id}` makes it live.")
    return FAILED if failed else 0


@spaces.command()
@click.argument("number", type=int)
@click.option("--accept-dead", is_flag=True, help="Also when texts have no vector in it; they become dead letters.")
@click.option(
    "--dry-run", is_flag=True, help="Compare it with the live one and say whether it could be; change nothing."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON; needs --yes or --dry-run.")
def promote(number: int, accept_dead: bool, dry_run: bool, yes: bool, as_json: bool) -> int:
    """Make space NUMBER live, in one transaction, while look-ups go on; the live one is kept beside it.

    The same command with the other number goes back. Refused when the space lacks a chapter or holds an old text of one:
    `era spaces build` brings it up to date.
    """
    if as_json and not (yes or dry_run):
        raise click.UsageError("With --json nothing can be asked: add --yes or --dry-run.")
    with open_knowledge_base(settings_from_environment()) as database:
        check = check_space(database, number)
        space = next(found for found in list_spaces(database) if found.space_id == number)
        check_promotable(space, accept_dead=accept_dead)
        if not as_json:
            _print_check(check)
        if not check.sound:
            stderr.print(
                f"Space {space.name} does not have the rows it says it has; `era spaces drop {number}`, then build anew.",
                style="red",
                markup=False,
            )
            return FAILED
        if dry_run:
            return _tell_dry_run(space, check, as_json)
        if not yes:
            ask(f"Make {space.name} live?")
        with stderr.status("Building missing indexes, then switching ..."):
            done = promote_space(database, number, accept_dead=accept_dead)
    if as_json:
        print_json({**_promotion_json(done), "check": asdict(check)})
    else:
        for table in done.indexes:
            stdout.print(f"The index of {table} was missing and was built first.", markup=False)
        stdout.print(
            f"Live: {done.promoted.name}. Look-ups waited for at most {done.switch_seconds * 1000:,.0f} ms."
            f" `era spaces promote {done.retired.space_id}` goes back to {done.retired.name}.",
            markup=False,
        )
        _print_settings_hint(done)
    return 0


@spaces.command()
@click.argument("number", type=int)
@click.option("--dry-run", is_flag=True, help="Say what would be removed; change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON; needs --yes or --dry-run.")
def drop(number: int, dry_run: bool, yes: bool, as_json: bool) -> int:
    """Remove space NUMBER with its tables; never the live one. Vectors in the cache stay, so it could be built again,
    unless its server told no digest and no other space is of its model: then they go, too."""
    if as_json and not (yes or dry_run):
        raise click.UsageError("With --json nothing can be asked: add --yes or --dry-run.")
    with open_knowledge_base(settings_from_environment()) as database:
        space = droppable_space(database, number)
        if not (dry_run or yes):
            ask(f"Remove {space.state} space {space.name} and its {space.chapters:,} chapters?")
        if not dry_run:
            drop_space(database, number)
    if as_json:
        print_json({"dropped": None if dry_run else number, "space": _space_json(space), "dry_run": dry_run})
    elif dry_run:
        stdout.print(f"{space.state} space {space.name} would be removed. Dry run: nothing was changed.", markup=False)
    else:
        stdout.print(f"Removed {space.name}.", markup=False)
    return 0


def _configured_for(settings: Settings, model: str | None, provider: Any, urls: tuple[str, ...]) -> Settings:
    """The settings with what the options say. Another provider than theirs has another model and other servers."""
    if provider == "local" or (provider and settings.embedding_provider not in (None, provider)):
        settings = replace(settings, embedding_model=None, embedding_urls=())
    return replace(
        settings,
        embedding_model=model or settings.embedding_model,
        embedding_provider=provider or settings.embedding_provider,
        embedding_urls=urls or settings.embedding_urls,
    )


@contextmanager
def _options_named(given: Mapping[str, object]) -> Iterator[None]:
    """What an error says to correct is the option where one was given, not the setting it stands for."""
    try:
        yield
    except EraError as error:
        for name, value in given.items():
            if value:
                error.hint = error.hint.replace(f"ERA_EMBEDDING_{name}", f"--{name.lower().removesuffix('s')}")
        raise


def _build(settings: Settings, database: Database, *, quiet: bool) -> BuildReport:
    with Progress(
        SpinnerColumn(),
        TextColumn("Chapters"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[texts]:,} texts"),
        TimeRemainingColumn(),
        console=stderr,
        disable=quiet,
    ) as bar:
        task = bar.add_task("chapters", total=None, texts=0)

        def on_progress(report: BuildReport) -> None:
            bar.update(task, completed=report.chapters, total=report.chapters_due, texts=report.texts)

        return build_space(settings, database, on_progress=on_progress)


def _built(report: BuildReport) -> RegisteredSpace:
    if report.space is None:
        raise AssertionError("a build that raised nothing has a space")
    return report.space


def _tell_dry_run(space: RegisteredSpace, check: SpaceCheck, as_json: bool) -> int:
    if as_json:
        print_json({"space": _space_json(space), "check": asdict(check), "dry_run": True})
    else:
        stdout.print(f"{space.name} can be made live. Dry run: nothing was changed.", markup=False)
    return 0


def _print_check(check: SpaceCheck) -> None:
    print_table(
        "Rows",
        ("table", "live", "this space", "by the texts"),
        [(count.table, count.live, count.beside, count.wanted) for count in check.counts],
    )
    if check.recall is None or check.shared is None:
        return
    stdout.print(
        f"Recall of its look-ups against exact search: {check.recall:.3f}."
        f" Of the ten nearest to an entry, the two models agree on {check.shared:.0%}:"
    )
    for comparison in check.comparisons[:_SHOWN_QUESTIONS]:
        stdout.print(f"\n{_short(comparison.question)}", style="bold", markup=False)
        for live, beside in zip(comparison.live, comparison.beside, strict=False):
            stdout.print(f"    live        {_short(live)}", markup=False)
            stdout.print(f"    this space  {_short(beside)}", markup=False)
    stdout.print()


def _print_settings_hint(done: Promotion) -> None:
    model = done.promoted.space
    stdout.print(
        f"Where ERA_EMBEDDING_MODEL is set, set it to {model.model}, and ERA_EMBEDDING_PROVIDER to {model.provider}, or unset"
        " both: programs that name the old model, or a provider whose default it is, are refused from now on. Where the space"
        " was built with --url, set ERA_EMBEDDING_URLS to that.",
        markup=False,
    )


def _space_json(space: RegisteredSpace) -> dict[str, Any]:
    return {**asdict(space), "complete": space.complete}


def _build_json(report: BuildReport) -> dict[str, Any]:
    return {
        **asdict(report),
        "space": _space_json(_built(report)),
        "dead": [{"text": text, "reason": reason} for text, reason in report.dead],
    }


def _promotion_json(done: Promotion) -> dict[str, Any]:
    return {**asdict(done), "promoted": _space_json(done.promoted), "retired": _space_json(done.retired)}


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARS else f"{line[: _SHOWN_CHARS - 1]}…"
