"""The plan: settled or not, changed or not, gone or not, and which of two sources a chapter belongs to."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from era_dagster.domain.doctrine import SourceChapter
from era_dagster.domain.errors import CorruptInput
from era_dagster.intake.plan import ChapterPlan, DropPlan, Look, plan_chapters, plan_drop, signature
from era_dagster.intake.reader import BookRead, Problem, read_source
from era_dagster.intake.snapshot import FileStat, SourceStat, scan_drop
from era_dagster_tests.intake.drop_records import doctrine_record, text_record

WriteBook = Callable[..., Path]
SECOND = 10**9


@dataclass(frozen=True, kw_only=True)
class Known:
    signature: str
    state: str = "read"
    reason: str = ""
    chapters: Mapping[str, bytes] = field(default_factory=dict[str, bytes])


@dataclass
class Register:
    """What the database keeps between looks, in memory; `look` is what the sensor does, on a clock of its own."""

    root: Path
    now_ns: int = 4 * 10**18
    known: dict[str, Known] = field(default_factory=dict[str, Known])
    unsettled: Mapping[str, Look] = field(default_factory=dict[str, Look])
    drop_plan: DropPlan | None = None

    def look(self, *, after_seconds: int = 60) -> ChapterPlan:
        self.now_ns += after_seconds * SECOND
        snapshot = scan_drop(self.root)
        plan = plan_drop(snapshot, self.known, now_ns=self.now_ns, settle_seconds=2, unsettled=self.unsettled)
        self.drop_plan, self.unsettled = plan, plan.unsettled
        books: list[BookRead] = []
        for source in plan.read:
            old = self.known.get(source.path)
            try:
                books += read_source(Path(source.path))
            except CorruptInput as error:
                chapters = old.chapters if old else {}
                self.known[source.path] = Known(
                    signature=signature(source), state="unreadable", reason=error.message, chapters=chapters
                )
        chapters = plan_chapters(snapshot, books, self.known)
        by_path = {source.path: source for source in snapshot}
        for path in plan.gone:
            del self.known[path]
        taken = {key for owned in chapters.owned.values() for key in owned}
        for path, record in list(self.known.items()):
            kept = {key: digest for key, digest in record.chapters.items() if key not in taken}
            reason = chapters.shadowed.get(path, record.reason)
            self.known[path] = Known(signature=record.signature, state=record.state, reason=reason, chapters=kept)
        for path, owned in chapters.owned.items():
            reason = chapters.shadowed.get(path, "")
            self.known[path] = Known(signature=signature(by_path[path]), reason=reason, chapters=owned)
        return chapters

    def keys(self) -> list[str]:
        return sorted(key for record in self.known.values() for key in record.chapters)


def numbers(chapters: Sequence[object]) -> list[int]:
    return [int(str(getattr(chapter, "partition_key", chapter))[-4:]) for chapter in chapters]


def set_age(path: Path, register: Register, seconds: float) -> None:
    files = path.iterdir() if path.is_dir() else [path]
    for file in files:
        time = register.now_ns - int(seconds * SECOND)
        os.utime(file, ns=(time, time))


def test_a_new_book_is_read_once_and_the_same_files_start_nothing(write_book: WriteBook, drop: Path) -> None:
    write_book("ferry", [text_record(1), text_record(2)], [doctrine_record(1, "A.")])
    register = Register(drop)
    first = register.look()
    assert (numbers(first.new), numbers(first.changed), first.gone) == ([1, 2], [], ())
    second = register.look()
    assert register.drop_plan is not None
    assert (register.drop_plan.read, register.drop_plan.unchanged) == ((), 1)
    assert (second.new, second.changed, second.unchanged, second.gone) == ((), (), (), ())


def test_new_times_on_the_same_content_start_nothing(write_book: WriteBook, drop: Path) -> None:
    path = write_book("ferry", [text_record(1)], [doctrine_record(1, "A.")])
    register = Register(drop)
    register.look()
    set_age(path, register, 5)
    touched = register.look()
    assert (numbers(touched.new), numbers(touched.changed), numbers(touched.unchanged)) == ([], [], [1])


def test_only_the_chapter_that_changed_runs_again(write_book: WriteBook, drop: Path) -> None:
    write_book("ferry", [text_record(1), text_record(2)], [doctrine_record(1, "A."), doctrine_record(2, "B.")])
    register = Register(drop)
    register.look()
    write_book("ferry", [text_record(1), text_record(2)], [doctrine_record(1, "A."), doctrine_record(2, "Reworded.")])
    plan = register.look()
    assert (numbers(plan.changed), numbers(plan.unchanged)) == ([2], [1])


def test_a_half_written_file_is_left_alone_until_it_settles(write_book: WriteBook, drop: Path) -> None:
    path = write_book("ferry", [text_record(1)], b'[{"chapter_index": 1')
    register = Register(drop)
    set_age(path, register, -60)
    register.look(after_seconds=60)
    assert register.drop_plan is not None
    assert list(register.drop_plan.unsettled) == [str(path)]
    write_book("ferry", doctrine=[doctrine_record(1, "A.")])
    set_age(path, register, 0)
    assert numbers(register.look(after_seconds=3).new) == [1]
    assert register.unsettled == {}


def test_a_file_whose_clock_runs_ahead_settles_when_it_stays_the_same(write_book: WriteBook, drop: Path) -> None:
    path = write_book("ferry", [text_record(1)], [])
    register = Register(drop)
    set_age(path, register, -10_000)
    assert register.look().new == ()
    set_age(path, register, -20_000)
    assert register.look(after_seconds=3).new == ()
    assert numbers(register.look(after_seconds=3).new) == [1]


def test_a_broken_file_keeps_what_there_was_is_not_tried_again_and_is_picked_up_when_repaired(
    write_book: WriteBook, drop: Path
) -> None:
    write_book("ferry", [text_record(1), text_record(2)], [doctrine_record(1, "A.")])
    register = Register(drop)
    register.look()
    write_book("ferry", chapters=b"[{")
    broken = register.look()
    assert broken.gone == ()
    assert len(register.keys()) == 2
    register.look()
    assert register.drop_plan is not None
    assert register.drop_plan.read == ()
    write_book("ferry", [text_record(1), text_record(2, "New.")])
    repaired = register.look()
    assert (numbers(repaired.changed), numbers(repaired.unchanged)) == ([2], [1])


def test_an_incomplete_folder_keeps_what_it_had(write_book: WriteBook, drop: Path) -> None:
    path = write_book("ferry", [text_record(1)], [])
    register = Register(drop)
    register.look()
    (path / "02_doctrine.json").unlink()
    assert register.look().gone == ()
    assert register.drop_plan is not None
    assert [reason for _, reason in register.drop_plan.waiting] == ["02_doctrine.json not there yet"]
    assert register.drop_plan.gone == ()


def test_a_chapter_that_vanished_is_retired_and_one_that_is_damaged_is_kept(write_book: WriteBook, drop: Path) -> None:
    write_book("ferry", [text_record(1), text_record(2), text_record(3)], [])
    register = Register(drop)
    register.look()
    write_book("ferry", [text_record(1), text_record(2, 17)], [])
    assert numbers(register.look().gone) == [3]
    assert numbers(register.keys()) == [1, 2]


def test_a_book_folder_that_vanished_retires_its_chapters(write_book: WriteBook, drop: Path) -> None:
    path = write_book("ferry", [text_record(1), text_record(2)], [])
    write_book("mill", [text_record(1)], [])
    register = Register(drop)
    register.look()
    path.rename(drop.parent / "away")
    plan = register.look()
    assert plan.gone == ("ferry/0001", "ferry/0002")
    assert register.keys() == ["mill/0001"]


def one_file(drop: Path, name: str, book: str, *records: dict[str, object]) -> Path:
    path = drop / name
    path.write_text(json.dumps([{**record, "book": book} for record in records]), encoding="utf-8")
    return path


def test_the_same_book_in_the_other_form_belongs_to_the_newer_drop_and_comes_back_when_that_goes(
    write_book: WriteBook, drop: Path
) -> None:
    folder = write_book("ferry", [text_record(1), text_record(2)], [])
    register = Register(drop)
    set_age(folder, register, 1000)
    register.look()
    file = one_file(drop, "new.json", "ferry", text_record(2, "Rewritten."))
    set_age(file, register, 0)
    taken_over = register.look()
    assert (numbers(taken_over.new), numbers(taken_over.changed), taken_over.gone) == ([], [2], ())
    assert register.known[str(file)].chapters.keys() == {"ferry/0002"}
    assert register.known[str(folder)].chapters.keys() == {"ferry/0001"}
    assert str(file) in register.known[str(folder)].reason
    file.unlink()
    back = register.look()
    assert (numbers(back.changed) + numbers(back.new), back.gone) == ([2], ())
    assert register.known[str(folder)].chapters.keys() == {"ferry/0001", "ferry/0002"}
    assert register.known[str(folder)].reason == ""


def test_an_older_drop_of_the_same_book_takes_nothing_over(write_book: WriteBook, drop: Path) -> None:
    folder = write_book("ferry", [text_record(1)], [])
    register = Register(drop)
    set_age(folder, register, 10)
    register.look()
    file = one_file(drop, "old.json", "ferry", text_record(1, "Old."), text_record(5))
    set_age(file, register, 5000)
    plan = register.look()
    assert (numbers(plan.new), numbers(plan.changed)) == ([5], [])
    assert str(folder) in plan.shadowed[str(file)]


def test_one_file_per_chapter_makes_one_book(drop: Path) -> None:
    register = Register(drop)
    one_file(drop, "a.json", "ferry", text_record(1))
    register.look()
    one_file(drop, "b.json", "ferry", text_record(2))
    plan = register.look()
    assert (numbers(plan.new), plan.gone) == ([2], ())
    assert register.keys() == ["ferry/0001", "ferry/0002"]


def source(path: str, time: int) -> SourceStat:
    return SourceStat(path=path, name=path, kind="file", files=(FileStat(name=path, size=1, mtime_ns=time),))


def book(path: str, *chapters: int, problems: tuple[Problem, ...] = ()) -> BookRead:
    records = tuple(
        SourceChapter(book="f", book_slug="f", chapter=n, title=None, text=f"{path} {n}", doctrine=None)
        for n in chapters
    )
    return BookRead(
        path=Path(path),
        form="file",
        book="f",
        slug="f",
        sha256=b"",
        priority=None,
        chapters=records,
        problems=problems,
        notes=(),
    )


SETS = st.dictionaries(st.sampled_from("abcd"), st.tuples(st.integers(0, 3), st.sets(st.integers(0, 5))))


@given(SETS, SETS)
def test_every_chapter_has_one_owner_and_none_that_a_source_holds_is_lost(
    before: dict[str, tuple[int, set[int]]], now: dict[str, tuple[int, set[int]]]
) -> None:
    first = plan_chapters(
        [source(p, t) for p, (t, _) in before.items()], [book(p, *c) for p, (_, c) in before.items()], {}
    )
    known = {path: Known(signature="", chapters=owned) for path, owned in first.owned.items()}
    second = plan_chapters(
        [source(p, t) for p, (t, _) in now.items()], [book(p, *c) for p, (_, c) in now.items()], known
    )
    for plan, held in ((first, before), (second, now)):
        owned = [key for chapters in plan.owned.values() for key in chapters]
        assert len(owned) == len(set(owned))
        assert set(owned) == {f"f/{n:04d}" for _, chapters in held.values() for n in chapters}
    stored = {key for owned in first.owned.values() for key in owned}
    assert set(second.gone) == stored - {key for owned in second.owned.values() for key in owned}
    for planned in (*second.new, *second.changed, *second.unchanged):
        holders = [p for p, (_, chapters) in now.items() if planned.chapter.chapter in chapters]
        assert planned.source_path == max(holders, key=lambda p: (now[p][0], p))


def test_twenty_thousand_known_chapters_are_planned() -> None:
    paths = [f"s{number}" for number in range(400)]
    known = {
        path: Known(signature=signature(source(path, 1)), chapters={f"{path}/{n:04d}": bytes(32) for n in range(50)})
        for path in paths
    }
    snapshot = [source(path, 1) for path in paths]
    plan = plan_drop(snapshot, known, now_ns=10 * SECOND, settle_seconds=2, unsettled={})
    assert (plan.read, plan.unchanged, plan.gone) == ((), 400, ())
    assert len(plan_chapters(snapshot[1:], [], known).gone) == 50
