"""What a promotion costs those who look up meanwhile: searches at a steady rate through promotions and ways back.

Prints the searches, how many failed, how many answers were of no one space alone, and the latency of all and of those
within half a second of a switch. Latency is from the moment a search was due, so that waiting in line counts.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from era_dagster.domain.stages import STAGES
from era_dagster.knowledge import KnowledgeBase
from era_dagster.pipeline.drop import look_at_drop
from era_dagster.pipeline.ingest import run_stages, stamp_rules
from era_dagster.pipeline.space_build import build_space
from era_dagster.settings import Settings, load_settings
from era_dagster.storage.database import Database, database_url
from era_dagster.storage.drops import pending_chapters
from era_dagster.storage.migrations import migrate
from era_dagster.storage.server import EmbeddedServer
from era_dagster.storage.space_switch import promote_space
from era_dagster_tests.benchmarks.corpus import write_corpus
from era_dagster_tests.fakes.two_models import MODELS
from era_dagster_tests.pipeline.workbench import Heard

_THREADS = 16
_QUESTIONS = 40
_NEAR_SECONDS = 0.5
Answer = tuple[tuple[str, float], ...]


@dataclass
class Record:
    due: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    mixed: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chapters", type=int, default=500)
    parser.add_argument("--rate", type=float, default=200.0, help="searches a second")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--switches", type=int, default=4)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, two_models() as url:
        settings = load_settings(
            {"ERA_EMBEDDING_URLS": url, "ERA_EMBEDDING_PROVIDER": "ollama"},
            home=Path(folder) / "home",
            data_dir=Path(folder) / "data",
            drop_dir=Path(folder) / "drop",
        )
        write_corpus(settings.drop_dir, chapters=given.chapters)
        try:
            print(json.dumps(measure(settings, given.rate, given.seconds, given.switches), indent=2))
        finally:
            EmbeddedServer(settings.home).stop()


@contextlib.contextmanager
def two_models() -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "era_dagster_tests.fakes.two_models"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.kill()
        process.wait()


def measure(settings: Settings, rate: float, seconds: float, switches: int) -> dict[str, object]:
    url = database_url(settings)
    migrate(url)
    first, second = (replace(settings, embedding_model=model) for model in MODELS)
    follows = replace(settings, embedding_provider=None)
    with Database(url, pool_size=8) as database:
        look_at_drop(first, database, first.drop_dir, patient=False)
        chapters = pending_chapters(database, stages=STAGES, suffixes=stamp_rules(first, database).suffixes, root=None)
        receipt = run_stages(first, database, chapters=chapters, selected=STAGES, run_id="bench", listener=Heard())
        built = build_space(second, database)
        with database.connection() as connection:
            questions = [
                text
                for (text,) in connection.execute("SELECT text FROM doctrine_embeddings_all LIMIT %s", (_QUESTIONS,))
            ]
        with KnowledgeBase.open(follows, url=url) as base:
            wanted = _answers_of_each(base, database, questions)
            record, promoted = _through_switches(base, database, questions, wanted, rate, seconds, switches)
    took = np.array(record.seconds) * 1000.0
    near = [
        took[place]
        for place, due in enumerate(record.due)
        if any(began - _NEAR_SECONDS <= due <= ended + _NEAR_SECONDS for began, ended, _ in promoted)
    ]
    return {
        "items": receipt.items.seen,
        "build_texts": built.texts,
        "build_seconds": round(built.seconds, 1),
        "build_texts_per_second": round(built.texts / built.seconds),
        "searches": len(took) + len(record.failed),
        "searches_per_second": round(len(took) / seconds, 1),
        "failed": len(record.failed),
        "mixed": record.mixed,
        "promotions": len(promoted),
        "promotion_ms": [round((ended - began) * 1000) for began, ended, _ in promoted],
        "look_ups_held_ms": [round(held * 1000, 1) for _, _, held in promoted],
        "search_ms": _percentiles(took),
        "search_ms_near_a_switch": _percentiles(np.array(near)),
        "first_failures": record.failed[:3],
    }


def _percentiles(values: np.ndarray) -> dict[str, float]:
    return {
        name: round(float(np.percentile(values, q)), 1)
        for name, q in (("p50", 50), ("p95", 95), ("p99", 99), ("max", 100))
    }


def _answer(base: KnowledgeBase, text: str) -> Answer:
    return tuple((hit.doctrine_id, round(hit.score, 4)) for hit in base.search(text, top_k=10))


def _answers_of_each(base: KnowledgeBase, database: Database, questions: list[str]) -> list[dict[str, Answer]]:
    found = [{text: _answer(base, text) for text in questions}]
    promote_space(database, 2)
    found.append({text: _answer(base, text) for text in questions})
    promote_space(database, 1)
    assert all(found[0][text] != found[1][text] for text in questions)
    return found


def _through_switches(
    base: KnowledgeBase,
    database: Database,
    questions: list[str],
    wanted: list[dict[str, Answer]],
    rate: float,
    seconds: float,
    switches: int,
) -> tuple[Record, list[tuple[float, float, float]]]:
    """The searches, and of each promotion when it began and ended and how long it held look-ups back."""
    record, lock = Record(), threading.Lock()
    started = time.perf_counter()

    def search(number: int) -> None:
        for place in range(number, int(rate * seconds), _THREADS):
            due = started + place / rate
            time.sleep(max(0.0, due - time.perf_counter()))
            text = questions[place % len(questions)]
            try:
                got = _answer(base, text)
            except Exception as error:  # noqa: BLE001 (whatever a program would see)
                with lock:
                    record.failed.append(str(error))
                continue
            with lock:
                record.due.append(due)
                record.seconds.append(time.perf_counter() - due)
                record.mixed += got not in (wanted[0][text], wanted[1][text])

    threads = [threading.Thread(target=search, args=(number,)) for number in range(_THREADS)]
    for thread in threads:
        thread.start()
    promoted: list[tuple[float, float, float]] = []
    for switch in range(switches):
        time.sleep(max(0.0, started + seconds * (switch + 1) / (switches + 1) - time.perf_counter()))
        began = time.perf_counter()
        held = promote_space(database, 2 if switch % 2 == 0 else 1).switch_seconds
        promoted.append((began, time.perf_counter(), held))
    for thread in threads:
        thread.join()
    return record, promoted


if __name__ == "__main__":
    os.environ.pop("ERA_DATABASE_URL", None)
    main()
