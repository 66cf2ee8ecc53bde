"""Real processes over one knowledge base: killed by -9 at any moment, and eight of them at once."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer, serving
from era_dagster_tests.pipeline.workbench import PER_RUN, Workbench, chapter, timeless

KILLED = -signal.SIGKILL if os.name != "nt" else 15
SEEDS = range(6)
MakeBench = Callable[[str], Workbench]


@pytest.fixture
def server_url() -> Iterator[str]:
    with serving(FakeEmbeddingServer(dimension=16)) as url:
        yield url


def start(bench: Workbench, server: str, *keys: str, dies_at: int = 0) -> subprocess.Popen[str]:
    settings = bench.settings
    arguments = (settings.database_url, settings.data_dir, settings.drop_dir, server, dies_at, *keys)
    return subprocess.Popen(
        [sys.executable, "-m", "era_dagster_tests.pipeline.ingest_process", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return out


def first_drop(bench: Workbench) -> None:
    bench.drop(
        "ferry", *(chapter(i, f"Line {i}. " * 200, ["risk", "timing"], rules=[f"Rule {i}."]) for i in range(1, 6))
    )
    bench.drop("gone", chapter(1, domains=["truth", "risk"], claims=["What was said."]))
    bench.drop("harbour", *(chapter(i, domains=["risk"], warnings=[f"Warning {i}."]) for i in range(1, 4)))


def second_drop(bench: Workbench) -> None:
    """Something changed, something new, something shorter, something gone."""
    shutil.rmtree(bench.settings.drop_dir / "gone")
    bench.drop(
        "ferry", *(chapter(i, f"Line {i}! " * 200, ["risk", "power"], rules=[f"Rule {i}."]) for i in range(1, 4))
    )
    bench.drop("harbour", *(chapter(i, domains=["risk"], warnings=[f"Warning {i + i % 2}."]) for i in range(1, 4)))
    bench.drop("inn", *(chapter(i, domains=["data"], principles=[f"Rule {i}."]) for i in range(1, 3)))


def state(bench: Workbench) -> tuple[object, object]:
    bench.look()  # a removed book is forgotten by the look after its retirement
    assert bench.count("minister_domains", "changed_at IS DISTINCT FROM rendered_at") == 0
    assert not list(bench.settings.data_dir.rglob(".*.tmp"))
    return bench.tables(without=PER_RUN), timeless(bench.files())


def kill_and_run_again(bench: Workbench, server: str, seed: int, steps: int) -> None:
    # The number of steps varies a little with the batches; the last ones may not come.
    step = random.Random(seed).randint(1, int(steps * 0.95))
    process = start(bench, server, dies_at=step)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == KILLED, errors
    finish(start(bench, server))


def test_a_killed_first_ingest_run_again_ends_like_an_undisturbed_one(
    bench: Workbench, another_bench: MakeBench, server_url: str
) -> None:
    first_drop(bench)
    steps = int(finish(start(bench, server_url)))
    expected = state(bench)
    assert bench.count("doctrine_embeddings_all") == 9
    for seed in SEEDS:
        killed = another_bench(f"killed{seed}")
        kill_and_run_again(killed, server_url, seed, steps)
        assert state(killed) == expected, f"seed {seed}"


def test_a_killed_ingest_of_changed_books_run_again_ends_like_an_undisturbed_one(
    bench: Workbench, another_bench: MakeBench, server_url: str
) -> None:
    first_drop(bench)
    copies = [another_bench(f"killed{seed}") for seed in SEEDS]
    for each in (bench, *copies):
        each.ingest()
    second_drop(bench)
    steps = int(finish(start(bench, server_url)))
    expected = state(bench)
    assert sorted(set(bench.rows("SELECT domain FROM minister_entries"))) == ["data", "power", "risk"]
    for seed, killed in enumerate(copies):
        kill_and_run_again(killed, server_url, 100 + seed, steps)
        assert state(killed) == expected, f"seed {100 + seed}"


def test_eight_processes_over_books_of_the_same_domains_lose_nothing(bench: Workbench, server_url: str) -> None:
    domains = ["risk", "timing", "power", "truth"]
    for book in range(8):
        items = [[f"Rule {number} of {book} in {index}." for number in range(3)] for index in range(6)]
        bench.drop(
            f"book-{book}", *(chapter(i, domains=domains[i % 3 :], rules=rules) for i, rules in enumerate(items))
        )
    bench.look()
    running = [
        start(
            bench,
            server_url,
            *(known.partition_key for known in bench.known() if known.source_path.endswith(f"-{book}")),
        )
        for book in range(8)
    ]
    for process in running:
        finish(process)
    assert bench.count("doctrine_embeddings_all") == 8 * 6 * 3
    assert bench.count("chunk_embeddings") == 8 * 6
    pairs = Counter(domain for index in range(6) for domain in domains[index % 3 :])
    for domain in domains:
        entries = bench.domain_file(domain, "rules")["entries"]
        assert len({entry["id"] for entry in entries}) == len(entries) == pairs[domain] * 3 * 8
    assert bench.pending() == []
    index = json.loads((bench.settings.data_dir / "combined_vector.index").read_text(encoding="utf-8"))
    assert index["metadata"]["total_entries"] == bench.count("minister_entries") == sum(pairs.values()) * 3 * 8
    assert list(bench.settings.data_dir.rglob("*.tmp")) == []
