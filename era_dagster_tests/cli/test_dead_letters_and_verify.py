"""`era dead-letters` and `era verify` as a user types them: real processes, a real database, a real loopback server."""

import json
import shlex
import shutil
from collections.abc import Iterator

import psycopg
import pytest

from era_dagster_tests.cli.shell import Shell, write_book
from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer

POISON = "Records shorten the next crisis."


@pytest.fixture
def server(embedding_server: tuple[FakeEmbeddingServer, str]) -> Iterator[FakeEmbeddingServer]:
    yield embedding_server[0]
    embedding_server[0].poison.clear()


@pytest.fixture
def poisoned(shell: Shell, server: FakeEmbeddingServer) -> Shell:
    """Two chapters ingested, one entry of each refused for the same reason."""
    write_book(shell.folder / "data" / "drop", "Poison Book", chapters=2)
    server.poison.add(POISON)
    done = shell.era("ingest")
    assert done.returncode == 1
    assert "Texts not embedded: 2; `era dead-letters list` says why.\n" in done.stderr
    return shell


def test_equal_errors_are_one_group_and_a_healed_server_takes_them(
    poisoned: Shell, server: FakeEmbeddingServer
) -> None:
    (group,) = poisoned.json("dead-letters", "list")["groups"]
    assert (group["letters"], group["error_class"], len(group["chapters"])) == (2, "TextsRejected", 2)
    # Both chapters go at once: either may fail first.
    letters = sorted(
        poisoned.json("dead-letters", "show", group["fingerprint"])["letters"], key=lambda letter: letter["payload"]
    )
    assert [letter["payload"] for letter in letters] == [f"{POISON} Poison Book 1.", f"{POISON} Poison Book 2."]
    assert all(letter["attempts"] >= 1 and letter["first_at"] <= letter["last_at"] for letter in letters)

    dry = poisoned.json("dead-letters", "redrive", "--dry-run")
    assert (dry["letters"], dry["resolved"]) == (2, 0)
    still = poisoned.era("dead-letters", "redrive")
    assert still.returncode == 1
    assert "2 still open" in still.stdout

    server.poison.clear()
    before = len(server.texts)
    one = poisoned.json("dead-letters", "redrive", letters[0]["dead_letter_id"][:8])
    assert (one["letters"], one["resolved"]) == (1, 1)
    rest = poisoned.json("dead-letters", "redrive")
    assert (rest["letters"], rest["resolved"], rest["failure"]) == (1, 1, None)
    assert sorted(text for text in server.texts[before:] if POISON in text) == [letter["payload"] for letter in letters]
    assert poisoned.json("dead-letters", "redrive")["letters"] == 0
    assert poisoned.json("dead-letters", "list")["groups"] == []
    assert poisoned.json("dead-letters", "list", "--all")["letters"] == 2
    assert poisoned.json("verify")["clean"] is True
    (best, *_) = poisoned.json("search", letters[1]["payload"], "-k", "1")["results"]
    assert best["text"] == letters[1]["payload"]


def test_one_poison_text_of_twenty_is_a_letter_in_the_receipt_until_the_redrive(
    shell: Shell, server: FakeEmbeddingServer
) -> None:
    rules = [f"Rule {number} of the keeper." for number in range(18)]
    book = {"chapter_index": 1, "text": "One chunk of text.", "domains": ["risk"], "rules": [*rules, POISON]}
    (shell.folder / "data" / "drop" / "keeper.json").write_text(json.dumps(book), encoding="utf-8")
    server.poison.add(POISON)
    done = shell.era("ingest", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["items"] == {
        "seen": 20, "stored": 19, "unchanged": 0, "dead": 1, "unusable": 0, "adds_up": True
    }  # fmt: skip
    receipts = "SELECT seen, stored, unchanged, dead FROM chapter_receipts ORDER BY written_at"
    stored = "SELECT count(*) FROM vectors.doctrine_embeddings_all WHERE text = %s"
    with psycopg.connect(shell.environment["ERA_DATABASE_URL"], autocommit=True) as connection:
        assert connection.execute(receipts).fetchall() == [(20, 19, 0, 1)]
        assert connection.execute(stored, (POISON,)).fetchone() == (0,)
        server.poison.clear()
        assert shell.json("dead-letters", "redrive")["resolved"] == 1
        assert connection.execute(receipts).fetchall() == [(20, 19, 0, 1), (20, 1, 19, 0)]
        assert connection.execute(stored, (POISON,)).fetchone() == (1,)
        assert connection.execute("SELECT state FROM dead_letters").fetchall() == [("resolved",)]
    rules_file = shell.folder / "data" / "ministers" / "risk" / "rules.json"
    assert POISON in rules_file.read_text(encoding="utf-8")


def test_drop_asks_first_and_the_text_is_no_longer_counted(poisoned: Shell) -> None:
    asked = poisoned.era("dead-letters", "drop", "--all")
    assert asked.returncode == 130
    assert len(poisoned.json("dead-letters", "drop", "--all", "--dry-run")["letters"]) == 2
    assert poisoned.json("dead-letters", "list")["letters"] == 2
    assert poisoned.json("dead-letters", "drop", "--all", "--yes")["dropped"] == 2
    assert poisoned.json("status")["totals"]["open_dead_letters"] == 0
    assert poisoned.json("verify")["clean"] is True
    assert poisoned.era("dead-letters", "drop").returncode == 2
    unknown = poisoned.era("dead-letters", "show", "no-such-letter")
    assert unknown.returncode == 2
    assert "no-such-letter" in unknown.stderr
    assert "Traceback" not in unknown.stderr


def test_verify_names_what_differs_and_mends_it_when_told_to(shell: Shell) -> None:
    write_book(shell.folder / "data" / "drop", "Level Book")
    assert shell.era("ingest").returncode == 0
    assert shell.era("verify").returncode == 0
    rules = shell.folder / "data" / "ministers" / "risk" / "rules.json"
    before = rules.read_bytes()
    rules.write_text("{}", encoding="utf-8")
    with psycopg.connect(shell.environment["ERA_DATABASE_URL"]) as connection:
        connection.execute("DELETE FROM vectors.doctrine_embeddings WHERE category = 'claims'")
        connection.execute("UPDATE vectors.chunk_embeddings SET embedding = embedding - embedding")

    told = shell.era("verify")
    assert told.returncode == 1
    for word in ("missing vector", "unsound vector", "different file", "rules.json", "ingest the chapter again"):
        assert word in told.stdout
    assert shell.era("verify", "--fix").returncode == 130
    assert rules.read_text(encoding="utf-8") == "{}"
    assert shell.era("verify", "--fix", "--json").returncode == 2

    fixed = shell.era("verify", "--fix", "--yes", "--json")
    assert fixed.returncode == 0, fixed.stderr
    assert json.loads(fixed.stdout)["clean"] is True
    assert rules.read_bytes() == before


def test_verify_names_a_source_that_is_not_there_and_how_to_remove_what_it_held(shell: Shell) -> None:
    """A project that was moved, or a download that was deleted: `era status`, where verify sent to, did not name it."""
    book = write_book(shell.folder / "down'loads", "Level Book")
    assert shell.era("ingest", str(book)).returncode == 0
    shutil.rmtree(book.parent)
    told = shell.era("verify")
    assert told.returncode == 0
    assert "2 chapters could not be compared" in told.stdout
    assert f"{book} is not there" in told.stdout
    assert shell.json("verify")["away"] == [str(book)]
    book.mkdir(parents=True)
    (book / "gone.txt").touch()
    command = shlex.split(told.stdout.split("and say `")[-1].split("`")[0])
    assert command[0] == "era" and shell.era(*command[1:]).returncode == 0
    assert shell.json("verify")["chapters"] == 0
