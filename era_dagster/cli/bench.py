"""`era bench`: how close a client comes to what simulated servers can give, and what it costs and loses on the way."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from era_dagster.cli.bench_figures import document, is_stopped, milliseconds, write_figures
from era_dagster.cli.bench_search import bench_search
from era_dagster.cli.bench_server import bench_server
from era_dagster.cli.options import FileToWrite, Seconds, json_file
from era_dagster.cli.output import FAILED, INTERRUPTED, print_json, stderr, stdout

if TYPE_CHECKING:
    from era_dagster.bench.measure import Timing
    from era_dagster.bench.result import Run
    from era_dagster.bench.scenario import Scenario

_TABLE_WIDTH = 150
"""A file or a pipe has no width; figures that are folded cannot be read."""


@click.group(invoke_without_command=True)
@click.option(
    "--scenario", "names", multiple=True, metavar="NAME", help="Only this one, or a .json file of your own; repeatable."
)
@click.option("--list", "list_only", is_flag=True, help="Say which scenarios there are.")
@click.option("--seconds", type=Seconds(0.5), default=8.0, show_default=True, help="Measured time of each.")
@click.option("--warm-up", type=Seconds(0.0), default=3.0, show_default=True, help="Seconds before it.")
@click.option("--texts", type=click.IntRange(1), help="Measure so many texts instead of so many seconds.")
@click.option(
    "--client",
    "clients",
    multiple=True,
    metavar="fixed:CxB",
    help="Also a naive client (or era:CxB: ours with ceilings); repeatable.",
)
@click.option("--sweep", is_flag=True, help="Also the best fixed setting for each server (about a minute each).")
@json_file
@click.option("--plot", type=FileToWrite(), help="Draw them as an SVG file.")
@click.pass_context
def bench(
    context: click.Context,
    names: tuple[str, ...],
    list_only: bool,
    seconds: float,
    warm_up: float,
    texts: int | None,
    clients: tuple[str, ...],
    sweep: bool,
    json_to: str | None,
    plot: str | None,
) -> int:
    """Measure the embedding client on simulated servers over HTTP, told nothing about them; `server`: on yours; or `search`:
    look-ups.

    Exit code 1 when a text was lost or got the vector of another. Speed below what a scenario expects is shown only:
    it depends on the machine, which should be idle.
    """
    if context.invoked_subcommand is not None:
        return 0
    from era_dagster.bench.clients import setting_from
    from era_dagster.bench.measure import Timing
    from era_dagster.bench.result import Run
    from era_dagster.bench.scenario import chosen_scenarios

    scenarios = chosen_scenarios(names)
    if list_only:
        from era_dagster.bench.scenario import packaged_scenarios

        for scenario in packaged_scenarios():
            stdout.print(f"{scenario.name:18} {scenario.intent}", markup=False)
        return 0
    settings = [setting_from(words) for words in clients]
    timing = Timing(warm_up_seconds=warm_up, seconds=seconds, texts=texts)
    runs: list[Run] = []
    stopped = is_stopped(_run_all(scenarios, settings, timing, runs, sweep=sweep), runs)
    _tell(scenarios, runs, json_to)
    ours = [run for run in runs if run.client == "era"]
    for run in ours:
        if run.error is not None:
            stderr.print(f"{run.scenario}: {run.error}", markup=False)
    write_figures(runs, json_to)
    if plot is not None:
        from era_dagster.bench.plot import svg

        Path(plot).write_text(svg(runs), encoding="utf-8")
    if stopped:
        stderr.print("Stopped. The runs that were finished are told.")
        return INTERRUPTED
    return 0 if all(run.clean and run.error is None for run in ours) else FAILED


async def _run_all(
    scenarios: Sequence["Scenario"], settings: Sequence[Any], timing: "Timing", runs: "list[Run]", *, sweep: bool
) -> None:
    """Measure one after the other; each that is finished is added to `runs`."""
    from era_dagster.bench.clients import EraClient
    from era_dagster.bench.measure import backlog_of, measure
    from era_dagster.bench.simulated import SimulatedProcess
    from era_dagster.bench.sweep import best_fixed

    with SimulatedProcess() as server:
        for scenario in scenarios:
            stderr.print(f"{scenario.name}: {scenario.intent}", markup=False)

            def told(words: str, scenario: "Scenario" = scenario) -> None:
                stderr.print(f"  {scenario.name}: {words}", markup=False)

            backlog = backlog_of(scenario)
            run = await measure(
                scenario,
                server,
                lambda config, b=backlog: EraClient(config, backlog=b),
                label="era",
                timing=timing,
            )
            runs.append(run)
            told(_brief(run))
            for setting in settings:
                run = await measure(
                    scenario,
                    server,
                    lambda config, b=backlog, f=setting: f.client(config, backlog=b),
                    label=str(setting),
                    timing=timing,
                )
                runs.append(run)
                told(_brief(run))
            if sweep:
                best = await best_fixed(scenario, server, timing=timing, told=told)
                if best is not None:
                    runs.append(best)
                    told(f"best {_brief(best)}")


def _brief(run: "Run") -> str:
    ratio = "no limit" if run.ratio is None else f"{run.ratio:.3f}"
    return f"{run.client} {ratio}, {run.texts_per_second:,.0f} texts/s, P95 {milliseconds(run.p95_seconds)} ms"


def _tell(scenarios: Sequence["Scenario"], runs: Sequence["Run"], json_to: str | None) -> None:
    if json_to == "-":
        print_json(document(runs))
        return
    known = {scenario.name: scenario for scenario in scenarios}
    table = Table(title="The share of the server's own limit", title_justify="left", header_style="bold")
    columns = ("scenario", "client", "ratio", "texts/s", "P50", "P95", "P99", "refused", "retried", "lost", "in flight")
    for place, column in enumerate((*columns, "CPU ms/text", "misses")):
        table.add_column(column, justify="left" if place < 2 or column == "misses" else "right")
    for run in runs:
        missed = run.misses(known[run.scenario])
        style = "red" if not run.clean or run.error else "yellow" if missed else None
        table.add_row(
            run.scenario,
            run.client,
            "-" if run.ratio is None else f"{run.ratio:.3f}",
            f"{run.texts_per_second:,.0f}",
            milliseconds(run.p50_seconds),
            milliseconds(run.p95_seconds),
            milliseconds(run.p99_seconds),
            f"{run.refusals:,}",
            f"{run.retries:,}",
            _lost(run),
            f"{run.most_in_flight:,}",
            "-" if run.cpu_ms_per_text is None else f"{run.cpu_ms_per_text:.2f}",
            ", ".join(missed),
            style=style,
        )
    Console(width=max(stdout.width, _TABLE_WIDTH)).print(table)


def _lost(run: "Run") -> str:
    """What is missing and should not be; poison, which must be missing, behind it."""
    words = f"{run.lost:,}"
    if run.wrong_vectors:
        words += f" + {run.wrong_vectors:,} mixed up"
    if run.poison_asked:
        words += f" (poison {run.poison_missing:,} of {run.poison_asked:,})"
    return words


bench.add_command(bench_search)
bench.add_command(bench_server)
