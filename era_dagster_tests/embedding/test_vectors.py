"""What counts as a vector, and what a cache key depends on."""

from dataclasses import replace

import numpy as np
import pytest

from era_dagster.domain.errors import BadVectors
from era_dagster.embedding.model_profile import model_profile
from era_dagster.embedding.vectors import ModelIdentity, cache_key, checked, in_key_order, matrix

IDENTITY = ModelIdentity(
    provider="ollama",
    model="nomic-embed-text",
    digest="abc",
    dimension=3,
    document_prefix="search_document: ",
    query_prefix="search_query: ",
    server_version="0.32.0",
    uncased=True,
)


def test_rows_come_out_as_float32_of_length_one() -> None:
    rows, bad = checked(matrix([[3.0, 0.0, 4.0], [1e-30, 0.0, 0.0], [3e38, 3e38, 0.0]], 3), 3)
    assert rows.dtype == np.float32
    assert not bad
    np.testing.assert_allclose(rows, [[0.6, 0, 0.8], [1, 0, 0], [0.5**0.5, 0.5**0.5, 0]], rtol=1e-6)


def test_zero_and_not_finite_rows_are_named_and_the_others_kept() -> None:
    rows, bad = checked(matrix([[0, 0], [None, 1], [1, 0], [float("inf"), 0]], 4), 2)
    assert bad == {
        0: "it is zero",
        1: "it holds a value that is not finite",
        3: "it holds a value that is not finite",
    }
    assert rows[2].tolist() == [1.0, 0.0]


def test_another_dimension_spoils_every_row() -> None:
    _, bad = checked(matrix([[1, 0], [0, 1]], 2), 3)
    assert bad == dict.fromkeys((0, 1), "it has 2 dimensions, the model has 3")


@pytest.mark.parametrize("rows", [None, [], [[1.0]], {"a": 1}, [[1.0], [1.0, 2.0]], [[], []], [["a"], ["b"]], [1, 2]])
def test_what_is_not_one_row_of_numbers_per_text_is_refused(rows: object) -> None:
    with pytest.raises(BadVectors):
        matrix(rows, 2)


@pytest.mark.parametrize(
    "row",
    [
        [True, False],
        [0.5, True],
        [False, 0.5],
        [2, True],
        [None, True],
        ["0.6", "0.8"],
        [0.6, "0.8"],
        [None, "0.8"],
        [0.5, [0.5]],
        [0.5, {}],
        [0.5, 10**400],
    ],
)
def test_what_only_looks_like_a_number_is_refused(row: list[object]) -> None:
    with pytest.raises(BadVectors):
        matrix([row, row], 2)
    with pytest.raises(BadVectors):
        matrix([row, [0.6, 0.8]], 2)


def test_every_form_of_a_number_is_taken_and_null_is_none() -> None:
    rows = matrix([[1, 0.0], [None, 1], [10**30, -1], [2**64 - 1, 0.5], [1e39, -0.0]], 5)
    assert rows.dtype == np.float32
    expected = [[1, 0], [np.nan, 1], [1e30, -1], [2.0**64, 0.5], [np.inf, 0]]
    np.testing.assert_array_equal(rows, np.array(expected, dtype=np.float32))
    assert matrix([[1, 0], [0, 1]], 2).tolist() == [[1, 0], [0, 1]]


def test_the_cache_key_depends_on_everything_that_changes_the_vector_and_on_nothing_else() -> None:
    key = cache_key(IDENTITY, "document", "A text")
    assert len(key) == 32
    same = replace(IDENTITY, provider="openai", model="nomic-embed-text:latest", server_version=None)
    assert cache_key(same, "document", "a text") == key
    others = [
        cache_key(IDENTITY, "query", "A text"),
        cache_key(IDENTITY, "document", "A text."),
        cache_key(replace(IDENTITY, uncased=False), "document", "A text"),
        *(
            cache_key(replace(IDENTITY, **change), "document", "A text")
            for change in ({"model": "m"}, {"digest": "x"}, {"digest": None}, {"dimension": 4}, {"document_prefix": ""})
        ),
    ]
    assert len({key, *others}) == len(others) + 1


def test_vectors_are_handed_over_in_the_order_of_their_keys() -> None:
    one = np.ones(1, dtype=np.float32)
    assert list(in_key_order([(b"b", one), (b"a", one)])) == [b"a", b"b"]


def test_nomic_texts_get_their_prefix_and_uncased_models_lower_case_without_accents() -> None:
    nomic = model_profile("hf.co/nomic-ai/nomic-embed-text-v1.5-GGUF:latest")
    assert (nomic.prefix("document"), nomic.normalised("Élan VITAL")) == ("search_document: ", "elan vital")
    assert (nomic.prefix("query"), nomic.normalised("Why?")) == ("search_query: ", "why?")
    minilm = model_profile("all-minilm:33m")
    assert (minilm.prefix("query"), minilm.normalised("Élan")) == ("", "elan")
    multilingual = model_profile("nomic-embed-text-v2-moe")
    assert (multilingual.prefix("query"), multilingual.normalised("Élan")) == ("search_query: ", "Élan")
    bge = model_profile("bge-m3")
    assert (bge.prefix("document"), bge.normalised("Élan")) == ("", "Élan")
    bare = model_profile("nomic-embed-text", document_prefix="")
    assert (bare.prefix("document"), bare.normalised("A")) == ("", "a")
