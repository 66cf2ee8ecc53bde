"""Which dead letters a name stands for, and how long it takes to find thousands of them."""

import time

import psycopg
import pytest

from era_dagster.domain.errors import ConfigurationError
from era_dagster.storage.chapters import retire_chapter
from era_dagster.storage.database import Database
from era_dagster.storage.dead_letters import DeadLetter, find_letters, write_letters

LONGEST_SECONDS = 5.0


@pytest.fixture
def letters(database: Database) -> list[DeadLetter]:
    return planted(database, 6)


def planted(database: Database, count: int) -> list[DeadLetter]:
    """Open letters of three chapters, with two failures in turn."""
    with database.connection() as connection:
        connection.execute(
            "INSERT INTO dead_letters (dead_letter_id, stage, partition_key, payload, error_class, message, fingerprint,"
            " attempts) SELECT gen_random_uuid(), 'embeddings', 'ferry/000' || n %% 3, 'text ' || n, 'TextsRejected', 'no',"
            " CASE n %% 2 WHEN 0 THEN 'aaaaaaaaaaaaaaaa' ELSE 'bbbbbbbbbbbbbbbb' END, 1 FROM generate_series(1, %s) AS n",
            (count,),
        )
    return find_letters(database)


def settle(database: Database, letter: DeadLetter) -> None:
    with database.connection() as connection:
        connection.execute(
            "UPDATE dead_letters SET state = 'resolved' WHERE dead_letter_id = %s", (letter.dead_letter_id,)
        )


def test_a_letter_is_named_by_its_id_or_eight_digits_of_it_its_chapter_or_its_failure(
    database: Database, letters: list[DeadLetter]
) -> None:
    identifier = str(letters[0].dead_letter_id)
    for name in (identifier, identifier.upper(), identifier[:8], identifier[:13]):
        assert find_letters(database, [name]) == letters[:1], name
    for name in ("ferry/0001", "aaaaaaaaaaaaaaaa"):
        named = find_letters(database, [name])
        assert named == [letter for letter in letters if name in (letter.partition_key, letter.fingerprint)]
        assert named
    both = find_letters(database, [identifier, letters[0].partition_key, identifier])
    assert both[0] == letters[0]
    assert len(both) == 2


@pytest.mark.parametrize("name", ["ferry/0009", "aaaaaaa", "00000000-0000-0000-0000-000000000000", "", "ferry/000"])
def test_a_name_that_fits_no_letter_is_told(database: Database, letters: list[DeadLetter], name: str) -> None:
    with pytest.raises(ConfigurationError, match="No open dead letter is named"):
        find_letters(database, [str(letters[0].dead_letter_id), name])


def test_whole_ids_of_letters_that_were_settled_meanwhile_are_passed_over_when_asked_to(
    database: Database, letters: list[DeadLetter]
) -> None:
    settle(database, letters[0])
    ids = [str(letter.dead_letter_id) for letter in letters]
    with pytest.raises(ConfigurationError):
        find_letters(database, ids)
    assert find_letters(database, ids, without_settled=True) == letters[1:]
    assert find_letters(database, ids[:1], without_settled=True) == []
    with pytest.raises(ConfigurationError):
        find_letters(database, [ids[0][:8]], without_settled=True)


def test_three_thousand_letters_are_found_by_their_ids_in_seconds(database: Database) -> None:
    letters = planted(database, 3000)
    started = time.monotonic()
    assert find_letters(database, [str(letter.dead_letter_id) for letter in letters]) == letters
    assert time.monotonic() - started < LONGEST_SECONDS


def test_a_chapter_is_written_and_removed_without_reading_the_letters_of_others(database_url: str) -> None:
    """The index held open letters alone, and served neither: with 100,000 letters each chapter took 20 ms longer."""
    # One connection, for each tells what it has read.
    with Database(database_url, pool_size=1) as database:
        with database.connection() as connection:
            connection.execute(
                "INSERT INTO dead_letters (dead_letter_id, stage, partition_key, payload, error_class, message, fingerprint,"
                " attempts) SELECT gen_random_uuid(), 'embeddings', 'ferry/' || n, '', '', '', '', 1"
                " FROM generate_series(1, 5000) AS n"
            )
            connection.execute("ANALYZE dead_letters")
            write_letters(connection, "ferry/1", [])
        retire_chapter(database, "ferry/2")
        with database.connection() as connection:
            connection.execute("SELECT pg_stat_force_next_flush()")
    with psycopg.connect(database_url) as connection:
        read = connection.execute(
            "SELECT sum(seq_tup_read) FROM pg_stat_user_tables WHERE relname = 'dead_letters'"
        ).fetchone()
    assert read == (0,)
