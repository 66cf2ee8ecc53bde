"""Doctrine items: every shape seen gives its sentence, every other is named and never stored as text."""

from typing import Any

import pytest

from era_dagster.domain.doctrine import Category
from era_dagster.domain.items import read_items


@pytest.mark.parametrize(
    ("category", "raw", "text"),
    [
        ("principles", "Keep a reserve.", "Keep a reserve."),
        ("principles", " The bene\x00t\nof  waiting ", "The benet of waiting"),
        ("rules", {"type": "rule", "text": "Count twice."}, "Count twice."),
        ("rules", {"type": "rule", "extraction": "Count twice."}, "Count twice."),
        ("claims", {"domain": "Sea", "claim": "Records help.", "generalized": "Write."}, "Records help."),
        ("principles", {"id": "P1", "statement": "Keep a reserve.", "abstracted_from": None}, "Keep a reserve."),
        ("rules", {"condition": "", "action": "Count the load."}, "Count the load."),
        ("rules", {"condition": None, "action": "Count the load."}, "Count the load."),
        ("rules", {"condition": "None", "action": "Count the load."}, "Count the load."),
        ("rules", {"condition": "If the cargo shifts", "action": "turn back"}, "If the cargo shifts, then turn back"),
        ("rules", {"condition": "the cargo shifts,", "action": "then turn"}, "If the cargo shifts, then turn"),
        ("warnings", {"situation": "Calm weather", "risk": "false confidence"}, "Calm weather: false confidence"),
        ("warnings", {"situation": None, "risk": "false confidence"}, "false confidence"),
        ("rules", "{'type': 'rule', 'text': 'Count twice.'}", "Count twice."),
        ("rules", '{"type": "rule", "text": "Count twice."}', "Count twice."),
    ],
)
def test_the_sentence_inside_is_the_entry(category: Category, raw: object, text: str) -> None:
    read = read_items(category, [raw])
    assert [item.text for item in read.items] == [text]
    assert read.unusable == ()


@pytest.mark.parametrize(
    "raw",
    [
        None,
        "",
        "  ",
        "N/A",
        "n/a.",
        "None",
        "null",
        "…",
        "IF None THEN None",
        17,
        1.5,
        True,
        float("nan"),
        ["a", "list"],
        {},
        {"foo": 1, "bar": ["x"]},
        {"text": None},
        {"text": ["x"]},
        {"condition": "If wet"},
        {"action": "None"},
        "['a']",
        {"rule": "of another category"},
        {"text": "{'a': 1}"},
        "{'a': 'b",
        "{'text': 'it's broken'}",
        "\x00\ud800",
    ],
)
def test_what_holds_no_sentence_is_unusable_and_never_echoed(raw: object) -> None:
    read = read_items("claims", ["Records help.", raw])
    assert [item.text for item in read.items] == ["Records help."]
    assert [(item.category, item.position) for item in read.unusable] == [("claims", 1)]
    assert "{'" not in read.unusable[0].reason
    assert "N/A" not in read.unusable[0].reason


def test_an_unknown_object_is_reported_with_its_keys() -> None:
    reason = read_items("rules", [{"foo": 1, "bar\x00": ["x"]}]).unusable[0].reason
    assert reason == "an object without a sentence; its keys: bar, foo"


def test_one_item_instead_of_a_list_is_one_item_and_null_is_none() -> None:
    assert [item.text for item in read_items("rules", "Count twice.").items] == ["Count twice."]
    assert [item.text for item in read_items("rules", {"text": "Count twice."}).items] == ["Count twice."]
    assert read_items("rules", None).items == read_items("rules", []).items == read_items("rules", None).unusable == ()


def test_what_else_an_item_says_is_kept_as_details_that_jsonb_takes() -> None:
    deep: Any = "x"
    for _ in range(40):
        deep = {"a": deep}
    raw = {
        "type": "rule",
        "text": "Weigh the load.",
        "example": "A\x00 crew.",
        "none": None,
        "share": float("inf"),
        "list": [1, "\ud800a"],
        "deep": deep,
    }
    details = dict(read_items("rules", [raw]).items[0].details)
    assert str(details.pop("deep")).count("{'a'") == 6
    assert details == {"example": "A crew.", "share": "inf", "list": [1, "a"]}
