"""Three of the user's books, whole: counted independently of the code, and searched with the local model.

They lie beside the checkout as `../shared/real`, or where ERA_TEST_REAL_BOOKS says; without them these tests are skipped.
"""

import ast
import html
import json
import os
import re
import shutil
import unicodedata
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from era_dagster.knowledge import KnowledgeBase
from era_dagster_tests.pipeline.workbench import CATEGORIES, Workbench

BOOKS = Path(os.environ.get("ERA_TEST_REAL_BOOKS") or Path(__file__).resolve().parents[3] / "shared" / "real")
pytestmark = pytest.mark.skipif(not BOOKS.is_dir(), reason="the real books are not beside the checkout")


def records(name: str) -> list[tuple[str, dict[str, Any]]]:
    return [
        (path.parent.name, record)
        for path in sorted(BOOKS.glob(f"*/{name}"))
        for record in json.loads(path.read_text(encoding="utf-8"))
    ]


def letters(text: str) -> str:
    """What must survive any cleaning, in order: the letters and digits."""
    plain = unicodedata.normalize("NFKC", html.unescape(text.replace("\x00", "")))
    return "".join(re.findall(r"[^\W_]", plain)).casefold()


def sentence(item: Any) -> str:
    """The sentence of an item: a string, or the first of the known places in an object."""
    if isinstance(item, dict):
        item = next(item[key] for key in ("text", "extraction", "principle", "rule", "claim", "warning") if key in item)
    return letters(item)


def folded(name: str) -> str:
    if name.startswith("{"):
        name = ast.literal_eval(name)["text"]
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode("ascii").lower()
    return re.sub(r"[^a-z0-9]+", "_", ascii_name.replace("&", " and ")).strip("_")


@pytest.fixture
def real_bench(bench: Workbench) -> Workbench:
    bench.settings = replace(bench.settings, drop_dir=BOOKS)
    return bench


def test_tables_and_files_agree_with_an_independent_count_of_the_real_books(real_bench: Workbench) -> None:
    bench = real_bench
    receipt = bench.ingest()
    texts, doctrine = records("01_chapters.json"), records("02_doctrine.json")
    entries = {
        (book, record["chapter_index"], category, sentence(item))
        for book, record in doctrine
        for category in CATEGORIES
        for item in record[category]
    }
    spelled = {
        (book, record["chapter_index"]): {folded(name) for name in record["domains"]} for book, record in doctrine
    }
    pairs = Counter(domain for book, index, *_ in entries for domain in spelled[book, index] or {"base"})
    assert receipt.items.adds_up
    assert (receipt.chapters_stored, receipt.items.dead, receipt.items.unusable) == (len(texts), 0, 0)
    assert bench.count("doctrine_sources") == len(texts) == 170
    assert bench.count("doctrine_embeddings_all") == len(entries)
    assert Counter(bench.rows("SELECT domain FROM minister_entries")) == pairs
    assert Counter(bench.rows("SELECT domain FROM doctrine_embeddings")) == pairs
    written = {path for path in bench.files() if path.startswith("ministers/")}
    names = [f"{category}.json" for category in (*CATEGORIES, "doctrine")]
    assert written == {f"ministers/{domain}/{name}" for domain in pairs for name in names}
    told = [
        (entry["source"]["book"], entry["source"]["chapter"], category, letters(entry["text"]))
        for domain in pairs
        for category in CATEGORIES
        for entry in bench.domain_file(domain, category)["entries"]
    ]
    assert (len(told), set(told)) == (sum(pairs.values()), entries)
    index = json.loads((bench.settings.data_dir / "combined_vector.index").read_text(encoding="utf-8"))
    assert {name: held["total_entries"] for name, held in index["domain_statistics"].items()} == pairs


def test_no_letter_of_the_real_books_is_lost_and_nothing_impossible_is_stored(real_bench: Workbench) -> None:
    bench = real_bench
    bench.ingest()
    chunks: dict[tuple[str, int], list[str]] = {}
    for book, chapter, text in bench.rows(
        "SELECT book, chapter, c.text FROM chapter_chunks AS c JOIN doctrine_sources USING (partition_key)"
        " ORDER BY partition_key, position"
    ):
        chunks.setdefault((book, chapter), []).append(text)
    for book, record in records("01_chapters.json"):
        held = chunks.get((book, record["chapter_index"]), [])
        assert letters("".join(held)) == letters(record["raw_text"])
        assert all(512 <= len(text) <= 1024 for text in held[:-1])
    assert bench.count("chunk_embeddings") == sum(map(len, chunks.values()))
    stored = bench.rows("SELECT text FROM minister_entries UNION ALL SELECT text FROM chapter_chunks")
    assert not [text for text in stored if "\x00" in text or text.startswith("{'") or not text.strip()]
    made = [np.frombuffer(data, dtype="<f4") for data in bench.rows("SELECT embedding FROM embedding_cache")]
    assert min(float(np.linalg.norm(vector)) for vector in made) > 0.99
    assert bench.count("doctrine_embeddings_all", "l2_norm(embedding) < 0.99") == 0
    assert (
        bench.count(
            "minister_entries AS e LEFT JOIN doctrine_embeddings_all AS a ON a.doctrine_id = e.embedding_id",
            "a.doctrine_id IS NULL",
        )
        == 0
    )


def test_a_second_pass_over_the_real_books_changes_nothing(real_bench: Workbench) -> None:
    bench = real_bench
    bench.ingest()
    tables, files = bench.tables(versions=True), bench.files()
    bench.ingest()
    assert bench.run(chapters=bench.known()).chapters_unchanged == 170
    assert (bench.server.batches, bench.files()) == ([], files)
    assert bench.tables(versions=True) == tables


@pytest.mark.slow
def test_a_search_for_the_sentence_of_an_entry_finds_that_entry_first(bench: Workbench) -> None:
    """With the local model, over the smallest of the books."""
    smallest = min(BOOKS.iterdir(), key=lambda book: sum(file.stat().st_size for file in book.iterdir()))
    shutil.copytree(smallest, bench.settings.drop_dir / smallest.name, copy_function=shutil.copyfile)
    bench.settings = replace(bench.settings, embedding_provider="local", embedding_model=None)
    bench.look()
    assert bench.run(with_fake_server=False).items.dead == 0
    texts = bench.rows("SELECT text FROM doctrine_embeddings_all ORDER BY doctrine_id")
    assert len(texts) > 100
    with KnowledgeBase.open(bench.settings, url=bench.settings.database_url) as base:
        for text in texts[::5]:
            first = base.search(text)[0]
            assert (first.text, first.score > 0.99) == (text, True)
