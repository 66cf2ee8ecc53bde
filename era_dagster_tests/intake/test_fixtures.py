"""The shared fixtures of messy input and the three real books, through the pure path: read, clean, cut, plan.

They lie beside the checkout as `../shared`; without it these tests are skipped, the rules have their own tests.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from era_dagster.domain.chunking import ChunkRules, cut_chunks
from era_dagster.domain.cleaning import clean_chapter
from era_dagster.domain.doctrine import Chapter, Chunk
from era_dagster.domain.errors import CorruptInput
from era_dagster.intake.plan import plan_chapters
from era_dagster.intake.reader import BookRead, read_source
from era_dagster.intake.snapshot import scan_drop
from era_dagster_tests.fakes.fixture_files import write_step

SHARED = Path(__file__).resolve().parents[3] / "shared"
FIXTURES = sorted((SHARED / "fixtures").glob("*.json"))
REAL = SHARED / "real"
RULES = ChunkRules(mode="sentences", min_chars=512, max_chars=1024, overlap_chars=0, words=512)
WINDOWS_UNSAFE = re.compile(r'^(con|prn|aux|nul|com\d|lpt\d)(\.|$)|[<>:"/\\|?*]|[. ]$', re.IGNORECASE)


@dataclass
class Result:
    chapters: list[Chapter]
    chunks: list[Chunk]
    said: list[str]
    quarantined: int
    waiting: list[str]
    books: list[BookRead]

    @property
    def stored(self) -> str:
        entries = [[e.text, e.domains, dict(e.details)] for c in self.chapters for e in c.entries]
        domains = [[d.slug, d.spelling] for c in self.chapters for d in c.domains]
        unusable = [u.reason for c in self.chapters for u in c.unusable]
        texts = [[c.text, c.title] for c in self.chapters]
        return json.dumps([entries, domains, unusable, texts], ensure_ascii=False)


def run(drop: Path) -> Result:
    snapshot = scan_drop(drop)
    books: list[BookRead] = []
    said: list[str] = []
    broken = 0
    for source in snapshot:
        if not source.obstacle:
            try:
                books += read_source(Path(source.path))
            except CorruptInput as error:
                broken += 1
                said.append(error.message)
    chapters = [clean_chapter(planned.chapter) for planned in plan_chapters(snapshot, books, {}).new]
    said += [note.message for book in books for note in book.notes]
    said += [note.message for chapter in chapters for note in chapter.notes]
    return Result(
        chapters=chapters,
        chunks=[chunk for chapter in chapters for chunk in cut_chunks(chapter.text, RULES)],
        said=said,
        quarantined=broken + sum(len(book.problems) for book in books),
        waiting=[source.name for source in snapshot if source.obstacle],
        books=books,
    )


def check(expect: Mapping[str, Any], found: Result) -> None:
    entries = [entry for chapter in found.chapters for entry in chapter.entries]
    slugs = {slug for entry in entries for slug in entry.domains}
    checks = {
        "entries": lambda: len({entry.doctrine_id for entry in entries}),
        "pairs": lambda: sum(len(entry.domains) for entry in entries),
        "unusable": lambda: sum(len(chapter.unusable) for chapter in found.chapters),
        "distinct_domains": lambda: len(slugs),
        "distinct_embeddings": lambda: len({entry.text for entry in entries}),
        "chapters_with_text": lambda: sum(bool(chapter.text) for chapter in found.chapters),
        "chunks": lambda: len(found.chunks),
        "quarantined": lambda: found.quarantined,
        "waiting": lambda: found.waiting,
        "books": lambda: len({chapter.book_slug for chapter in found.chapters}),
        "distinct_embeddings_chunks": lambda: len({chunk.text for chunk in found.chunks}),
    }
    for name, value in checks.items():
        if name in expect:
            assert value() == expect[name], name
    if "domains" in expect:
        assert slugs == set(expect["domains"])
    if "entry_texts" in expect:
        assert sorted(entry.text for entry in entries) == sorted(expect["entry_texts"])
    for start in expect.get("entry_starts", ()):
        assert any(entry.text.startswith(start) for entry in entries)
    for text in expect.get("chunk_contains", ()):
        assert any(text in chunk.text for chunk in found.chunks)
    for text in expect.get("must_not_contain", ()):
        assert text not in found.stored
        assert json.dumps(text)[1:-1] not in found.stored
    for gist in expect.get("warn", ()):
        assert any(gist in said for said in found.said), found.said
    assert len(found.chunks) >= expect.get("chunks_min", 0)
    assert all(len(chunk.text) <= min(1024, expect.get("chunk_max_chars", 1024)) for chunk in found.chunks)
    for text in expect.get("key_must_not_contain", ()):
        parts = [part for chapter in found.chapters for part in chapter.partition_key.rsplit("/", 1)]
        assert not any(text in part for part in parts)
    assert not any(WINDOWS_UNSAFE.search(slug) or len(f"doctrine_embeddings_{slug}") > 63 for slug in slugs)


@pytest.mark.skipif(not FIXTURES, reason="the shared fixtures are not beside the checkout")
@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_a_class_of_messy_input_does_what_a_careful_user_expects(path: Path, tmp_path: Path) -> None:
    fixture = json.loads(path.read_text(encoding="utf-8"))
    for step in fixture["steps"]:
        write_step(step, tmp_path)
    check(fixture["expect"], run(tmp_path))


@pytest.mark.skipif(not REAL.is_dir(), reason="the real books are not beside the checkout")
def test_the_real_books_are_read_whole() -> None:
    """The totals are counted from the files by plain means, so that nothing here can lose a chapter or an item."""
    found = run(REAL)
    chapters = [record for path in REAL.glob("*/01_chapters.json") for record in json.loads(path.read_bytes())]
    doctrine = [record for path in REAL.glob("*/02_doctrine.json") for record in json.loads(path.read_bytes())]
    items = [
        item for record in doctrine for name in ("principles", "rules", "claims", "warnings") for item in record[name]
    ]
    assert (found.quarantined, found.waiting) == (0, [])
    assert len(found.chapters) == len(chapters)
    entries = sum(len(chapter.entries) for chapter in found.chapters)
    repeated = sum(note.count for chapter in found.chapters for note in chapter.notes if note.code == "repeated_item")
    assert entries + repeated + sum(len(chapter.unusable) for chapter in found.chapters) == len(items)
    assert all(
        512 <= len(chunk.text) <= 1024 for chapter in found.chapters for chunk in cut_chunks(chapter.text, RULES)[:-1]
    )
    for chapter in found.chapters:
        joined = "".join(chunk.text for chunk in cut_chunks(chapter.text, RULES))
        assert "".join(joined.split()) == "".join(chapter.text.split())
