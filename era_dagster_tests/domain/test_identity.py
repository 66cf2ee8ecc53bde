"""Names and ids: safe everywhere, stable for ever, never shared by two things."""

import hashlib
import json
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from era_dagster.domain.doctrine import SourceChapter
from era_dagster.domain.errors import ConfigurationError
from era_dagster.domain.identity import (
    book_slug,
    content_hash,
    doctrine_id,
    parse_partition_key,
    partition_key,
    text_hash,
)

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=150)
CHAPTER = SourceChapter(
    book="Ferry Notes",
    book_slug="ferry-notes-0123ab",
    chapter=1,
    title=None,
    text="The rope was wet.",
    doctrine={"domains": ["risk"], "principles": ["Keep a reserve."]},
)


def test_a_name_that_is_its_own_slug_stays_as_it_is() -> None:
    assert book_slug("the-richest-man-in-babylon") == "the-richest-man-in-babylon"
    assert partition_key("the-richest-man-in-babylon", 1) == "the-richest-man-in-babylon/0001"


def test_any_other_name_ends_in_six_digits_of_its_hash() -> None:
    name = "Still Water, A Study of Patience"
    assert book_slug(name) == f"still-water-a-study-of-patience-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def test_names_that_differ_in_case_or_marks_only_stay_apart() -> None:
    names = ["The Ledger!", "the-ledger", "The-Ledger", "the ledger", "The Ledger?", "THE LEDGER"]
    assert len({book_slug(name) for name in names}) == len(names)


def test_long_names_with_one_beginning_stay_apart() -> None:
    assert book_slug("a" * 61) != book_slug("a" * 62)
    assert len(book_slug("a" * 61)) == 60
    assert book_slug("a" * 60) == "a" * 60


@pytest.mark.parametrize("name", ["", "...", "本", "\ud800", "---"])
def test_a_name_without_a_usable_letter_is_still_a_book(name: str) -> None:
    assert re.fullmatch(r"book-[0-9a-f]{6}", book_slug(name))


@given(ANY_TEXT, st.integers(0, 9999))
def test_every_name_gives_a_safe_key_that_reads_back(name: str, chapter: int) -> None:
    slug = book_slug(name)
    key = partition_key(slug, chapter)
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug)
    assert len(slug) <= 60
    assert parse_partition_key(key) == (slug, chapter)
    assert not re.search(r"\.\.\.|[,:\\\x00-\x1f]", key)


@given(st.lists(ANY_TEXT | st.sampled_from(["The Ledger!", "the-ledger", "THE LEDGER", "the ledger"]), unique=True))
def test_no_two_names_share_a_key(names: list[str]) -> None:
    assert len({partition_key(book_slug(name), 1) for name in names}) == len(names)


@pytest.mark.parametrize(
    "key", ["", "a", "a/1", "a/00001", "a//0001", "A/0001", "a-/0001", "a/0001\n", "a" * 61 + "/0001"]
)
def test_what_is_no_key_is_refused_with_an_example(key: str) -> None:
    with pytest.raises(ConfigurationError, match="the-richest-man-in-babylon/0001"):
        parse_partition_key(key)


def test_an_index_that_does_not_fit_four_digits_is_refused() -> None:
    for chapter in (-1, 10000):
        with pytest.raises(ConfigurationError):
            partition_key("a", chapter)


def test_an_entry_keeps_its_id_and_every_part_of_it_counts() -> None:
    first = doctrine_id("Ferry Notes", 1, "rules", "Count twice.")
    assert str(first) == "f9207baa-76d4-5db8-9690-059f12a21310"
    others = [
        doctrine_id("Mill Notes", 1, "rules", "Count twice."),
        doctrine_id("Ferry Notes", 2, "rules", "Count twice."),
        doctrine_id("Ferry Notes", 1, "claims", "Count twice."),
        doctrine_id("Ferry Notes", 1, "rules", "Count once."),
        doctrine_id("Ferry Notes1", 1, "rules", "Count twice."),
    ]
    assert len({first, *others}) == 6


def test_the_text_hash_is_the_sha_256_of_the_text() -> None:
    assert text_hash("né") == hashlib.sha256("né".encode()).digest()


@pytest.mark.parametrize(
    "change",
    [
        {"book": "Mill Notes"},
        {"chapter": 2},
        {"title": "One"},
        {"text": "The rope was dry."},
        {"text": None},
        {"doctrine": None},
        {"doctrine": {"domains": ["risk"], "principles": ["Keep two reserves."]}},
        {"doctrine": {"domains": ["risk"], "rules": ["Keep a reserve."]}},
        {"doctrine": {"domains": "risk", "principles": ["Keep a reserve."]}},
    ],
)
def test_whatever_the_result_depends_on_changes_the_content_hash(change: dict[str, Any]) -> None:
    assert content_hash(replace(CHAPTER, **change)) != content_hash(CHAPTER)


def test_the_order_of_keys_and_unknown_keys_do_not_change_the_content_hash() -> None:
    doctrine = {"_meta": {"x": 1}, "kis_guidance": ["y"], "principles": ["Keep a reserve."], "domains": ["risk"]}
    assert content_hash(replace(CHAPTER, doctrine=doctrine)) == content_hash(CHAPTER)
    assert len(content_hash(CHAPTER)) == 32


def test_the_content_hash_takes_what_json_cannot_write() -> None:
    deep: Any = "x"
    for _ in range(5000):
        deep = [deep]
    junk = [deep, float("nan"), 10**5000, "\ud800", {"a": {"b": None}}, 1.5, True]
    assert len(content_hash(replace(CHAPTER, doctrine={"rules": junk}, text="\ud83d"))) == 32


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(JSON, JSON)
def test_two_doctrines_have_one_hash_only_if_they_are_the_same_json(one: Any, other: Any) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    hashes = [content_hash(replace(CHAPTER, doctrine={"claims": value})) for value in (one, other)]
    assert (hashes[0] == hashes[1]) == same
