"""Looks at the drop folder: what the register holds afterwards, and what becomes pending."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest

from era_dagster.domain.errors import ChaptersFailed, ConfigurationError, StorageError, TransientError
from era_dagster.intake.reader import BookRead, read_source
from era_dagster.intake.snapshot import SourceStat, scan_drop
from era_dagster.pipeline import health
from era_dagster.pipeline.drop import DropLook, look_at_drop
from era_dagster.storage.looking import looking_alone
from era_dagster_tests.pipeline.workbench import Workbench, chapter, one_file


def test_new_changed_and_gone_chapters_are_told_and_pending(bench: Workbench) -> None:
    bench.drop("ferry", chapter(1), chapter(2), chapter(3))
    look = bench.look()
    assert (look.new, look.chapters) == (("ferry/0001", "ferry/0002", "ferry/0003"), 3)
    bench.run()
    bench.drop("ferry", chapter(1), chapter(2, "Other words."))
    look = bench.look()
    assert (look.new, look.changed, look.gone, look.chapters) == ((), ("ferry/0002",), ("ferry/0003",), 2)
    assert [(known.partition_key, known.gone) for known in bench.pending()] == [
        ("ferry/0002", False),
        ("ferry/0003", True),
    ]


def test_broken_json_is_quarantined_while_the_other_books_go_through(bench: Workbench) -> None:
    bench.drop("ferry", chapter(1, rules=["Count twice."]))
    bench.drop("harbour", chapter(1))
    bench.write("harbour/02_doctrine.json", b'[{"chapter_index": 1,')
    receipt = bench.ingest()
    look = bench.look()
    assert receipt.chapters_stored == 1
    assert len(look.troubles) == 1
    assert look.troubles[0].file.endswith("02_doctrine.json")
    assert look.troubles[0].location.startswith("line 1")
    assert look.problems()[0].startswith("Cannot read ")
    assert bench.rows("SELECT state FROM drop_sources ORDER BY source_path") == ["read", "unreadable"]
    # The doctor's next step is one that helps: there is no dead letter to try again.
    assert health.intake(bench.database).next_step == "`era status` names them."


def test_a_sentence_names_the_file_and_the_place_in_it_once(bench: Workbench) -> None:
    """Cannot read X at line 1 column 2: X is not UTF-8: byte 0xc4 at line 1 column 2."""
    file = bench.write("harbour.json", b"[\xc4")
    assert bench.look().problems() == [f"Cannot read {file} at line 1 column 2: it is not UTF-8: byte 0xc4."]


def test_a_file_in_the_place_of_the_drop_folder_is_no_source(bench: Workbench) -> None:
    """It was read, and stayed in quarantine when the setting was corrected; the doctor called it what it is."""
    file = bench.write("notes.txt", b"Buy ink.")
    settings = replace(bench.settings, drop_dir=file)
    with pytest.raises(ConfigurationError, match=r"notes\.txt is a file\. Set ERA_DROP_DIR"):
        look_at_drop(settings, bench.database, file)
    assert health.drop_folder(file).level == "failed"
    assert bench.rows("SELECT source_path FROM drop_sources") == []


def test_a_repaired_file_is_picked_up_and_its_quarantine_ends(bench: Workbench) -> None:
    bench.write("harbour/01_chapters.json", [chapter(1)[0]])
    bench.write("harbour/02_doctrine.json", b'[{"chapter_index": 1,')
    bench.ingest()
    bench.drop("harbour", chapter(1, rules=["Count twice."]))
    assert bench.ingest().chapters_stored == 1
    assert (bench.count("quarantine"), bench.look().troubles) == (0, ())
    assert bench.rows("SELECT state, reason FROM drop_sources") == [("read", "")]


def test_a_book_that_becomes_unreadable_keeps_what_it_had(bench: Workbench) -> None:
    bench.drop("harbour", chapter(1, rules=["Count twice."]))
    bench.ingest()
    bench.write("harbour/02_doctrine.json", b"")
    look = bench.look()
    assert (look.gone, len(look.troubles), bench.pending()) == ((), 1, [])
    assert bench.count("minister_entries") == 1


def test_a_record_that_cannot_be_read_leaves_its_stored_chapter_alone(bench: Workbench) -> None:
    bench.drop("ferry", chapter(1, rules=["Count twice."]), chapter(2))
    bench.ingest()
    bench.drop("ferry", chapter(1, rules=[]), chapter(2, "Changed."))
    bench.write("ferry/01_chapters.json", [{"chapter_index": 1, "raw_text": 5}, chapter(2, "Changed.")[0]])
    look = bench.look()
    assert (look.changed, look.gone, [trouble.location for trouble in look.troubles]) == (
        ("ferry/0002",),
        (),
        ["[0].raw_text"],
    )
    bench.run()
    assert bench.rows("SELECT text FROM minister_entries") == ["Count twice."]


def test_an_unfinished_book_waits_and_starts_when_its_doctrine_comes(bench: Workbench) -> None:
    bench.write("ferry/01_chapters.json", [chapter(1)[0]])
    look = bench.look()
    assert look.waiting[0][1] == "02_doctrine.json not there yet"
    assert bench.pending() == []
    bench.drop("ferry", chapter(1))
    assert bench.look().new == ("ferry/0001",)
    assert bench.rows("SELECT state FROM drop_sources") == ["read"]


def test_a_file_still_being_written_is_left_alone_until_it_settles(bench: Workbench) -> None:
    bench.settings = replace(bench.settings, settle_seconds=3600.0)
    folder = bench.drop("ferry", chapter(1))
    patient = _patient_look(bench)
    assert (patient.new, [reason for _, reason in patient.waiting]) == ((), ["still being written"])
    for file in folder.iterdir():
        os.utime(file, (1_000_000_000, 1_000_000_000))
    assert _patient_look(bench).new == ("ferry/0001",)


def _patient_look(bench: Workbench) -> DropLook:
    return look_at_drop(bench.settings, bench.database, bench.settings.drop_dir)


def test_a_dry_look_tells_and_records_nothing(bench: Workbench) -> None:
    bench.drop("ferry", chapter(1))
    bench.write("broken.json", b"{")
    tables = bench.tables(versions=True)
    look = bench.look(record=False)
    assert (look.new, len(look.troubles)) == (("ferry/0001",), 1)
    assert bench.tables(versions=True) == tables


def test_a_folder_that_is_not_there_is_an_error_and_retires_nothing(bench: Workbench) -> None:
    bench.drop("ferry", chapter(1))
    bench.ingest()
    bench.settings.drop_dir.rename(bench.settings.drop_dir.with_name("unplugged"))
    with pytest.raises(ConfigurationError, match="drop"):
        bench.look()
    assert (bench.pending(), bench.count("drop_chapters", "gone")) == ([], 0)


def test_an_empty_directory_in_the_place_of_a_drop_folder_retires_nothing(bench: Workbench) -> None:
    """A disk that is not mounted leaves one, and a container engine makes one."""
    bench.drop("ferry", chapter(1), chapter(2))
    bench.ingest()
    drop, unplugged = bench.settings.drop_dir, bench.settings.drop_dir.with_name("unplugged")
    drop.rename(unplugged)
    drop.mkdir()
    for record in (False, True):
        with pytest.raises(ConfigurationError, match="in which 2 chapters lay") as caught:
            bench.look(record=record)
        assert caught.value.hint is not None
        assert "put any file" in caught.value.hint
    assert (bench.pending(), bench.count("drop_chapters", "gone")) == ([], 0)
    drop.rmdir()
    unplugged.rename(drop)
    assert bench.look().gone == ()


@pytest.mark.parametrize("name", [".DS_Store", "lost+found", "System Volume Information", "desktop.ini"])
def test_what_systems_put_into_an_empty_directory_makes_no_drop_folder_of_it(bench: Workbench, name: str) -> None:
    bench.drop("ferry", chapter(1))
    bench.ingest()
    drop = bench.settings.drop_dir
    drop.rename(drop.with_name("unplugged"))
    (drop / name).mkdir(parents=True)
    with pytest.raises(ConfigurationError, match="in which 1 chapters lay"):
        bench.look()


def test_a_drop_folder_of_which_no_directory_was_noted_is_kept_too(bench: Workbench) -> None:
    """Those that were last looked at by an older release."""
    bench.drop("ferry", chapter(1))
    bench.ingest()
    with bench.database.connection() as connection:
        connection.execute("DELETE FROM drop_folders")
    shutil.rmtree(bench.settings.drop_dir / "ferry")
    with pytest.raises(ConfigurationError, match="in which 1 chapters lay"):
        bench.look()


@pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")
def test_a_linked_book_whose_disk_is_away_stays_until_its_link_goes(bench: Workbench, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    bench.drop("ferry", chapter(1), chapter(2)).rename(disk)
    link = bench.settings.drop_dir / "ferry"
    link.symlink_to(disk, target_is_directory=True)
    bench.drop("harbour", chapter(1))
    bench.ingest()
    disk.rename(tmp_path / "unplugged")
    look = bench.look()
    assert (look.gone, bench.pending()) == ((), [])
    assert look.waiting == ((str(link), f"it is a link to {disk}, which is not there"),)
    (tmp_path / "unplugged").rename(disk)
    back = bench.look()
    assert (back.new, back.changed, back.gone, back.waiting) == ((), (), (), ())
    link.unlink()
    assert len(bench.look().gone) == 2


def test_a_disk_that_is_mounted_as_another_one_is_the_drop_folder_from_then_on(bench: Workbench) -> None:
    bench.drop("ferry", chapter(1))
    bench.drop("inn", chapter(1))
    bench.ingest()
    drop = bench.settings.drop_dir
    shutil.copytree(drop, drop.with_name("copy"))
    drop.rename(drop.with_name("unplugged"))
    drop.with_name("copy").rename(drop)
    assert bench.look().gone == ()
    shutil.rmtree(drop / "ferry")
    shutil.rmtree(drop / "inn")
    assert bench.look().gone == ("ferry/0001", "inn/0001")


def test_a_disk_that_goes_while_its_books_are_read_is_missed_by_the_next_look(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.drop("ferry", chapter(1))
    drop = bench.settings.drop_dir

    def read(path: Path) -> list[BookRead]:
        books = read_source(path)
        drop.rename(drop.with_name("unplugged"))
        drop.mkdir()
        return books

    monkeypatch.setattr("era_dagster.pipeline.drop.read_source", read)
    assert bench.look().new == ("ferry/0001",)
    with pytest.raises(ConfigurationError, match="in which 1 chapters lay"):
        bench.look()


def test_a_disk_that_comes_while_its_mount_point_is_looked_at_removes_nothing(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.drop("ferry", chapter(1))
    bench.ingest()
    drop = bench.settings.drop_dir
    drop.rename(drop.with_name("unplugged"))
    drop.mkdir()

    def scan(root: Path) -> tuple[SourceStat, ...]:
        found = scan_drop(root)
        drop.rmdir()
        drop.with_name("unplugged").rename(drop)
        return found

    with monkeypatch.context() as patched, pytest.raises(TransientError, match="look again"):
        patched.setattr("era_dagster.pipeline.drop.scan_drop", scan)
        bench.look()
    assert bench.look().gone == ()


def test_whoever_put_another_directory_there_removes_its_books_by_putting_a_file_into_it(bench: Workbench) -> None:
    bench.drop("ferry", chapter(1))
    bench.ingest()
    shutil.move(bench.settings.drop_dir, bench.settings.drop_dir.with_name("unplugged"))
    bench.settings.drop_dir.mkdir()
    bench.write("notes.txt", b"The books are gone for good.")
    assert bench.look().gone == ("ferry/0001",)
    assert bench.run().chapters_retired == 1
    (bench.settings.drop_dir / "notes.txt").unlink()
    assert bench.look().chapters == 0


def test_the_default_drop_folder_is_made_only_while_nothing_was_dropped(bench: Workbench) -> None:
    bench.settings = replace(bench.settings, sources={**bench.settings.sources, "drop_dir": "default"})
    bench.settings.drop_dir.rmdir()
    bench.look()
    assert bench.settings.drop_dir.is_dir()
    bench.drop("ferry", chapter(1))
    bench.look()
    shutil.rmtree(bench.settings.drop_dir)
    with pytest.raises(ConfigurationError):
        bench.look()


def test_a_default_drop_folder_that_cannot_be_made_is_one_of_our_errors(bench: Workbench) -> None:
    """In a project folder that is read-only, for example; a run failed with a stack trace."""
    in_the_way = bench.settings.drop_dir.parent / "file"
    in_the_way.touch()
    sources = {**bench.settings.sources, "drop_dir": "default"}
    bench.settings = replace(bench.settings, sources=sources, drop_dir=in_the_way / "drop")
    with pytest.raises(StorageError, match="cannot be written: Not a directory"):
        bench.look()


def test_the_newer_of_two_drops_of_a_book_counts(bench: Workbench) -> None:
    older, newer = _two_drops(bench)
    bench.look()
    assert bench.rows("SELECT source_path, content_hash IS NOT NULL FROM drop_chapters") == [(newer, True)]
    bench.run()
    assert bench.rows("SELECT text FROM minister_entries") == ["The newer rule."]
    assert bench.rows("SELECT source_path, reason FROM drop_sources WHERE reason <> ''") == [
        (older, f"newer drops hold chapters of it: {newer}")
    ]


def test_the_older_drop_comes_back_when_the_newer_one_goes(bench: Workbench) -> None:
    older, newer = _two_drops(bench)
    bench.ingest()
    Path(newer).unlink()
    look = bench.look()
    assert (look.changed, look.gone, look.chapters) == (("ferry/0001",), (), 1)
    bench.run()
    assert bench.rows("SELECT text FROM minister_entries") == ["The older rule."]
    assert bench.rows("SELECT source_path, state, reason FROM drop_sources") == [(older, "read", "")]


def test_an_older_drop_read_earlier_comes_back_too(bench: Workbench) -> None:
    """The older drop is not read in the look that finds the newer one: only its reason is recorded then."""
    older, newer = _two_drops(bench, both=False)
    bench.ingest()
    assert bench.rows("SELECT text FROM minister_entries") == ["The older rule."]
    _two_drops(bench)
    bench.ingest()
    assert bench.rows("SELECT text FROM minister_entries") == ["The newer rule."]
    assert bench.rows("SELECT source_path FROM drop_sources WHERE reason <> ''") == [older]
    Path(newer).unlink()
    bench.ingest()
    assert bench.rows("SELECT text FROM minister_entries") == ["The older rule."]


def test_two_drops_of_a_book_are_at_rest_after_one_look(bench: Workbench) -> None:
    _two_drops(bench)
    bench.ingest()
    tables = bench.tables(versions=True)
    look = bench.look()
    assert (look.new, look.changed, look.gone, look.chapters) == ((), (), (), 1)
    assert bench.tables(versions=True) == tables


def _two_drops(bench: Workbench, *, both: bool = True) -> tuple[str, str]:
    """The book "ferry" as a folder and, newer, as a file."""
    folder = bench.drop("ferry", chapter(1, rules=["The older rule."]))
    for file in folder.iterdir():
        os.utime(file, (1_000_000_000, 1_000_000_000))
    file = bench.settings.drop_dir / "ferry.json"
    if both:
        bench.write("ferry.json", one_file("ferry", chapter(1, rules=["The newer rule."])))
        os.utime(file, (1_000_000_100, 1_000_000_100))
    return str(folder), str(file)


def test_a_vanished_source_is_forgotten_when_its_chapters_are_retired(bench: Workbench) -> None:
    shutil.rmtree(bench.drop("harbour", chapter(1)))
    bench.drop("ferry", chapter(1))
    bench.ingest()
    shutil.rmtree(bench.settings.drop_dir / "ferry")
    assert bench.look().gone == ("ferry/0001",)
    assert bench.count("drop_sources") == 1
    bench.run()
    bench.look()
    assert (bench.count("drop_sources"), bench.count("drop_chapters")) == (0, 0)


def test_a_book_that_returns_before_it_was_retired_is_not_lost(bench: Workbench) -> None:
    bench.drop("ferry", chapter(1, rules=["Count twice."]))
    bench.ingest()
    folder, aside = bench.settings.drop_dir / "ferry", bench.settings.drop_dir.with_name("aside")
    folder.rename(aside)
    bench.look()
    gone = bench.known()
    aside.rename(folder)
    bench.look()
    bench.run(chapters=gone)  # a run that was requested while the book was away
    bench.ingest()
    assert bench.rows("SELECT text FROM minister_entries") == ["Count twice."]
    assert bench.pending() == []


def test_a_book_that_returns_after_it_was_retired_is_read_again(bench: Workbench) -> None:
    bench.drop("ferry", chapter(1, rules=["Count twice."]))
    bench.ingest()
    folder, aside = bench.settings.drop_dir / "ferry", bench.settings.drop_dir.with_name("aside")
    folder.rename(aside)
    bench.ingest()
    aside.rename(folder)
    bench.ingest()
    assert bench.rows("SELECT text FROM minister_entries") == ["Count twice."]


def test_names_that_postgresql_cannot_hold_do_not_stop_a_look(bench: Workbench) -> None:
    bench.write("odd.json", [{"book": "a\x00b\ud800", **chapter(1)[0], **chapter(1, rules=["Count twice."])[1]}])
    bench.write("worse.json", b'[5, "\\u0000\\ud800", {"chapter_index": "\\u0000"}]')
    assert bench.ingest().chapters_stored == 1
    assert len(bench.look().troubles) >= 3


def test_the_priority_of_a_drop_reaches_its_chapters(bench: Workbench) -> None:
    bench.write("ferry.json", [{"book": "ferry", "priority": 7, **chapter(1)[0], **chapter(1)[1]}])
    bench.look()
    assert [known.priority for known in bench.pending()] == [7]


def test_a_priority_file_that_comes_or_goes_after_its_book_counts(bench: Workbench) -> None:
    """A file `priority` beside the book that is already known was seen only once the book itself changed."""
    bench.drop("ferry", chapter(1))
    bench.look()
    bench.write("ferry/priority", b"3")
    assert bench.look().changed == ()
    assert [known.priority for known in bench.pending()] == [3]
    (bench.settings.drop_dir / "ferry" / "priority").unlink()
    bench.look()
    assert [known.priority for known in bench.pending()] == [None]


def _second_folder(bench: Workbench, rule: str, *, at: int) -> Path:
    """The book "ferry" in another drop folder, changed at this time."""
    text, doctrine = chapter(1, rules=[rule])
    folder = bench.settings.drop_dir.with_name("other drop") / "ferry"
    folder.mkdir(parents=True)
    for name, content in (("01_chapters.json", [text]), ("02_doctrine.json", [doctrine])):
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
        os.utime(folder / name, (at, at))
    return folder


def _look_elsewhere(bench: Workbench, folder: Path) -> DropLook:
    return look_at_drop(bench.settings, bench.database, folder.parent, patient=False)


def _counted_elsewhere(bench: Workbench) -> Path:
    """A book that is ingested from the drop folder, and then from another one, where its newer copy lies."""
    _two_drops(bench, both=False)
    bench.ingest()
    folder = _second_folder(bench, "The rule of the other folder.", at=1_000_000_200)
    assert _look_elsewhere(bench, folder).changed == ("ferry/0001",)
    bench.run()
    return folder


def test_a_book_in_two_drop_folders_survives_the_removal_of_the_copy_that_owns_it(bench: Workbench) -> None:
    """The chapters were retired, although the other folder still held the book."""
    folder = _counted_elsewhere(bench)
    assert bench.rows("SELECT text FROM minister_entries") == ["The rule of the other folder."]
    assert bench.look().chapters == 0
    shutil.rmtree(folder)
    look = _look_elsewhere(bench, folder)
    assert (look.gone, look.chapters) == ((), 0)
    assert bench.run().chapters_retired == 0
    assert bench.rows("SELECT text FROM minister_entries") == ["The older rule."]
    assert bench.look().chapters == 1
    assert bench.rows("SELECT DISTINCT reason FROM drop_sources WHERE state = 'read'") == [""]


def test_the_newer_copy_counts_whichever_folder_is_looked_at(bench: Workbench) -> None:
    _two_drops(bench, both=False)
    bench.ingest()
    folder = _second_folder(bench, "An old rule.", at=999_999_999)
    look = _look_elsewhere(bench, folder)
    assert (look.new, look.changed) == ((), ())
    assert any("newer drops hold chapters of it" in note for note in look.notices())
    bench.drop("inn", chapter(1))
    bench.ingest()
    _look_elsewhere(bench, folder)
    assert bench.pending() == []
    assert bench.rows("SELECT text FROM minister_entries") == ["The older rule."]


def test_two_looks_at_a_time_lose_no_chapter_that_moves_between_their_folders(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slower one still knew the chapter by its old place: it recorded as gone what the other had just found."""
    bench.drop("ferry", chapter(1, rules=["The rule of the first folder."]))
    bench.ingest()
    shutil.rmtree(bench.settings.drop_dir / "ferry")
    moved = _second_folder(bench, "The rule of the other folder.", at=1_000_000_200)
    bench.drop("inn", chapter(1))
    others: list[Thread] = []

    def slow_read(path: Path) -> tuple[BookRead, ...]:
        if path.name == "inn":
            others.append(Thread(target=_look_elsewhere, args=(bench, moved)))
            others[0].start()
            others[0].join(timeout=2.0)
        return read_source(path)

    monkeypatch.setattr("era_dagster.pipeline.drop.read_source", slow_read)
    bench.look()
    others[0].join()
    bench.run()
    assert bench.rows("SELECT text FROM minister_entries") == ["The rule of the other folder."]
    assert bench.rows("SELECT source_path FROM drop_chapters WHERE partition_key = 'ferry/0001'") == [str(moved)]


def test_a_run_with_an_old_view_of_a_chapter_leaves_no_failure_on_one_that_is_stored(bench: Workbench) -> None:
    """A long run noted at its end what it could not read, though the chapter lay elsewhere by then and was stored."""
    bench.drop("ferry", chapter(1, rules=["The rule of the folder."]))
    bench.look()
    old_view = bench.pending()
    shutil.rmtree(bench.settings.drop_dir / "ferry")
    bench.write("ferry.json", one_file("ferry", chapter(1, rules=["The rule of the file."])))
    bench.ingest()
    with pytest.raises(ChaptersFailed):
        bench.run(chapters=old_view)
    assert bench.rows("SELECT text FROM minister_entries") == ["The rule of the file."]
    assert bench.rows("SELECT failure FROM drop_chapters") == [None]
    assert bench.pending() == []


def test_a_look_that_waits_for_another_one_says_so(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("era_dagster.storage.looking._PATIENCE_SECONDS", 1)
    with looking_alone(bench.database), pytest.raises(TransientError, match="Another process has been looking"):
        bench.look()
    assert bench.look().chapters == 0


def test_a_look_at_another_folder_leaves_a_newer_drop_in_its_place(bench: Workbench) -> None:
    """The older drop was read again without the newer one beside it, and its chapters came back."""
    _, newer = _two_drops(bench)
    bench.ingest()
    other = bench.settings.drop_dir.with_name("other drop")
    other.mkdir()
    bench.drop("harbour", chapter(1)).rename(other / "harbour")
    look = _look_elsewhere(bench, other / "harbour")
    assert look.new == ("harbour/0001",)
    bench.run()
    assert bench.rows("SELECT source_path FROM drop_chapters WHERE partition_key = 'ferry/0001'") == [newer]
    assert bench.rows("SELECT text FROM minister_entries") == ["The newer rule."]


def test_a_copy_in_a_folder_that_is_unplugged_is_read_when_it_returns(bench: Workbench) -> None:
    folder = _counted_elsewhere(bench)
    unplugged = bench.settings.drop_dir.rename(bench.settings.drop_dir.with_name("unplugged"))
    shutil.rmtree(folder)
    assert _look_elsewhere(bench, folder).gone == ("ferry/0001",)
    bench.run()
    assert bench.count("minister_entries") == 0
    unplugged.rename(bench.settings.drop_dir)
    bench.ingest()
    assert bench.rows("SELECT text FROM minister_entries") == ["The older rule."]


def test_a_newer_copy_that_was_unplugged_counts_again_when_it_returns(bench: Workbench) -> None:
    """Its files were as before, so nobody read them: the older copy that had taken its place stayed."""
    folder = _counted_elsewhere(bench)
    unplugged = folder.parent.rename(folder.parent.with_name("unplugged"))
    bench.drop("inn", chapter(1))
    bench.ingest()
    assert bench.rows("SELECT text FROM minister_entries") == ["The older rule."]
    unplugged.rename(folder.parent)
    _look_elsewhere(bench, folder)
    bench.run()
    assert bench.rows("SELECT text FROM minister_entries") == ["The rule of the other folder."]


def test_what_is_odd_about_a_whole_source_is_kept_until_it_changes(bench: Workbench) -> None:
    bench.write("empty.json", [])
    bench.look()
    bench.look()
    assert bench.rows("SELECT notes FROM drop_sources") == [["no chapters in empty"]]
    bench.write("empty.json", one_file("empty", chapter(1, rules=["Wait."])))
    bench.look()
    assert bench.rows("SELECT notes FROM drop_sources") == [[]]


def test_a_damaged_record_in_the_newer_of_two_drops_keeps_the_text_of_the_newer(bench: Workbench) -> None:
    for file in bench.drop("ferry", chapter(1, "The old text.", rules=["Old."])).iterdir():
        os.utime(file, (1_000_000_000, 1_000_000_000))
    newer = one_file("ferry", chapter(1, "The new text.", rules=["New."]))
    bench.write("newer.json", newer)
    bench.ingest()
    newer[0]["raw_text"] = 5
    bench.write("newer.json", newer)
    look = bench.look()
    assert (look.changed, len(look.troubles)) == ((), 1)
    assert (bench.pending(), bench.rows("SELECT text FROM doctrine_sources")) == ([], ["The new text."])


@pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")
def test_a_linked_book_whose_disk_is_away_loses_no_chapter_to_an_older_drop(bench: Workbench, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    for file in bench.drop("ferry", chapter(1, "The old text.")).iterdir():
        os.utime(file, (1_000_000_000, 1_000_000_000))
    bench.write("newer.json", one_file("ferry", chapter(1, "The new text."))).rename(disk)
    (bench.settings.drop_dir / "newer.json").symlink_to(disk)
    bench.ingest()
    disk.rename(tmp_path / "unplugged")
    bench.drop("harbour", chapter(1))
    look = bench.look()
    assert (look.new, look.changed, look.gone) == (("harbour/0001",), (), ())
    assert [known.source_path for known in bench.known() if known.partition_key == "ferry/0001"] == [
        str(bench.settings.drop_dir / "newer.json")
    ]


@pytest.mark.parametrize("file", ["01_chapters.json", "02_doctrine.json"])
def test_a_key_that_is_there_twice_takes_nothing_from_what_is_stored(bench: Workbench, file: str) -> None:
    """Half of the chapter stood for the whole of it: its chunks were removed, or its entries and their minister files."""
    book = bench.drop("ferry", chapter(1, "A text.", rules=["A rule."]))
    bench.ingest()
    text = (book / file).read_text(encoding="utf-8")
    bench.write(
        f"ferry/{file}", text.replace('"chapter_title"', '"chapter_title": null, "chapter_title"').encode("utf-8")
    )
    assert (book / file).read_text(encoding="utf-8") != text
    look = bench.look()
    assert (look.changed, look.gone, len(look.troubles), bench.pending()) == ((), (), 1, [])
