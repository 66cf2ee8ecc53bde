"""A generated corpus of messy books through `era ingest`: totals against an independent reading, a second pass, kills.

    python -m era_dagster_tests.benchmarks.messy_corpus FOLDER --generator gen_corpus.py --phase PHASE

Phases, in this order: `ingest` (generate, ingest once, compare with the golden file), `again` (a second pass adds nothing),
`kills` (into a second knowledge base: twenty processes killed by -9 at random moments, then a clean run), `eight` (into a third:
eight processes, each with its own books of the same domains, at once). Each prints its figures as JSON and fails loudly.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from era_dagster.storage.server import EmbeddedServer
from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer, serving

CATEGORIES = ("principles", "rules", "claims", "warnings")
DIMENSION = 64


@dataclass(frozen=True)
class Totals:
    """What a corpus holds or a knowledge base says it holds. `pairs`: (entry, domain) rows."""

    chapters: int
    entries: int
    pairs: int
    domains: int


def generate(generator: Path, folder: Path, *, books: int, chapters: int = 40, messy: float = 0.15, seed: str = "4"):
    """Write the corpus below `folder`/books; returns the golden totals. What is there already is kept."""
    golden = folder / "golden.json"
    if not golden.exists():
        given = {"--books": books, "--chapters": chapters, "--messy": messy, "--seed": seed, "--golden": golden}
        words = [str(word) for pair in given.items() for word in pair]
        subprocess.run([sys.executable, str(generator), str(folder / "books"), *words], check=True, capture_output=True)
    return json.loads(golden.read_text(encoding="utf-8"))["totals"]


def read_independently(books: Path, golden: Mapping[str, int]) -> Totals:
    """Count the corpus by plain means, and hold what the golden file counts too against it."""
    entries: set[tuple[str, int, str, str]] = set()
    pairs: set[tuple[str, int, str, str, str]] = set()
    counted: Counter[str] = Counter()
    for book in sorted(path for path in books.iterdir() if path.is_dir()):
        texts = json.loads((book / "01_chapters.json").read_text(encoding="utf-8"))
        records = json.loads((book / "02_doctrine.json").read_text(encoding="utf-8"))
        counted["stored"] += len({record["chapter_index"] for record in (*texts, *records)})
        counted["chapters"] += len(texts)
        counted["doctrine_records"] += len(records)
        for record in records:
            domains = {_folded(name) for name in record["domains"]} or {"base"}
            for category in CATEGORIES:
                for item in record[category]:
                    counted["items"] += 1
                    counted["item_domain_refs"] += max(1, len(record["domains"]))
                    entry = (book.name, record["chapter_index"], category, _sentence(item, category))
                    entries.add(entry)
                    pairs |= {(*entry, domain) for domain in domains}
    for name in ("chapters", "doctrine_records", "items", "item_domain_refs"):
        assert counted[name] == golden[name], (name, counted[name], golden[name])
    # The generator repeats no item in a category, so every item is an entry.
    assert len(entries) == golden["items"]
    return Totals(counted["stored"], len(entries), len(pairs), len({pair[-1] for pair in pairs}))


def _folded(name: str) -> str:
    inside = re.search(r"'domain': '([^']+)'", name)
    ascii_name = (inside[1] if inside else name).replace("\U0001d40d", "N").encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "_", ascii_name.replace("&", " and ")).strip("_") or "base"


def _sentence(item: Any, category: str) -> str:
    return item.get("text") or item[category[:-1]] if isinstance(item, dict) else item


def found_in(url: str, data: Path) -> Totals:
    """What tables and files hold; every file must parse and agree with the tables' counts."""
    with psycopg.connect(url, options="-c search_path=public,vectors") as connection:
        row = connection.execute(
            "SELECT (SELECT count(*) FROM doctrine_sources), (SELECT count(*) FROM doctrine_embeddings_all),"
            " (SELECT count(*) FROM doctrine_embeddings), (SELECT count(DISTINCT domain) FROM minister_entries)"
        ).fetchone()
        assert row is not None
        total = connection.execute("SELECT count(*) FROM minister_entries").fetchone()
    in_files = 0
    for path in (data / "ministers").rglob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        in_files += len(content["entries"]) if "entries" in content else 0
    index = json.loads((data / "combined_vector.index").read_text(encoding="utf-8"))
    assert total == (in_files,) == (index["metadata"]["total_entries"],) == (row[2],)
    return Totals(*row)


class KnowledgeBase:
    """One knowledge base in a folder of its own, fed by `era` in processes."""

    def __init__(self, folder: Path, books: Path, embedding_url: str, *, url: str | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ERA_", "DAGSTER_"))}
        self.environment = kept | {
            "ERA_DROP_DIR": str(books),
            "ERA_EMBEDDING_PROVIDER": "ollama",
            "ERA_EMBEDDING_URLS": embedding_url,
            "ERA_EMBEDDING_MODEL": "test-model",
            **({"ERA_DATABASE_URL": url} if url else {}),
        }
        self.url = url or EmbeddedServer(folder / ".era").ensure_running()

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "era_dagster.cli", *words],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )

    def json(self, *words: str) -> dict[str, Any]:
        process = self.start(*words, "--json")
        out, errors = process.communicate()
        assert process.returncode == 0, (out[-2000:], errors[-2000:])
        return json.loads(out)

    def kill(self, seconds: float) -> bool:
        """Ingest and kill -9 after so many seconds; False when it was faster."""
        process = self.start("ingest", "--json")
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
            process.communicate()
            return True
        process.communicate()
        return False

    def totals(self) -> Totals:
        return found_in(self.url, self.folder / "data")


def killed_and_finished(base: KnowledgeBase, *, kills: int, longest: float, seed: int = 4) -> dict[str, Any]:
    """Kill `kills` ingests, each at a random moment up to `longest` seconds, then ingest once more; figures."""
    chance = random.Random(seed)
    killed = sum(base.kill(chance.uniform(0.2, longest)) for _ in range(kills))
    receipt = base.json("ingest")
    assert receipt["ok"] and receipt["items"]["adds_up"], receipt
    assert base.json("verify")["clean"] is True
    again = base.json("ingest")
    assert (again["chapters"]["stored"], again["embedding"]["requests"]) == (0, 0)
    return {"killed": killed, "last_run_stored": receipt["chapters"]["stored"]}


@contextmanager
def embedding_server():
    server = FakeEmbeddingServer(dimension=DIMENSION)
    with serving(server) as url:
        yield server, url


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--generator", type=Path, required=True, help="gen_corpus.py")
    parser.add_argument("--phase", choices=("ingest", "again", "kills", "eight"), required=True)
    parser.add_argument("--books", type=int, default=59)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--longest", type=float, default=12.0, help="seconds after which the latest kill comes")
    given = parser.parse_args()
    folder: Path = given.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    golden = generate(given.generator, folder, books=given.books)
    expected = read_independently(folder / "books", golden)
    started = time.monotonic()
    with embedding_server() as (server, url):
        name = {"ingest": "whole", "again": "whole"}.get(given.phase, given.phase)
        base = KnowledgeBase(folder / name, folder / "books", url)
        figures: dict[str, Any] = {"phase": given.phase, "expected": expected.__dict__}
        if given.phase == "ingest":
            receipt = base.json("ingest")
            figures["receipt"] = {part: receipt[part] for part in ("chapters", "items", "embedding")}
        elif given.phase == "again":
            receipt = base.json("ingest")
            figures["receipt"] = {part: receipt[part] for part in ("chapters", "embedding")}
            assert (receipt["chapters"]["stored"], server.requests) == (0, 0)
            before = time.monotonic()
            assert base.json("verify")["clean"] is True
            figures["verify_seconds"] = round(time.monotonic() - before, 1)
        elif given.phase == "kills":
            figures |= killed_and_finished(base, kills=given.kills, longest=given.longest)
        else:
            books = sorted(path for path in (folder / "books").iterdir() if path.is_dir())
            running = [base.start("ingest", "--json", *map(str, books[number::8])) for number in range(8)]
            for process in running:
                out, errors = process.communicate()
                assert process.returncode == 0, (out[-2000:], errors[-2000:])
            assert base.json("verify")["clean"] is True
        found = base.totals()
        figures["found"] = found.__dict__
    figures["seconds"] = round(time.monotonic() - started, 1)
    assert found == expected, figures
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    _main()
