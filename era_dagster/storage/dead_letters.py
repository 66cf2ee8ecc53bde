"""The dead letters: texts that could not be embedded, each with its reason, until they can or somebody gives them up.

A letter is open, resolved (the text has its vector, or is no longer in its chapter) or dropped (given up by a person). The
transaction that writes a chapter writes its letters too, so that the two always agree.
"""

import re
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
_WHOLE_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadText:
    """A text that got no vector, and why; `fingerprint` is equal for equal errors. `dropped` is noted with a space that was
    live: somebody gave the text up in it."""

    text: str
    error_class: str
    message: str
    fingerprint: str
    attempts: int
    dropped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A dead text as it is kept. `payload` is the text; `attempts` counts the requests that carried it, in all runs with the
    live model."""

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


def write_letters(
    connection: psycopg.Connection, key: str, dead: Sequence[DeadText], *, as_noted: bool = False
) -> None:
    """Make the open letters of chapter `key` exactly `dead`, in the caller's transaction.

    Their attempts are added to those before. `as_noted`, with a space that is made live, they are what was noted of them
    with it, whatever they were with another one.
    """
    letters = {_identifier(key, text.text): text for text in dead}
    for identifier, text in sorted(letters.items(), key=lambda pair: str(pair[0])):
        connection.execute(
            "INSERT INTO dead_letters AS d (dead_letter_id, stage, partition_key, payload, error_class, message,"
            " fingerprint, attempts, state) VALUES (%s, 'embeddings', %s, %s, %s, %s, %s, %s, %s)"
            " ON CONFLICT (dead_letter_id) DO UPDATE SET error_class = excluded.error_class,"
            " message = excluded.message, fingerprint = excluded.fingerprint,"
            " attempts = CASE WHEN %s THEN 0 ELSE d.attempts END + excluded.attempts, last_at = now(),"
            # Who gave a text up does not want to hear of the same failure again.
            " state = CASE WHEN NOT %s AND d.state = 'dropped' AND d.fingerprint = excluded.fingerprint THEN 'dropped'"
            " ELSE excluded.state END",
            (
                identifier,
                key,
                text.text,
                text.error_class,
                text.message,
                text.fingerprint,
                text.attempts,
                "dropped" if text.dropped else "open",
                as_noted,
                as_noted,
            ),
        )
    connection.execute(
        "UPDATE dead_letters SET state = 'resolved', last_at = now()"
        " WHERE partition_key = %s AND state <> 'resolved' AND NOT dead_letter_id = ANY(%s)",
        (key, list(letters)),
    )


def texts_given_up(database: Database, key: str, dead: Sequence[DeadText]) -> frozenset[str]:
    """The texts among `dead` that somebody gave up for the very failure they have now: their letters stay dropped."""
    with database.connection() as connection:
        return frozenset(
            text
            for (text,) in connection.execute(
                "SELECT d.payload FROM dead_letters AS d JOIN unnest(%s::uuid[], %s::text[]) AS i (id, fingerprint)"
                " ON i.id = d.dead_letter_id AND i.fingerprint = d.fingerprint WHERE d.state = 'dropped'",
                ([_identifier(key, text.text) for text in dead], [text.fingerprint for text in dead]),
            )
        )


def find_letters(
    database: Database,
    names: Iterable[str] = (),
    *,
    states: Sequence[LetterState] = ("open",),
    without_settled: bool = False,
) -> list[DeadLetter]:
    """The letters in one of `states`, oldest first; with `names` only those they name, in their order.

    A name is a fingerprint, a partition key, or the id of a letter (its first 8 digits are enough). Raises
    `ConfigurationError` for a name that fits no letter in one of `states`; `without_settled`, whole ids that fit none are
    passed over: they were listed before, and their letters have been settled since.
    """
    with database.connection() as connection, connection.cursor(row_factory=class_row(DeadLetter)) as cursor:
        letters = cursor.execute(
            "SELECT * FROM dead_letters WHERE state = ANY(%s) ORDER BY first_at, dead_letter_id", (list(states),)
        ).fetchall()
    wanted = list(dict.fromkeys(names))
    if not wanted:
        return letters
    named = _by_name(letters)
    found: dict[uuid.UUID, DeadLetter] = {}
    for name in wanted:
        # By the first digits of an id are found those whose id goes on as the name does.
        digits = name.lower()
        by_id = [
            letter
            for letter in named.get(digits[:_LEAST_ID_DIGITS], ())
            if str(letter.dead_letter_id).startswith(digits)
        ]
        fitting = [*by_id, *named.get(name, ())]
        if not fitting and not (without_settled and _is_whole_id(name)):
            raise ConfigurationError(
                f"No {' or '.join(states)} dead letter is named {name!r}.",
                hint="`era dead-letters list --all` shows their fingerprints, `era dead-letters show FINGERPRINT` their ids.",
            )
        found.update((letter.dead_letter_id, letter) for letter in fitting)
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
    """Give these texts up: they stay in their chapters, without vectors; returns how many letters were open till now.

    A chapter that was pending because all of its texts had failed is due at once: the next run finishes it without them.
    """
    with database.connection() as connection:
        dropped = connection.execute(
            "UPDATE dead_letters SET state = 'dropped', last_at = now()"
            " WHERE dead_letter_id = ANY(%s) AND state = 'open'",
            ([letter.dead_letter_id for letter in letters],),
        ).rowcount
        connection.execute(
            "UPDATE drop_chapters SET attempts = 0, requested_at = NULL WHERE partition_key = ANY(%s) AND attempts > 0",
            (sorted({letter.partition_key for letter in letters}),),
        )
    return dropped


def _identifier(key: str, text: str) -> uuid.UUID:
    return uuid.uuid5(_NAMESPACE, f"embeddings\n{key}\n{text}")


def _by_name(letters: Sequence[DeadLetter]) -> dict[str, list[DeadLetter]]:
    """The letters by fingerprint, by chapter, and by the first digits of their ids: a redrive may name thousands."""
    named: dict[str, list[DeadLetter]] = {}
    for letter in letters:
        first_digits = str(letter.dead_letter_id)[:_LEAST_ID_DIGITS]
        for name in (letter.fingerprint, letter.partition_key, first_digits):
            named.setdefault(name, []).append(letter)
    return named


def _is_whole_id(name: str) -> bool:
    return _WHOLE_ID.fullmatch(name.lower()) is not None
