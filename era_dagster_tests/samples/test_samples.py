"""The sample books are what a user would drop: readable by the real reader, clean but for the mess put in on purpose."""

import json
import re
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from era_dagster.domain.cleaning import LONG_TEXT_CHARS, clean_chapter
from era_dagster.domain.doctrine import CATEGORIES, Chapter
from era_dagster.domain.domains import CANONICAL_DOMAINS
from era_dagster.domain.identity import text_hash
from era_dagster.intake.reader import read_source

SAMPLES = Path(str(resources.files("era_dagster").joinpath("samples")))
QUESTIONS: list[dict[str, Any]] = json.loads(Path(__file__).with_name("questions.json").read_text(encoding="utf-8"))
BOOKS = sorted(folder for folder in SAMPLES.iterdir() if folder.is_dir())
# A word is rare when few of the 148 entries hold it: sharing one would give the answer away to a search for words.
RARE_BELOW = 3


def load(book: Path, name: str) -> list[dict[str, Any]]:
    return json.loads((book / name).read_text(encoding="utf-8"))


def cleaned(book: Path) -> list[Chapter]:
    return [clean_chapter(chapter) for read in read_source(book) for chapter in read.chapters]


def stems(text: str) -> set[str]:
    return {re.sub(r"(?:ing|ed|es|s|ly)$", "", word) for word in re.findall(r"[a-z]{4,}", text.lower())}


def test_there_are_three_books_whose_names_windows_takes() -> None:
    assert len(BOOKS) == 3
    for book in BOOKS:
        assert not re.search(r'[<>:"/\\|?*\x00-\x1f]|[. ]$', book.name)


def test_one_name_has_spaces_and_a_curly_apostrophe() -> None:
    assert [book.name for book in BOOKS if "’" in book.name and " " in book.name] == ["The Lock Keeper’s Almanack"]


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.name)
def test_the_reader_takes_every_record_of_a_book(book: Path) -> None:
    (read,) = read_source(book)
    assert read.problems == ()
    assert read.notes == ()
    assert [chapter.chapter for chapter in read.chapters] == list(range(1, len(read.chapters) + 1))
    assert 5 <= len(read.chapters) <= 7
    assert all(chapter.doctrine is not None for chapter in read.chapters)


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.name)
def test_the_two_files_of_a_book_have_exactly_the_documented_fields(book: Path) -> None:
    chapters, doctrine = load(book, "01_chapters.json"), load(book, "02_doctrine.json")
    for chapter in chapters:
        assert list(chapter) == ["chapter_index", "chapter_id", "chapter_title", "raw_text"]
        assert chapter["chapter_id"] == text_hash(chapter["raw_text"]).hex()
    for record in doctrine:
        assert set(record) - {"_status"} == {"chapter_index", "chapter_title", "domains", *CATEGORIES, "_meta"}
        assert record["_meta"]["status"] == record.get("_status", "ok")
    assert [c["chapter_title"] for c in chapters] == [d["chapter_title"] for d in doctrine]


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.name)
def test_the_files_are_indented_and_not_escaped(book: Path) -> None:
    for name in ("01_chapters.json", "02_doctrine.json"):
        raw = (book / name).read_text(encoding="utf-8")
        assert raw == json.dumps(json.loads(raw), indent=2, ensure_ascii=False) + "\n"


def test_every_chapter_with_doctrine_has_a_readable_length_and_paragraphs() -> None:
    for book in BOOKS:
        for chapter in cleaned(book):
            if chapter.entries:
                assert 1500 <= len(chapter.text) <= 4000, chapter.partition_key
                assert chapter.text.count("\n\n") >= 3, chapter.partition_key


def test_every_item_becomes_an_entry_that_is_one_sentence() -> None:
    for book in BOOKS:
        for chapter, record in zip(cleaned(book), load(book, "02_doctrine.json"), strict=True):
            items = [item for category in CATEGORIES for item in record[category]]
            assert [entry.text for entry in chapter.entries] == items
            assert chapter.unusable == ()
            for text in items:
                assert re.fullmatch(r"[A-Z].{29,159}\.", text), text


def test_every_chapter_but_one_has_four_to_ten_items_in_every_category() -> None:
    empty = 0
    for book in BOOKS:
        for record in load(book, "02_doctrine.json"):
            counts = [len(record[category]) for category in CATEGORIES]
            if record.get("_status") == "valid_empty":
                empty += 1
                assert sum(counts) == 0
            else:
                assert 4 <= sum(counts) <= 10
                assert min(counts) >= 1
    assert empty == 1


def test_no_sentence_occurs_twice() -> None:
    texts = [entry.text for book in BOOKS for chapter in cleaned(book) for entry in chapter.entries]
    assert len(texts) == len(set(texts)) > 100


def test_most_domains_are_canonical_and_the_others_are_only_noted() -> None:
    slugs = Counter(domain.slug for book in BOOKS for chapter in cleaned(book) for domain in chapter.domains)
    unknown = {slug for slug in slugs if slug not in CANONICAL_DOMAINS}
    assert unknown == {"money", "craft"}
    assert sum(slugs[slug] for slug in unknown) < slugs.total() / 5
    notes = {note.code for book in BOOKS for chapter in cleaned(book) for note in chapter.notes}
    assert notes == {"unknown_domain"}


def test_the_broken_word_is_joined_and_nothing_else_needs_repair() -> None:
    repaired = [chapter for book in BOOKS for chapter in cleaned(book) if chapter.repairs]
    assert [(chapter.chapter, sum(chapter.repairs.values())) for chapter in repaired] == [(4, 1)]
    assert "between the reservoir and the river" in repaired[0].text


def test_the_chapter_without_doctrine_is_too_short_to_look_like_a_failed_extraction() -> None:
    (empty,) = [chapter for book in BOOKS for chapter in cleaned(book) if not chapter.entries]
    assert 500 < len(empty.text) < LONG_TEXT_CHARS


def test_every_question_points_to_exactly_one_entry() -> None:
    chapters = {(book.name, chapter.chapter): chapter for book in BOOKS for chapter in cleaned(book)}
    for question in QUESTIONS:
        entries = chapters[question["book"], question["chapter"]].entries
        found = [
            entry
            for entry in entries
            if entry.category == question["category"] and entry.text.startswith(question["entry_start"])
        ]
        assert len(found) == 1, question


def test_thirty_questions_reach_every_chapter_with_doctrine() -> None:
    asked = [(question["book"], question["chapter"]) for question in QUESTIONS]
    assert len({question["question"] for question in QUESTIONS}) == len(QUESTIONS) == 30
    with_doctrine = [(book.name, chapter.chapter) for book in BOOKS for chapter in cleaned(book) if chapter.entries]
    assert set(asked) == set(with_doctrine)
    assert {question["category"] for question in QUESTIONS} == set(CATEGORIES)


def test_a_question_shares_no_rare_word_with_its_answer() -> None:
    entries = [entry for book in BOOKS for chapter in cleaned(book) for entry in chapter.entries]
    spread = Counter(stem for entry in entries for stem in stems(entry.text))
    for question in QUESTIONS:
        answer = next(entry.text for entry in entries if entry.text.startswith(question["entry_start"]))
        shared = {stem for stem in stems(question["question"]) & stems(answer) if spread[stem] < RARE_BELOW}
        assert not shared, question["question"]


def test_no_run_of_eight_words_stands_in_two_chapters() -> None:
    """A chapter written from a template would repeat itself."""
    seen: dict[tuple[str, ...], str] = {}
    for book in BOOKS:
        for chapter in cleaned(book):
            body = chapter.text.removeprefix("My dear Anselm,").removesuffix("Your affectionate uncle")
            words = re.findall(r"\w+", body.lower())
            for start in range(len(words) - 7):
                run = tuple(words[start : start + 8])
                assert seen.setdefault(run, chapter.partition_key) == chapter.partition_key, " ".join(run)
    assert len(seen) > 5000
