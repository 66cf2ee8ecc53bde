"""How long 2,000 chapters take when the embedding server costs nothing, and where the time goes.

    python -m era_dagster_tests.benchmarks.ingest [--chapters 2000] [--json]

Five passes over the same generated corpus, each in a process of its own on fresh data, the server in another:
reading, cleaning and chunking alone; storing alone, with made-up vectors; the pipeline without Dagster; `era ingest` as
typed; `era ingest` again.
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from era_dagster.domain.chunking import cut_chunks
from era_dagster.domain.cleaning import clean_chapter
from era_dagster.domain.space import Space
from era_dagster.domain.stages import STAGES, StampRules
from era_dagster.embedding.report import EmbedStats
from era_dagster.intake.reader import read_source
from era_dagster.pipeline.drop import look_at_drop
from era_dagster.pipeline.ingest import run_stages, stamp_rules
from era_dagster.pipeline.receipt import Receipt
from era_dagster.pipeline.rules import chunk_rules
from era_dagster.pipeline.runner import StageDone
from era_dagster.pipeline.watch import RunReport
from era_dagster.settings import load_settings
from era_dagster.storage.cache import PostgresVectorCache
from era_dagster.storage.chapters import ChapterWrite, write_chapter
from era_dagster.storage.database import Database, database_url
from era_dagster.storage.drops import pending_chapters
from era_dagster.storage.migrations import migrate
from era_dagster.storage.minister_files import render_due
from era_dagster.storage.spaces import ensure_domain_tables, ensure_space
from era_dagster_tests.benchmarks.corpus import write_corpus

_DIMENSION = 768
_SPACE = Space(provider="none", model="made-up", digest=None, dimension=_DIMENSION, document_prefix="", query_prefix="")


class _Silent:
    def stages_done(self, done: list[StageDone]) -> None: ...

    def progress(self, receipt: Receipt, total_chapters: int, stats: EmbedStats | None) -> None: ...

    def whole_refreshed(self, totals: Mapping[str, int | str]) -> None: ...

    def run_ended(self, report: RunReport) -> None: ...


def pure_pass() -> dict[str, Any]:
    """Read, clean and chunk every chapter."""
    settings = load_settings(os.environ)
    rules = chunk_rules(settings)
    texts = 0
    started = time.perf_counter()
    for book in sorted(settings.drop_dir.iterdir()):
        for read in read_source(book):
            for source in read.chapters:
                chapter = clean_chapter(source)
                texts += len(cut_chunks(chapter.text, rules)) + len(chapter.entries)
    return {"seconds": time.perf_counter() - started, "items": texts}


def pipeline_pass() -> dict[str, Any]:
    """The pipeline without Dagster."""
    settings = load_settings(os.environ)
    url = database_url(settings)
    migrate(url)
    started = time.perf_counter()
    with Database(url, pool_size=settings.database_pool) as database:
        look_at_drop(settings, database, settings.drop_dir, patient=False)
        pending = pending_chapters(
            database, stages=STAGES, suffixes=stamp_rules(settings, database).suffixes, root=settings.drop_dir
        )
        receipt = run_stages(settings, database, chapters=pending, selected=STAGES, run_id="bench", listener=_Silent())
    return {"seconds": time.perf_counter() - started, "receipt": receipt.as_json()}


def store_pass() -> dict[str, Any]:
    """Write every chapter to the tables, with made-up vectors: what storage costs alone."""
    settings = load_settings(os.environ)
    url = database_url(settings)
    migrate(url)
    rules = StampRules(chunk_rules=chunk_rules(settings), model_stamp="made-up")
    vectors = np.random.default_rng(1).standard_normal((5000, _DIMENSION)).astype(np.float32)
    numbers = itertools.count()

    def vector() -> np.ndarray:
        return vectors[next(numbers) % len(vectors)]

    with Database(url, pool_size=settings.database_pool) as database:
        look_at_drop(settings, database, settings.drop_dir, patient=False)
        ensure_space(database, _SPACE)
        chapters = [
            clean_chapter(source)
            for book in sorted(settings.drop_dir.iterdir())
            for read in read_source(book)
            for source in read.chapters
        ]
        ensure_domain_tables(
            database, sorted({(name.slug, name.spelling) for chapter in chapters for name in chapter.domains})
        )
        writes = [
            ChapterWrite(
                chapter=chapter,
                path="",
                file_hash=None,
                run_id="bench",
                space=_SPACE,
                chunks=chunks,
                chunk_vectors=[vector() for _ in chunks],
                entry_vectors=[vector() for _ in chapter.entries],
                write_vector_tables=True,
                dead=(),
                stamps=rules.stamps(chapter.content_hash),
            )
            for chapter in chapters
            for chunks in [cut_chunks(chapter.text, rules.chunk_rules)]
        ]
        cache = PostgresVectorCache(database, model=_SPACE.model)
        started = time.perf_counter()
        with ThreadPoolExecutor(settings.store_workers) as pool:
            list(pool.map(lambda write: _store(database, cache, write), writes))
        render_due(database, settings.ministers_dir, None)
    return {"seconds": time.perf_counter() - started}


def _store(database: Database, cache: PostgresVectorCache, write: ChapterWrite) -> None:
    texts = [*(write.chunks or ()), *write.chapter.entries]
    made = [*(write.chunk_vectors or ()), *(write.entry_vectors or ())]
    cache.put_many(
        {
            hashlib.sha256(text.text.encode("utf-8")).digest(): vector
            for text, vector in zip(texts, made, strict=True)
            if vector is not None
        }
    )
    write_chapter(database, write)


@contextlib.contextmanager
def instant_server() -> Iterator[str]:
    """An embedding server in a process of its own that answers at once."""
    process = subprocess.Popen(
        [sys.executable, "-m", "era_dagster_tests.fakes.embedding_server"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.kill()
        process.wait()


_PASSES = {"pure": pure_pass, "store": store_pass, "pipeline": pipeline_pass}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chapters", type=int, default=2000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--pass", dest="one", choices=list(_PASSES), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(_PASSES[given.one]()))
        return
    with tempfile.TemporaryDirectory() as folder, instant_server() as url:
        report = _measure(Path(folder), url, given.chapters)
    print(json.dumps(report, indent=2) if given.json else _table(report))


def _measure(folder: Path, url: str, chapters: int) -> dict[str, Any]:
    write_corpus(folder / "drop", chapters=chapters)

    def era(home: str, *command: str) -> tuple[float, dict[str, Any]]:
        environment = os.environ | {
            "ERA_HOME": str(folder / home),
            "ERA_DATA_DIR": str(folder / home / "data"),
            "ERA_DROP_DIR": str(folder / "drop"),
            "ERA_EMBEDDING_PROVIDER": "ollama",
            "ERA_EMBEDDING_URLS": url,
            "ERA_EMBEDDING_MODEL": "test-model",
        }
        environment.pop("DAGSTER_HOME", None)
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", *command], env=environment, stdout=subprocess.PIPE, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)} failed: {done.stdout.decode('utf-8')}")
        return time.perf_counter() - started, json.loads(done.stdout)

    this = "era_dagster_tests.benchmarks.ingest"
    try:
        _, pure = era("pure", this, "--pass", "pure")
        _, stored = era("stored", this, "--pass", "store")
        _, plain = era("plain", this, "--pass", "pipeline")
        seconds, receipt = era("whole", "era_dagster.cli", "ingest", "--json")
        again, second = era("whole", "era_dagster.cli", "ingest", "--json")
    finally:
        for home in ("stored", "plain", "whole"):
            subprocess.run(
                [sys.executable, "-m", "era_dagster.cli", "db", "stop"],
                env=os.environ | {"ERA_HOME": str(folder / home)},
                stdout=subprocess.DEVNULL,
                check=False,
            )
    items = receipt["items"]["seen"]
    return {
        "chapters": receipt["chapters"]["seen"],
        "items": items,
        "texts_embedded": receipt["embedding"]["texts_embedded"],
        "read_clean_chunk_seconds": round(pure["seconds"], 2),
        "store_seconds": round(stored["seconds"], 2),
        "pipeline_seconds": round(plain["seconds"], 2),
        "whole_seconds": round(seconds, 2),
        "dagster_and_start_seconds": round(seconds - plain["seconds"], 2),
        "items_per_second": round(items / seconds),
        "second_run_seconds": round(again, 2),
        "second_run_requests": second["embedding"]["requests"],
        "adds_up": receipt["items"]["adds_up"],
    }


def _table(report: dict[str, Any]) -> str:
    return "\n".join(f"{name.replace('_', ' '):32} {value}" for name, value in report.items())


if __name__ == "__main__":
    main()
