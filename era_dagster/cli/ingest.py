"""`era ingest`: look at books, bring what is new or changed into the knowledge base, and account for every item."""

import os
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from era_dagster.cli.output import exit_code, print_json, print_table, settings_from_environment, stderr, stdout, typed
from era_dagster.domain.errors import ConfigurationError
from era_dagster.domain.stages import STAGES
from era_dagster.intake.snapshot import INPUTS
from era_dagster.pipeline.drop import DropLook, look_at_drop
from era_dagster.pipeline.ingest import refresh_combined_index, stamp_rules
from era_dagster.pipeline.moves import DomainMove, domain_moves
from era_dagster.pipeline.receipt import Receipt
from era_dagster.pipeline.watch import chapters_done
from era_dagster.settings import Settings, absolute, dagster_home
from era_dagster.storage.database import Database, database_url
from era_dagster.storage.drops import KnownChapter, count_chapters, pending_chapters
from era_dagster.storage.migrations import migrate
from era_dagster.storage.minister_files import render_due

if TYPE_CHECKING:
    from era_dagster.defs.resources import KnowledgeBaseResource
    from era_dagster.embedding.report import EmbedStats

_SHOWN_KEYS = 5


@click.command()
@click.argument("paths", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option("--dry-run", is_flag=True, help="Say what would be done; change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the receipt as JSON.")
def ingest(paths: tuple[Path, ...], dry_run: bool, as_json: bool) -> int:
    """Ingest books: folders of books, single book folders, or single JSON files. Without PATH: the drop folder.

    Unchanged chapters are skipped; a chapter that left its book is removed. Can be stopped and started again at any time.
    """
    return ingest_paths(settings_from_environment(), list(paths), dry_run=dry_run, as_json=as_json)


def ingest_paths(settings: Settings, paths: list[Path], *, dry_run: bool = False, as_json: bool = False) -> int:
    """What the command does; returns the exit code."""
    roots = list(dict.fromkeys(absolute(path) for path in paths)) or [settings.drop_dir]
    for root in roots:
        if root.name in INPUTS and root.is_file():
            raise ConfigurationError(
                f"{root} is half of a book.", hint=f"Name its folder: era ingest {typed(root.parent)}."
            )
        if root.is_file() and root.suffix.lower() != ".json":
            # It would be in quarantine for as long as it is there.
            raise ConfigurationError(
                f"{root} is no book: its name does not end in .json.",
                hint=f"A book is a folder with {' and '.join(INPUTS)}, or a .json file with both (docs/input.md).",
            )
    # A wrong one is told now, and not only by the first call that finds something pending.
    dagster_home(os.environ)
    url = database_url(settings)
    migrate(url)
    with Database(url, pool_size=settings.database_pool) as database:
        looks = [look_at_drop(settings, database, root, patient=False, record=not dry_run) for root in roots]
        if dry_run:
            return _tell_plan(looks, domain_moves(settings, database), as_json)
        pending = _pending(settings, database, roots)
        known = count_chapters(database, roots)
        if not pending:
            # Files that somebody deleted or that a killed run left behind need no run of the graph.
            render_due(database, settings.ministers_dir, None)
            refresh_combined_index(settings, database)
    receipt, failure = Receipt(), None
    if pending:
        receipt, failure = run_pending(settings, pending, quiet=as_json)
    receipt.chapters_unchanged += max(0, known - sum(not chapter.gone for chapter in pending))
    receipt.chapters_seen = known + sum(chapter.gone for chapter in pending)
    return _tell(receipt, looks, failure, as_json)


def _pending(settings: Settings, database: Database, roots: list[Path]) -> list[KnownChapter]:
    suffixes = stamp_rules(settings, database).suffixes
    found = {
        chapter.partition_key: chapter
        for root in roots
        for chapter in pending_chapters(database, stages=STAGES, suffixes=suffixes, root=root, unrecorded=True)
    }
    return [found[key] for key in sorted(found)]


def run_pending(settings: Settings, pending: list[KnownChapter], *, quiet: bool) -> tuple[Receipt, str | None]:
    """Run the ingest job over these chapters in this process, with a progress bar; the receipt, and what failed."""
    warnings.filterwarnings("ignore", module="dagster")
    from era_dagster.cli.launch import run_ingest
    from era_dagster.defs.instance import open_instance

    receipt = Receipt()
    started = time.monotonic()
    with (
        _progress_bar(quiet=quiet) as bar,
        open_instance(settings) as instance,
    ):
        task = bar.add_task("Chapters", total=len(pending), told="")

        def on_progress(current: Receipt, total: int, stats: "EmbedStats | None") -> None:
            nonlocal receipt
            receipt = current
            seconds = max(time.monotonic() - started, 0.001)
            bar.update(task, total=total, completed=chapters_done(current), told=_brief(current, stats, seconds))

        result = run_ingest(
            instance,
            pending,
            knowledge_base=knowledge_base_of(settings),
            on_progress=on_progress,
        )
    return receipt, result.failure


def knowledge_base_of(settings: Settings) -> "KnowledgeBaseResource":
    """The resource that gives a run in this process these settings."""
    from era_dagster.defs.resources import KnowledgeBaseResource

    return KnowledgeBaseResource(
        drop_dir=str(settings.drop_dir),
        data_dir=str(settings.data_dir),
        embedding_provider=settings.embedding_provider or "",
        embedding_urls=list(settings.embedding_urls),
        embedding_model=settings.embedding_model or "",
    )


def _brief(receipt: Receipt, stats: "EmbedStats | None", seconds: float) -> str:
    """What stands behind the bar: pace, what the controllers allow, and trouble where there is some."""
    words = [f"{receipt.items.seen / seconds:,.0f} items/s"]
    if stats is not None:
        words.append(f"limit {sum(endpoint.limit for endpoint in stats.endpoints)}")
    for number, name in (
        (receipt.embedding_retries, "retries"),
        (receipt.items.dead, "dead letters"),
        (len(receipt.chapters_failed), "failed"),
    ):
        if number:
            words.append(f"{number:,} {name}")
    return ", ".join(words)


def _progress_bar(*, quiet: bool) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[told]}"),
        TimeRemainingColumn(),
        console=stderr,
        disable=quiet,
    )


def _tell_plan(looks: list[DropLook], moves: list[DomainMove], as_json: bool) -> int:
    # Once each: a path may lie in another one.
    plan = {
        "new": list(dict.fromkeys(key for look in looks for key in look.new)),
        "changed": list(dict.fromkeys(key for look in looks for key in look.changed)),
        "gone": list(dict.fromkeys(key for look in looks for key in look.gone)),
    }
    if as_json:
        problems = [line for look in looks for line in (*look.messages(), *look.nothing_there())]
        print_json({"dry_run": True, **plan, "domain_moves": [asdict(move) for move in moves], "problems": problems})
        return 0
    for name, keys in plan.items():
        shown = ", ".join([*keys[:_SHOWN_KEYS], *(["..."] if len(keys) > _SHOWN_KEYS else [])])
        stdout.print(f"{name}: {len(keys)} chapters" + (f" ({shown})" if keys else ""))
    for move in moves:
        stdout.print(
            f"domain {move.domain}: {move.leaving:,} entries leave, {move.arriving:,} arrive, of {move.chapters:,} chapters",
            markup=False,
        )
    for look in looks:
        for line in (*look.messages(), *look.nothing_there()):
            stdout.print(line, markup=False)
    stdout.print("Dry run: nothing was changed.")
    return 0


def _tell(receipt: Receipt, looks: list[DropLook], failure: str | None, as_json: bool) -> int:
    problems = [line for look in looks for line in look.problems()]
    notices = [line for look in looks for line in (*look.notices(), *look.nothing_there())]
    failed = bool(failure or problems or receipt.items.dead or not receipt.items.adds_up)
    if as_json:
        document: dict[str, Any] = {
            "ok": not failed,
            **receipt.as_json(),
            "problems": problems,
            "notices": notices,
            "failure": failure,
        }
        print_json(document)
        return exit_code(failed=failed, failure=failure)
    print_receipt(receipt)
    for line in notices:
        stdout.print(line, markup=False)
    if receipt.items.dead:
        problems = [*problems, f"Texts not embedded: {receipt.items.dead:,}; `era dead-letters list` says why."]
    for line in (*problems, *([failure] if failure else [])):
        stderr.print(line, style="red", markup=False)
    return exit_code(failed=failed, failure=failure)


def print_receipt(receipt: Receipt) -> None:
    """The receipt as tables; its numbers add up or it says so."""
    if receipt.assets:
        print_table(
            "Receipt",
            ("asset", "stored", "unchanged", "removed", "dead"),
            [
                (name, counts.stored, counts.unchanged, counts.removed, counts.dead)
                for name, counts in receipt.assets.items()
            ],
        )
    items = receipt.items
    stdout.print(
        f"Chapters: {receipt.chapters_seen:,} seen = {receipt.chapters_stored:,} stored"
        f" + {receipt.chapters_unchanged:,} unchanged + {len(receipt.chapters_failed):,} failed"
        f" + {receipt.chapters_retired:,} removed"
        + (f" + {receipt.chapters_left:,} left for the next run" if receipt.chapters_left else "")
    )
    stdout.print(
        f"Items: {items.seen:,} seen = {items.stored:,} stored + {items.unchanged:,} unchanged"
        f" + {items.dead:,} dead + {items.unusable:,} unusable"
        + ("" if items.adds_up else "  THE NUMBERS DO NOT ADD UP")
    )
    stdout.print(
        f"Embedding: {receipt.embedding_requests:,} requests, {receipt.texts_embedded:,} texts embedded,"
        f" {receipt.texts_from_cache:,} from the cache"
    )
    if receipt.seconds:
        stdout.print(f"Time: {receipt.seconds:,.1f} s, {items.seen / receipt.seconds:,.0f} items/s")
