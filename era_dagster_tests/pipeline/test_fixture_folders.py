"""Fixtures of messy input, from the drop folder to tables and files, and a second pass over the same drop.

Our own lie in `era_dagster_tests/fixtures/messy`, further ones beside the checkout as `../shared/fixtures`, or in the folder
that ERA_TEST_FIXTURES names. A new fixture needs no code here: its `expect` block says what must be found.
"""

import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from era_dagster.pipeline.checks import run_checks
from era_dagster.pipeline.drop import DropLook
from era_dagster.pipeline.verify import inspect
from era_dagster.storage.overview import overview
from era_dagster_tests.fakes.fixture_files import write_step
from era_dagster_tests.pipeline.workbench import CATEGORIES, Workbench

OWN = Path(__file__).resolve().parents[1] / "fixtures" / "messy"
SHARED = Path(os.environ.get("ERA_TEST_FIXTURES") or Path(__file__).resolve().parents[3] / "shared" / "fixtures")
FIXTURES = [path for folder in (OWN, SHARED) for path in sorted(folder.glob("*.json"))]
WINDOWS_UNSAFE = re.compile(r'^(con|prn|aux|nul|com\d|lpt\d)(\.|$)|[<>:"/\\|?*\x00-\x1f]|[. ]$', re.IGNORECASE)


def touch(drop: Path) -> None:
    for path in drop.rglob("*"):
        os.utime(path, ns=(time.time_ns(), time.time_ns()))


def everything_said(bench: Workbench) -> list[str]:
    """What `era status` and the asset checks show, now and later: not only what one look printed."""
    found = overview(bench.database)
    sources = [text for source in found.sources for text in (source["reason"], *source["notes"])]
    notes = bench.rows("SELECT note ->> 'message' FROM doctrine_sources, jsonb_array_elements(notes) AS note")
    quarantine = [record["reason"] for record in found.quarantine]
    checks = [verdict.said for _, verdict in run_checks(bench.settings, bench.database) if not verdict.passed]
    return [*sources, *notes, *quarantine, *checks]


def everything_stored(bench: Workbench) -> str:
    """All text of all tables and files, but for the register: it names files and quotes what is wrong with them."""
    tables = bench.tables()
    rows = [row for name, held in tables.items() if not re.search(r"drop_|quarantine", name) for row in held]
    return "\n".join(rows) + "\n".join(content.decode("utf-8") for content, _ in bench.files().values())


def check(expect: Mapping[str, Any], bench: Workbench, look: DropLook, notes: list[str]) -> None:
    domains = set(bench.rows("SELECT DISTINCT domain FROM minister_entries"))
    chunks = bench.rows("SELECT text FROM chapter_chunks")
    entries = bench.rows("SELECT DISTINCT doctrine_id, text FROM minister_entries")
    texts = [text for _, text in entries]
    found = {
        "entries": lambda: bench.count("doctrine_embeddings_all"),
        "pairs": lambda: bench.count("doctrine_embeddings"),
        "unusable": lambda: bench.rows(
            "SELECT coalesce(sum(jsonb_array_length(unusable)), 0)::int FROM doctrine_sources"
        )[0],
        "domains": lambda: sorted(domains),
        "distinct_domains": lambda: len(domains),
        "entry_texts": lambda: sorted(texts),
        "chapters_with_text": lambda: bench.count("doctrine_sources", "text <> ''"),
        "chunks": lambda: bench.count("chunk_embeddings"),
        "distinct_embeddings": lambda: len(set(texts)),
        "distinct_embeddings_chunks": lambda: len(set(chunks)),
        "quarantined": lambda: bench.count("quarantine"),
        "waiting": lambda: [Path(path).name for path, _ in look.waiting],
        "books": lambda: len(set(bench.rows("SELECT book_slug FROM doctrine_sources"))),
        "writes_outside": lambda: _writes_outside(bench),
        "windows_safe": lambda: not [name for name in _names(bench) if WINDOWS_UNSAFE.search(name)],
    }
    for name, count in found.items():
        if name in expect:
            wanted = expect[name]
            assert count() == (sorted(wanted) if isinstance(wanted, list) else wanted), name
    for start in expect.get("entry_starts", ()):
        assert any(text.startswith(start) for text in texts), start
    for part in expect.get("chunk_contains", ()):
        assert any(part in text for text in chunks), part
    assert len(chunks) >= expect.get("chunks_min", 0)
    assert all(len(text) <= min(bench.settings.chunk_max_chars, expect.get("chunk_max_chars", 1024)) for text in chunks)
    stored, whole = everything_stored(bench), bench.rows("SELECT text FROM doctrine_sources")
    for part in expect.get("must_not_contain", ()):
        written = json.dumps(part)[1:-1]
        # White space separates the lines of files; in texts it would stand escaped.
        assert written not in stored, part
        assert not [text for text in (*texts, *chunks, *whole) if part in text], part
    for gist in expect.get("warn", ()):
        assert any(gist in said for said in notes), (gist, notes)
    for part in expect.get("key_must_not_contain", ()):
        assert not [
            key for key in bench.rows("SELECT partition_key FROM doctrine_sources") if part in key.replace("/", "", 1)
        ]
    longest = max((len(table.encode()) for table in bench.rows("SELECT table_name FROM minister_domains")), default=0)
    assert longest <= expect.get("max_table_name_bytes", 63)


def _names(bench: Workbench) -> list[str]:
    return [part for name in bench.files() for part in name.split("/")]


def _writes_outside(bench: Workbench) -> bool:
    """Whether anything stands where only drop and data were expected, or deeper than one folder under the ministers."""
    base = bench.settings.data_dir.parent
    beside = {path.name for path in base.iterdir()} - {"drop", "data", "home"}
    nested = [name for name in bench.files() if name != "combined_vector.index" and name.count("/") != 2]
    return bool(beside or nested)


def check_files_agree(bench: Workbench) -> None:
    told = [
        (folder.name, category, entry["embedding_id"], entry["text"])
        for folder in (bench.settings.ministers_dir.iterdir() if bench.settings.ministers_dir.is_dir() else ())
        for category in CATEGORIES
        for entry in bench.domain_file(folder.name, category)["entries"]
    ]
    rows = bench.rows(
        "SELECT e.domain, e.category, a.doctrine_id::text, a.text FROM minister_entries AS e"
        " JOIN doctrine_embeddings_all AS a ON a.doctrine_id = e.embedding_id"
        " JOIN doctrine_embeddings AS d ON d.doctrine_id = e.doctrine_id AND d.domain = e.domain"
    )
    assert sorted(told) == sorted(rows)
    assert len(rows) == bench.count("minister_entries") == bench.count("doctrine_embeddings")


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_class_of_messy_input_ends_in_the_right_tables_and_files(path: Path, bench: Workbench) -> None:
    fixture = json.loads(path.read_text(encoding="utf-8"))
    expect = fixture["expect"]
    look = bench.look()
    for number, step in enumerate(fixture["steps"]):
        write_step(step, bench.settings.drop_dir)
        if expect.get("touch") and number:
            touch(bench.settings.drop_dir)
        bench.server.batches.clear()
        look = bench.look()
        bench.run()
        if number and "second_pass_embedding_calls" in expect:
            assert len(bench.asked) == expect["second_pass_embedding_calls"]
    check(expect, bench, look, everything_said(bench))
    check_files_agree(bench)
    assert bench.heard.receipt.items.adds_up
    assert inspect(bench.settings, bench.database).findings == ()
    tables, files = bench.tables(versions=True), bench.files()
    assert bench.ingest().chapters_seen == 0
    assert bench.run(chapters=bench.known()).chapters_stored == 0
    assert (bench.asked, bench.files()) == ([], files)
    assert bench.tables(versions=True) == tables
