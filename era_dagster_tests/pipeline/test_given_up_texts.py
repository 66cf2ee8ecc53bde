"""Texts that somebody gave up: their chapter is finished without them, whatever runs and switches of spaces come after."""

from dataclasses import replace

import pytest

from era_dagster.domain.errors import ChaptersFailed
from era_dagster.domain.stages import STAGES
from era_dagster.pipeline.space_build import build_space
from era_dagster.pipeline.verify import inspect
from era_dagster.storage.attempts import note_requested
from era_dagster.storage.dead_letters import ask_again, drop_letters, find_letters
from era_dagster.storage.space_switch import promote_space
from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer, FakeTransport
from era_dagster_tests.pipeline.workbench import Workbench, chapter


def without_a_vector(bench: Workbench) -> Workbench:
    """A chapter none of whose two texts can be embedded, beside a sound one."""
    bench.server.poison = {"poison"}
    bench.drop("ferry", chapter(1, "poison", rules=["poison too"]), chapter(2))
    with pytest.raises(ChaptersFailed):
        bench.ingest()
    return bench


def letters(bench: Workbench) -> list[tuple[str, str, int]]:
    return sorted(bench.rows("SELECT payload, state, attempts FROM dead_letters"))


def test_a_chapter_whose_every_text_was_given_up_is_finished_by_the_next_run_and_not_tried_again(
    bench: Workbench,
) -> None:
    without_a_vector(bench)
    assert drop_letters(bench.database, find_letters(bench.database)) == 2
    receipt = bench.ingest()
    assert bench.pending() == []
    assert receipt.chapters_failed == {}
    assert (receipt.items.seen, receipt.items.dead, receipt.items.adds_up) == (2, 2, True)
    assert bench.heard.stages_of("ferry/0001") == set(STAGES)
    assert letters(bench) == [("poison", "dropped", 4), ("poison too", "dropped", 4)]
    assert bench.rows("SELECT failure FROM drop_chapters ORDER BY partition_key") == [None, None]
    assert inspect(bench.settings, bench.database).clean
    bench.ingest()
    assert bench.asked == []


def test_a_chapter_with_one_text_that_nobody_gave_up_still_fails_and_is_named_for_it(bench: Workbench) -> None:
    without_a_vector(bench)
    drop_letters(bench.database, [letter for letter in find_letters(bench.database) if letter.payload == "poison"])
    with pytest.raises(ChaptersFailed, match="None of the 2 texts"):
        bench.ingest()
    assert [known.partition_key for known in bench.pending()] == ["ferry/0001"]
    assert letters(bench) == [("poison", "dropped", 4), ("poison too", "open", 4)]


def test_a_chapter_that_was_given_up_fails_again_where_it_fails_for_another_reason(bench: Workbench) -> None:
    without_a_vector(bench)
    drop_letters(bench.database, find_letters(bench.database))
    with bench.database.connection() as connection:
        connection.execute("UPDATE dead_letters SET fingerprint = 'of another failure'")
    with pytest.raises(ChaptersFailed):
        bench.ingest()
    assert [state for _, state, _ in letters(bench)] == ["open", "open"]


def test_a_chapter_that_was_given_up_is_asked_for_again_and_stored_when_the_server_takes_it(bench: Workbench) -> None:
    without_a_vector(bench)
    drop_letters(bench.database, find_letters(bench.database))
    bench.ingest()
    ask_again(bench.database, find_letters(bench.database, states=("dropped",)))
    with pytest.raises(ChaptersFailed):
        bench.ingest()
    assert [state for _, state, _ in letters(bench)] == ["open", "open"]
    bench.server.poison = set()
    bench.ingest()
    assert [state for _, state, _ in letters(bench)] == ["resolved", "resolved"]
    assert bench.pending() == []


def test_a_chapter_that_waits_a_day_to_be_tried_again_is_due_at_once_when_its_texts_are_given_up(
    bench: Workbench,
) -> None:
    without_a_vector(bench)
    for _ in range(6):
        note_requested(bench.database, ["ferry/0001"])
    drop_letters(bench.database, find_letters(bench.database))
    (waiting,) = bench.pending()
    assert (waiting.attempts, waiting.requested_at) == (0, None)


def half_given_up(bench: Workbench) -> Workbench:
    """Of two texts that cannot be embedded, the first was given up."""
    bench.server.poison = {"offends"}
    bench.drop("ferry", chapter(1, "A ferry.", rules=["It offends.", "It offends too."]))
    bench.ingest()
    drop_letters(bench.database, [letter for letter in find_letters(bench.database) if letter.payload == "It offends."])
    assert letters(bench) == [("It offends too.", "open", 2), ("It offends.", "dropped", 2)]
    return bench


def beside(bench: Workbench, *, model: str = "second-model", poison: tuple[str, ...] = ()) -> int:
    """Build the space of another model, or bring it up to date; its number."""
    server = FakeEmbeddingServer(model=model, dimension=16)
    server.poison = set(poison)
    settings = replace(bench.settings, embedding_model=model)
    built = build_space(settings, bench.database, transport=FakeTransport(server))
    assert built.space is not None
    return built.space.space_id


def test_letters_are_what_they_were_when_a_switch_of_spaces_is_gone_back_from(bench: Workbench) -> None:
    half_given_up(bench)
    before = letters(bench)
    second = beside(bench)
    for _ in range(2):
        promote_space(bench.database, second)
        assert [state for _, state, _ in letters(bench)] == ["resolved", "resolved"]
        promote_space(bench.database, 1, accept_dead=True)
        assert letters(bench) == before


def test_each_space_has_its_own_letters_of_a_text_that_both_models_refuse(bench: Workbench) -> None:
    half_given_up(bench)
    first_had = letters(bench)
    second = beside(bench, poison=("offends",))
    promote_space(bench.database, second, accept_dead=True)
    assert letters(bench) == [("It offends too.", "open", 2), ("It offends.", "open", 2)]
    drop_letters(bench.database, [letter for letter in find_letters(bench.database) if "too" in letter.payload])
    second_has = letters(bench)
    for number, wanted in ((1, first_had), (second, second_has), (1, first_had)):
        promote_space(bench.database, number, accept_dead=True)
        assert letters(bench) == wanted


def test_a_space_that_is_brought_up_to_date_beside_the_live_one_keeps_what_was_given_up_in_it(
    bench: Workbench,
) -> None:
    half_given_up(bench)
    first = bench.server.model
    promote_space(bench.database, beside(bench))
    assert beside(bench, model=first, poison=("offends",)) == 1
    promote_space(bench.database, 1, accept_dead=True)
    assert [state for _, state, _ in letters(bench)] == ["open", "dropped"]


def test_what_was_given_up_with_one_model_is_not_with_another_one_of_its_name(bench: Workbench) -> None:
    """Their errors read alike: `ollama pull` gives such models."""
    half_given_up(bench)
    first = letters(bench)
    server = FakeEmbeddingServer(model=bench.server.model, dimension=16)
    server.digest = "f" * 64
    server.poison.add("offends")
    built = build_space(bench.settings, bench.database, transport=FakeTransport(server))
    assert built.space is not None
    promote_space(bench.database, built.space.space_id, accept_dead=True)
    assert {state for _, state, _ in letters(bench)} == {"open"}
    drop_letters(bench.database, find_letters(bench.database))
    promote_space(bench.database, 1, accept_dead=True)
    assert letters(bench) == first


def test_a_chapter_without_any_vector_keeps_what_was_given_up_in_it_over_a_switch_and_back(bench: Workbench) -> None:
    without_a_vector(bench)
    drop_letters(bench.database, find_letters(bench.database)[:1])
    states = [(text, state) for text, state, _ in letters(bench)]
    assert {state for _, state in states} == {"open", "dropped"}
    promote_space(bench.database, beside(bench), accept_dead=True)
    beside(bench, model=bench.server.model, poison=tuple(bench.server.poison))
    promote_space(bench.database, 1, accept_dead=True)
    assert [(text, state) for text, state, _ in letters(bench)] == states
