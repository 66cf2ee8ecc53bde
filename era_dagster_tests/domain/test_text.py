"""Text cleaning: every kind of damage of the measured books, and what must hold for any text at all."""

import re
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from era_dagster.domain.text import clean_line, clean_text, is_visible

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=300)
DAMAGE = st.lists(
    st.sampled_from(
        [
            "&amp;",
            "&",
            "amp;",
            "lt;",
            "#108;",
            "t;",
            "fi",
            "ﬁ",
            "lig;",
            "\xad",
            "-\n",
            "\x0c",
            "\r\n",
            "\n",
            "\n\n",
            " ",
            "a",
            "b ",
            "c\xa0",
            "\x00",
            "\x91",
            "\ud800",
            "\ue001",
            "\ufffd",
            ". ",
            "Z",
            "-",
            "\u2028",
            "\t",
            "é",
            "1",
        ]
    ),
    max_size=60,
).map("".join)


@pytest.mark.parametrize(
    ("raw", "clean", "repair"),
    [
        ("bene\x00t", "benet", "nul"),
        ("a\x02b\x7fc", "abc", "control_characters"),
        ("the captain\x92s log\x99 \x93wet\x94", "the captain’s log “wet”", "c1_controls"),
        ("half \ud83d of it", "half of it", "surrogates"),
        ("The \ue001rst", "The rst", "private_use"),
        ("was \ufffd torn", "was torn", "replacement_characters"),
        ("A ﬁrm oﬃce baﬄes", "A firm office baffles", "ligatures"),
        ("har\u00adbour", "harbour", "soft_hyphens"),
        ("har\u00ad\nbour", "harbour", "soft_hyphens"),
        ("was\u00a0 \u2003quiet", "was quiet", "no_break_spaces"),
        ("no\u200bwhere", "nowhere", "zero_width"),
        ("said &quot;no credit &amp; no cheques&quot;", 'said "no credit & no cheques"', "entities"),
        ("it&#8217;s &#x201C;so", "it’s “so", "entities"),
        ("thor-\noughly tired", "thoroughly tired", "hyphen_breaks"),
        ("Anglo- \n Saxon", "Anglo-Saxon", "hyphen_breaks"),
        ("well-known, the well-\nknown song", "well-known, the well-known song", "hyphen_breaks"),
        ("first\r\nsecond\rthird", "first second third", "line_separators"),
        ("a\tb", "a b", "tabs"),
        ("T h e  w h e e l  t u r n e d .", "The wheel turned.", "spaced_letters"),
        ("so p l a i n l y s e e n it was", "so plainlyseen it was", "spaced_letters"),
        ("wet and\n\f\nthe captain", "wet and the captain", "page_breaks"),
        ("thor-\n\foughly", "thoroughly", "page_breaks"),
        ("It ended.\f\nA new page", "It ended.\n\nA new page", "page_breaks"),
    ],
)
def test_each_kind_of_damage_is_repaired_and_counted(raw: str, clean: str, repair: str) -> None:
    cleaned = clean_text(raw)
    assert cleaned.text == clean
    assert cleaned.repairs[repair] >= 1


@pytest.mark.parametrize(
    "text",
    [
        "Communicate clearly",
        "Trade only after you compare🚢 the two prices.",
        "Keep your temper偏离 in a gale.",
        "R&D costs 5 & 6; AT&T; x &notaname; y",
        "I am a man.\n\nHe is not.",
        "Ein Mühlrad, ¡sí!, ευπατρίδαι, 粥 — 👩‍🚀",
        "1 2 3 4 5 6 7 8 9 10 11 12",
        "",
    ],
)
def test_sound_text_stays_as_it_is(text: str) -> None:
    cleaned = clean_text(text)
    assert cleaned.text == text
    assert cleaned.repairs == {}


def test_a_line_break_is_a_space_and_a_blank_line_a_paragraph_border() -> None:
    assert clean_text("one\ntwo  \n \n\n three\n").text == "one two\n\nthree"


def test_repairs_are_counted_by_occurrence() -> None:
    assert clean_text("\x00a\x00 ﬁ &amp; &amp;").repairs == {"entities": 2, "ligatures": 1, "nul": 2}


def test_an_entity_written_twice_over_is_decoded_to_the_end() -> None:
    assert clean_text("&amp;amp;amp;lt;b").text == "<b"


def test_a_line_has_no_line_break() -> None:
    assert clean_line("A title\n\nof two\tparts ") == "A title of two parts"


@pytest.mark.parametrize("unit", [" ", "\n", "- ", "-\n", "&", "a ", "\f", "x", "\u00ad", ". "])
def test_a_very_long_run_of_anything_is_cleaned(unit: str) -> None:
    """Each of these made one of the tried patterns take quadratic time: minutes for a chapter of this size."""
    assert len(clean_text(unit * 200_000).text) <= 400_000


@settings(max_examples=300)
@given(ANY_TEXT | DAMAGE)
@example("&ﬀlig;&\u00adamp;#108;t;")
def test_cleaning_twice_is_cleaning_once_and_nothing_harmful_is_left(raw: str) -> None:
    cleaned = clean_text(raw)
    again = clean_text(cleaned.text)
    assert again.text == cleaned.text
    assert again.repairs == {}
    assert all(unicodedata.category(c) not in {"Cc", "Cs", "Co"} or c == "\n" for c in cleaned.text)
    assert not re.search("[\u00ad\u00a0\ufffd]|(?<!\n)\n(?!\n)|\n{3}|  ", cleaned.text)
    cleaned.text.encode("utf-8")


@given(st.lists(st.text(st.characters(categories=["Ll"], max_codepoint=0x24F), min_size=2, max_size=12), max_size=30))
def test_plain_words_are_never_lost(words: list[str]) -> None:
    assert clean_text("\n".join(words)).text.split() == words


def test_a_text_of_which_nothing_can_be_seen_is_told_from_a_short_one() -> None:
    for seen in ("a", "7", "?", "€", "粥", "🔥", "\u200e?\u200e"):
        assert is_visible(seen), ascii(seen)
    for unseen in ("", " \n", "\u200e", "\u200b\ufeff", "\u200c\u200d", "\ufe0f", "\u2066\u2069"):
        assert not is_visible(unseen), ascii(unseen)
