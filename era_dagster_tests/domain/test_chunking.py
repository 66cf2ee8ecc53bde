"""Chunking: sizes, offsets, coverage, and that no text is lost whatever it looks like."""

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from era_dagster.domain.chunking import ChunkRules, cut_chunks
from era_dagster.domain.doctrine import Chunk
from era_dagster.domain.errors import ConfigurationError
from era_dagster.domain.text import clean_text

SENTENCE = "The ferry captain counted the sacks twice before he let a rope go. "


def rules(
    *, mode: str = "sentences", low: int = 512, high: int = 1024, overlap: int = 0, words: int = 512
) -> ChunkRules:
    return ChunkRules(mode=mode, min_chars=low, max_chars=high, overlap_chars=overlap, words=words)  # type: ignore[arg-type]


def without_blanks(text: str) -> str:
    return "".join(text.split())


def assert_covers(text: str, chunks: tuple[Chunk, ...]) -> None:
    """Offsets are true, chunks are in order, and what lies between, before and after them is blank."""
    end = 0
    for position, chunk in enumerate(chunks):
        assert chunk.position == position
        assert chunk.text == text[chunk.start : chunk.end] == chunk.text.strip() != ""
        assert chunk.start < end or text[end : chunk.start].strip() == ""
        assert chunk.end > end
        end = chunk.end
    assert text[end:].strip() == ""


def test_blank_text_gives_no_chunk_and_a_letter_gives_one() -> None:
    assert cut_chunks("", rules()) == ()
    assert cut_chunks(" \n\n ", rules()) == ()
    assert [chunk.text for chunk in cut_chunks("P", rules())] == ["P"]


def test_chunks_are_packed_with_whole_sentences() -> None:
    text = (SENTENCE * 100).strip()
    chunks = cut_chunks(text, rules())
    assert_covers(text, chunks)
    assert all(chunk.text.endswith("go.") and chunk.text.startswith("The ") for chunk in chunks)
    assert {len(chunk.text) for chunk in chunks[:-1]} == {15 * len(SENTENCE) - 1}


def test_titles_and_initials_do_not_end_a_sentence() -> None:
    text = "He paid Mr. Smith and Dr. A. Jones, i.e. The Mill. Then he left. " * 3
    chunks = cut_chunks(text.strip(), rules(low=1, high=53))
    assert [chunk.text for chunk in chunks][:2] == [
        "He paid Mr. Smith and Dr. A. Jones, i.e. The Mill.",
        "Then he left.",
    ]


def test_a_blank_line_ends_a_sentence_without_a_mark() -> None:
    text = "A heading\n\n" + "b" * 30
    assert [chunk.text for chunk in cut_chunks(text, rules(low=5, high=32))] == ["A heading", "b" * 30]


def test_a_sentence_that_would_leave_a_tiny_chunk_is_cut_at_a_clause() -> None:
    text = "II. " + "x" * 60 + ", " + "y " * 40
    chunks = cut_chunks(text, rules(low=50, high=80))
    assert chunks[0].text == "II. " + "x" * 60 + ","
    assert all(len(chunk.text) >= 50 for chunk in chunks[:-1])


def test_text_without_blanks_is_cut_at_the_cap_and_nothing_is_lost() -> None:
    text = "themillwheelturnedallnightandnobodyslept" * 120
    for rule in (rules(), rules(mode="words"), rules(overlap=100)):
        chunks = cut_chunks(text, rule)
        assert_covers(text, chunks)
        assert max(len(chunk.text) for chunk in chunks) <= (4096 if rule.mode == "words" else 1024)
        assert len(chunks) >= 2


def test_five_thousand_words_are_ten_chunks_of_512() -> None:
    text = " ".join(f"word{number}" for number in range(5000))
    chunks = cut_chunks(text, rules(mode="words"))
    assert_covers(text, chunks)
    assert [len(chunk.text.split()) for chunk in chunks] == [512] * 9 + [392]


def test_the_overlap_repeats_the_tail_of_the_chunk_before() -> None:
    text = (SENTENCE * 60).strip()
    chunks = cut_chunks(text, rules(overlap=150))
    assert_covers(text, chunks)
    for before, after in itertools.pairwise(chunks):
        assert 0 < before.end - after.start <= 150
        assert after.text.startswith("The ferry")
        assert len(after.text) <= 1024


def test_sizes_that_contradict_each_other_are_refused() -> None:
    for low, high, overlap, words in ((0, 10, 0, 1), (11, 10, 0, 1), (1, 10, 6, 1), (1, 10, -1, 1), (1, 10, 0, 0)):
        with pytest.raises(ConfigurationError):
            rules(low=low, high=high, overlap=overlap, words=words)


PIECES = st.sampled_from(
    ["A", "word", "Längeres", "x" * 37, "no.", "Yes!", "Mr.", "so,", "one;", "—", "\n\n", "。", '"Oh."']
)


@settings(max_examples=300)
@given(
    st.lists(PIECES, max_size=120),
    st.integers(1, 40),
    st.integers(0, 60),
    st.integers(0, 100),
    st.sampled_from(["sentences", "words"]),
    st.integers(1, 12),
)
def test_chunks_cover_any_text_in_order_within_the_cap(
    pieces: list[str], low: int, more: int, overlap: int, mode: str, words: int
) -> None:
    text = clean_text(" ".join(pieces)).text
    high = low + more
    rule = rules(mode=mode, low=low, high=high, overlap=min(overlap, high // 2), words=words)
    chunks = cut_chunks(text, rule)
    assert_covers(text, chunks)
    cap = max(high, 8 * words) + words - 1 if mode == "words" else high
    assert all(len(chunk.text) <= cap for chunk in chunks)
    if rule.overlap_chars == 0:
        assert "".join(without_blanks(chunk.text) for chunk in chunks) == without_blanks(text)
        if mode == "words":
            assert all(len(chunk.text.split()) <= words for chunk in chunks)
    elif mode == "sentences":
        pairs = itertools.pairwise(chunks)
        assert all(before.end - after.start <= rule.overlap_chars for before, after in pairs)
    if mode == "sentences" and more >= 2:
        assert all(len(chunk.text) >= low for chunk in chunks[:-1])


@given(st.text(max_size=400), st.integers(1, 30), st.integers(0, 30), st.integers(0, 30))
def test_even_uncleaned_text_is_covered(text: str, low: int, more: int, overlap: int) -> None:
    high = low + more
    chunks = cut_chunks(text, rules(low=low, high=high, overlap=min(overlap, high // 2)))
    assert_covers(text, chunks)
    assert all(len(chunk.text) <= high for chunk in chunks)


def test_every_sentence_mark_of_the_measured_books_is_seen() -> None:
    text = 'He left. "Did he?" she asked! Yes… Then: "Oh!" 粥。水！ End'
    pieces = [chunk.text for chunk in cut_chunks(text, rules(low=1, high=12))]
    assert re.sub(r"\s", "", "".join(pieces)) == re.sub(r"\s", "", text)
    assert "He left." in pieces
