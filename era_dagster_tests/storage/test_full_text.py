"""Hybrid search on a real PostgreSQL: words count too, in the language of each chapter, within every filter."""

from typing import Any

import numpy as np
import pytest

from era_dagster.storage.database import Database
from era_dagster.storage.full_text import note_languages
from era_dagster.storage.search import SearchHit, search_chunks, search_entries
from era_dagster_tests.fakes.embedding_server import vector_of
from era_dagster_tests.storage.chapter_rows import DIMENSION, make_chapter, store

ENGLISH = "The keeper of the lock was at the gate and he said that it is not for him to open it by night. " * 2
GERMAN = "Der Wärter sagte, dass er die Tore in der Nacht nicht öffnet und dass es auch für ihn nicht gut ist. " * 2
RULES = {
    1: (ENGLISH, ["risk"], ["Wait for the tide.", "Pay the ferrymen before dawn.", "Write the level down."]),
    2: (ENGLISH, ["timing"], ["Count to ten.", "Never quarrel with ferrymen.", "Leave room in every plan."]),
    3: (GERMAN, ["risk"], ["Die Schleusen müssen offen bleiben.", "Zähle bis zehn."]),
}


@pytest.fixture
def filled(database: Database) -> Database:
    for index, (text, domains, rules) in RULES.items():
        store(database, make_chapter(index, text=text, domains=domains, rules=rules))
    return database


def hybrid(database: Database, question: str, *, near: str = "Count to ten.", **options: Any) -> list[SearchHit]:
    """Asked with the vector of another text, so that only the words can have found what the vector did not."""
    search = search_chunks if options.pop("chunks", False) else search_entries
    with database.connection() as connection:
        return search(connection, vector_of(near, DIMENSION), words=question, **options)


def texts(hits: list[SearchHit]) -> list[str]:
    return [hit.text for hit in hits]


def test_a_rare_word_brings_up_what_the_vector_leaves_far_behind(filled: Database) -> None:
    with filled.connection() as connection:
        plain = search_entries(connection, vector_of("Count to ten.", DIMENSION), top_k=8)
    found = hybrid(filled, "What about the ferrymen?", top_k=8)
    assert texts(plain)[0] == "Count to ten."
    assert {hit.doctrine_id for hit in found} == {hit.doctrine_id for hit in plain}
    assert "ferrymen" in found[0].text.lower() or found[0].text == "Count to ten."
    assert {"Pay the ferrymen before dawn.", "Never quarrel with ferrymen."} <= set(texts(found)[:3])
    # The score stays the cosine similarity, whatever the order.
    assert {hit.doctrine_id: hit.score for hit in found} == pytest.approx({hit.doctrine_id: hit.score for hit in plain})


def test_domain_category_and_book_hold_for_the_words_too(filled: Database) -> None:
    assert texts(hybrid(filled, "ferrymen", domain="timing", top_k=1)) == ["Never quarrel with ferrymen."]
    assert all(hit.domains == ("risk",) for hit in hybrid(filled, "ferrymen", domain="risk", top_k=9))
    assert hybrid(filled, "ferrymen", category="warnings") == []
    assert hybrid(filled, "ferrymen", book="another") == hybrid(filled, "ferrymen", domain="nowhere") == []
    assert len(hybrid(filled, "ferrymen", book="ferry", top_k=3)) == 3


def test_german_words_are_found_in_their_other_forms(filled: Database) -> None:
    with filled.connection() as connection:
        languages = connection.execute("SELECT chapter, language FROM doctrine_sources ORDER BY 1").fetchall()
    assert languages == [(1, "english"), (2, "english"), (3, "german")]
    assert "Die Schleusen müssen offen bleiben." in texts(hybrid(filled, "Was tut man mit der Schleuse?", top_k=2))


def test_chunks_are_found_by_words(filled: Database) -> None:
    found = hybrid(filled, "Wärter", near=ENGLISH, chunks=True, top_k=1) + hybrid(
        filled, "Wärter", near=ENGLISH, chunks=True, domain="risk", top_k=1
    )
    assert [hit.chapter for hit in found] == [3, 3]
    assert hybrid(filled, "Wärter", chunks=True, domain="timing", top_k=1)[0].chapter == 2


@pytest.mark.parametrize(
    "question",
    [
        "the of and",
        "!!!",
        "'; DROP TABLE minister_entries; --",
        "a\\'b & | ! :* <-> ()",
        "nul \0 inside",
        "zzzz " * 5000,
        "💣",
    ],
)
def test_a_question_without_known_words_is_answered_by_the_vector_alone(filled: Database, question: str) -> None:
    with filled.connection() as connection:
        plain = search_entries(connection, vector_of("Count to ten.", DIMENSION))
    assert hybrid(filled, question) == plain


def test_words_with_quotes_and_backslashes_are_found_as_they_are(database: Database) -> None:
    store(
        database, make_chapter(1, text=ENGLISH, rules=["Count to ten.", "See http://x.example/a'b\\c for the tables."])
    )
    assert len(hybrid(database, "http://x.example/a'b\\c", top_k=2)) == 2


def test_a_chapter_that_changes_its_language_is_found_by_its_new_words(database: Database) -> None:
    store(database, make_chapter(1, text=ENGLISH, rules=["Die Schleusen bleiben offen.", "Count to ten."]))
    store(database, make_chapter(1, text=GERMAN, rules=["Die Schleusen bleiben offen.", "Count to ten."]))
    with database.connection() as connection:
        words = connection.execute("SELECT words::text FROM minister_entries WHERE text LIKE 'Die%'").fetchone()
    assert words is not None
    assert "'schleus'" in words[0]


def test_a_text_of_megabytes_is_stored_and_found_by_its_beginning(database: Database) -> None:
    many = " ".join(f"word{number}" for number in range(300_000))
    store(database, make_chapter(1, text=ENGLISH, rules=[f"Remember the ferrymen {many}", "Count to ten."]))
    with database.connection() as connection:
        found = connection.execute("SELECT count(*) FROM minister_entries WHERE words @@ 'ferrymen'").fetchone()
    assert found == (1,)


def test_chapters_stored_before_languages_were_looked_at_get_theirs(filled: Database) -> None:
    with filled.connection() as connection:
        connection.execute("UPDATE doctrine_sources SET language = NULL")
        connection.execute("UPDATE minister_entries SET language = 'simple'")
        connection.execute("UPDATE chapter_chunks SET language = 'simple'")
    assert texts(hybrid(filled, "quarrels", top_k=9))[0] == "Count to ten.", "no stem of another language"
    assert note_languages(filled) == 3
    assert note_languages(filled) == 0
    assert texts(hybrid(filled, "quarrels", top_k=1)) == ["Never quarrel with ferrymen."]


def test_more_words_than_are_asked_for_and_statistics_change_nothing_essential(filled: Database) -> None:
    with filled.connection() as connection:
        connection.execute("ANALYZE minister_entries")
    long = "ferrymen quarrel dawn tide level plan room write wait count pay leave never night keeper gate"
    found = hybrid(filled, long, top_k=9)
    assert np.isfinite([hit.score for hit in found]).all()
    assert sorted(texts(found)) == sorted(text for _, _, rules in RULES.values() for text in rules)
