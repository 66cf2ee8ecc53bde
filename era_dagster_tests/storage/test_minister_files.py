"""The minister files against a real PostgreSQL and a real disk: their content, and what kills and rivals do to them."""

import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import psycopg
import pytest

from era_dagster.domain.errors import StorageError
from era_dagster.storage.database import Database
from era_dagster.storage.minister_files import render_due, write_combined_index

FILES = ("claims.json", "doctrine.json", "principles.json", "rules.json", "warnings.json")
KILLED = -signal.SIGKILL if os.name != "nt" else 15

# Renders one domain; arguments: URL, folder, domain, and the number of the disk sync at which to die (0: none).
RENDER = """
import os, signal, sys
from pathlib import Path
from era_dagster.domain.errors import StorageError
from era_dagster.storage.database import Database
from era_dagster.storage.minister_files import render_due

url, folder, domain, dies_at = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
sync, syncs = os.fsync, 0

def counted(descriptor):
    global syncs
    syncs += 1
    if syncs == dies_at:
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
    sync(descriptor)

os.fsync = counted
with Database(url, pool_size=1) as database:
    if len(sys.argv) > 5:
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[5]), resource.RLIM_INFINITY))
    try:
        render_due(database, folder, [domain])
    except StorageError as error:
        sys.exit(str(error))
"""

# Adds an entry, renders, 20 times; arguments: URL, folder, domain, name of this writer.
ADD_AND_RENDER = """
import sys
from pathlib import Path
from era_dagster.storage.database import Database
from era_dagster_tests.storage.test_minister_files import put_entry, render_domain

url, folder, domain, name = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4]
with Database(url, pool_size=1) as database:
    for number in range(20):
        put_entry(database, domain, text=f"{name} {number}")
        render_domain(database, folder, domain)
"""


def render_domain(database: Database, ministers_dir: Path, domain: str) -> bool:
    """Render one domain; whether something on disk changed."""
    report = render_due(database, ministers_dir, [domain])
    return report.files_written > 0 or bool(report.domains_removed)


def put_entry(
    database: Database,
    *domains: str,
    text: str,
    category: str = "principles",
    book: str = "The Richest Man",
    chapter: int = 1,
    position: int = 0,
) -> str:
    """Store one entry as the writer of chapters does; returns its id."""
    identifier = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{book}/{chapter}/{category}/{text}"))
    key = f"book-{uuid.uuid5(uuid.NAMESPACE_URL, book).hex[:6]}/{chapter:04}"
    with database.connection() as connection:
        connection.execute(
            "INSERT INTO doctrine_sources (partition_key, book, book_slug, chapter, path, text, content_hash,"
            " entry_count, pair_count, run_id) VALUES (%s, %s, %s, %s, '', '', '', 1, 1, 'run') ON CONFLICT DO NOTHING",
            (key, book, key.split("/", maxsplit=1)[0], chapter),
        )
        for domain in domains:
            connection.execute(
                "INSERT INTO minister_domains (domain, table_name) VALUES (%s, %s) ON CONFLICT DO NOTHING",
                (domain, f"doctrine_embeddings_{domain}"),
            )
            connection.execute(
                "INSERT INTO minister_entries (doctrine_id, domain, category, position, text, book, chapter,"
                " embedding_id, content_hash, partition_key)"
                " VALUES (%(id)s, %(domain)s, %(category)s, %(position)s, %(text)s, %(book)s, %(chapter)s, %(id)s, '',"
                " %(key)s)",
                {
                    "id": identifier,
                    "domain": domain,
                    "category": category,
                    "position": position,
                    "text": text,
                    "book": book,
                    "chapter": chapter,
                    "key": key,
                },
            )
        changed(connection, *domains)
    return identifier


def changed(connection: psycopg.Connection, *domains: str) -> None:
    connection.execute(
        "UPDATE minister_domains SET changed_at = clock_timestamp() WHERE domain = ANY(%s)", (list(domains),)
    )


def remove_entries(database: Database, domain: str) -> None:
    with database.connection() as connection:
        connection.execute("DELETE FROM minister_entries WHERE domain = %s", (domain,))
        changed(connection, domain)


def on_disk(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def times(database: Database, domain: str) -> tuple[object, object]:
    with database.connection() as connection:
        row = connection.execute(
            "SELECT changed_at, rendered_at FROM minister_domains WHERE domain = %s", (domain,)
        ).fetchone()
    assert row is not None
    return row[0], row[1]


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


@pytest.fixture
def ministers(tmp_path: Path) -> Path:
    return tmp_path / "data" / "ministers"


def test_a_domain_becomes_five_files_that_say_what_the_tables_say(database: Database, ministers: Path) -> None:
    later = put_entry(database, "wealth", "ethics", text="Zweites – später.", chapter=2)
    first = put_entry(database, "wealth", text="Pay yourself first.", position=1)
    before = put_entry(database, "wealth", text="Start thy purse to fattening.", position=0)
    warning = put_entry(database, "wealth", text="Beware of easy gold.", category="warnings")
    assert render_domain(database, ministers, "wealth")
    assert tuple(on_disk(ministers / "wealth")) == FILES
    principles = json.loads((ministers / "wealth" / "principles.json").read_text(encoding="utf-8"))
    assert (principles["domain"], principles["category"]) == ("wealth", "principles")
    assert [entry["id"] for entry in principles["entries"]] == [before, first, later]
    assert principles["entries"][2] == {
        "id": later,
        "text": "Zweites – später.",
        "source": {"book": "The Richest Man", "chapter": 2},
        "weight": 1.0,
        "embedding_id": later,
    }
    changed_at, rendered_at = times(database, "wealth")
    assert rendered_at == changed_at
    assert principles["meta"]["total_entries"] == 3
    assert principles["meta"]["last_updated"] == str(changed_at).replace(" ", "T").replace("+00:00", "Z")
    summary = json.loads((ministers / "wealth" / "doctrine.json").read_text(encoding="utf-8"))
    assert summary["warnings"] == [{"id": warning, "text": "Beware of easy gold."}]
    assert summary["meta"]["total_entries"] == 4
    assert json.loads((ministers / "wealth" / "rules.json").read_text(encoding="utf-8"))["entries"] == []


def test_a_second_rendering_touches_nothing(database: Database, ministers: Path) -> None:
    put_entry(database, "wealth", text="Pay yourself first.")
    render_domain(database, ministers, "wealth")
    folder = ministers / "wealth"
    before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}
    assert not render_domain(database, ministers, "wealth")
    report = render_due(database, ministers, ["wealth", "wealth"])
    assert (report.domains, report.files_written, report.files_unchanged) == (("wealth",), 0, 5)
    assert {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()} == before


def test_damaged_edited_and_missing_files_are_made_right(database: Database, ministers: Path) -> None:
    put_entry(database, "wealth", text="Pay yourself first.")
    render_domain(database, ministers, "wealth")
    right = on_disk(ministers)
    folder = ministers / "wealth"
    (folder / "principles.json").write_text('{"domain": "wealth", "entr', encoding="utf-8")
    (folder / "rules.json").write_bytes((folder / "rules.json").read_bytes() + b" ")
    (folder / "claims.json").unlink()
    assert render_domain(database, ministers, "wealth")
    assert on_disk(ministers) == right


def test_only_domains_that_changed_or_miss_a_file_are_due(database: Database, ministers: Path) -> None:
    for domain in ("ethics", "war", "wealth"):
        put_entry(database, domain, text="Pay yourself first.")
    report = render_due(database, ministers, None)
    assert (report.domains, report.files_written) == (("ethics", "war", "wealth"), 15)
    assert render_due(database, ministers, None).domains == ()
    put_entry(database, "war", text="Know the ground.")
    (ministers / "ethics" / "rules.json").unlink()
    report = render_due(database, ministers, None)
    # Of "war" all five carry the time of the change; of "ethics" four are right.
    assert (report.domains, report.files_written, report.files_unchanged) == (("ethics", "war"), 6, 4)
    moved = ministers.with_name("elsewhere")
    assert render_due(database, moved, None).files_written == 15
    assert on_disk(moved) == on_disk(ministers)


def test_a_domain_without_entries_leaves_the_disk(database: Database, ministers: Path) -> None:
    put_entry(database, "wealth", "ethics", text="Pay yourself first.")
    render_due(database, ministers, None)
    (ministers / "wealth" / ".rules.json.1a2b3c4d.tmp").write_bytes(b"{")
    remove_entries(database, "wealth")
    assert render_due(database, ministers, None).domains_removed == ("wealth",)
    assert [path.name for path in ministers.iterdir()] == ["ethics"]
    assert render_due(database, ministers, None).domains == ()
    assert not render_domain(database, ministers, "wealth")
    put_entry(database, "wealth", text="It is back.")
    assert render_due(database, ministers, None).files_written == 5


@pytest.mark.parametrize("litter", [".DS_Store", "Thumbs.db", "desktop.ini"])
def test_what_a_file_browser_left_keeps_no_folder_which_readers_take_for_a_domain(
    database: Database, ministers: Path, litter: str
) -> None:
    put_entry(database, "wealth", "ethics", text="Pay yourself first.")
    render_due(database, ministers, None)
    for domain in ("wealth", "ethics"):
        (ministers / domain / litter).write_bytes(b"Bud1")
    remove_entries(database, "wealth")
    assert render_due(database, ministers, None).domains_removed == ("wealth",)
    assert [path.name for path in ministers.iterdir()] == ["ethics"]
    assert (ministers / "ethics" / litter).exists()


def test_a_foreign_file_stays(database: Database, ministers: Path) -> None:
    put_entry(database, "wealth", text="Pay yourself first.")
    render_due(database, ministers, None)
    (ministers / "wealth" / "notes of mine.txt").write_text("keep", encoding="utf-8")
    remove_entries(database, "wealth")
    assert render_due(database, ministers, None).domains_removed == ("wealth",)
    assert list(on_disk(ministers / "wealth")) == ["notes of mine.txt"]


def test_a_domain_the_database_does_not_know_is_left_alone(database: Database, ministers: Path) -> None:
    (ministers / "stranger").mkdir(parents=True)
    (ministers / "stranger" / "rules.json").write_text("{}", encoding="utf-8")
    assert not render_domain(database, ministers, "stranger")
    assert on_disk(ministers) == {str(Path("stranger", "rules.json")): b"{}"}


@pytest.mark.parametrize("domain", ["../evil", "..", "", "a/b", "con", "Wealth", "all", "a\\b"])
def test_a_name_that_is_no_slug_never_becomes_a_path(database: Database, tmp_path: Path, domain: str) -> None:
    ministers = tmp_path / "data" / "ministers"
    put_entry(database, domain, text="Pay yourself first.")
    with pytest.raises(StorageError, match="cannot be the name of a folder"):
        render_domain(database, ministers, domain)
    assert list(tmp_path.rglob("*")) == []


def test_what_cannot_be_written_is_named_and_nothing_is_left_behind(database: Database, ministers: Path) -> None:
    put_entry(database, "wealth", text="Pay yourself first.")
    (ministers / "wealth" / "rules.json").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"rules\.json cannot be written"):
        render_domain(database, ministers, "wealth")
    assert times(database, "wealth")[1] is None
    (ministers / "wealth" / "rules.json").rmdir()
    render_due(database, ministers, None)
    assert tuple(on_disk(ministers / "wealth")) == FILES
    (ministers.parent / "full").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot be written"):
        render_domain(database, ministers.parent / "full", "wealth")


def test_what_is_in_the_way_of_a_file_or_folder_is_named(database: Database, ministers: Path) -> None:
    """A data folder that is a file was to be helped by more space."""
    put_entry(database, "wealth", text="Pay yourself first.")
    (ministers / "wealth" / "rules.json").mkdir(parents=True)
    for place in ("full", "away", "domain/wealth"):
        (ministers.parent / place).parent.mkdir(exist_ok=True)
    (ministers.parent / "full").touch()
    (ministers.parent / "domain" / "wealth").touch()
    (ministers.parent / "away").symlink_to(ministers.parent / "not mounted")
    for folder, there, kind in (
        (ministers, ministers / "wealth" / "rules.json", "a"),
        (ministers.parent / "full" / "ministers", ministers.parent / "full", "no"),
        (ministers.parent / "away", ministers.parent / "away", "no"),
        (ministers.parent / "domain", ministers.parent / "domain" / "wealth", "no"),
    ):
        with pytest.raises(StorageError) as caught:
            render_domain(database, folder, "wealth")
        assert caught.value.hint.startswith(f"{there} is {kind} folder: move it")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on a file's size to stand for a full disk")
def test_a_full_disk_leaves_the_old_files_whole(database: Database, database_url: str, ministers: Path) -> None:
    put_entry(database, "wealth", text="Pay yourself first.")
    render_domain(database, ministers, "wealth")
    before = on_disk(ministers)
    put_entry(database, "wealth", text="Long. " * 2000, category="claims")
    process = start(RENDER, database_url, ministers, "wealth", 0, 4096)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "claims.json cannot be written: File too large." in said
    after = on_disk(ministers)
    assert list(after) == list(before)
    assert after[str(Path("wealth", "claims.json"))] == before[str(Path("wealth", "claims.json"))]
    assert render_due(database, ministers, None).files_written > 0
    assert all(json.loads(content) for content in on_disk(ministers).values())


def test_a_process_killed_at_any_disk_sync_leaves_whole_files_old_or_new(
    database: Database, database_url: str, ministers: Path
) -> None:
    for category in ("principles", "rules", "claims", "warnings"):
        put_entry(database, "wealth", text="Pay yourself first.", category=category)
    render_domain(database, ministers, "wealth")
    old = on_disk(ministers)
    for category in ("principles", "rules", "claims", "warnings"):
        put_entry(database, "wealth", text="Guard thy treasures.", category=category)
    render_domain(database, ministers.with_name("right"), "wealth")
    new = on_disk(ministers.with_name("right"))
    folder = ministers / "wealth"
    for dies_at in range(1, 6):
        for name, content in old.items():
            (ministers / name).write_bytes(content)
        process = start(RENDER, database_url, ministers, "wealth", dies_at)
        process.communicate(timeout=60)
        assert process.returncode == KILLED
        found = [path.read_bytes() for path in sorted(folder.glob("*.json"))]
        states = [
            "new" if content == is_new else "old" if content == is_old else "broken"
            for content, is_new, is_old in zip(found, new.values(), old.values(), strict=True)
        ]
        assert sorted(states) == ["new"] * (dies_at - 1) + ["old"] * (6 - dies_at)
        assert len(list(folder.glob(".*.tmp"))) == 1
        assert render_domain(database, ministers, "wealth")
        assert not list(folder.glob(".*.tmp"))
        assert not render_domain(database, ministers, "wealth")
        assert on_disk(ministers) == new


def test_four_processes_that_render_one_domain_at_once_lose_and_break_nothing(
    database: Database, database_url: str, ministers: Path
) -> None:
    processes = [start(ADD_AND_RENDER, database_url, ministers, "wealth", f"writer {name}") for name in range(4)]
    path = ministers / "wealth" / "principles.json"
    counts = [0]
    while any(process.poll() is None for process in processes):
        if path.exists():
            file = json.loads(path.read_text(encoding="utf-8"))
            assert file["meta"]["total_entries"] == len(file["entries"])
            counts.append(len(file["entries"]))
    for process in processes:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    # A writer that writes what it read before another's turn would make the file shrink.
    assert counts == sorted(counts)
    entries = json.loads(path.read_text(encoding="utf-8"))["entries"]
    assert len({entry["id"] for entry in entries}) == len(entries) == 80
    assert times(database, "wealth")[0] == times(database, "wealth")[1]
    assert tuple(on_disk(ministers / "wealth")) == FILES
    assert render_due(database, ministers, ["wealth"]).files_written == 0


def test_the_combined_index_has_true_totals_and_equal_bytes_when_nothing_changed(
    database: Database, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    assert not write_combined_index(database, data)
    put_entry(database, "wealth", "ethics", text="Pay yourself first.")
    put_entry(database, "wealth", text="Beware of easy gold.", category="warnings")
    put_entry(database, "war", text="Know the ground.")
    assert write_combined_index(database, data)
    path = data / "combined_vector.index"
    index = json.loads(path.read_text(encoding="utf-8"))
    assert (index["domain"], index["combined"]) == ("all", True)
    assert index["domains_included"] == ["ethics", "war", "wealth"]
    assert {domain: each["total_entries"] for domain, each in index["domain_statistics"].items()} == {
        "ethics": 1,
        "war": 1,
        "wealth": 2,
    }
    assert index["metadata"]["total_domains"] == 3
    before = path.stat().st_mtime_ns
    assert not write_combined_index(database, data)
    assert path.stat().st_mtime_ns == before
    remove_entries(database, "war")
    assert write_combined_index(database, data)
    index = json.loads(path.read_text(encoding="utf-8"))
    assert index["domains_included"] == ["ethics", "wealth"]
    assert list(data.iterdir()) == [path]
