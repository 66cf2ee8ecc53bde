"""What counts as a source in the drop folder, and what is passed over or waits."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from era_dagster.domain.errors import ConfigurationError
from era_dagster.intake.snapshot import scan_drop

WriteBook = Callable[..., Path]


def test_books_and_files_are_found_and_by_products_are_not(write_book: WriteBook, drop: Path) -> None:
    folder = write_book("Ferry Notes", [], [])
    for name in ("00_raw.txt", "02_doctrine_chunks.json", "progress.json", "priority", "x_errors.log"):
        (folder / name).write_bytes(b"{}")
    (folder / "ministers").mkdir()
    for name in (
        "one.json",
        "two.JSON",
        "notes.txt",
        "progress.json",
        "03_nodes.json",
        ".hidden.json",
        "new.json.part",
    ):
        (drop / name).write_bytes(b"[]")
    for name in ("ministers", ".git", "Copy.tmp"):
        (drop / name).mkdir()
    found = scan_drop(drop)
    assert [(stat.name, stat.kind, stat.obstacle) for stat in found] == [
        ("Ferry Notes", "folder", ""),
        ("one.json", "file", ""),
        ("two.JSON", "file", ""),
    ]
    assert found[0].path == str(folder)
    assert [file.name for file in found[0].files] == ["01_chapters.json", "02_doctrine.json"]
    status = (folder / "01_chapters.json").stat()
    assert (found[0].files[0].size, found[0].files[0].mtime_ns) == (status.st_size, status.st_mtime_ns)


def test_an_incomplete_book_waits_and_says_for_what(write_book: WriteBook) -> None:
    write_book("A", chapters=[])
    write_book("B", doctrine=[])
    drop = write_book("C").parent
    assert [(stat.name, stat.obstacle) for stat in scan_drop(drop)] == [
        ("A", "02_doctrine.json not there yet"),
        ("B", "01_chapters.json not there yet"),
        ("C", "01_chapters.json and 02_doctrine.json not there yet"),
    ]


def test_a_single_book_or_file_may_be_scanned_itself_under_the_same_path(write_book: WriteBook, drop: Path) -> None:
    folder = write_book("Ferry Notes", [], [])
    (drop / "one.json").write_bytes(b"[]")
    in_drop = {stat.name: stat for stat in scan_drop(drop)}
    (alone,) = scan_drop(folder)
    assert (alone.name, alone.path, alone.files) == (".", in_drop["Ferry Notes"].path, in_drop["Ferry Notes"].files)
    (file,) = scan_drop(drop / "one.json")
    assert (file.name, file.path, file.kind) == (".", in_drop["one.json"].path, "file")


def test_input_files_that_stray_among_books_hide_no_book(write_book: WriteBook, drop: Path) -> None:
    """Taking the whole drop folder for one book would retire all the others."""
    write_book("Ferry Notes", [], [])
    (drop / "01_chapters.json").write_bytes(b"[]")
    (drop / "02_doctrine.json").write_bytes(b"[]")
    stray, book = scan_drop(drop)
    assert (stray.name, book.name, book.obstacle) == (".", "Ferry Notes", "")
    assert "move them" in stray.obstacle


def test_a_root_that_cannot_be_listed_is_an_error_and_never_an_empty_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere"):
        scan_drop(tmp_path / "nowhere")


@pytest.mark.skipif(os.name == "nt" or (hasattr(os, "geteuid") and os.geteuid() == 0), reason="root may read anything")
def test_a_root_without_read_rights_wants_them_and_is_not_to_be_made(drop: Path) -> None:
    drop.chmod(0)
    with pytest.raises(ConfigurationError) as caught:
        scan_drop(drop)
    drop.chmod(0o700)
    assert caught.value.hint.startswith("Let this user read it, or")


@pytest.mark.skipif(os.name == "nt" or (hasattr(os, "geteuid") and os.geteuid() == 0), reason="root may read anything")
def test_a_file_without_read_rights_waits_until_it_has_them(write_book: WriteBook) -> None:
    path = write_book("Ferry Notes", [], [])
    (path / "02_doctrine.json").chmod(0)
    assert "no right to read it" in scan_drop(path.parent)[0].obstacle
    (path / "02_doctrine.json").chmod(0o600)
    assert scan_drop(path.parent)[0].obstacle == ""


@pytest.mark.skipif(os.name == "nt", reason="needs symbolic links and bytes as names")
def test_links_in_a_circle_are_passed_over_and_linked_books_are_not(
    write_book: WriteBook, drop: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    write_book("Ferry Notes", [], []).rename(elsewhere / "Ferry Notes")
    (drop / "Linked").symlink_to(elsewhere / "Ferry Notes", target_is_directory=True)
    (drop / "Up").symlink_to(drop, target_is_directory=True)
    (drop / "Higher").symlink_to(tmp_path, target_is_directory=True)
    assert [(stat.name, stat.obstacle) for stat in scan_drop(drop)] == [("Linked", "")]


@pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")
def test_links_that_lead_nowhere_wait_for_what_they_lead_to(drop: Path) -> None:
    (drop / "Away").symlink_to(drop / "disk", target_is_directory=True)
    (drop / "Loop").symlink_to(drop / "Loop")
    (drop / "Nowhere.json").symlink_to(drop / "missing.json")
    (drop / "01_chapters.json").symlink_to(drop / "missing.json")
    for name in (".hidden", "ministers"):
        (drop / name).symlink_to(drop / "missing.json")
    assert [(stat.name, stat.kind, stat.files) for stat in scan_drop(drop)] == [
        ("Away", "folder", ()),
        ("Loop", "folder", ()),
        ("Nowhere.json", "file", ()),
    ]
    assert scan_drop(drop)[0].obstacle == f"it is a link to {drop / 'disk'}, which is not there"


@pytest.mark.skipif(os.name == "nt" or os.uname().sysname == "Darwin", reason="the system refuses such names")
def test_a_name_that_is_no_unicode_waits_with_a_reason(drop: Path) -> None:
    Path(os.fsdecode(os.fsencode(drop) + b"/B\xff")).mkdir()
    (stat,) = scan_drop(drop)
    assert "rename" in stat.obstacle
    assert stat.path.encode("utf-8").endswith(b"B\\udcff")
