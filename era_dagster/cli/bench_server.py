"""`era bench server`: the embedding client on the server that the settings name, beside naive clients."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from era_dagster.cli.bench_figures import document, is_stopped, milliseconds, write_figures
from era_dagster.cli.options import Seconds, json_file
from era_dagster.cli.output import FAILED, INTERRUPTED, print_json, print_table, settings_from_environment, stderr
from era_dagster.domain.errors import ConfigurationError

if TYPE_CHECKING:
    from era_dagster.bench.clients import Setting
    from era_dagster.bench.measure import Timing
    from era_dagster.bench.result import Run
    from era_dagster.embedding.config import EmbedderConfig

_FIRST_LOOK_SECONDS = 3.0
_COOL_DOWN_SECONDS = 120.0


@click.command("server")
@click.option("--seconds", type=Seconds(0.5), default=15.0, show_default=True, help="Measured time of each client.")
@click.option("--warm-up", type=Seconds(0.0), default=5.0, show_default=True, help="Seconds before it.")
@click.option("--rounds", type=click.IntRange(1), default=1, show_default=True, help="All of it so often.")
@click.option(
    "--client",
    "clients",
    multiple=True,
    metavar="fixed:CxB",
    default=("fixed:1x1", "fixed:1x32", "fixed:8x8"),
    show_default=True,
    help="A naive client with C requests of B texts (or era:CxB: ours with ceilings); repeatable.",
)
@json_file
def bench_server(seconds: float, warm_up: float, rounds: int, clients: tuple[str, ...], json_to: str | None) -> int:
    """Measure the embedding client on your own server, the one that `ERA_EMBEDDING_URLS` names.

    One after the other, with texts as long as chunks are, made up and all different. Nothing is stored. Exit code 1 when
    a text was lost.
    """
    from era_dagster.bench.clients import setting_from
    from era_dagster.bench.measure import Timing
    from era_dagster.bench.result import Run
    from era_dagster.embedding.factory import choose_config

    settings = settings_from_environment()
    config = asyncio.run(choose_config(settings, known=None))
    if config.provider == "local":
        raise ConfigurationError(
            "There is no embedding server to measure: the local model is chosen.", hint="Set ERA_EMBEDDING_URLS."
        )
    if len(config.urls) > 1:
        raise ConfigurationError(
            "ERA_EMBEDDING_URLS names several servers.", hint="Measure one at a time: set it to that one."
        )
    named = [setting_from(words) for words in clients]
    characters = settings.chunk_min_chars, settings.chunk_max_chars
    timing = Timing(warm_up_seconds=warm_up, seconds=seconds, cool_down_seconds=_COOL_DOWN_SECONDS)
    runs: list[Run] = []
    stopped = is_stopped(_run_all(config, named, characters, timing, rounds, runs), runs)
    if json_to == "-":
        print_json(document(runs))
    else:
        _tell(runs)
    for run in runs:
        if run.error is not None:
            stderr.print(f"{run.client}: {run.error}", markup=False)
    write_figures(runs, json_to)
    if stopped:
        stderr.print("Stopped. The runs that were finished are told.")
        return INTERRUPTED
    return 0 if all(run.clean and run.error is None for run in runs if run.client == "era") else FAILED


async def _run_all(
    config: "EmbedderConfig",
    clients: Sequence["Setting"],
    characters: tuple[int, int],
    timing: "Timing",
    rounds: int,
    runs: "list[Run]",
) -> None:
    """Measure one after the other; each that is finished is added to `runs`."""
    from era_dagster.bench.clients import EraClient
    from era_dagster.bench.measure import LEAST_BACKLOG, Timing, backlog_for, measure_own
    from era_dagster.embedding.provider import shown_url

    server = f"{shown_url(config.urls[0])} ({config.model})"
    stderr.print(f"{server}: a first look ...", markup=False)
    first = await measure_own(
        EraClient(config, backlog=LEAST_BACKLOG),
        server=server,
        label="era",
        characters=characters,
        timing=Timing(warm_up_seconds=0.0, seconds=_FIRST_LOOK_SECONDS, cool_down_seconds=_COOL_DOWN_SECONDS),
    )
    if first.error is not None:
        runs.append(first)
        return
    backlog = backlog_for(first.texts_per_second)
    for _ in range(rounds):
        for client in (None, *clients):
            made = EraClient(config, backlog=backlog) if client is None else client.client(config, backlog=backlog)
            label = "era" if client is None else str(client)
            run = await measure_own(made, server=server, label=label, characters=characters, timing=timing)
            stderr.print(f"  {label}: {run.texts_per_second:,.1f} texts/s", markup=False)
            runs.append(run)


def _tell(runs: "Sequence[Run]") -> None:
    columns = ("client", "texts/s", "to era", "P50 ms", "P95 ms", "P99 ms", "refused", "retried", "lost", "in flight")
    ours, rows = 0.0, list[tuple[str | int, ...]]()
    for run in runs:
        ours = run.texts_per_second if run.client == "era" else ours
        rows.append(
            (
                run.client,
                f"{run.texts_per_second:,.1f}",
                f"{run.texts_per_second / ours:.2f}" if ours else "-",
                *map(milliseconds, (run.p50_seconds, run.p95_seconds, run.p99_seconds)),
                run.refusals,
                run.retries,
                run.lost,
                run.most_in_flight,
            )
        )
    print_table(runs[0].scenario, columns, rows)
