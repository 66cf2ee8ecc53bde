"""A bounded fuzz run: mutated book folders through the whole intake, to tables and files.

Each round takes sound books and damages them at random: bytes flipped, cut, doubled or put in; JSON values swapped for others,
keys renamed, records repeated or torn out. Whatever comes of it: no exception but one sentence, nothing lost without a name,
tables and files that agree, and after the repair everything is there. `ERA_TEST_FUZZ_ROUNDS` runs more of it.
"""

import copy
import json
import os
import random
from typing import Any

import pytest

from era_dagster.domain.errors import ChaptersFailed
from era_dagster.pipeline.checks import run_checks
from era_dagster.pipeline.verify import inspect
from era_dagster_tests.pipeline.workbench import CATEGORIES, Workbench, chapter

ROUNDS = int(os.environ.get("ERA_TEST_FUZZ_ROUNDS", "40"))
BOOKS = ("Ferry Notes", "harbour", "inn")
FILES = ("01_chapters.json", "02_doctrine.json")
ODD_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 3.0, 2.5, 1e308, 10**400, "", " ", "N/A", "\x00", "\ud800", "3", "../../etc/passwd", "CON", "a" * 5000,
    "{'domain': 'x'", '{"text": "y"}', [], {}, [[]], [None], {"text": None}, {"rule": "Wait."}, {"a": {"b": {"c": []}}},
    "\u202e\u200b\ufeff", "&amp;&#0;&#xD800;", "-\n-", "p l a i n w o r d s a n d m o r e",
)  # fmt: skip
ODD_BYTES = (
    b"\x00",
    b"\xff",
    b"\xef\xbb\xbf",
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b"\\u0000",
    b"\\ud800",
    b"NaN",
    b"1e999",
    b"\r\n",
)


def sound_books() -> dict[str, list[tuple[dict, dict]]]:
    return {
        name: [
            chapter(
                index,
                f"{name} {index}. The pilot wrote it down. " * 20,
                ["risk", f"Domain {name}"],
                **{category: [f"{category} of {name} {index}, {n}." for n in range(2)] for category in CATEGORIES},
            )
            for index in range(1, 4)
        ]
        for name in BOOKS
    }


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    found: list[tuple[Any, Any]] = []
    stack = [value]
    while stack:
        container = stack.pop()
        pairs = container.items() if isinstance(container, dict) else enumerate(container)
        for key, member in list(pairs):
            found.append((container, key))
            if isinstance(member, dict | list):
                stack.append(member)
    return found


def mutate_json(value: Any, chance: random.Random) -> None:
    """Damage a value in one place, in place."""
    container, key = chance.choice(places(value))
    odd = copy.deepcopy(chance.choice(ODD_VALUES))
    match chance.randrange(4):
        case 0:
            container[key] = odd
        case 1:
            del container[key]
        case 2 if isinstance(container, dict):
            container[str(odd)] = container.pop(key)
        case 2:
            container.insert(key, odd)
        case _ if isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        case _:
            container[key] = [container[key], odd]


def mutate_bytes(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    match chance.randrange(5):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + chance.choice(ODD_BYTES) + data[at:]
        case 2:
            return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
        case 3:
            return data + data[at:]
        case _:
            return data[:at] + data[min(len(data), at + chance.randrange(1, 40)) :]


def damage(bench: Workbench, chance: random.Random) -> None:
    for name, chapters in sound_books().items():
        contents: list[Any] = [[text for text, _ in chapters], [doctrine for _, doctrine in chapters]]
        if chance.random() < 0.8:
            for _ in range(chance.randrange(1, 4)):
                mutate_json(contents, chance)
        encoded = [json.dumps(content, ensure_ascii=True).encode("ascii") for content in contents[:2]]
        if chance.random() < 0.3 and encoded:
            victim = chance.randrange(len(encoded))
            encoded[victim] = mutate_bytes(encoded[victim], chance)
        for file, data in zip(FILES, encoded, strict=False):
            bench.write(f"{name}/{file}", data)


def ingest(bench: Workbench) -> None:
    try:
        bench.ingest()
    except ChaptersFailed as error:
        # The only failure there may be, and it names its chapters.
        assert error.failures


@pytest.mark.slow
def test_no_damage_to_a_book_breaks_the_intake_or_loses_anything_silently(bench: Workbench) -> None:
    chance = random.Random(os.environ.get("ERA_TEST_FUZZ_SEED", "20"))
    kinds: set[str] = set()
    for number in range(ROUNDS):
        damage(bench, chance)
        ingest(bench)
        assert bench.heard.receipt.items.adds_up, f"round {number}"
        found = inspect(bench.settings, bench.database)
        assert found.findings == (), f"round {number}"
        failing = {check.name for check, verdict in run_checks(bench.settings, bench.database) if not verdict.passed}
        assert not failing & {"every_text_has_a_vector", "receipts_add_up", "files_agree_with_tables"}
        kinds |= failing
        # A source that gave no chapter says why: unreadable, a record in quarantine, or a note.
        assert (
            bench.count(
                "drop_sources AS s",
                "NOT EXISTS (SELECT FROM drop_chapters AS d WHERE d.source_path = s.source_path) AND s.notes = '{}'"
                " AND s.reason = '' AND NOT EXISTS (SELECT FROM quarantine AS q WHERE q.source_path = s.source_path)",
            )
            == 0
        ), f"round {number}"
    assert "input_is_readable" in kinds
    for name, chapters in sound_books().items():
        bench.drop(name, *chapters)
    ingest(bench)
    assert (bench.count("quarantine"), bench.count("doctrine_sources")) == (0, 9)
    assert bench.count("doctrine_embeddings_all") == 9 * 8
    assert inspect(bench.settings, bench.database).clean
