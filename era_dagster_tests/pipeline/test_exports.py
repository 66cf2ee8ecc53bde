"""Exports for other programs: lists of items and entries with vectors, whole files, nothing replaced unasked."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from era_dagster.domain.errors import ConfigurationError, StorageError
from era_dagster.pipeline.space_build import build_space
from era_dagster.storage import export as storage_export
from era_dagster.storage.database import Database
from era_dagster.storage.export import Exported, export_items, export_vectors
from era_dagster.storage.space_switch import promote_space
from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer, FakeTransport
from era_dagster_tests.pipeline.workbench import Workbench, chapter

UNFINISHED = """
import sys, time
from pathlib import Path
from era_dagster.storage.atomic_files import new_file, new_folder
target = Path(sys.argv[2])
folder = new_folder(target, overwrite=False, is_ours=lambda _: True)
with folder if sys.argv[1] == "kis" else new_file(target, overwrite=False):
    print("made", flush=True)
    time.sleep(600)
"""
ITEM_KEYS = {"aku_id", "content", "type", "domain", "source", "memory", "id", "text", "weight"}


@pytest.fixture
def filled(bench: Workbench) -> Workbench:
    bench.drop(
        "The Ferry’s Log",
        chapter(1, domains=["risk", "timing"], rules=["Wait for the tide.", "Keep a log."], warnings=["Fog lies."]),
        chapter(2, domains=["timing"], principles=["The tide doesn’t ask."]),
    )
    bench.ingest()
    return bench


def test_items_are_lists_of_every_domain_and_category(filled: Workbench, tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    done = export_items(filled.database, tmp_path / "kis", progress=lambda *counts: heard.append(counts))
    assert (done.files, done.items) == (8, 7)
    assert heard == [(1, 2), (2, 2)]
    lists = {
        path.relative_to(tmp_path / "kis").as_posix(): json.loads(path.read_text(encoding="utf-8"))
        for path in (tmp_path / "kis").rglob("*.json")
    }
    assert lists["risk/principles.json"] == []
    (item,) = lists["timing/principles.json"]
    assert item.keys() == ITEM_KEYS
    assert item["content"] == item["text"] == "The tide doesn’t ask."
    assert item["source"] == {"book": "The Ferry’s Log", "chapter": 2}
    assert item["memory"] == {"reinforcement_count": 0, "penalty_count": 0}
    assert (item["type"], item["domain"], item["weight"]) == ("principle", "timing", 1.0)
    assert item["aku_id"] == item["id"] == filled.domain_file("timing", "principles")["entries"][0]["id"]
    assert done.bytes == sum(path.stat().st_size for path in (tmp_path / "kis").rglob("*.json"))


def test_every_entry_is_a_line_with_the_vector_the_tables_hold(filled: Workbench, tmp_path: Path) -> None:
    done = export_vectors(filled.database, tmp_path / "out" / "entries.jsonl")
    records = [json.loads(line) for line in done.path.read_text(encoding="utf-8").splitlines()]
    assert done.items == len(records) == 4
    assert [record["doctrine_id"] for record in records] == filled.rows(
        "SELECT doctrine_id::text FROM doctrine_embeddings_all ORDER BY doctrine_id"
    )
    for record in records:
        (stored,) = filled.rows("SELECT embedding::text FROM doctrine_embeddings_all WHERE text = %s", record["text"])
        assert np.allclose(record["embedding"], json.loads(stored), atol=1e-6)
        assert np.linalg.norm(record["embedding"]) == pytest.approx(1, abs=0.01)
        assert record["model"] == "test-model"
    tide = next(record for record in records if record["text"] == "Wait for the tide.")
    assert (tide["category"], tide["domains"], tide["book"], tide["chapter"], tide["weight"]) == (
        "rules",
        ["risk", "timing"],
        "The Ferry’s Log",
        1,
        1.0,
    )


@pytest.mark.parametrize(("export", "name"), [(export_items, "kis"), (export_vectors, "entries.jsonl")])
def test_nothing_is_replaced_unasked_and_whole_when_asked(
    filled: Workbench, tmp_path: Path, export: Callable[..., Exported], name: str
) -> None:
    target = tmp_path / name
    export(filled.database, target)
    with pytest.raises(ConfigurationError, match="--overwrite" if export is export_vectors else "not empty") as refused:
        export(filled.database, target)
    assert "--overwrite" in str(refused.value)
    filled.drop("The Ferry’s Log", chapter(1, domains=["risk"], rules=["Only this."]))
    filled.ingest()
    assert export(filled.database, target, overwrite=True).items == 1
    left = [path for path in tmp_path.rglob("*.json*") if path.is_file() and "data" not in path.parts]
    assert not any("timing" in path.parts for path in left if "kis" in path.parts)
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_folder_that_holds_something_else_is_left_alone(filled: Workbench, tmp_path: Path) -> None:
    precious = tmp_path / "photos" / "me.jpg"
    precious.parent.mkdir()
    precious.write_bytes(b"x")
    with pytest.raises(ConfigurationError, match=r"no export has written: me\.jpg"):
        export_items(filled.database, precious.parent, overwrite=True)
    with pytest.raises(ConfigurationError, match="no export has written"):
        export_items(filled.database, filled.settings.ministers_dir, overwrite=True)
    assert precious.read_bytes() == b"x"


def test_a_folder_that_a_file_browser_showed_is_replaced_all_the_same(filled: Workbench, tmp_path: Path) -> None:
    target = tmp_path / "kis"
    export_items(filled.database, target)
    (domain, *_) = target.iterdir()
    for folder in (target, domain):
        (folder / ".DS_Store").write_bytes(b"Bud1")
    export_items(filled.database, target, overwrite=True)
    assert not list(target.rglob(".DS_Store"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="links and pipes as POSIX has them")
def test_a_link_stays_a_link_and_a_pipe_a_pipe(filled: Workbench, tmp_path: Path) -> None:
    """Run by root with --overwrite, /dev/stdout and /dev/full had become files."""
    disk, here = tmp_path / "other disk", tmp_path / "here"
    disk.mkdir()
    here.mkdir()
    (disk / "kis").mkdir()
    for name in ("kis", "entries.jsonl"):
        (here / name).symlink_to(disk / name)
    for _ in range(2):
        export_items(filled.database, here / "kis", overwrite=True)
        export_vectors(filled.database, here / "entries.jsonl", overwrite=True)
    assert sorted(path.name for path in here.iterdir() if path.is_symlink()) == ["entries.jsonl", "kis"]
    assert sorted(path.name for path in (*here.iterdir(), *disk.iterdir())) == [
        "entries.jsonl",
        "entries.jsonl",
        "kis",
        "kis",
    ]
    assert len(list((disk / "kis").rglob("*.json"))) == 8
    assert len((disk / "entries.jsonl").read_bytes().splitlines()) == 4
    os.mkfifo(here / "pipe")
    with pytest.raises(ConfigurationError, match="a device or a pipe"):
        export_vectors(filled.database, here / "pipe", overwrite=True)
    assert (here / "pipe").is_fifo()


def test_an_export_that_fails_leaves_what_was_there(
    filled: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for export, name in ((export_items, "kis"), (export_vectors, "entries.jsonl")):
        export(filled.database, tmp_path / name)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json*") if path.is_file()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for export, name in ((export_items, "kis"), (export_vectors, "entries.jsonl")):
        with pytest.raises(StorageError, match="No space left"):
            export(filled.database, tmp_path / name, overwrite=True, progress=full)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json*") if path.is_file()} == before
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.skipif(os.name == "nt", reason="limits of POSIX")
def test_a_disk_that_takes_no_more_is_told_by_the_name_of_the_export(filled: Workbench, tmp_path: Path) -> None:
    """`era export kis` named the hidden folder that it fills, which was gone by then."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for export, name in ((export_items, "kis"), (export_vectors, "entries.jsonl")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1]))
        try:
            with pytest.raises(StorageError) as told:
                export(filled.database, tmp_path / name)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert told.value.message == f"{tmp_path / name} cannot be written: File too large."


def test_an_export_of_vectors_goes_on_through_a_promotion_with_the_vectors_it_began_with(
    filled: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_export, "_ROWS_AT_ONCE", 1)  # three of the four rows are read after the switch
    other = Workbench(filled.settings, filled.database, server=FakeEmbeddingServer(model="second-model", dimension=24))
    build_space(other.settings, other.database, transport=FakeTransport(other.server))
    promoted: list[int] = []

    def promote(done: int, total: int) -> None:
        if not promoted:
            promoted.append(promote_space(filled.database, 2).promoted.space_id)

    export_vectors(filled.database, tmp_path / "entries.jsonl", progress=promote)
    assert promoted == [2]
    lines = [json.loads(line) for line in (tmp_path / "entries.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {(record["model"], len(record["embedding"])) for record in lines} == {("test-model", 16)}


def test_before_anything_is_embedded_there_is_no_vector_to_export(database: Database, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no vectors yet"):
        export_vectors(database, tmp_path / "entries.jsonl")
    assert list(tmp_path.iterdir()) == []
    assert export_items(database, tmp_path / "kis").items == 0


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks there, and a user removes it")
@pytest.mark.parametrize("kind", ["kis", "vectors"])
def test_what_a_killed_export_left_is_removed_by_the_next_one_and_a_running_ones_is_not(
    filled: Workbench, tmp_path: Path, kind: str
) -> None:
    """Gigabytes under hidden names, one more for each try."""
    folder = tmp_path / "out [1]"
    folder.mkdir()
    target = folder / "export"
    others = [folder / ".export.0123abcd.tmp.mine", folder / ".export2.0123abcd.tmp", folder / ".export.notours1.tmp"]
    for other in others:
        other.write_bytes(b"x")

    def left() -> list[Path]:
        return sorted(path for path in folder.iterdir() if path not in (*others, target))

    def unfinished() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", UNFINISHED, kind, str(target)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "made\n"
        return process

    export = export_items if kind == "kis" else export_vectors
    with unfinished() as killed, unfinished() as running:
        try:
            killed.kill()
            killed.wait()
            assert len(left()) == 2
            export(filled.database, target)
            assert len(left()) == 1
        finally:
            running.kill()
    export(filled.database, target, overwrite=True)
    assert left() == []
    assert all(other.exists() for other in others)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks there, and a user removes it")
def test_the_former_export_stays_as_long_as_it_is_the_only_one(filled: Workbench, tmp_path: Path) -> None:
    """A process killed between the two steps of a replacement leaves it under another name."""
    former = tmp_path / ".kis.0123abcd.old"
    export_items(filled.database, former)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError):
        export_items(filled.database, tmp_path / "kis", progress=full)
    assert former.is_dir()
    export_items(filled.database, tmp_path / "kis")
    export_items(filled.database, tmp_path / "kis", overwrite=True)
    assert not former.exists()
