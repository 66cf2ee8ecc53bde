"""`era spaces` as a user types it: a new model beside the live one, compared, promoted, gone back from, dropped."""

from collections.abc import Iterator

import pytest

from era_dagster_tests.cli.shell import Shell, write_book
from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer, serving

QUESTION = "A number without a date is a rumour. Level Book 2."


@pytest.fixture(scope="module")
def new_server() -> Iterator[tuple[FakeEmbeddingServer, str]]:
    server = FakeEmbeddingServer(model="new-model", dimension=64)
    with serving(server) as url:
        yield server, url


@pytest.fixture
def filled(shell: Shell) -> Shell:
    write_book(shell.folder / "data" / "drop", "Level Book")
    assert shell.json("ingest")["ok"] is True
    return shell


def test_a_new_model_is_built_beside_promoted_and_gone_back_from(
    filled: Shell, new_server: tuple[FakeEmbeddingServer, str]
) -> None:
    new = {"ERA_EMBEDDING_MODEL": "new-model", "ERA_EMBEDDING_URLS": new_server[1]}
    for words in (["ingest"], ["search", QUESTION], ["doctor"]):
        refused = filled.era(*words, **new)
        assert refused.returncode != 0
        said = refused.stdout + refused.stderr
        assert "test-model (768 dimensions" in said
        assert "new-model is configured" in said
        assert "era spaces build" in said

    built = filled.era("spaces", "build", **new)
    assert built.returncode == 0, built.stderr
    assert "Space 2: new-model (64 dimensions" in built.stdout
    assert "Recall of its look-ups against exact search: 1.000" in built.stdout
    assert "era spaces promote 2" in built.stdout
    listed = filled.json("spaces", "list")["spaces"]
    assert [(s["space_id"], s["state"], s["chapters"], s["complete"]) for s in listed] == [
        (1, "live", 2, True),
        (2, "building", 2, True),
    ]

    asked = filled.era("spaces", "promote", "2")  # nobody answers the question
    assert asked.returncode == 130
    assert filled.json("spaces", "promote", "2", "--dry-run")["dry_run"] is True
    assert filled.json("spaces", "list")["spaces"] == listed

    promoted = filled.json("spaces", "promote", "2", "--yes")
    assert promoted["promoted"]["space_id"] == 2
    assert (promoted["promoted"]["state"], promoted["retired"]["state"]) == ("live", "retired")
    assert all(count["beside"] == count["wanted"] for count in promoted["check"]["counts"])
    assert filled.json("search", QUESTION, "-k", "1", **new)["results"][0]["text"] == QUESTION
    asked_for = new_server[0].requests
    assert filled.json("ingest", **new)["chapters"]["unchanged"] == 2
    assert new_server[0].requests == asked_for
    assert filled.json("verify", **new)["clean"] is True
    assert "spaces promote" in filled.era("search", QUESTION).stderr

    assert filled.era("spaces", "promote", "1", "--yes").returncode == 0
    assert filled.json("search", QUESTION, "-k", "1")["results"][0]["text"] == QUESTION
    assert filled.json("spaces", "drop", "2", "--yes")["dropped"] == 2
    assert [s["space_id"] for s in filled.json("spaces", "list")["spaces"]] == [1]


def test_options_name_the_model_while_the_environment_stays_with_the_live_one(
    filled: Shell, new_server: tuple[FakeEmbeddingServer, str]
) -> None:
    built = filled.json("spaces", "build", "--model", "new-model", "--url", new_server[1])
    assert built["space"]["space"]["model"] == "new-model"
    write_book(filled.folder / "data" / "drop", "Second Book", chapters=1)
    assert filled.json("ingest")["ok"] is True
    early = filled.era("spaces", "promote", "2", "--yes")
    assert early.returncode == 1
    assert "1 of 3 chapters are missing or changed since" in early.stderr
    assert "era spaces build --model new-model --provider ollama" in early.stderr
    assert filled.json("spaces", "build", "--model", "new-model", "--url", new_server[1])["chapters"] == 1
    assert filled.era("spaces", "promote", "2", "--yes").returncode == 0


def test_a_build_asks_the_configured_servers_also_when_its_provider_is_named(
    filled: Shell, new_server: tuple[FakeEmbeddingServer, str]
) -> None:
    """The command that a refused promotion names went to Ollama's usual address, wherever the server was."""
    words = ("spaces", "build", "--model", "new-model", "--provider", "ollama")
    for provider in ("ollama", ""):
        built = filled.json(*words, ERA_EMBEDDING_URLS=new_server[1], ERA_EMBEDDING_PROVIDER=provider)
        assert built["space"]["space"]["model"] == "new-model"
    other = filled.era("spaces", "build", "--provider", "openai", ERA_EMBEDDING_URLS=new_server[1])
    assert other.returncode == 2
    assert "openai has no URL" in other.stderr


def test_wrong_use_is_said_with_exit_code_2(filled: Shell) -> None:
    for words, said in (
        (("promote", "9", "--yes"), "no embedding space 9"),
        (("promote", "1", "--yes"), "is live already"),
        (("drop", "1", "--yes"), "is live"),
        (("drop", "9", "--yes"), "no embedding space 9"),
        (("build",), "is the live model already"),
        (("build", "--model", "x", "--url", "foo"), "Correct --url."),
        (("build", "--model", "foo", "--provider", "local"), "Set --model to all-minilm-l6-v2"),
        (("promote", "1", "--json"), "add --yes or --dry-run"),
    ):
        done = filled.era("spaces", *words)
        assert done.returncode == 2, done.stdout + done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr
    assert filled.era("spaces", "drop", "1", "--dry-run").returncode == 2


def test_an_empty_database_has_no_space_and_says_what_makes_one(shell: Shell) -> None:
    listed = shell.era("spaces", "list")
    assert listed.returncode == 0
    assert "era ingest" in listed.stdout
    assert shell.era("spaces", "build").returncode == 2
