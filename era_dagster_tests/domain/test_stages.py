"""Stages, their order and their stamps."""

from dataclasses import replace

import pytest

from era_dagster.domain.chunking import ChunkRules
from era_dagster.domain.stages import STAGES, UPSTREAM, StampRules, stale_stages, vector_stamps, with_upstream

CHUNK_RULES = ChunkRules(mode="sentences", min_chars=512, max_chars=1024, overlap_chars=0, words=512)
RULES = StampRules(chunk_rules=CHUNK_RULES, model_stamp="model@1/16/")
CONTENT = bytes(32)


def changed(rules: StampRules, content: bytes = CONTENT) -> set[str]:
    """The stages whose stamp differs from that of the same content under `RULES`."""
    before, after = RULES.stamps(CONTENT), rules.stamps(content)
    return {stage for stage in STAGES if before[stage] != after.get(stage)}


def test_stages_come_after_what_they_are_made_from() -> None:
    for place, stage in enumerate(STAGES):
        assert all(STAGES.index(needed) < place for needed in UPSTREAM[stage])


@pytest.mark.parametrize(
    ("selected", "needed"),
    [
        ({"chapters"}, {"chapters"}),
        ({"embeddings"}, {"chapters", "chunks", "embeddings"}),
        ({"vector_tables"}, {"chapters", "chunks", "embeddings", "vector_tables"}),
        ({"minister_files"}, {"chapters", "minister_files"}),
        ({"combined_index"}, set()),
    ],
)
def test_a_selection_brings_what_it_is_made_from(selected: set[str], needed: set[str]) -> None:
    assert with_upstream(selected) == needed


def test_changed_content_makes_every_stage_stale() -> None:
    assert changed(RULES, content=bytes([1] * 32)) == set(STAGES)


@pytest.mark.parametrize(
    "rules",
    [
        replace(CHUNK_RULES, mode="words"),
        replace(CHUNK_RULES, min_chars=1),
        replace(CHUNK_RULES, max_chars=2000),
        replace(CHUNK_RULES, overlap_chars=5),
        replace(CHUNK_RULES, words=7),
    ],
)
def test_changed_chunk_rules_concern_chunks_and_their_vectors(rules: ChunkRules) -> None:
    assert changed(replace(RULES, chunk_rules=rules)) == {"chunks", "embeddings", "vector_tables"}


def test_another_model_concerns_vectors_only() -> None:
    assert changed(replace(RULES, model_stamp="other@1/16/")) == {"embeddings", "vector_tables"}


def test_without_a_model_stages_with_vectors_have_no_stamp_and_are_stale() -> None:
    rules = replace(RULES, model_stamp=None)
    assert set(rules.stamps(CONTENT)) == {"chapters", "chunks", "minister_files"}
    stored: dict[str, str | None] = {**RULES.stamps(CONTENT)}
    assert stale_stages(STAGES, rules.stamps(CONTENT), stored) == {"embeddings", "vector_tables"}


def test_an_unstored_chapter_is_stale_in_every_stage() -> None:
    assert stale_stages(STAGES, RULES.stamps(CONTENT), None) == set(STAGES)


def test_a_stage_is_stale_exactly_when_its_stored_stamp_is_another() -> None:
    stored: dict[str, str | None] = {**RULES.stamps(CONTENT), "chunks": None, "embeddings": "older"}
    assert stale_stages(STAGES, RULES.stamps(CONTENT), stored) == {"chunks", "embeddings"}
    assert stale_stages(("chapters", "chunks"), RULES.stamps(CONTENT), stored) == {"chunks"}


def test_a_stamp_is_the_hash_and_the_suffix_that_sql_appends() -> None:
    assert RULES.stamps(CONTENT) == {stage: CONTENT.hex() + suffix for stage, suffix in RULES.suffixes.items()}


@pytest.mark.parametrize("aliases", [{}, {"risk_management": "risk"}])
def test_a_space_of_another_model_gets_the_stamps_an_ingest_with_that_model_would_write(
    aliases: dict[str, str],
) -> None:
    old = replace(RULES, aliases=aliases)
    stored, wanted = old.stamps(CONTENT), replace(old, model_stamp="other@1/16/").stamps(CONTENT)
    assert vector_stamps(chapters=stored["chapters"], chunks=stored["chunks"], model_stamp="other@1/16/") == {
        "embeddings": wanted["embeddings"],
        "vector_tables": wanted["vector_tables"],
    }


def test_texts_that_are_not_done_give_no_stamp_to_vectors_made_from_them() -> None:
    for chapters, chunks in ((None, "c"), ("c", None)):
        stamps = vector_stamps(chapters=chapters, chunks=chunks, model_stamp="m")
        assert stamps == {"embeddings": None, "vector_tables": None}
