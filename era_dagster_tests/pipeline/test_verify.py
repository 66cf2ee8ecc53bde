"""Every fault that verify knows is planted here; it must be named, and mending must make all agree again."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from era_dagster.pipeline.drop import look_at_drop
from era_dagster.pipeline.verify import Finding, Inspection, finish, inspect, mend
from era_dagster_tests.pipeline.workbench import PER_RUN, Workbench, chapter, timeless

Plant = Callable[[Workbench], object]


def sql(statement: str) -> Plant:
    def plant(bench: Workbench) -> None:
        with bench.database.connection() as connection:
            connection.execute(statement.encode())

    return plant


def file(domain: str, name: str, content: bytes | None) -> Plant:
    def plant(bench: Workbench) -> None:
        path = bench.settings.ministers_dir / domain / name
        path.parent.mkdir(exist_ok=True)
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)

    return plant


def never_dropped(bench: Workbench) -> None:
    shutil.rmtree(bench.settings.drop_dir / "harbour")
    sql("DELETE FROM drop_sources WHERE source_path LIKE '%harbour'")(bench)


def filled(bench: Workbench) -> Workbench:
    bench.drop(
        "ferry",
        chapter(1, "The pilot wrote it down. " * 60, ["risk", "timing"], rules=["Count twice.", "Wait for the tide."]),
        chapter(2, claims=["A log is a memory."]),
    )
    bench.drop("harbour", chapter(1, warnings=["Calm weather teaches little."]))
    bench.ingest()
    return bench


def inspected(bench: Workbench) -> Inspection:
    return inspect(bench.settings, bench.database)


def mended(bench: Workbench, findings: tuple[Finding, ...]) -> Inspection:
    bench.run(chapters=mend(bench.settings, bench.database, findings))
    finish(bench.settings, bench.database)
    return inspected(bench)


def state(bench: Workbench) -> tuple[object, object]:
    tables = bench.tables(without=PER_RUN | {"reason"})
    for name in ("chapter_receipts", "embedding_cache"):  # what was done, and what is only remembered
        del tables[f"public.{name}"]
    return tables, timeless(bench.files())


def test_a_sound_knowledge_base_is_clean_and_verifying_changes_nothing(bench: Workbench) -> None:
    filled(bench)
    tables, files = bench.tables(versions=True), bench.files()
    found = inspected(bench)
    assert (found.findings, found.chapters, found.unreadable) == ((), 3, ())
    assert (bench.tables(versions=True), bench.files()) == (tables, files)


ZERO = "'[" + ",".join(["0"] * 16) + "]'::halfvec"
OTHER = "'[1" + ",0" * 15 + "]'::halfvec"
FAULTS: dict[str, tuple[Plant, set[str]]] = {
    "a row of one table is gone": (
        sql("DELETE FROM doctrine_embeddings WHERE text = 'Count twice.'"),
        {"missing_vector"},
    ),
    "an entry's row is gone": (
        sql("DELETE FROM doctrine_embeddings_all WHERE text = 'Count twice.'"),
        {"unresolvable_embedding_id"},
    ),
    "a chunk's row is gone": (
        sql("DELETE FROM chunk_embeddings WHERE partition_key = 'harbour/0001'"),
        {"missing_vector"},
    ),
    "rows of nobody": (
        sql(
            "INSERT INTO doctrine_embeddings_all SELECT gen_random_uuid(), domains, category, 'Nobody said it.',"
            " source_book, source_chapter, weight, partition_key, embedding FROM doctrine_embeddings_all LIMIT 1"
        ),
        {"orphan_vector"},
    ),
    "rows of a chapter that is not stored": (
        sql("INSERT INTO chunk_embeddings SELECT 'gone/0001', position, embedding FROM chunk_embeddings LIMIT 1"),
        {"orphan_vector"},
    ),
    "a zero vector": (
        sql(f"UPDATE chunk_embeddings SET embedding = {ZERO} WHERE partition_key = 'ferry/0002'"),
        {"unsound_vector"},
    ),
    "a vector of something else": (
        sql(f"UPDATE doctrine_embeddings SET embedding = {OTHER} WHERE text = 'Wait for the tide.'"),
        {"different_row"},
    ),
    "an edited text": (
        sql("UPDATE doctrine_embeddings_all SET text = 'Count thrice.' WHERE text = 'Count twice.'"),
        {"different_row"},
    ),
    "another model": (
        sql("UPDATE doctrine_sources SET model = 'simulated' WHERE partition_key = 'ferry/0001'"),
        {"wrong_model"},
    ),
    "an embedding id that leads nowhere": (
        sql("UPDATE minister_entries SET embedding_id = gen_random_uuid() WHERE text = 'A log is a memory.'"),
        {"unresolvable_embedding_id", "different_file"},
    ),
    "an entry that the source does not have": (
        sql(
            "INSERT INTO minister_entries SELECT gen_random_uuid(), domain, category, position, 'Nobody said it.', book,"
            " chapter, weight, embedding_id, content_hash, details, partition_key FROM minister_entries"
            " WHERE text = 'A log is a memory.'"
        ),
        {"extra_entry", "missing_vector", "different_count", "different_file"},
    ),
    "an entry twice": (
        sql(
            "INSERT INTO minister_entries SELECT gen_random_uuid(), domain, category, position, text, book, chapter,"
            " weight, embedding_id, content_hash, details, partition_key FROM minister_entries"
            " WHERE text = 'A log is a memory.'"
        ),
        {"extra_entry", "duplicate_entry", "missing_vector", "different_count", "different_file"},
    ),
    "an entry that is gone": (
        sql("DELETE FROM minister_entries WHERE text = 'A log is a memory.'"),
        {"missing_entry", "orphan_vector", "different_count", "different_file"},
    ),
    "an edited chapter": (
        sql("UPDATE doctrine_sources SET text = text || ' More.' WHERE partition_key = 'harbour/0001'"),
        {"different_text"},
    ),
    "a chunk that is gone": (
        sql("DELETE FROM chapter_chunks WHERE partition_key = 'ferry/0002'"),
        {"different_chunks", "orphan_vector", "different_count"},
    ),
    "a chapter nobody dropped": (never_dropped, {"chapter_without_source"}),
    "a chapter that the register forgot": (
        sql("DELETE FROM drop_chapters WHERE partition_key = 'harbour/0001'"),
        {"not_ingested_yet"},
    ),
    "a chapter that all tables forgot": (
        sql(
            "WITH forgotten AS (DELETE FROM doctrine_sources WHERE partition_key = 'ferry/0002')"
            " DELETE FROM drop_chapters WHERE partition_key = 'ferry/0002'"
        ),
        {"not_ingested_yet", "different_file"},
    ),
    "a letter about nothing": (
        sql(
            "INSERT INTO dead_letters VALUES (gen_random_uuid(), 'embeddings', 'ferry/0001', 'Not there.', 'X', 'm', 'f', 1)"
        ),
        {"stale_letter"},
    ),
    "a damaged vector in the cache": (
        sql("UPDATE embedding_cache SET embedding = decode(repeat('00', 64), 'hex')"),
        {"damaged_cached_vector"},
    ),
    "NaN in the cache": (
        sql("UPDATE embedding_cache SET embedding = decode(repeat('0000c07f', 16), 'hex')"),
        {"damaged_cached_vector"},
    ),
    "a file that is gone": (file("risk", "rules.json", None), {"missing_file"}),
    "an edited file": (file("risk", "rules.json", b"{}\n"), {"different_file"}),
    "a file of a domain without entries": (file("nowhere", "rules.json", b"{}\n"), {"orphan_file"}),
    "an edited totals file": (
        lambda bench: (bench.settings.data_dir / "combined_vector.index").write_text("{}", encoding="utf-8"),
        {"different_file"},
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_named_and_mended(bench: Workbench, name: str) -> None:
    plant, kinds = FAULTS[name]
    expected = state(filled(bench))
    plant(bench)
    found = inspected(bench)
    assert {finding.kind for finding in found.findings} == kinds
    again = mended(bench, found.findings)
    assert again.findings == ()
    if name not in ("a chapter nobody dropped", "a letter about nothing"):
        assert state(bench) == expected


def test_what_is_not_ours_is_named_and_never_touched(bench: Workbench) -> None:
    """Readers take every folder under the ministers for a domain."""
    filled(bench)
    file("notes", "mine.txt", b"mine")(bench)
    found = inspected(bench)
    assert [(finding.kind, finding.mend) for finding in found.findings] == [("foreign_file", "by hand")]
    assert mended(bench, found.findings).findings == found.findings
    assert (bench.settings.ministers_dir / "notes" / "mine.txt").read_bytes() == b"mine"


def test_what_waits_in_the_drop_folder_is_named_once_and_ingested_by_the_mending(bench: Workbench) -> None:
    filled(bench)
    bench.drop("inn", chapter(1, rules=["Leave a light on."]))
    bench.drop("harbour", chapter(1, warnings=["Another wording."]))
    found = inspected(bench)
    assert sorted((finding.kind, finding.subject) for finding in found.findings) == [
        ("not_ingested_yet", "harbour/0001"),
        ("not_ingested_yet", "inn/0001"),
    ]
    assert mended(bench, found.findings).clean
    assert bench.count("minister_entries", "text IN ('Leave a light on.', 'Another wording.')") == 2


def test_a_book_that_cannot_be_read_is_told_and_keeps_what_it_had(bench: Workbench) -> None:
    filled(bench)
    bench.write("harbour/02_doctrine.json", b"[{")
    bench.look()
    found = inspected(bench)
    assert (found.findings, found.unreadable) == ((), ("harbour/0001",))
    assert bench.count("minister_entries", "partition_key = 'harbour/0001'") == 1


def test_an_empty_directory_in_the_place_of_the_drop_folder_keeps_nothing_else_from_being_verified(
    bench: Workbench,
) -> None:
    filled(bench)
    drop = bench.settings.drop_dir
    drop.rename(drop.with_name("unplugged"))
    drop.mkdir()
    file("risk", "rules.json", None)(bench)
    found = inspected(bench)
    assert [finding.kind for finding in found.findings] == ["missing_file"]
    assert found.away == (str(drop / "ferry"), str(drop / "harbour"))
    assert mended(bench, found.findings).findings == ()
    assert bench.count("drop_chapters", "gone") == 0


def test_an_unread_file_from_elsewhere_that_is_gone_with_its_folder_is_named_and_forgotten(bench: Workbench) -> None:
    """Nobody can name it to `era ingest` any more, so it stayed in quarantine for ever."""
    filled(bench)
    elsewhere = bench.settings.drop_dir.with_name("shelf")
    elsewhere.mkdir()
    for name in ("lost.json", "there.json"):
        (elsewhere / name).write_bytes(b"[{")
        look_at_drop(bench.settings, bench.database, elsewhere / name, patient=False)
    (elsewhere / "lost.json").unlink()
    found = inspected(bench)
    assert [(finding.subject, finding.mend) for finding in found.findings] == [(str(elsewhere / "lost.json"), "unlist")]
    assert mended(bench, found.findings).clean
    assert bench.count("quarantine", "file LIKE '%lost.json'") == 0
    assert bench.count("quarantine", "file LIKE '%there.json'") == 1


def test_a_superseded_file_from_elsewhere_that_was_removed_is_no_fault(bench: Workbench) -> None:
    """It is not unread: a newer drop holds its chapters."""
    filled(bench)
    shelf = bench.settings.drop_dir.with_name("shelf")
    for name in ("older", "newer"):
        shutil.copytree(bench.settings.drop_dir / "ferry", shelf / name / "ferry", copy_function=shutil.copy)
        look_at_drop(bench.settings, bench.database, shelf / name / "ferry", patient=False)
    shutil.rmtree(shelf / "older")
    assert bench.count("drop_sources", "reason LIKE 'newer drops hold%' AND source_path LIKE '%older/ferry'") == 1
    assert not [finding for finding in inspected(bench).findings if finding.kind == "vanished_file"]


def test_an_open_or_dropped_letter_accounts_for_its_text(bench: Workbench) -> None:
    bench.server.poison = {"twice"}
    filled(bench)
    assert inspected(bench).clean
    sql("UPDATE dead_letters SET state = 'dropped'")(bench)
    assert inspected(bench).clean
    sql("UPDATE dead_letters SET state = 'resolved'")(bench)
    assert {finding.kind for finding in inspected(bench).findings} == {"missing_vector", "unresolvable_embedding_id"}


def test_a_finding_says_what_and_where_in_plain_words(bench: Workbench) -> None:
    filled(bench)
    path = bench.settings.ministers_dir / "risk" / "rules.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["entries"].pop()
    path.write_text(json.dumps(content), encoding="utf-8")
    (finding,) = inspected(bench).findings
    assert Path(finding.subject) == path
    assert finding.said == "the file is not what the database would render"


def test_the_neighbours_of_a_book_from_elsewhere_are_none_of_our_business(bench: Workbench) -> None:
    filled(bench)
    elsewhere = bench.settings.drop_dir.with_name("shelf")
    elsewhere.mkdir()
    for name in ("wanted", "neighbour"):
        bench.drop(name, chapter(1, rules=[f"A rule of the {name}."])).rename(elsewhere / name)
    look_at_drop(bench.settings, bench.database, elsewhere / "wanted", patient=False)
    bench.run()
    assert inspected(bench).findings == ()
    file("risk", "rules.json", b"{}")(bench)
    assert mended(bench, inspected(bench).findings).clean
    assert bench.count("minister_entries", "book = 'neighbour'") == 0
    assert bench.count("minister_entries", "book = 'wanted'") == 1


def test_books_below_a_folder_from_elsewhere_that_is_no_book_are_none_of_our_business(bench: Workbench) -> None:
    filled(bench)
    elsewhere = bench.settings.drop_dir.with_name("shelf")
    (elsewhere / "series").mkdir(parents=True)
    bench.drop("first", chapter(1, rules=["A rule of the first."])).rename(elsewhere / "series" / "first")
    look = look_at_drop(bench.settings, bench.database, elsewhere, patient=False)
    assert (look.new, len(look.waiting)) == ((), 1)
    assert inspected(bench).findings == ()
    file("risk", "rules.json", b"{}")(bench)
    assert mended(bench, inspected(bench).findings).clean
    assert bench.count("minister_entries", "book = 'first'") == 0


def test_a_link_in_a_circle_among_the_ministers_is_named_and_breaks_nothing(bench: Workbench) -> None:
    filled(bench)
    file("risk", "rules.json", None)(bench)
    (bench.settings.ministers_dir / "nowhere").symlink_to(bench.settings.ministers_dir / "nowhere" / "on")
    assert {finding.kind for finding in inspected(bench).findings} == {"missing_file", "foreign_file"}
