"""One chapter from what the files say to what the system believes: entries, domains, notes, and never an exception."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from era_dagster.domain.cleaning import clean_chapter
from era_dagster.domain.doctrine import Chapter, SourceChapter

TEXT = "The ferry captain counted the sacks twice before he let a rope go."


def chapter(text: str | None = TEXT, doctrine: dict[str, Any] | None = None, title: str | None = None) -> Chapter:
    return clean_chapter(
        SourceChapter(book="Ferry Notes", book_slug="ferry", chapter=2, title=title, text=text, doctrine=doctrine)
    )


def says(found: Chapter, gist: str) -> bool:
    return any(gist in note.message for note in found.notes)


def test_a_sound_chapter_has_entries_in_all_its_domains_and_no_note() -> None:
    found = chapter(
        doctrine={"domains": ["risk", "Discipline", "Risk"], "rules": ["Count.", "Wait."], "claims": ["Count."]}
    )
    assert [(e.category, e.position, e.text, e.domains) for e in found.entries] == [
        ("rules", 0, "Count.", ("discipline", "risk")),
        ("rules", 1, "Wait.", ("discipline", "risk")),
        ("claims", 0, "Count.", ("discipline", "risk")),
    ]
    assert len({e.doctrine_id for e in found.entries}) == 3
    assert [(d.slug, d.spelling) for d in found.domains] == [
        ("discipline", "Discipline"),
        ("risk", "Risk"),
        ("risk", "risk"),
    ]
    assert (found.partition_key, found.title, found.notes, found.unusable) == ("ferry/0002", None, (), ())


def test_an_exact_repeat_is_one_entry_also_when_it_repeats_only_after_cleaning() -> None:
    found = chapter(doctrine={"domains": ["risk"], "rules": ["Count.", "Cou\x00nt. ", "Wait."]})
    assert [(e.position, e.text) for e in found.entries] == [(0, "Count."), (1, "Wait.")]
    assert [note.count for note in found.notes if note.code == "repeated_item"] == [1]


@pytest.mark.parametrize(
    ("text", "doctrine", "gist"),
    [
        (None, {"domains": ["risk"], "rules": ["Count."]}, "chapter 2 has doctrine but no text"),
        (None, {"domains": ["risk"], "rules": ["Count."]}, "doctrine for a chapter without text"),
        ("\n\f\n", {"domains": ["risk"], "rules": ["Count."]}, "doctrine for a chapter without text"),
        ("\n\f\n", {"domains": ["risk"]}, "no text"),
        (TEXT, None, "chapter 2 has text but no doctrine"),
        (TEXT * 30, {"domains": ["risk"]}, "empty doctrine for a long chapter"),
        (TEXT, {"domains": ["risk"], "rules": ["The provided text is short."]}, "prompt echo"),
        (TEXT, {"domains": [], "rules": ["Count."]}, "no domain"),
        (TEXT, {"rules": ["Count."]}, "no domain"),
        (TEXT, {"domains": ["***"], "rules": ["Count."]}, "no usable domain"),
        (TEXT, {"domains": ["Harbour Etiquette"], "rules": ["Count."]}, "not one of the 19 minister domains"),
        ("\x8aȱ\x91\x98" * 30 + TEXT, {"domains": ["risk"], "rules": ["Count."]}, "unreadable text"),
    ],
)
def test_what_a_user_should_see_is_a_note(text: str | None, doctrine: dict[str, Any] | None, gist: str) -> None:
    assert says(chapter(text, doctrine), gist)
    assert not says(chapter(TEXT, {"domains": ["risk"], "rules": ["Count."]}), gist)


def test_entries_without_a_usable_domain_are_in_base() -> None:
    found = chapter(doctrine={"domains": ["..", None], "rules": ["Count."]})
    assert found.entries[0].domains == ("base",)
    assert [d.slug for d in found.domains] == ["base"]


def test_a_chapter_without_entries_asks_for_no_domain_of_its_own() -> None:
    found = chapter(doctrine={"domains": [], "rules": []})
    assert found.domains == ()
    assert found.notes == ()


def test_an_alias_takes_the_place_of_a_slug() -> None:
    source = SourceChapter(
        book="F",
        book_slug="f",
        chapter=1,
        title=None,
        text=TEXT,
        doctrine={"domains": ["Execution"], "rules": ["Count."]},
    )
    assert clean_chapter(source).entries[0].domains == ("execution",)
    assert clean_chapter(source, {"execution": "executor"}).entries[0].domains == ("executor",)


def test_other_languages_are_not_unreadable() -> None:
    romanian = "Țara și orașul sunt străvechi, iar oamenii știu că țin la vorbă și la faptă. " * 5
    assert not says(chapter(romanian, {"domains": ["risk"], "rules": ["Count."]}), "unreadable")


def test_a_blank_title_is_no_title() -> None:
    assert chapter(title=" \x00 ").title is None
    assert chapter(title="The\nMill").title == "The Mill"


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=40)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | ANY_TEXT
    | st.sampled_from(["{'text': 'x'}", "[1]", "{'"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["text", "rule", "name", "action", "risk", "x\x00"]) | ANY_TEXT, inner, max_size=4
        )
    ),
    max_leaves=15,
)
DOCTRINE = st.dictionaries(st.sampled_from(["domains", "principles", "rules", "claims", "warnings", "_meta"]), JSON)


@given(ANY_TEXT | st.none(), DOCTRINE | st.none(), ANY_TEXT | st.none())
def test_no_json_whatever_breaks_the_cleaner_and_what_comes_out_can_be_stored(
    text: str | None, doctrine: dict[str, Any] | None, title: str | None
) -> None:
    found = chapter(text, doctrine, title)
    stored = json.dumps(
        [
            found.text,
            found.title,
            [(e.text, e.domains, dict(e.details)) for e in found.entries],
            [(d.slug, d.spelling) for d in found.domains],
            [u.reason for u in found.unusable],
            [n.message for n in found.notes],
        ],
        allow_nan=False,
        ensure_ascii=False,
    )
    stored.encode("utf-8")
    assert "\\u0000" not in stored
    assert all(e.text.strip() == e.text != "" for e in found.entries)
    assert len({e.doctrine_id for e in found.entries}) == len(found.entries)
    assert found == chapter(text, doctrine, title)
