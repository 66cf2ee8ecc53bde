"""`era bench search`: how fast and how complete look-ups are, and what storing costs, beside two other stores if asked."""

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import orjson

from era_dagster.cli.options import json_file
from era_dagster.cli.output import print_json, print_table, settings_from_environment, stderr, stdout


@click.command("search")
@click.option("--entries", type=click.IntRange(100), default=14_000, show_default=True, help="Doctrine entries.")
@click.option("--chunks", type=click.IntRange(100), default=26_000, show_default=True, help="Chunks of chapter text.")
@click.option("--domains", type=click.IntRange(1, 999), default=150, show_default=True, help="Domains, of uneven size.")
@click.option("--dimension", type=click.IntRange(384, 3000), default=384, show_default=True, help="Of the vectors.")
@click.option("--questions", type=click.IntRange(20), default=300, show_default=True, help="Look-ups of each kind.")
@click.option(
    "--rivals",
    metavar="PYTHON",
    help="Also LangChain's and LlamaIndex's stores, run by this Python, which has their packages.",
)
@json_file
def bench_search(
    entries: int, chunks: int, domains: int, dimension: int, questions: int, rivals: str | None, json_to: str | None
) -> int:
    """Measure look-ups and storing on a PostgreSQL of its own, which is removed afterwards.

    The vectors are blends of the sample books' under the local model, as near each other as those of real texts.
    """
    from era_dagster.bench.search_corpus import make_corpus
    from era_dagster.bench.search_run import (
        DOMAIN_TABLES,
        build,
        check_rivals,
        load,
        look_up,
        look_up_at_once,
        run_rival,
    )
    from era_dagster.storage.database import Database
    from era_dagster.storage.indexes import indexed_tables
    from era_dagster.storage.migrations import migrate

    # The benchmark's own database holds no vectors of a configured model, which would be refused there.
    settings = replace(settings_from_environment(), embedding_provider=None, embedding_model=None)
    if rivals:
        check_rivals(rivals)
    _say("Making the corpus")
    corpus = make_corpus(
        model_dir=settings.model_dir,
        entries=entries,
        chunks=chunks,
        domains=domains,
        dimension=dimension,
        questions=questions,
    )
    report: dict[str, Any] = {
        "entries": entries,
        "chunks": chunks,
        "domains": domains,
        "dimension": dimension,
        "processors": os.cpu_count(),
    }
    with _server() as (url, home):
        settings = replace(settings, home=home, database_url=url)
        migrate(url)
        with Database(url, pool_size=2) as database:
            _say("Storing")
            report["stored"] = load(database, corpus)
            _say("Looking up without an index")
            searches = look_up(settings, url, corpus, how=lambda table: "exact")
            _say("Building the indexes")
            report["indexes"] = build(database)
            indexed = set(indexed_tables(database))
        if indexed:
            _say("Looking up")
            how = dict.fromkeys(indexed, "HNSW")
            if indexed - {"doctrine_embeddings_all", "chunk_embeddings"}:
                how[DOMAIN_TABLES] = "HNSW if large"
            found = look_up(settings, url, corpus, how=lambda table: how.get(table, "exact"))
            searches += [search for search in found if search.how != "exact"]
        report["searches"] = [asdict(search) for search in searches]
        report["at_once"] = asyncio.run(look_up_at_once(settings, url, corpus))
        report["rivals"] = []
        for name in ("langchain", "llamaindex") if rivals else ():
            _say(f"Storing and looking up with {name}")
            report["rivals"].append(run_rival(str(rivals), name, url, corpus))
    _tell(report, json_to)
    return 0


@contextmanager
def _server() -> Iterator[tuple[str, Path]]:
    """An embedded server of its own, gone with its data at the end."""
    from era_dagster.storage.server import EmbeddedServer

    with TemporaryDirectory(prefix="era-bench-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        server = EmbeddedServer(home)
        try:
            yield server.ensure_running(), home
        finally:
            server.stop()


def _say(words: str) -> None:
    stderr.print(f"{words} ...", markup=False)


def _tell(report: dict[str, Any], json_to: str | None) -> None:
    if json_to == "-":
        print_json(report)
        return
    print_table(
        f"Look-ups: {report['entries']:,} entries in {report['domains']} domains, {report['chunks']:,} chunks,"
        f" {report['dimension']} dimensions",
        ("store", "search", "how", "P50 ms", "P95 ms", "recall@10"),
        [_row("era", search) for search in report["searches"]]
        + [_row(rival["store"], search) for rival in report["rivals"] for search in rival["searches"]],
    )
    stored, at_once, indexes = report["stored"], report["at_once"], report["indexes"]
    stdout.print(
        f"Eight look-ups at a time (async, in domains): {at_once['per_second']:,.0f} a second, P95 {at_once['p95_ms']:.1f} ms."
    )
    stdout.print(
        f"era stored {stored['texts_per_second']:,.0f} texts a second in {_megabytes(stored['bytes'])}; {stored['domain_tables']}"
        f" domain tables were made before, in {stored['domain_tables_seconds']:.1f} s."
    )
    for table, size in indexes["bytes"].items():
        stdout.print(f"The HNSW index of {table} has {_megabytes(size)}.")
    if indexes["tables"]:
        stdout.print(f"The indexes were built in {indexes['seconds']:.1f} s.")
    for rival in report["rivals"]:
        stdout.print(
            f"{rival['store']} stored {rival['rows_per_second']:,.0f} rows a second in {_megabytes(rival['bytes'])};"
            f" its index was built in {rival['index_build_seconds']:.1f} s."
        )
    # Last: minutes of measuring are told by now, if the disk is full.
    if json_to is not None:
        Path(json_to).write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))


def _row(store: str, search: dict[str, Any]) -> tuple[Any, ...]:
    recall = search["recall"]
    return (
        store,
        search["search"],
        search["how"],
        f"{search['p50_ms']:.1f}",
        f"{search['p95_ms']:.1f}",
        "" if recall is None else f"{recall:.4f}",
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
