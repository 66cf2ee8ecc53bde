"""What `era` prints, whatever the names in it and wherever it goes."""

import json

import pytest

from era_dagster_tests.cli.shell import Shell


@pytest.mark.parametrize("name", ["Notes [b] on [red]things", "Ends [/b] here"])
def test_brackets_in_a_book_s_name_are_shown_and_no_markup(shell: Shell, name: str) -> None:
    record = {"book": name, "chapter_index": 1, "text": "Wait.", "domains": ["truth"], "rules": ["Wait."]}
    (shell.folder / "data" / "drop" / "one.json").write_text(json.dumps(record), encoding="utf-8")
    assert shell.era("ingest").returncode == 0
    done = shell.era("status")
    assert done.returncode == 0, done.stderr
    assert f" {name} " in done.stdout


def test_a_table_in_a_pipe_is_folded_nowhere(shell: Shell) -> None:
    done = shell.era("doctor", "--settings", COLUMNS="40")
    assert "ERA_METRICS_INTERVAL_SECONDS" in done.stdout
    assert str(shell.folder / "data" / "drop") in done.stdout.split("Settings")[1]
