"""A whole run, from the drop folder to tables and files, and what the next runs do about what changed."""

import json
import os
import re
import shutil
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from era_dagster.control.startup import FIRST_CONCURRENCY
from era_dagster.domain.errors import (
    BadVectors,
    ChaptersFailed,
    ConfigurationError,
    EndpointRefused,
    EndpointUnavailable,
    StorageError,
)
from era_dagster.domain.stages import STAGES
from era_dagster.embedding.provider import CANARY
from era_dagster.storage.attempts import note_requested
from era_dagster.storage.search import search_chunks
from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer, Fault, serving, vector_of
from era_dagster_tests.pipeline.workbench import CATEGORIES, PER_RUN, Workbench, chapter, one_file, timeless

FERRY = (
    chapter(
        1,
        "The ferry\x00 captain counted the sacks twice. " * 40,
        ["Risk", "Decision-Making"],
        principles=["Keep one margin of safety.", {"type": "principle", "text": "Count twice."}],
        rules=["Count the load twice before you cast off.", "Count the load twice before you cast off."],
        claims=None,
        warnings=["Calm weather teaches\x00 little.", {"unknown": "shape"}, ""],
    ),
    chapter(2, "The autumn gales came late.", ["timing", "risk"], claims=["Written records shorten a crisis."]),
    chapter(7, "A part title", []),
)
HARBOUR = (
    chapter(1, "The harbour was quiet. " * 80, ["Business/Finance", "risk"], principles=["Keep one margin of safety."]),
    chapter(2, "\f\f", ["risk"]),
)


def folded(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower().replace("&", " and ")).strip("_")


def sentence(item: Any) -> str:
    text = item.get("text", "") if isinstance(item, dict) else item
    return " ".join(text.replace("\x00", "").split())


def counted(*books: tuple[Any, ...]) -> dict[str, Any]:
    """What the input says, by plain means."""
    entries = [
        (number, doctrine["chapter_index"], category, text, domain)
        for number, book in enumerate(books)
        for _, doctrine in book
        for category in CATEGORIES
        for text in {sentence(item) for item in doctrine.get(category) or []} - {""}
        for domain in {folded(name) for name in doctrine["domains"]} or {"base"}
    ]
    return {
        "chapters": sum(len(book) for book in books),
        "pairs": len(entries),
        "entries": len({entry[:4] for entry in entries}),
        "domains": Counter(entry[4] for entry in entries),
    }


def assert_sound(bench: Workbench) -> None:
    """What must hold after every run: tables, vectors and files tell the same story, in clean text."""
    assert (
        bench.count(
            "minister_entries",
            "NOT EXISTS (SELECT FROM doctrine_embeddings_all AS a"
            " WHERE a.doctrine_id = embedding_id AND a.text = minister_entries.text)",
        )
        == 0
    )
    assert sorted(bench.rows("SELECT doctrine_id::text, domain FROM minister_entries")) == sorted(
        bench.rows("SELECT doctrine_id::text, domain FROM doctrine_embeddings")
    )
    assert sorted(bench.rows("SELECT partition_key, position FROM chapter_chunks")) == sorted(
        bench.rows("SELECT partition_key, position FROM chunk_embeddings")
    )
    assert (
        bench.count(
            "chapter_chunks AS c JOIN doctrine_sources AS s USING (partition_key)",
            "c.text <> substr(s.text, start_offset + 1, end_offset - start_offset)",
        )
        == 0
    )
    vectors = [np.frombuffer(data, dtype="<f4") for data in bench.rows("SELECT embedding FROM embedding_cache")]
    assert all(abs(np.linalg.norm(vector) - 1) < 1e-5 for vector in vectors)
    for table in ("chunk_embeddings", "doctrine_embeddings", "doctrine_embeddings_all"):
        assert bench.count(table, "l2_norm(embedding) NOT BETWEEN 0.99 AND 1.01") == 0
    texts = bench.rows("SELECT text FROM minister_entries UNION ALL SELECT text FROM chapter_chunks")
    assert not [text for text in texts if "\x00" in text or text.startswith("{'") or not text.strip()]
    assert_files_agree(bench)


def assert_files_agree(bench: Workbench) -> None:
    rows = bench.rows("SELECT domain, category, doctrine_id::text, text, book, chapter FROM minister_entries")
    told = []
    folders = {path.name for path in bench.settings.ministers_dir.iterdir()}
    for domain in folders:
        names = {f"{name}.json" for name in (*CATEGORIES, "doctrine")}
        assert {path.name for path in (bench.settings.ministers_dir / domain).iterdir()} == names
        for category in CATEGORIES:
            content = bench.domain_file(domain, category)
            assert content["meta"]["total_entries"] == len(content["entries"])
            told += [
                (domain, category, entry["id"], entry["text"], entry["source"]["book"], entry["source"]["chapter"])
                for entry in content["entries"]
            ]
    assert sorted(told) == sorted(rows)
    index = json.loads((bench.settings.data_dir / "combined_vector.index").read_text(encoding="utf-8"))
    per_domain = Counter(row[0] for row in rows)
    assert index["domains_included"] == sorted(folders) == sorted(per_domain)
    assert {name: held["total_entries"] for name, held in index["domain_statistics"].items()} == per_domain
    assert index["metadata"]["total_entries"] == len(rows)


def test_a_dropped_book_reaches_all_tables_and_files(bench: Workbench) -> None:
    bench.drop("Ferry Notes", *FERRY)
    bench.drop("Harbour, a History…", *HARBOUR)
    receipt = bench.ingest()
    expected = counted(FERRY, HARBOUR)
    assert bench.count("doctrine_sources") == receipt.chapters_stored == expected["chapters"] == 5
    assert bench.count("doctrine_embeddings_all") == expected["entries"] == 6
    assert bench.count("minister_entries") == bench.count("doctrine_embeddings") == expected["pairs"]
    assert Counter(bench.rows("SELECT domain FROM minister_entries")) == expected["domains"]
    assert bench.rows("SELECT sum(chunk_count)::int FROM doctrine_sources") == [bench.count("chapter_chunks")]
    assert sorted(set(bench.rows("SELECT book FROM minister_entries"))) == ["Ferry Notes", "Harbour, a History…"]
    assert_sound(bench)


def test_every_stage_of_every_chapter_is_reported_in_order_of_dependence(bench: Workbench) -> None:
    bench.drop("Ferry Notes", *FERRY)
    bench.ingest()
    keys = bench.rows("SELECT partition_key FROM doctrine_sources")
    assert len(keys) == 3
    for key in keys:
        told = [done.stage for done in bench.heard.done if done.partition_key == key]
        assert told == list(STAGES)


def test_a_text_that_occurs_twice_is_embedded_once(bench: Workbench) -> None:
    bench.drop("Ferry Notes", *FERRY)
    bench.drop("Harbour", *HARBOUR)
    bench.ingest()
    assert bench.server.texts.count("Keep one margin of safety.") == 1
    assert bench.count("doctrine_embeddings_all", "text = 'Keep one margin of safety.'") == 2


def test_a_second_look_and_run_change_nothing_at_all(bench: Workbench) -> None:
    bench.drop("Ferry Notes", *FERRY)
    bench.write("broken.json", b"[{")
    bench.write("Unfinished/01_chapters.json", [])
    bench.ingest()
    tables, files = bench.tables(versions=True), bench.files()
    receipt = bench.ingest()
    assert (receipt.chapters_seen, bench.server.batches) == (0, [])
    everything = bench.run(chapters=bench.known())
    assert (everything.chapters_unchanged, everything.chapters_stored, bench.server.batches) == (3, 0, [])
    assert bench.tables(versions=True) == tables
    assert bench.files() == files


def test_touched_files_start_nothing(bench: Workbench) -> None:
    folder = bench.drop("Ferry Notes", *FERRY)
    bench.ingest()
    files, rows = bench.files(), bench.tables(versions=True)
    for file in folder.iterdir():
        os.utime(file, ns=(time.time_ns(), time.time_ns()))
    look = bench.look()
    assert (look.new, look.changed, look.gone, bench.pending()) == ((), (), (), [])
    assert (bench.ingest().chapters_seen, bench.server.requests, bench.files()) == (0, 0, files)
    assert {name: held for name, held in bench.tables(versions=True).items() if name != "public.drop_sources"} == {
        name: held for name, held in rows.items() if name != "public.drop_sources"
    }


def test_changed_doctrine_embeds_only_the_changed_items(bench: Workbench) -> None:
    bench.drop("Ferry Notes", *FERRY)
    bench.ingest()
    chunks = bench.tables(versions=True)["vectors.chunk_embeddings"]
    text, doctrine = FERRY[1]
    bench.drop("Ferry Notes", FERRY[0], (text, {**doctrine, "claims": ["A new wording."]}), FERRY[2])
    receipt = bench.ingest()
    assert bench.asked == ["A new wording."]
    assert receipt.chapters_seen == 1
    assert bench.tables(versions=True)["vectors.chunk_embeddings"] == chunks
    assert bench.count("minister_entries", "text LIKE 'Written records%'") == 0
    assert_sound(bench)


def test_a_book_split_anew_into_fewer_chapters_loses_the_others(bench: Workbench) -> None:
    bench.drop("Ferry Notes", *FERRY)
    bench.ingest()
    text, doctrine = FERRY[0]
    again = ({**text, "raw_text": "All in one chapter now. " * 60}, doctrine)
    bench.drop("Ferry Notes", again)
    receipt = bench.ingest()
    assert (receipt.chapters_retired, receipt.chapters_stored) == (2, 1)
    assert bench.rows("SELECT chapter FROM doctrine_sources") == [1]
    assert bench.count("drop_chapters") == 1
    assert bench.count("minister_entries") == counted((again,))["pairs"]
    assert not (bench.settings.ministers_dir / "timing").exists()
    assert_sound(bench)


def test_a_removed_book_leaves_tables_and_files(bench: Workbench) -> None:
    bench.drop("Harbour", *HARBOUR)
    bench.ingest()
    tables, files = bench.tables(without=PER_RUN), timeless(bench.files())
    shutil.rmtree(bench.drop("Ferry Notes", *FERRY))
    bench.drop("Ferry Notes", *FERRY)
    bench.ingest()
    assert bench.tables(without=PER_RUN) != tables
    shutil.rmtree(bench.settings.drop_dir / "Ferry Notes")
    assert bench.ingest().chapters_retired == 3
    bench.look()
    left = bench.tables(without=PER_RUN)
    for table in ("embedding_cache", "minister_domains"):  # what was learned stays, what was said goes
        del left[f"public.{table}"], tables[f"public.{table}"]
    assert {name: held for name, held in left.items() if held or name in tables} == tables
    assert timeless(bench.files()) == files
    assert_sound(bench)


def test_the_folder_of_a_domain_goes_with_its_last_entry(bench: Workbench) -> None:
    bench.drop("Ferry Notes", *FERRY)
    bench.ingest()
    assert (bench.settings.ministers_dir / "timing").is_dir()
    text, doctrine = FERRY[1]
    bench.drop("Ferry Notes", FERRY[0], (text, {**doctrine, "domains": ["risk"]}), FERRY[2])
    bench.ingest()
    assert not (bench.settings.ministers_dir / "timing").exists()
    assert_sound(bench)


def test_a_poison_text_is_one_dead_letter_and_the_rest_of_its_chapter_is_stored(bench: Workbench) -> None:
    rules = [f"Rule number {number} of the ferry." for number in range(18)]
    bench.drop("Ferry Notes", chapter(1, rules=[*rules, "A poison sentence."]))
    bench.server.poison = {"poison"}
    receipt = bench.ingest()
    assert bench.count("chunk_embeddings") + bench.count("doctrine_embeddings_all") == 19
    assert bench.rows("SELECT payload, partition_key, stage, state FROM dead_letters") == [
        (
            "A poison sentence.",
            "ferry-notes-" + bench.rows("SELECT right(book_slug, 6) FROM doctrine_sources")[0] + "/0001",
            "embeddings",
            "open",
        )
    ]
    assert (receipt.items.seen, receipt.items.stored, receipt.items.dead, receipt.items.adds_up) == (20, 19, 1, True)
    assert bench.heard.stages_of(bench.rows("SELECT partition_key FROM doctrine_sources")[0]) == set(STAGES)
    assert len(bench.domain_file("risk", "rules")["entries"]) == 19
    assert bench.pending() == []


def test_a_chapter_whose_every_text_fails_is_named_and_the_others_are_stored(bench: Workbench) -> None:
    bench.drop("Ferry Notes", chapter(1, rules=["Sound."]), chapter(2, "poison", rules=["poison too"]), chapter(3))
    bench.server.poison = {"poison"}
    with pytest.raises(ChaptersFailed) as caught:
        bench.ingest()
    first, bad, third = sorted(bench.rows("SELECT partition_key FROM drop_chapters"))
    assert list(caught.value.failures) == [bad]
    assert caught.value.message.startswith(f"1 of 3 chapters failed, the others are stored: {bad}: ")
    assert "offends the tokenizer" in caught.value.message
    assert [known.partition_key for known in bench.pending()] == [bad]
    assert bench.heard.stages_of(bad) == {"chapters", "chunks", "minister_files"}
    assert bench.heard.stages_of(first) == bench.heard.stages_of(third) == set(STAGES)
    assert (
        bench.rows("SELECT failure FROM drop_chapters WHERE partition_key = %s", bad)[0] == caught.value.failures[bad]
    )
    assert bench.heard.receipt.items.adds_up
    assert [entry["text"] for entry in bench.domain_file("risk", "rules")["entries"]] == ["Sound.", "poison too"]


def test_dead_letters_and_failures_are_closed_by_the_run_that_succeeds(bench: Workbench) -> None:
    bench.drop("Ferry Notes", chapter(1, "poison", rules=["poison too"]))
    bench.server.poison = {"poison"}
    with pytest.raises(ChaptersFailed):
        bench.ingest()
    with pytest.raises(ChaptersFailed) as caught:
        bench.ingest()
    assert caught.value.message.startswith("1 of 1 chapters failed: ")
    assert bench.rows("SELECT payload, state, attempts FROM dead_letters ORDER BY 1") == [
        ("poison", "open", 4),
        ("poison too", "open", 4),
    ]
    bench.server.poison = set()
    bench.ingest()
    assert bench.rows("SELECT DISTINCT state FROM dead_letters") == ["resolved"]
    assert bench.rows("SELECT failure FROM drop_chapters") == [None]
    assert_sound(bench)


def test_a_server_that_goes_down_stops_the_run_and_the_next_embeds_only_the_rest(bench: Workbench) -> None:
    bench.drop("Ferry Notes", *(chapter(index, rules=[f"Rule {index}."]) for index in range(1, 41)))
    bench.settings = replace(bench.settings, queue_limit=32, embed_batch=4, embed_concurrency=1)
    bench.server.faults.extend([None] * 10)
    bench.server.always = Fault(reset=True)
    with pytest.raises(EndpointUnavailable):
        bench.ingest()
    made = {text for batch in bench.server.batches[2:10] for text in batch}
    stored = bench.count("doctrine_sources", "vector_tables_stamp IS NOT NULL")
    assert 0 < stored < 40
    assert bench.count("embedding_cache") == len(made)
    assert bench.count("doctrine_sources", "minister_files_stamp IS NOT NULL") == stored
    bench.server.always = None
    bench.ingest()
    assert len(bench.asked) == len(set(bench.asked)) == 80 - len(made)
    assert not made & set(bench.asked)
    assert_sound(bench)


def test_a_server_that_is_down_from_the_start_is_said_in_one_sentence(bench: Workbench) -> None:
    bench.drop("Ferry Notes", *FERRY)
    bench.server.down = True
    with pytest.raises(EndpointUnavailable, match=r"127\.0\.0\.1:11434"):
        bench.ingest()
    bench.server.down = False
    bench.ingest()
    assert_sound(bench)


def test_a_run_that_was_stopped_forgets_no_earlier_failure(bench: Workbench) -> None:
    bench.drop("A", chapter(1, "Well."))
    bench.drop("Z", chapter(1, "poison"))
    bench.server.poison = {"poison"}
    with pytest.raises(ChaptersFailed):
        bench.ingest()
    failed = bench.rows("SELECT failure FROM drop_chapters WHERE failure IS NOT NULL")
    bench.drop("A", *(chapter(index) for index in range(1, 100)))
    bench.settings = replace(bench.settings, queue_limit=1)
    bench.server.faults.extend([None, None])  # the identity is told
    bench.server.always = Fault(reset=True)
    with pytest.raises(EndpointUnavailable):
        bench.ingest()
    key = [known.partition_key for known in bench.pending()][-1]
    assert bench.rows("SELECT failure FROM drop_chapters WHERE partition_key = %s", key) == failed


def test_a_model_the_server_does_not_hold_is_refused_at_once(bench: Workbench) -> None:
    bench.drop("Ferry Notes", *FERRY)
    bench.settings = replace(bench.settings, embedding_model="other-model")
    with pytest.raises(EndpointRefused, match="other-model"):
        bench.ingest()
    assert bench.server.requests <= 1
    assert bench.count("embedding_spaces") == 0


def test_a_model_that_vanishes_in_mid_run_is_not_hammered(bench: Workbench) -> None:
    bench.drop("Ferry Notes", *(chapter(index) for index in range(1, 41)))
    bench.server.faults.extend([None, None, None])
    bench.server.always = Fault(status=404, message='model "test-model" not found, try pulling it first')
    with pytest.raises(EndpointRefused, match="test-model"):
        bench.ingest()
    assert bench.server.requests <= 3 + FIRST_CONCURRENCY


class OtherModel(FakeEmbeddingServer):
    """Vectors as wide as those of the model of that name, that mean something else."""

    def _encoded_vector(self, text: str, dimension: int) -> bytes:
        return super()._encoded_vector(f"otherwise {text}", dimension)


def test_a_server_that_comes_in_mid_run_with_another_model_stops_the_run_and_gets_no_text(bench: Workbench) -> None:
    bench.drop("Ferry Notes", *(chapter(index, f"The ferry left on day {index}.") for index in range(1, 121)))
    bench.look()
    bench.server.seconds_per_text = 0.02
    other = OtherModel(dimension=16)
    other.faults.extend([Fault(reset=True)] * 4)  # away when it is asked who it is, twice and each time once more
    with serving(bench.server) as url, serving(other) as other_url:
        bench.settings = replace(bench.settings, embedding_urls=(url, other_url))
        with pytest.raises(BadVectors, match=f"{other_url} answers other vectors"):
            bench.run(with_fake_server=False)
    assert set(other.texts) == {CANARY}


def test_embeddings_alone_fill_the_cache_and_leave_the_vector_tables_empty(bench: Workbench) -> None:
    bench.drop("Ferry Notes", *FERRY)
    bench.look()
    bench.run({"embeddings"})
    assert {done.stage for done in bench.heard.done} == {"chapters", "chunks", "embeddings"}
    assert bench.count("doctrine_embeddings_all") == bench.count("chunk_embeddings") == 0
    assert bench.count("embedding_cache") == len(set(bench.asked)) > 0
    assert not bench.settings.ministers_dir.exists()
    bench.server.batches.clear()
    assert bench.run({"vector_tables"}).embedding_requests == 0
    assert bench.asked == []
    bench.run({"minister_files"})
    assert_sound(bench)


def test_minister_files_alone_need_no_model(bench: Workbench) -> None:
    bench.drop("Ferry Notes", *FERRY)
    bench.server.down = True
    bench.look()
    bench.run({"minister_files"})
    assert_files_agree(bench)
    assert (bench.pending({"minister_files"}), len(bench.pending())) == ([], 3)
    bench.server.down = False
    bench.run()
    assert_sound(bench)


def test_another_model_in_the_settings_is_refused_naming_both(bench: Workbench) -> None:
    bench.drop("Ferry Notes", *FERRY)
    bench.ingest()
    tables = bench.tables(versions=True)
    bench.server = FakeEmbeddingServer(model="other-model", dimension=16)
    bench.settings = replace(bench.settings, embedding_model="other-model")
    with pytest.raises(ConfigurationError, match=r"test-model.*other-model"):
        bench.pending()
    with pytest.raises(ConfigurationError, match=r"test-model.*other-model"):
        bench.run(chapters=bench.known())
    assert bench.tables(versions=True) == tables


def test_another_model_under_the_same_name_is_refused_before_anything_is_written(bench: Workbench) -> None:
    bench.drop("Ferry Notes", *FERRY)
    bench.ingest()
    bench.drop("Harbour", *HARBOUR)
    bench.look()
    tables = bench.tables(versions=True)
    bench.server = FakeEmbeddingServer(dimension=32)
    with pytest.raises(ConfigurationError, match=r"16 dimensions.*32 dimensions"):
        bench.run()
    assert bench.tables(versions=True) == tables


def test_vectors_of_a_wrong_dimension_are_never_stored(bench: Workbench) -> None:
    bench.drop("Ferry Notes", *FERRY)
    bench.server.faults.extend([None, None])  # the identity is told rightly
    bench.server.always = Fault(answer="wrong_dimension")
    with pytest.raises(EndpointUnavailable, match="8 dimensions"):
        bench.ingest()
    for table in ("embedding_cache", "chunk_embeddings", "doctrine_embeddings", "doctrine_embeddings_all"):
        assert bench.count(table) == 0
    assert bench.count("doctrine_sources", "embeddings_stamp IS NOT NULL AND chunk_count > 0") == 0


def test_files_that_cannot_be_written_fail_the_run_and_are_due_for_the_next(bench: Workbench) -> None:
    bench.drop("Ferry Notes", *FERRY)
    bench.settings.data_dir.mkdir(parents=True, exist_ok=True)
    bench.settings.ministers_dir.write_text("in the way", encoding="utf-8")
    with pytest.raises(StorageError, match="ministers"):
        bench.ingest()
    assert bench.count("doctrine_sources", "vector_tables_stamp IS NOT NULL") == 3
    bench.settings.ministers_dir.unlink()
    bench.ingest()
    assert bench.asked == []
    assert_sound(bench)


def test_a_chapter_that_another_run_retires_meanwhile_is_not_stored_for_ever(bench: Workbench) -> None:
    folder = bench.drop("Ferry Notes", *FERRY)
    bench.look()
    slow = bench.pending()
    shutil.move(folder, bench.settings.drop_dir.with_name("aside"))
    bench.ingest()
    shutil.copytree(bench.settings.drop_dir.with_name("aside"), folder)  # as one who has read it before still sees it
    receipt = bench.run(chapters=slow)
    assert (receipt.chapters_seen, receipt.chapters_retired, receipt.chapters_failed) == (3, 3, {})
    assert [bench.count(table) for table in ("doctrine_sources", "minister_entries", "chunk_embeddings")] == [0, 0, 0]
    assert bench.ingest().chapters_stored == 3
    assert_sound(bench)


def test_a_chapter_whose_source_another_run_missed_meanwhile_has_not_failed(bench: Workbench) -> None:
    folder = bench.drop("Ferry Notes", *FERRY)
    bench.look()
    slow = bench.pending()
    shutil.rmtree(folder)
    with pytest.raises(ChaptersFailed, match="Ferry Notes cannot be read"):
        bench.run(chapters=slow)  # nobody has looked
    bench.look()
    assert bench.run(chapters=slow).chapters_retired == 3
    assert bench.count("drop_chapters") == 0


def test_a_chapter_that_came_back_before_it_was_removed_stays(bench: Workbench) -> None:
    folder = bench.drop("Ferry Notes", *FERRY)
    bench.ingest()
    aside = shutil.move(folder, bench.settings.drop_dir.with_name("aside"))
    bench.look()
    slow = bench.pending()
    shutil.move(aside, folder)
    bench.ingest()
    before = bench.tables(without=PER_RUN)
    receipt = bench.run(chapters=slow)
    assert (receipt.chapters_retired, receipt.chapters_left) == (0, 3)
    assert bench.tables(without=PER_RUN) == before
    assert_sound(bench)


def test_a_removed_book_leaves_the_files_too_when_only_vectors_are_wanted(bench: Workbench) -> None:
    bench.drop("Harbour", *HARBOUR)
    bench.ingest()
    files = timeless(bench.files())
    folder = bench.drop("Ferry Notes", *FERRY)
    bench.ingest()
    shutil.rmtree(folder)
    bench.look()
    assert bench.run({"embeddings"}).chapters_retired == 3
    assert timeless(bench.files()) == files


def test_a_book_changed_between_look_and_run_is_stored_as_it_is_now(bench: Workbench) -> None:
    bench.drop("Ferry Notes", *FERRY)
    bench.look()
    text, doctrine = FERRY[1]
    bench.drop("Ferry Notes", FERRY[0], (text, {**doctrine, "claims": ["A new wording."]}))
    with pytest.raises(ChaptersFailed, match="no longer holds"):
        bench.run()
    assert bench.count("minister_entries", "text = 'A new wording.'") == 2
    assert bench.ingest().chapters_retired == 1
    assert bench.pending() == []
    assert_sound(bench)


def test_the_same_book_in_the_other_form_changes_no_row_of_the_knowledge_base(bench: Workbench) -> None:
    folder = bench.drop("Ferry Notes", *FERRY)
    bench.ingest()
    before, files = bench.tables(versions=True), bench.files()
    bench.write("whatever.json", one_file("Ferry Notes", *FERRY))
    shutil.rmtree(folder)
    receipt = bench.ingest()
    assert (receipt.chapters_seen, bench.server.batches, bench.files()) == (0, [], files)
    after = bench.tables(versions=True)
    assert [name for name in before if before[name] != after[name]] == ["public.drop_chapters", "public.drop_sources"]


def test_a_renamed_folder_is_the_same_text_under_another_name(bench: Workbench) -> None:
    folder = bench.drop("ferry", *FERRY)
    bench.ingest()
    folder.rename(folder.with_name("lighter"))
    receipt = bench.ingest()
    assert bench.asked == []
    assert (receipt.chapters_stored, receipt.chapters_retired) == (3, 3)
    assert set(bench.rows("SELECT book FROM minister_entries")) == {"lighter"}
    assert bench.count("doctrine_embeddings_all") == counted(FERRY)["entries"]
    assert_sound(bench)


FIRST, SECOND = (
    chapter(1, f"The {boat} crosses the river at dawn and counts its coins. " * 40, rules=[f"Trust the {boat}."])
    for boat in ("ferry", "lighter")
)


def without_vectors(bench: Workbench, stages: list[str] | None) -> None:
    """Run these stages; None: all of them, while the server is away."""
    if stages is None:
        bench.server.down = True
        with pytest.raises(EndpointUnavailable):
            bench.run()
        bench.server.down = False
    else:
        bench.run(stages)


@pytest.mark.parametrize("stages", [["chapters", "chunks"], ["chapters"], None])
def test_a_text_that_is_again_what_its_vectors_were_made_from_is_finished(
    bench: Workbench, stages: list[str] | None
) -> None:
    """Between, it was another one, of which no vectors were made."""
    bench.drop("ferry", FIRST)
    bench.ingest()
    bench.drop("ferry", SECOND)
    bench.look()
    without_vectors(bench, stages)
    bench.drop("ferry", FIRST)
    assert bench.ingest().chapters_stored == 1
    assert bench.pending() == []
    assert_sound(bench)


def test_a_chunk_is_not_found_by_the_words_that_it_had_before_it_was_changed(bench: Workbench) -> None:
    bench.drop("ferry", FIRST)
    bench.ingest()
    vectors = bench.count("chunk_embeddings")
    old = vector_of(bench.rows("SELECT text FROM chapter_chunks WHERE position = 0")[0], 16)
    bench.drop("ferry", SECOND)
    bench.look()
    bench.run(["chunks"])
    with bench.database.connection() as connection:
        assert search_chunks(connection, old, top_k=3) == []
    bench.drop("ferry", FIRST)
    bench.look()
    bench.run(["chunks"])
    assert len(bench.pending()) == 1, "its vectors have to come back"
    bench.run()
    assert (bench.count("chunk_embeddings"), bench.pending()) == (vectors, [])
    assert_sound(bench)


@pytest.mark.parametrize("stages", [["chunks"], ["chapters"], None])
def test_a_text_that_comes_back_after_one_that_got_no_vector_at_all_gets_its_vectors_again(
    bench: Workbench, stages: list[str] | None
) -> None:
    bench.drop("ferry", FIRST)
    bench.ingest()
    vectors = bench.count("chunk_embeddings"), bench.count("doctrine_embeddings_all")
    bench.server.poison.add("lighter")
    bench.drop("ferry", SECOND)
    with pytest.raises(ChaptersFailed):
        bench.ingest()
    bench.drop("ferry", FIRST)
    bench.look()
    without_vectors(bench, stages)
    bench.ingest()
    assert (bench.count("chunk_embeddings"), bench.count("doctrine_embeddings_all")) == vectors
    assert_sound(bench)


def test_a_chapter_whose_file_cannot_be_written_is_not_requested_at_every_tick(bench: Workbench) -> None:
    bench.drop("ferry", FIRST)
    bench.look()
    bench.settings.data_dir.mkdir(parents=True, exist_ok=True)
    bench.settings.ministers_dir.write_text("not a folder", encoding="utf-8")
    for attempts in (1, 2):
        note_requested(bench.database, ["ferry/0001"])
        with pytest.raises(StorageError):
            bench.run()
        assert [known.attempts for known in bench.pending()] == [attempts]


def test_a_source_that_changed_since_the_last_look_is_not_requested_at_every_tick(bench: Workbench) -> None:
    bench.drop("ferry", FIRST)
    bench.look()
    bench.drop("ferry", SECOND)
    note_requested(bench.database, ["ferry/0001"])
    bench.run()
    assert [known.attempts for known in bench.pending()] == [1]
