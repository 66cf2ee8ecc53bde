"""`era export` and `era map` as a user types them."""

import pytest

from era_dagster_tests.cli.shell import Shell, write_book


def test_both_exports_as_a_user_types_them(shell: Shell) -> None:
    write_book(shell.folder / "data" / "drop", "Level Book", chapters=1)
    assert shell.json("ingest")["ok"] is True
    assert shell.json("export", "kis", "lists")["items"] == 8
    assert shell.json("export", "vectors", "entries.jsonl")["items"] == 4
    again = shell.era("export", "kis", "lists")
    assert again.returncode == 2
    assert "--overwrite" in again.stderr
    done = shell.era("export", "vectors", "entries.jsonl", "--overwrite")
    assert done.returncode == 0, done.stderr
    assert "4 items in 1 files" in done.stdout


def test_the_map_is_a_file(shell: Shell) -> None:
    write_book(shell.folder / "data" / "drop", "Level Book", chapters=2)
    assert shell.json("ingest")["ok"] is True
    for words in (("map.svg",), ("domains.svg", "--domains")):
        done = shell.era("map", *words)
        assert done.returncode == 0, done.stderr
        assert (shell.folder / words[0]).read_text(encoding="utf-8").startswith("<svg")
    again = shell.era("map", "map.svg")
    assert again.returncode == 2
    assert "--overwrite" in again.stderr


@pytest.mark.parametrize("words", [("export", "kis"), ("export", "vectors"), ("map",)])
def test_a_dash_is_refused_where_a_file_of_that_name_would_be_made(shell: Shell, words: tuple[str, ...]) -> None:
    done = shell.era(*words, "-")
    assert done.returncode == 2
    assert "cannot be printed" in done.stderr
    assert not (shell.folder / "-").exists()
