"""`era verify`: do source, tables and files say the same? And if not, what mends it."""

from dataclasses import asdict

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from era_dagster.cli.ingest import run_pending
from era_dagster.cli.knowledge_base import open_knowledge_base
from era_dagster.cli.output import (
    FAILED,
    STOPPED,
    ask,
    print_json,
    print_table,
    settings_from_environment,
    stderr,
    stdout,
    typed,
)
from era_dagster.pipeline.verify import MENDS, Finding, Inspection, as_json, finish, inspect, mend
from era_dagster.settings import Settings
from era_dagster.storage.recall import LEAST_RECALL, NEAREST, measure_recall
from era_dagster.storage.spaces import LIVE_SCHEMA

_EXAMPLES = 3


@click.command()
@click.option("--fix", is_flag=True, help="Mend what was found; asks first.")
@click.option("--yes", is_flag=True, help="With --fix: do not ask.")
@click.option("--recall", is_flag=True, help="Measure instead how many of the nearest texts a look-up finds.")
@click.option("--json", "as_json_", is_flag=True, help="Print as JSON; with --fix it needs --yes.")
def verify(fix: bool, yes: bool, recall: bool, as_json_: bool) -> int:
    """Compare source, tables and files in both directions; exit 1 when they differ.

    Looks for what is missing, orphaned, doubled or different, for vectors that are none or of another model, and for
    files that are not what the database would render. Changes nothing without --fix.

    With --recall: the ten nearest texts that look-ups find, compared with an exact search, for each large table; exit 1
    when an index finds less than 98 %.
    """
    if recall and fix:
        raise click.UsageError("--recall only measures: leave out --fix.")
    if fix and as_json_ and not yes:
        raise click.UsageError("With --json nothing can be asked: add --yes.")
    settings = settings_from_environment()
    if recall:
        return _tell_recall(settings, as_json_)
    found = _inspect(settings, quiet=as_json_)
    if not fix or found.clean:
        return _tell(found, as_json_)
    if not as_json_:
        _tell(found, False)
    if all(finding.mend == "by hand" for finding in found.findings):
        return _tell(found, as_json_) if as_json_ else FAILED
    if not yes:
        ask("Mend this?")
    with open_knowledge_base(settings) as database:
        pending = mend(settings, database, found.findings)
    failure = run_pending(settings, pending, quiet=as_json_)[1] if pending else None
    if failure == STOPPED:
        raise click.Abort
    with open_knowledge_base(settings) as database:
        finish(settings, database)
    if failure:
        stderr.print(failure, style="red", markup=False)
    after = _inspect(settings, quiet=as_json_)
    if not as_json_:
        stdout.print(f"{len(found.findings) - len(after.findings):,} of {len(found.findings):,} mended.")
    return _tell(after, as_json_)


def _tell_recall(settings: Settings, as_json_output: bool) -> int:
    with open_knowledge_base(settings) as database:
        tables = measure_recall(database)
    poor = [table.table for table in tables if table.recall < LEAST_RECALL]
    if as_json_output:
        print_json({"tables": [asdict(table) for table in tables], "below": poor, "least": LEAST_RECALL})
        return FAILED if poor else 0
    if not tables:
        stdout.print("The knowledge base holds no vectors yet.")
        return 0
    print_table(
        f"Recall@{NEAREST}",
        ("table", "rows", "search", "questions", "recall", "P95 ms", "P95 ms of a scan"),
        [
            (
                table.table,
                table.rows,
                "exact" if table.indexed_ms is None else "HNSW",
                table.questions,
                f"{table.recall:.3f}",
                f"{table.exact_ms if table.indexed_ms is None else table.indexed_ms:.1f}",
                f"{table.exact_ms:.1f}",
            )
            for table in tables
        ],
    )
    for name in poor:
        stdout.print(
            f"{name} finds less than {LEAST_RECALL:.0%}: `REINDEX TABLE CONCURRENTLY {LIVE_SCHEMA}.{name}` builds its"
            " index anew.",
            markup=False,
        )
    return FAILED if poor else 0


def _inspect(settings: Settings, *, quiet: bool) -> Inspection:
    with (
        Progress(
            TextColumn("Chapters read again"), BarColumn(), MofNCompleteColumn(), console=stderr, disable=quiet
        ) as bar,
        open_knowledge_base(settings) as database,
    ):
        task = bar.add_task("chapters", total=None)
        return inspect(settings, database, progress=lambda done, total: bar.update(task, completed=done, total=total))


def _tell(found: Inspection, as_json_output: bool) -> int:
    if as_json_output:
        print_json(as_json(found))
        return 0 if found.clean else FAILED
    kinds: dict[tuple[str, str], list[Finding]] = {}
    for finding in found.findings:
        kinds.setdefault((finding.kind, finding.mend), []).append(finding)
    if kinds:
        print_table(
            "Differences",
            ("kind", "count", "examples", "what mends it"),
            [
                (
                    kind.replace("_", " "),
                    len(members),
                    "\n".join(f"{member.subject}: {member.said}" for member in members[:_EXAMPLES]),
                    MENDS[members[0].mend],
                )
                for (kind, _), members in kinds.items()
            ],
        )
        stdout.print("`era verify --fix` mends what can be mended; `--json` lists every difference.")
    else:
        stdout.print(f"Source, tables and files agree: {found.chapters:,} chapters.")
    if found.unreadable:
        stdout.print(
            f"{len(found.unreadable):,} chapters could not be compared, because their source cannot be read now"
            + ("." if found.away else "; `era status` names it.")
        )
    for path in found.away:
        stdout.print(
            f"{path} is not there; what it held stays. To remove it, put a folder with any file in its place,"
            f" and say `era ingest {typed(path)}`.",
            markup=False,
        )
    return 0 if found.clean else FAILED
