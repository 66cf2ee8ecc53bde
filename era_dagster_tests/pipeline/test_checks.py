"""Each claim about the knowledge base turns red by a planted fault, names it, and turns green when the fault is mended."""

import shutil
from collections.abc import Callable
from contextlib import suppress

import pytest

from era_dagster.domain.errors import ChaptersFailed
from era_dagster.pipeline.checks import CHECKS, EXTRACTOR_READS_CHARS, Verdict, run_checks
from era_dagster_tests.pipeline.workbench import Workbench, chapter

LONG = "The pilot wrote it down before the tide turned. " * 40
FRAGMENT = "The harbour master counted the ropes again. "


def verdicts(bench: Workbench) -> dict[str, Verdict]:
    return {check.name: verdict for check, verdict in run_checks(bench.settings, bench.database)}


def failing(bench: Workbench) -> set[str]:
    return {name for name, verdict in verdicts(bench).items() if not verdict.passed}


def sound(bench: Workbench) -> None:
    bench.drop("ferry", chapter(1, LONG, rules=["Count twice."]), chapter(2, claims=["A log is a memory."]))


def run(bench: Workbench) -> None:
    with suppress(ChaptersFailed):
        bench.ingest()


def book(*chapters: tuple[dict, dict]) -> Callable[[Workbench], None]:
    return lambda bench: bench.drop("harbour", *chapters) and None


def unreadable(bench: Workbench) -> None:
    bench.drop("harbour", chapter(1))
    bench.write("harbour/02_doctrine.json", b"[{")


def poison(bench: Workbench) -> None:
    bench.server.poison = {"poison"}
    bench.drop("harbour", chapter(1, rules=["A poison sentence."]))


# What is dropped beside a sound book, the checks it turns red, and a word of what they must say.
FAULTS: dict[str, tuple[Callable[[Workbench], None], set[str], str]] = {
    "a broken file": (unreadable, {"input_is_readable"}, "02_doctrine.json"),
    "empty doctrine for a long chapter": (
        book(chapter(1, LONG), chapter(2, rules=["Wait."])),
        {"doctrine_is_not_suspiciously_empty"},
        "harbour/0001",
    ),
    "a book without doctrine": (book(chapter(1)), {"doctrine_is_not_suspiciously_empty"}, "harbour"),
    "doctrine for a blank chapter": (
        book(chapter(1, "\f", rules=["Wait."])),
        {"doctrine_has_its_text"},
        "harbour/0001",
    ),
    "an object that holds no sentence": (
        book(chapter(1, rules=["Wait.", {"when": "dusk", "who": "the pilot"}])),
        {"items_hold_a_sentence"},
        "its keys: when, who",
    ),
    "an echo of the prompt": (
        book(chapter(1, rules=["No actionable doctrine in the provided text."])),
        {"items_are_no_prompt_echoes"},
        "harbour/0001",
    ),
    "a broken font": (book(chapter(1, "Ɵħɏ ȶȳȵƻ " * 50, rules=["Wait."])), {"texts_are_readable"}, "harbour/0001"),
    "a domain nobody knows": (
        book(chapter(1, domains=["Harbour Etiquette"], rules=["Wait."])),
        {"domains_are_known"},
        "Harbour Etiquette",
    ),
    "a chapter no extractor can have read": (
        book(chapter(1, FRAGMENT * (EXTRACTOR_READS_CHARS // 20), rules=["Wait."])),
        {"extractor_can_have_read_the_text"},
        "harbour/0001",
    ),
    "a poisoned text": (poison, {"dead_letters_are_empty", "first_pass_success_is_99_5_percent"}, "offends"),
}


def test_a_sound_knowledge_base_and_an_empty_one_pass_every_check(bench: Workbench) -> None:
    assert failing(bench) == set()
    sound(bench)
    run(bench)
    assert failing(bench) == set()


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_turns_its_check_red_and_is_named(bench: Workbench, name: str) -> None:
    plant, expected, word = FAULTS[name]
    sound(bench)
    run(bench)
    plant(bench)
    run(bench)
    found = verdicts(bench)
    assert {name for name, verdict in found.items() if not verdict.passed} == expected
    assert word in str([found[name] for name in expected])
    bench.server.poison = set()
    shutil.rmtree(bench.settings.drop_dir / "harbour")
    sound(bench)
    bench.drop("ferry", chapter(1, f"{LONG} Again.", rules=["Count twice."]), chapter(2, claims=["A log."]))
    run(bench)
    assert failing(bench) == set()


@pytest.mark.parametrize(
    ("statement", "check"),
    [
        ("DELETE FROM chunk_embeddings WHERE partition_key = 'ferry/0002'", "every_text_has_a_vector"),
        ("DELETE FROM doctrine_embeddings_all WHERE text = 'Count twice.'", "every_text_has_a_vector"),
        ("UPDATE chapter_receipts SET seen = seen + 1 WHERE partition_key = 'ferry/0002'", "receipts_add_up"),
    ],
)
def test_lost_rows_turn_their_check_red_until_the_chapter_is_ingested_again(
    bench: Workbench, statement: str, check: str
) -> None:
    sound(bench)
    run(bench)
    with bench.database.connection() as connection:
        connection.execute(statement.encode())
    assert failing(bench) == {check}
    assert "ferry/000" in str(verdicts(bench)[check].named)
    with bench.database.connection() as connection:
        connection.execute("UPDATE doctrine_sources SET vector_tables_stamp = NULL")
    run(bench)
    assert failing(bench) == set()


def test_an_edited_file_turns_its_check_red_and_is_named(bench: Workbench) -> None:
    sound(bench)
    run(bench)
    file = bench.settings.ministers_dir / "risk" / "rules.json"
    good = file.read_bytes()
    file.write_bytes(good.replace(b"twice", b"thrice"))
    assert failing(bench) == {"files_agree_with_tables"}
    assert "rules.json" in str(verdicts(bench)["files_agree_with_tables"].named)
    file.write_bytes(good)
    assert failing(bench) == set()


def test_the_first_pass_share_is_of_the_last_run_and_a_hundredth_too_few_is_red(bench: Workbench) -> None:
    bench.server.poison = {"poison"}
    bench.drop("ferry", chapter(1, rules=["poison", *(f"Rule {number}." for number in range(98))]))
    run(bench)
    verdict = verdicts(bench)["first_pass_success_is_99_5_percent"]
    assert (verdict.passed, verdict.numbers["share"]) == (False, 0.99)
    assert verdict.named == [{"chapter": "ferry/0001", "dead": 1, "stored": 99}]


def test_every_check_has_a_name_of_its_own_and_says_what_it_claims() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    assert all(check.description.endswith(".") for check in CHECKS)
