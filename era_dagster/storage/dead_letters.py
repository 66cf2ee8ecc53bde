"""The dead letters: texts that could not be embedded, each with its reason, until they can or somebody gives them up.

A letter is open, resolved (the text has its vector, or is no longer in its chapter) or dropped (given up by a person). The
transaction that writes a chapter writes its letters too, so that the two always agree.
"""

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import psycopg
from psycopg.rows import class_row

from era_dagster.domain.errors import ConfigurationError
from era_dagster.storage.database import Database

LetterState = Literal["open", "resolved", "dropped"]
_NAMESPACE = uuid.UUID("5a1e8a52-6c4e-5f0e-9a63-2f1c9d0b7e11")
_LEAST_ID_DIGITS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadText:
    """A text that got no vector, and why; `fingerprint` is equal for equal errors."""

    text: str
    error_class: str
    message: str
    fingerprint: str
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A dead text as it is kept. `payload` is the text; `attempts` counts the requests that carried it, in all runs."""

    dead_letter_id: uuid.UUID
    stage: str
    partition_key: str
    payload: str
    error_class: str
    message: str
    fingerprint: str
    attempts: int
    state: LetterState
    first_at: datetime
    last_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterGroup:
    """All letters with one fingerprint: how many, of which chapters, and one message as an example."""

    fingerprint: str
    error_class: str
    message: str
    letters: int
    chapters: tuple[str, ...]
    attempts: int
    first_at: datetime
    last_at: datetime


def write_letters(connection: psycopg.Connection, key: str, dead: Sequence[DeadText]) -> None:
    """Make the open letters of chapter `key` exactly `dead`, in the caller's transaction."""
    letters = {uuid.uuid5(_NAMESPACE, f"embeddings\n{key}\n{text.text}"): text for text in dead}
    for identifier, text in sorted(letters.items(), key=lambda pair: str(pair[0])):
        connection.execute(
            "INSERT INTO dead_letters AS d (dead_letter_id, stage, partition_key, payload, error_class, message,"
            " fingerprint, attempts) VALUES (%s, 'embeddings', %s, %s, %s, %s, %s, %s)"
            " ON CONFLICT (dead_letter_id) DO UPDATE SET error_class = excluded.error_class,"
            " message = excluded.message, fingerprint = excluded.fingerprint,"
            " attempts = d.attempts + excluded.attempts, last_at = now(),"
            # Who gave a text up does not want to hear of the same failure again.
            " state = CASE WHEN d.state = 'dropped' AND d.fingerprint = excluded.fingerprint THEN 'dropped'"
            " ELSE 'open' END",
            (identifier, key, text.text, text.error_class, text.message, text.fingerprint, text.attempts),
        )
    connection.execute(
        "UPDATE dead_letters SET state = 'resolved', last_at = now()"
        " WHERE partition_key = %s AND state <> 'resolved' AND NOT dead_letter_id = ANY(%s)",
        (key, list(letters)),
    )


def find_letters(
    database: Database, names: Iterable[str] = (), *, states: Sequence[LetterState] = ("open",)
) -> list[DeadLetter]:
    """The letters in one of `states`, oldest first; with `names` only those they name.

    A name is a fingerprint, a partition key, or the id of a letter (its first 8 digits are enough). Raises
    `ConfigurationError` for a name that fits no letter in one of `states`.
    """
    with database.connection() as connection, connection.cursor(row_factory=class_row(DeadLetter)) as cursor:
        letters = cursor.execute(
            "SELECT * FROM dead_letters WHERE state = ANY(%s) ORDER BY first_at, dead_letter_id", (list(states),)
        ).fetchall()
    wanted = list(dict.fromkeys(names))
    if not wanted:
        return letters
    found: dict[uuid.UUID, DeadLetter] = {}
    for name in wanted:
        named = [letter for letter in letters if _is_named(letter, name)]
        if not named:
            raise ConfigurationError(
                f"No {' or '.join(states)} dead letter is named {name!r}.",
                hint="`era dead-letters list --all` shows their fingerprints, `era dead-letters show FINGERPRINT` their ids.",
            )
        found.update((letter.dead_letter_id, letter) for letter in named)
    return list(found.values())


def grouped(letters: Sequence[DeadLetter]) -> list[LetterGroup]:
    """The letters by fingerprint, the largest group first."""
    groups: dict[str, list[DeadLetter]] = {}
    for letter in letters:
        groups.setdefault(letter.fingerprint, []).append(letter)
    return sorted(
        (
            LetterGroup(
                fingerprint=fingerprint,
                error_class=members[0].error_class,
                message=members[0].message,
                letters=len(members),
                chapters=tuple(sorted({letter.partition_key for letter in members})),
                attempts=sum(letter.attempts for letter in members),
                first_at=min(letter.first_at for letter in members),
                last_at=max(letter.last_at for letter in members),
            )
            for fingerprint, members in groups.items()
        ),
        key=lambda group: (-group.letters, group.fingerprint),
    )


def ask_again(database: Database, letters: Sequence[DeadLetter]) -> list[str]:
    """Make the chapters of these letters pending for their vectors, dropped letters open; returns the chapters' keys.

    From here on any run does the rest: a text that has its vector now is found in the cache, the dead ones are asked for
    again. So a redrive that is interrupted is only finished later.
    """
    keys = sorted({letter.partition_key for letter in letters})
    with database.connection() as connection:
        connection.execute(
            "UPDATE dead_letters SET state = 'open' WHERE dead_letter_id = ANY(%s) AND state = 'dropped'",
            ([letter.dead_letter_id for letter in letters],),
        )
        connection.execute(
            "UPDATE doctrine_sources SET embeddings_stamp = NULL, vector_tables_stamp = NULL"
            " WHERE partition_key = ANY(%s)",
            (keys,),
        )
    return keys


def drop_letters(database: Database, letters: Sequence[DeadLetter]) -> int:
    """Give these texts up: they stay in their chapters, without vectors; returns how many letters were open till now."""
    with database.connection() as connection:
        return connection.execute(
            "UPDATE dead_letters SET state = 'dropped', last_at = now()"
            " WHERE dead_letter_id = ANY(%s) AND state = 'open'",
            ([letter.dead_letter_id for letter in letters],),
        ).rowcount


def _is_named(letter: DeadLetter, name: str) -> bool:
    by_id = len(name) >= _LEAST_ID_DIGITS and str(letter.dead_letter_id).startswith(name.lower())
    return by_id or name in (letter.fingerprint, letter.partition_key)
