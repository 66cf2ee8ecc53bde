"""What `era status`, `era doctor` and a dry run show of messy input, and that a killed ingest is made good in Dagster too."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import dagster as dg
import psycopg
import pytest

from era_dagster.defs.instance import open_instance
from era_dagster.domain.stages import STAGES
from era_dagster.settings import load_settings
from era_dagster_tests.cli.shell import Shell, write_book
from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer


def drop_file(shell: Shell, name: str, content: object) -> Path:
    path = shell.folder / "data" / "drop" / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def messy(shell: Shell) -> None:
    write_book(shell.folder / "data" / "drop", "Level Book", chapters=1)
    drop_file(shell, "torn.json", '[{"chapter_index": 1,')
    drop_file(shell, "empty.json", [])
    record = {
        "book": "Odd Book",
        "chapter_index": 1,
        "raw_text": "\f",
        "rules": ["No actionable doctrine here.", {"x": 1}],
    }
    drop_file(shell, "odd.json", [{**record, "domains": ["Harbour Etiquette"]}])


def test_status_and_doctor_show_every_warning_with_its_place(shell: Shell) -> None:
    messy(shell)
    assert shell.era("ingest").returncode == 1
    done = shell.era("status")
    assert done.returncode == 0
    said = done.stdout
    for words in (
        "torn.json line 1 column 22",  # quarantine
        "no chapters in empty",  # a note of the whole source
        "doctrine without text: 1 chapters",  # a note of chapters
        "check doctrine_has_its_text",
        "check items_are_no_prompt_echoes",
        "an object without a sentence; its keys: x",
        "check domains_are_known",
        "harbour_etiquette",
        "check input_is_readable",
    ):
        assert words in said, words
    status = shell.json("status")
    assert status["totals"]["unusable_items"] == 1
    failing = {check["name"] for check in status["checks"] if not check["passed"]}
    assert failing == {
        "input_is_readable",
        "doctrine_has_its_text",
        "items_hold_a_sentence",
        "items_are_no_prompt_echoes",
        "domains_are_known",
    }
    doctor = shell.era("doctor")
    assert doctor.returncode == 1
    assert "torn.json" in doctor.stdout

    drop_file(shell, "torn.json", [{"chapter_index": 1, "text": "Whole again.", "rules": ["Wait."]}])
    assert shell.era("ingest").returncode == 0
    assert "torn.json" not in shell.era("status").stdout
    assert shell.era("doctor").returncode == 0


def test_a_dry_run_tells_what_an_alias_table_would_move(shell: Shell) -> None:
    write_book(shell.folder / "data" / "drop", "Level Book", chapters=2, domains=("Risk Management",))
    assert shell.era("ingest").returncode == 0
    aliases = shell.folder / "aliases.json"
    aliases.write_text('{"risk management": "risk"}', encoding="utf-8")
    plan = shell.json("ingest", "--dry-run", ERA_DOMAIN_ALIASES=str(aliases))
    assert plan["domain_moves"] == [
        {"domain": "risk", "leaving": 0, "arriving": 8, "chapters": 2},
        {"domain": "risk_management", "leaving": 8, "arriving": 0, "chapters": 2},
    ]
    assert (
        "risk_management: 8 entries leave" in shell.era("ingest", "--dry-run", ERA_DOMAIN_ALIASES=str(aliases)).stdout
    )
    assert (shell.folder / "data" / "ministers" / "risk_management").is_dir()
    moved = shell.json("ingest", ERA_DOMAIN_ALIASES=str(aliases))
    assert (moved["embedding"]["texts_embedded"], moved["chapters"]["stored"]) == (0, 2)
    assert [path.name for path in (shell.folder / "data" / "ministers").iterdir()] == ["risk"]
    wrong = shell.era("ingest", ERA_DOMAIN_ALIASES="nowhere.json")
    assert wrong.returncode == 2
    assert "nowhere.json" in wrong.stderr


# Everything is stored and stamped when the last events are written; the process dies just before.
DIES_BEFORE_RECORDING = """
import os, signal
from era_dagster.defs import events
events.MaterializationLog.flush = lambda self: os.kill(os.getpid(), signal.SIGKILL)
from era_dagster.cli.main import main
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
def test_what_a_killed_ingest_stored_is_recorded_by_the_next_one(
    shell: Shell, embedding_server: tuple[FakeEmbeddingServer, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chapters that were stored and not yet recorded stayed unmarked in Dagster until its sensor looked."""
    shell.environment["ERA_HOME"] = str(shell.folder / "home")
    write_book(shell.folder / "data" / "drop", "Level Book", chapters=3)
    killed = subprocess.run(
        [sys.executable, "-c", DIES_BEFORE_RECORDING, "ingest"],
        cwd=shell.folder,
        env=shell.environment,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    with psycopg.connect(shell.environment["ERA_DATABASE_URL"]) as connection:
        stored = connection.execute("SELECT partition_key, minister_files_stamp IS NOT NULL FROM doctrine_sources")
        keys = {key for key, done in stored if done}
    assert len(keys) == 3
    for name, value in shell.environment.items():
        if name.startswith("ERA_"):
            monkeypatch.setenv(name, value)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)

    def marked(stage: str) -> set[str]:
        with open_instance(load_settings(shell.environment)) as instance:
            return set(instance.get_materialized_partitions(dg.AssetKey(stage)))

    assert marked("vector_tables") == set()
    again = shell.json("ingest")
    assert (again["ok"], again["chapters"]["unchanged"], again["embedding"]["requests"]) == (True, 3, 0)
    assert {stage: marked(stage) for stage in STAGES} == dict.fromkeys(STAGES, keys)
