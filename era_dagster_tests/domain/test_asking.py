"""Which words of a question are looked for, what they weigh, and how two rankings become one."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from era_dagster.domain.asking import content_words, weighed_words
from era_dagster.domain.fusion import RANK_CONSTANT, fuse_rankings


def test_a_stop_word_of_the_questions_language_is_none_in_any_other() -> None:
    """ "When should the lock open": English drops 1 to 3, "simple" keeps all, German drops none."""
    found = {
        "english": {"lock": [4], "open": [5]},
        "simple": {"when": [1], "should": [2], "the": [3], "lock": [4], "open": [5]},
        "german": {"when": [1], "should": [2], "the": [3], "lock": [4], "op": [5]},
    }
    assert content_words(found) == {("lock",), ("op", "open")}


@pytest.mark.parametrize("found", [{}, {"english": {}}, {"english": {}, "simple": {"the": [1]}}])
def test_a_question_of_stop_words_has_no_words(found: dict) -> None:
    assert content_words(found) == set()


def test_a_rare_word_weighs_more_and_one_that_is_nowhere_is_not_asked_for() -> None:
    words = weighed_words([("rare",), ("common",), ("nowhere",)], {"rare": 0.001, "common": 0.2, "nowhere": 0.0}, 1000)
    assert [word.stems for word in words] == [("rare",), ("common",)]
    assert [word.weight for word in words] == pytest.approx([math.log(1000), math.log(5)])


def test_common_words_are_left_out_but_never_the_last_one() -> None:
    assert [word.stems for word in weighed_words([("everywhere",)], {"everywhere": 1.0}, 9)] == [("everywhere",)]
    assert weighed_words([("everywhere",)], {"everywhere": 1.0}, 9)[0].weight > 0
    many = {f"word{number}": 0.1 for number in range(20)}
    assert len(weighed_words([(stem,) for stem in many], many, 100)) == 2


def test_in_a_large_corpus_texts_are_sought_by_the_rarest_words_alone_and_ranked_by_all() -> None:
    shares = {"rare": 0.001, "seldom": 0.015, "common": 0.1}
    words = [(stem,) for stem in shares]
    assert [word.sought for word in weighed_words(words, shares, 10_000)] == [True, True, True]
    assert [word.sought for word in weighed_words(words, shares, 100_000)] == [True, True, False]
    assert [word.sought for word in weighed_words(words, shares, 10_000_000)] == [True, False, False]


def test_fusion_adds_the_reciprocal_ranks() -> None:
    assert RANK_CONSTANT == 60
    # b: 1/62 + 1/61, c: 1/63 + 1/62, a: 1/61, d: 1/63.
    assert fuse_rankings([["a", "b", "c"], ["b", "c", "d"]]) == ["b", "c", "a", "d"]
    assert fuse_rankings([["a", "b"], []]) == ["a", "b"]
    assert fuse_rankings([["x"], ["y"]]) == ["x", "y"]


@given(st.permutations(range(20)), st.integers(0, 20), st.integers(0, 20))
def test_fusion_keeps_every_member_once_and_the_order_two_rankings_agree_on(order, first, second) -> None:
    rankings = [order[:first], order[:second]]
    assert fuse_rankings(rankings) == list(order[: max(first, second)])
