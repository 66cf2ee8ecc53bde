"""What observing a run costs: the same chapters with metrics, logs and error groups on and off, and what a run writes.

    python -m era_dagster_tests.benchmarks.observation [--chapters 1000] [--pairs 5] [--json]

The embedding server is another process and answers at once, so that the run has nothing to wait for and every cost shows.
On: an interval of 10 s, JSON lines to a file at INFO. Off: an interval of 0, no file. The chapters are run through the
pipeline alternately on and off, each in a process of its own on a fresh database; the processor time of both is compared,
which other programs disturb less than the clock. Then `era ingest` once, on: what the run left in Dagster's event log.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg

from era_dagster.settings import load_settings
from era_dagster.storage.database import database_url, with_database
from era_dagster_tests.benchmarks.corpus import write_corpus
from era_dagster_tests.benchmarks.ingest import instant_server, pipeline_pass


def one_pass() -> dict[str, Any]:
    """The pipeline once, in this process."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    found = pipeline_pass()
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": found["seconds"], "cpu_seconds": cpu, "items": found["receipt"]["items"]["seen"]}


def event_log(settings_url: str) -> dict[str, Any]:
    """Rows and bytes of Dagster's event log, indexes included."""
    with psycopg.connect(with_database(settings_url, "era_dagster")) as connection:
        row = connection.execute(
            "SELECT count(*), pg_total_relation_size('event_logs'), sum(octet_length(event)) FROM event_logs"
        ).fetchone()
    rows, stored, text = row or (0, 0, 0)
    return {"events": rows, "event_log_megabytes": stored / 1e6, "event_json_megabytes": float(text) / 1e6}


def measure(folder: Path, server: str, chapters: int, pairs: int) -> dict[str, Any]:
    write_corpus(folder / "drop", chapters=chapters)

    def run(home: str, words: list[str], *, on: bool) -> dict[str, Any]:
        environment = os.environ | {
            "ERA_HOME": str(folder / home),
            "ERA_DATA_DIR": str(folder / home / "data"),
            "ERA_DROP_DIR": str(folder / "drop"),
            "ERA_EMBEDDING_PROVIDER": "ollama",
            "ERA_EMBEDDING_URLS": server,
            "ERA_EMBEDDING_MODEL": "test-model",
            "ERA_METRICS_INTERVAL_SECONDS": "10" if on else "0",
        }
        if on:
            environment |= {"ERA_JSON_LOGS": "true", "ERA_LOG_FILE": str(folder / home / "era.jsonl")}
        environment.pop("DAGSTER_HOME", None)
        done = subprocess.run([sys.executable, "-m", *words], env=environment, stdout=subprocess.PIPE, check=True)
        return json.loads(done.stdout)

    def stop(home: str) -> None:
        environment = os.environ | {"ERA_HOME": str(folder / home)}
        subprocess.run(
            [sys.executable, "-m", "era_dagster.cli", "db", "stop"],
            env=environment,
            stdout=subprocess.PIPE,
            check=False,
        )

    passes: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    this = "era_dagster_tests.benchmarks.observation"
    for pair in range(pairs):
        for on in (True, False) if pair % 2 else (False, True):
            home = f"{'on' if on else 'off'}{pair}"
            try:
                passes[on].append(run(home, [this, "--pass"], on=on))
            finally:
                stop(home)
    try:
        started = time.perf_counter()
        run("whole", ["era_dagster.cli", "ingest", "--json"], on=True)
        whole = time.perf_counter() - started
        written = event_log(database_url(load_settings({}, home=folder / "whole")))
    finally:
        stop("whole")
    log = (folder / "whole" / "era.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "chapters": chapters,
        "items": passes[True][0]["items"],
        "seconds_on": statistics.median(one["seconds"] for one in passes[True]),
        "seconds_off": statistics.median(one["seconds"] for one in passes[False]),
        "cpu_seconds_on": statistics.median(one["cpu_seconds"] for one in passes[True]),
        "cpu_seconds_off": statistics.median(one["cpu_seconds"] for one in passes[False]),
        "cpu_share_percent": 100
        * statistics.median(
            on["cpu_seconds"] / off["cpu_seconds"] - 1 for on, off in zip(passes[True], passes[False], strict=True)
        ),
        "time_share_percent": 100
        * statistics.median(
            on["seconds"] / off["seconds"] - 1 for on, off in zip(passes[True], passes[False], strict=True)
        ),
        "whole_seconds": whole,
        "log_lines": len(log),
        **{f"{name}_per_1000_chapters": value * 1000 / chapters for name, value in written.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chapters", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--pass", dest="one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one_pass()))
        return
    with tempfile.TemporaryDirectory() as folder, instant_server() as server:
        report = measure(Path(folder), server, given.chapters, given.pairs)
    print(json.dumps(report, indent=2) if given.json else table(report))


def table(report: dict[str, Any]) -> str:
    return "\n".join(f"{name.replace('_', ' '):44} {value:,.2f}" for name, value in report.items())


if __name__ == "__main__":
    main()
