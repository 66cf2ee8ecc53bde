"""Reading the two forms: joins, odd records, broken files with their place, and no traceback for any bytes."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from era_dagster.domain.cleaning import clean_chapter
from era_dagster.domain.errors import CorruptInput
from era_dagster.domain.identity import book_slug
from era_dagster.intake.books import BookShelf
from era_dagster.intake.reader import BookRead, read_source
from era_dagster_tests.intake.drop_records import TEXT, doctrine_record, text_record

WriteBook = Callable[..., Path]


def read_one(path: Path) -> BookRead:
    (book,) = read_source(path)
    return book


def test_the_two_files_of_a_folder_are_joined_by_index(write_book: WriteBook) -> None:
    path = write_book(
        "Still Water, A Study",
        [text_record(7), text_record(0), text_record(40)],
        [doctrine_record(40, "C."), doctrine_record(7, "B.")],
    )
    book = read_one(path)
    assert (book.book, book.slug, book.form) == ("Still Water, A Study", book_slug("Still Water, A Study"), "folder")
    assert [(c.chapter, (c.doctrine or {}).get("rules")) for c in book.chapters] == [
        (0, None),
        (7, ["B."]),
        (40, ["C."]),
    ]
    assert book.chapters[0].doctrine is None
    assert book.chapters[1].doctrine == {"domains": ["risk"], "rules": ["B."]}
    assert (book.problems, book.notes, book.priority) == ((), (), None)
    data = [(path / name).read_bytes() for name in ("01_chapters.json", "02_doctrine.json")]
    assert book.sha256 == hashlib.sha256(b"".join(data)).digest()


def test_doctrine_without_a_text_record_keeps_its_index(write_book: WriteBook) -> None:
    book = read_one(
        write_book(chapters=[text_record(1)], doctrine=[doctrine_record(1, "A."), doctrine_record(32, "B.")])
    )
    assert [(c.chapter, c.text) for c in book.chapters] == [(1, TEXT), (32, None)]


def test_whole_numbers_in_other_clothes_are_read_and_others_left_out_once(write_book: WriteBook) -> None:
    indexes = ["1", 2.0, 3, 3, "appendix"]
    book = read_one(
        write_book(chapters=[text_record(i) for i in indexes], doctrine=[doctrine_record(i, "A.") for i in indexes])
    )
    assert [c.chapter for c in book.chapters] == [1, 2, 3]
    assert [(p.path.name, p.location) for p in book.problems] == [
        ("01_chapters.json", "[3].chapter_index"),
        ("01_chapters.json", "[4].chapter_index"),
    ]
    assert "second record for chapter 3" in book.problems[0].reason
    assert "'appendix'" in book.problems[1].reason


def test_doctrine_whose_fault_no_text_record_shares_is_named_too(write_book: WriteBook) -> None:
    """One text without an index hid all doctrine without one: it was neither stored nor named."""
    texts = [text_record(1), text_record(None), text_record(1)]
    doctrine = [doctrine_record(index, "A.") for index in (1, None, None, 1, 1, None)]
    book = read_one(write_book(chapters=texts, doctrine=doctrine))
    assert [(p.path.name, p.location) for p in book.problems] == [
        ("01_chapters.json", "[1].chapter_index"),
        ("01_chapters.json", "[2].chapter_index"),
        ("02_doctrine.json", "[2].chapter_index"),
        ("02_doctrine.json", "[4].chapter_index"),
        ("02_doctrine.json", "[5].chapter_index"),
    ]


@pytest.mark.parametrize("index", [None, True, -1, 10000, 1.5, "1.5", "", [], {}, float("nan"), float("inf"), 10**400])
def test_an_index_that_is_none_quarantines_its_record_only(write_book: WriteBook, index: Any) -> None:
    book = read_one(write_book(chapters=[text_record(index), text_record(1)], doctrine=[]))
    assert [c.chapter for c in book.chapters] == [1]
    assert [p.location for p in book.problems] == ["[0].chapter_index"]
    assert len(book.problems[0].reason) < 120


def test_a_record_that_is_no_object_is_named(write_book: WriteBook) -> None:
    book = read_one(write_book(chapters=[text_record(1), "a stray string", None], doctrine=[doctrine_record(1, "A.")]))
    assert [(p.location, p.reason) for p in book.problems] == [
        ("[1]", "a string stands where a chapter's object should"),
        ("[2]", "null stands where a chapter's object should"),
    ]
    assert len(book.chapters) == 1


def test_a_text_that_is_no_string_leaves_its_whole_chapter_out(write_book: WriteBook) -> None:
    """Half a chapter would replace the whole one that an earlier version stored."""
    book = read_one(write_book(chapters=[text_record(1, ["a"]), text_record(2)], doctrine=[doctrine_record(1, "A.")]))
    assert [c.chapter for c in book.chapters] == [2]
    assert [(p.location, p.partition_key) for p in book.problems] == [("[0].raw_text", f"{book.slug}/0001")]


def test_a_null_text_is_a_blank_chapter(write_book: WriteBook) -> None:
    assert read_one(write_book(chapters=[text_record(1, None)], doctrine=[])).chapters[0].text == ""


def test_a_repeated_key_and_endless_nesting_are_problems_of_their_record(write_book: WriteBook) -> None:
    deep = b"[" * 60 + b"]" * 60
    doctrine = (
        b'[{"chapter_index": 1, "rules": ["A."], "rules": ["B."]}, {"chapter_index": 2, "rules": [{"text": "a", "text": "b"}]},'
        b' {"chapter_index": 3, "claims": '
        + deep
        + b'}, {"chapter_index": 4, "_meta": {"x": 1, "x": 2}, "rules": ["D."]}]'
    )
    book = read_one(write_book(chapters=[text_record(i) for i in (1, 2, 3, 4)], doctrine=doctrine))
    assert [p.location for p in book.problems] == ["[0].rules", "[1]", "[2]"]
    assert [c.chapter for c in book.chapters if c.doctrine] == [4]


@pytest.mark.parametrize(
    ("data", "location", "reason"),
    [
        (b"", "line 1 column 1", "is empty"),
        (b" \n", "line 1 column 1", "is empty"),
        (b'[{"chapter_index": 1,\n "raw_text": "The ro', "line 2 column 14", "Unterminated string"),
        (b"[]\n[]", "line 2 column 1", "Extra data"),
        (b'{"a": 1}', "line 1 column 1", "holds an object, not a list"),
        (b'"x"', "line 1 column 1", "holds a string, not a list"),
        (b'[{"x":\n "Caf\xe9"}]', "line 2 column 6", "not UTF-8: byte 0xe9"),
        ("[]".encode("utf-16"), "line 1 column 1", "not UTF-8: byte 0xff"),
        (b"[" * 200_000, "", "nested too deeply"),
        (b"[" + b"9" * 5000 + b"]", "", "too long"),
    ],
)
def test_a_file_that_cannot_be_read_says_where_and_why(
    write_book: WriteBook, data: bytes, location: str, reason: str
) -> None:
    for broken in ({"chapters": data, "doctrine": []}, {"chapters": [], "doctrine": data}):
        with pytest.raises(CorruptInput) as caught:
            read_source(write_book(**broken))
        assert caught.value.location == location
        assert reason in caught.value.message
        assert str(caught.value.path) in caught.value.message
        assert caught.value.hint


def test_a_missing_file_is_named(write_book: WriteBook) -> None:
    with pytest.raises(CorruptInput, match=r"02_doctrine\.json cannot be read"):
        read_source(write_book(chapters=[]))


def test_a_byte_order_mark_is_no_damage(write_book: WriteBook) -> None:
    data = b"\xef\xbb\xbf" + json.dumps([text_record(1)]).encode()
    assert len(read_one(write_book(chapters=data, doctrine=[])).chapters) == 1


def test_a_book_without_chapters_or_without_doctrine_is_noted(write_book: WriteBook) -> None:
    assert "no chapters" in read_one(write_book(chapters=[], doctrine=[])).notes[0].message
    book = read_one(write_book(chapters=[text_record(1)], doctrine=[doctrine_record(1)]))
    assert "book has no doctrine at all" in book.notes[0].message


def test_a_single_chapter_in_a_file_takes_the_file_name_as_its_book(drop: Path) -> None:
    path = drop / "The Mill.json"
    path.write_text(json.dumps({"chapter_index": 1, "text": TEXT, "rules": ["A."]}), encoding="utf-8")
    book = read_one(path)
    assert (book.book, book.form, book.slug) == ("The Mill", "file", book_slug("The Mill"))
    assert (book.chapters[0].text, book.chapters[0].doctrine) == (TEXT, {"rules": ["A."]})


def test_a_file_may_hold_several_books(drop: Path) -> None:
    path = drop / "many.json"
    records = [
        {"chapter_index": 2, "raw_text": TEXT, "book": "Ferry Notes", "book_slug": "ignored-when-book-is-there"},
        {"chapter_index": 1, "raw_text": TEXT, "book_slug": "mill-notes", "priority": 5},
        {"chapter_index": 1, "raw_text": TEXT, "book": "Ferry Notes", "domains": ["risk"]},
        {"chapter_index": 1, "raw_text": TEXT, "book": "Ferry Notes"},
        {"chapter_index": 9, "book": "Ferry Notes"},
    ]
    path.write_text(json.dumps(records), encoding="utf-8")
    ferry, mill = read_source(path)
    assert ([c.chapter for c in ferry.chapters], ferry.book) == ([1, 2], "Ferry Notes")
    assert ([c.chapter for c in mill.chapters], mill.book, mill.slug) == ([1], "mill-notes", "mill-notes")
    assert [p.location for p in ferry.problems] == ["[3].chapter_index", "[4]"]
    assert mill.problems == ()
    assert ferry.priority == mill.priority == 5


def test_both_forms_of_a_book_give_the_same_chapters(write_book: WriteBook, drop: Path) -> None:
    folder = read_one(write_book("Ferry Notes", [text_record(1)], [doctrine_record(1, "A.")]))
    path = drop / "one.json"
    path.write_text(
        json.dumps([{**doctrine_record(1, "A."), **text_record(1), "book": "Ferry Notes"}]), encoding="utf-8"
    )
    assert read_one(path).chapters == folder.chapters


@pytest.mark.parametrize(("content", "priority"), [("7\n", 7), ("-3", -3), ("high", None), ("9" * 30, None)])
def test_the_priority_file_is_read_or_noted(write_book: WriteBook, content: str, priority: int | None) -> None:
    path = write_book(chapters=[text_record(1)], doctrine=[doctrine_record(1, "A.")])
    (path / "priority").write_text(content, encoding="utf-8")
    book = read_one(path)
    assert book.priority == priority
    assert [note.code for note in book.notes] == ([] if priority is not None else ["bad_priority"])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes among the files")
def test_what_is_no_regular_file_is_named_and_not_waited_for(write_book: WriteBook) -> None:
    """A pipe that nobody writes to held up the look at the whole drop folder."""
    book = write_book("Ferry", [text_record(1)], [doctrine_record(1, "B.")])
    os.mkfifo(book / "priority")
    (note,) = read_one(book).notes
    assert (note.code, "priority is no regular file" in note.message) == ("bad_priority", True)
    (book / "01_chapters.json").unlink()
    os.mkfifo(book / "01_chapters.json")
    with pytest.raises(CorruptInput, match=r"01_chapters\.json is no regular file"):
        read_source(book)
    (book / "01_chapters.json").unlink()
    (book / "01_chapters.json").symlink_to("/dev/zero")
    with pytest.raises(CorruptInput, match=r"01_chapters\.json is no regular file"):
        read_source(book)


@pytest.mark.parametrize(
    ("twice", "left_out"),
    [
        ('"chapter_title": "A", "chapter_title": "A"', "ferry/0001"),
        ('"book": "ferry", "rules": [], "rules": []', "ferry/0001"),
        ('"book": "mill", "rules": [], "rules": []', "mill/0001"),
        ('"chapter_index": 1', None),
        ('"book": "mill", "book": "mill"', None),
    ],
)
def test_a_key_that_is_there_twice_leaves_out_the_chapter_where_it_is_known_which(
    drop: Path, twice: str, left_out: str | None
) -> None:
    path = drop / "ferry.json"
    path.write_text('[{"chapter_index": 1, "text": "A text.", ' + twice + "}]", encoding="utf-8")
    book = read_one(path)
    (problem,) = book.problems
    assert (problem.reason, problem.partition_key) == ("the key occurs twice in one object", left_out)
    assert book.chapters == ()


def test_a_name_that_no_store_takes_is_written_with_escapes(drop: Path) -> None:
    path = drop / "x.json"
    path.write_text(json.dumps({"chapter_index": 1, "text": TEXT, "book": "a\x00\ud800b"}), encoding="utf-8")
    assert read_one(path).chapters[0].book == "a\\x00\\ud800b"


def test_a_chapter_whose_record_is_broken_is_said_to_be_broken_and_not_to_leave(write_book: WriteBook) -> None:
    """A run over it said that the source "no longer holds" it and that the next look retires it, which none does."""
    path = write_book("ferry", [text_record(1), {**text_record(2), "raw_text": 5}], [])
    with pytest.raises(CorruptInput, match=r"01_chapters\.json at \[1\]\.raw_text: the text is a number") as told:
        BookShelf().chapter(str(path), "ferry/0002")
    assert "retires" not in str(told.value)


def test_the_shelf_reads_a_source_once_and_says_what_it_lacks(write_book: WriteBook) -> None:
    path = write_book("ferry", [text_record(1)], [])
    shelf = BookShelf()
    chapter, digest = shelf.chapter(str(path), "ferry/0001")
    (path / "01_chapters.json").write_bytes(b"broken meanwhile")
    assert shelf.chapter(str(path), "ferry/0001") == (chapter, digest)
    with pytest.raises(CorruptInput, match="no longer holds mill/0001"):
        shelf.chapter(str(path), "mill/0001")


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=12)
KEYS = st.sampled_from(
    [
        "chapter_index",
        "chapter_title",
        "raw_text",
        "text",
        "book",
        "book_slug",
        "domains",
        "rules",
        "claims",
        "priority",
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 12) | st.floats() | ANY_TEXT | st.sampled_from(["1", "2.0"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | ANY_TEXT, inner, max_size=6),
    max_leaves=25,
)
RECORDS = st.lists(
    st.fixed_dictionaries(
        {"chapter_index": st.integers(0, 4)}, optional={"raw_text": JSON, "rules": JSON, "book": JSON}
    )
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(JSON | RECORDS, JSON | RECORDS)
def test_no_json_whatever_breaks_reader_or_cleaner(write_book: WriteBook, drop: Path, one: Any, other: Any) -> None:
    (drop / "x.json").write_text(json.dumps(one), encoding="utf-8")
    for path in (write_book(chapters=one, doctrine=other), drop / "x.json"):
        try:
            books = read_source(path)
        except CorruptInput:
            continue
        keys = [clean_chapter(chapter).partition_key for book in books for chapter in book.chapters]
        assert len(set(keys)) == len(keys)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60))
def test_no_bytes_whatever_break_the_reader(drop: Path, data: bytes) -> None:
    (drop / "x.json").write_bytes(data)
    try:
        assert read_source(drop / "x.json")
    except CorruptInput as error:
        assert error.message.startswith(str(drop))
