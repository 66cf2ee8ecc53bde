"""Each claim about the knowledge base turns red by a planted fault, names it, and turns green by the mend it asks for."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from era_dagster.domain.errors import ChaptersFailed
from era_dagster.domain.stages import with_upstream
from era_dagster.pipeline.checks import CHECKS, EXTRACTOR_READS_CHARS, Verdict, run_checks
from era_dagster.pipeline.verify import finish, inspect, mend
from era_dagster.storage.dead_letters import ask_again, find_letters
from era_dagster.storage.drops import find_chapters
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


def redrive(bench: Workbench) -> None:
    """As the job does: ask again for every open letter. The server has been mended."""
    bench.server.poison = set()
    chapters = find_chapters(bench.database, ask_again(bench.database, find_letters(bench.database)))
    bench.run(chapters=chapters)


def alias(bench: Workbench) -> None:
    table = bench.settings.data_dir.with_name("aliases.json")
    table.write_text(json.dumps({"Harbour Etiquette": "risk"}), encoding="utf-8")
    bench.settings = replace(bench.settings, domain_aliases=table)


@dataclass(frozen=True)
class Trouble:
    """What is dropped beside a sound book, the checks it turns red, a word of what they must say, and the mend they ask for."""

    plant: Callable[[Workbench], None]
    red: set[str]
    word: str
    mend: Callable[[Workbench], None]


TROUBLES: dict[str, Trouble] = {
    "a broken file": Trouble(unreadable, {"input_is_readable"}, "02_doctrine.json", book(chapter(1, rules=["Wait."]))),
    "empty doctrine for a long chapter": Trouble(
        book(chapter(1, LONG), chapter(2, rules=["Wait."])),
        {"doctrine_is_not_suspiciously_empty"},
        "harbour/0001",
        book(chapter(1, LONG, claims=["Tides turn."]), chapter(2, rules=["Wait."])),
    ),
    "a book without doctrine": Trouble(
        book(chapter(1)), {"doctrine_is_not_suspiciously_empty"}, "harbour", book(chapter(1, rules=["Wait."]))
    ),
    "a book without doctrine, which has no long chapter": Trouble(
        book(chapter(1)), {"doctrine_is_not_suspiciously_empty"}, "at all", book(chapter(1, rules=["Wait."]))
    ),
    "doctrine for a blank chapter": Trouble(
        book(chapter(1, "\f", rules=["Wait."])),
        {"doctrine_has_its_text"},
        "harbour/0001",
        book(chapter(1, rules=["Wait."])),
    ),
    "an object that holds no sentence": Trouble(
        book(chapter(1, rules=["Wait.", {"when": "dusk", "who": "the pilot"}])),
        {"items_hold_a_sentence"},
        "its keys: when, who",
        book(chapter(1, rules=["Wait.", "The pilot waits for dusk."])),
    ),
    "an echo of the prompt": Trouble(
        book(chapter(1, rules=["No actionable doctrine in the provided text."])),
        {"items_are_no_prompt_echoes"},
        "harbour/0001",
        book(chapter(1, rules=["Wait."])),
    ),
    "a broken font": Trouble(
        book(chapter(1, "Ɵħɏ ȶȳȵƻ " * 50, rules=["Wait."])),
        {"texts_are_readable"},
        "harbour/0001",
        book(chapter(1, "The tide " * 50, rules=["Wait."])),
    ),
    "a domain nobody knows": Trouble(
        book(chapter(1, domains=["Harbour Etiquette"], rules=["Wait."])),
        {"domains_are_known"},
        "Harbour Etiquette",
        alias,
    ),
    "a chapter no extractor can have read": Trouble(
        book(chapter(1, FRAGMENT * (EXTRACTOR_READS_CHARS // 20), rules=["Wait."])),
        {"extractor_can_have_read_the_text"},
        "harbour/0001",
        book(*(chapter(index, FRAGMENT * (EXTRACTOR_READS_CHARS // 80), rules=["Wait."]) for index in range(1, 5))),
    ),
    "a poisoned text": Trouble(
        poison, {"dead_letters_are_empty", "first_pass_success_is_99_5_percent"}, "offends", redrive
    ),
}
# Faults of what is stored: a statement that plants them, and the check that turns red.
DAMAGES = {
    "lost chunk vectors": (
        "DELETE FROM chunk_embeddings WHERE partition_key = 'ferry/0002'",
        "every_text_has_a_vector",
    ),
    "a lost entry": ("DELETE FROM doctrine_embeddings_all WHERE text = 'Count twice.'", "every_text_has_a_vector"),
    "a receipt that misses an item": (
        "UPDATE chapter_receipts SET seen = seen + 1 WHERE partition_key = 'ferry/0002'",
        "receipts_add_up",
    ),
}


def test_a_sound_knowledge_base_and_an_empty_one_pass_every_check(bench: Workbench) -> None:
    assert failing(bench) == set()
    sound(bench)
    run(bench)
    assert failing(bench) == set()


@pytest.mark.parametrize("name", TROUBLES)
def test_a_planted_fault_turns_its_check_red_until_the_mend_it_asks_for(bench: Workbench, name: str) -> None:
    trouble = TROUBLES[name]
    sound(bench)
    run(bench)
    trouble.plant(bench)
    run(bench)
    found = verdicts(bench)
    assert {name for name, verdict in found.items() if not verdict.passed} == trouble.red
    assert trouble.word in str([found[name] for name in trouble.red])
    trouble.mend(bench)
    run(bench)
    assert failing(bench) == set()


def verify_and_fix(bench: Workbench) -> None:
    """As `era verify --fix` does, in another run than that of before."""
    findings = inspect(bench.settings, bench.database).findings
    pending = mend(bench.settings, bench.database, findings)
    if pending:
        bench.run(chapters=pending, run_id="mended")
    finish(bench.settings, bench.database)
    assert inspect(bench.settings, bench.database).clean


@pytest.mark.parametrize("name", DAMAGES)
def test_what_was_lost_turns_its_check_red_until_verify_mends_it(bench: Workbench, name: str) -> None:
    statement, check = DAMAGES[name]
    sound(bench)
    run(bench)
    with bench.database.connection() as connection:
        connection.execute(statement.encode())
    assert failing(bench) == {check}
    verdict = verdicts(bench)[check]
    assert "ferry/000" in str(verdict.named)
    assert "`era verify --fix`" in verdict.said
    verify_and_fix(bench)
    assert failing(bench) == set()


def test_vectors_that_outlived_their_chapter_leave_when_it_is_ingested_again(bench: Workbench) -> None:
    sound(bench)
    run(bench)
    with bench.database.connection() as connection:
        connection.execute(
            "INSERT INTO chunk_embeddings SELECT partition_key, 500, embedding FROM chunk_embeddings"
            " WHERE partition_key = 'ferry/0001' LIMIT 1"
        )
        for table in ("minister_entries", "chapter_chunks", "doctrine_sources"):
            connection.execute(f"DELETE FROM {table} WHERE partition_key = 'ferry/0001'")
    verify_and_fix(bench)


def test_an_edited_file_turns_its_check_red_until_verify_mends_it(bench: Workbench) -> None:
    sound(bench)
    run(bench)
    file = bench.settings.ministers_dir / "risk" / "rules.json"
    good = file.read_bytes()
    file.write_bytes(good.replace(b"twice", b"thrice"))
    assert failing(bench) == {"files_agree_with_tables"}
    verdict = verdicts(bench)["files_agree_with_tables"]
    assert "rules.json" in str(verdict.named)
    assert "`era verify --fix`" in verdict.said
    verify_and_fix(bench)
    assert file.read_bytes() == good
    assert failing(bench) == set()


def test_a_foreign_file_among_ours_is_named_with_who_can_mend_it(bench: Workbench) -> None:
    """It was called different from the database, and `era verify --fix` was to mend it, which leaves it alone."""
    sound(bench)
    run(bench)
    (bench.settings.ministers_dir / "risk" / "notes of mine.txt").write_text("keep", encoding="utf-8")
    verdict = verdicts(bench)["files_agree_with_tables"]
    assert "notes of mine.txt" in str(verdict.named)
    assert verdict.said == "1 files are not ours, and readers may take them for ours; move them out of there."


def test_files_that_no_run_was_to_render_yet_are_called_pending_and_the_damaged_ones_beside_them_are_not_hidden(
    bench: Workbench,
) -> None:
    """After `--select embeddings` all files "differed", and a hint sent to mend what was not broken."""
    sound(bench)
    run(bench)
    bench.drop("gale", chapter(1, domains=["timing"], rules=["A wind is no friend."]))
    bench.look()
    bench.run(with_upstream(["embeddings"]))
    pending = verdicts(bench)["files_agree_with_tables"]
    assert pending.said.startswith("6 files are pending: ")
    assert pending.said.endswith("`era ingest` renders them.")
    assert pending.waits
    (bench.settings.ministers_dir / "risk" / "rules.json").write_bytes(b"{}")
    verdict = verdicts(bench)["files_agree_with_tables"]
    assert (verdict.passed, verdict.offenders, verdict.waits) == (False, 7, False)
    assert verdict.said.startswith(
        "1 files differ from the database; `era verify --fix` mends them. 6 files are pending"
    )
    assert verdict.named[0]["fault"] == "different"
    assert {row["fault"] for row in verdict.named[1:]} == {"missing (pending)", "different (pending)"}
    found = inspect(bench.settings, bench.database)
    assert sorted((finding.kind, finding.mend) for finding in found.findings if finding.kind.endswith("file")) == [
        ("different_file", "finish"),
        ("different_file", "render"),
        *[("missing_file", "finish")] * 5,
    ]
    verify_and_fix(bench)
    assert failing(bench) == set()


def test_each_check_has_a_fault_here_that_turns_it_red_and_a_mend_that_turns_it_green() -> None:
    planted = {name for trouble in TROUBLES.values() for name in trouble.red} | {check for _, check in DAMAGES.values()}
    assert planted | {"files_agree_with_tables"} == {check.name for check in CHECKS}


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


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that nobody can read, root neither")
def test_a_minister_file_that_cannot_be_read_is_named_and_keeps_no_other_claim_from_being_judged(
    bench: Workbench,
) -> None:
    """`era status` showed nothing else, and a run that had done everything failed."""
    sound(bench)
    run(bench)
    file = bench.settings.ministers_dir / "risk" / "rules.json"
    file.unlink()
    file.symlink_to("/proc/self/mem")
    found = verdicts(bench)
    assert [name for name, verdict in found.items() if not verdict.passed] == ["files_agree_with_tables"]
    assert "cannot be read: Input/output error." in found["files_agree_with_tables"].said
