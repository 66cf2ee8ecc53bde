"""The runbook's commands, taken out of the page and run: those that look, on a knowledge base that has the symptoms; then
those that mend, in the page's order, after which everything is well."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest

from era_dagster.storage.database import with_database
from era_dagster_tests.cli.shell import write_book
from era_dagster_tests.e2e.project import REPOSITORY, Project, make_project
from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer, Fault, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PAGE = REPOSITORY / "docs" / "runbook.md"

AWAY = "http://127.0.0.1:9"
# What makes a symptom show that the knowledge base itself does not have.
# {folder} is the project's, {full} a folder on a disk without space, {taken} a port that somebody else has.
VARIABLES: dict[str, dict[str, str]] = {
    "The embedding server does not answer": {"ERA_EMBEDDING_URLS": AWAY},
    "The model is missing or another": {"ERA_EMBEDDING_MODEL": "another"},
    "The database does not answer": {"ERA_DATABASE_URL": "postgresql://127.0.0.1:9/era"},
    "A dropped file is not picked up": {"DAGSTER_HOME": "{folder}"},
    "The disk is full": {"ERA_MODEL_DIR": "{full}"},
    "No metrics": {"ERA_PROMETHEUS_PORT": "{taken}"},
    # Every Python process reads this module first; it sets the clock an hour ahead.
    "The clocks disagree": {"PYTHONPATH": "{folder}/ahead"},
}
AN_HOUR_AHEAD = "import time\nreal = time.time\ntime.time = lambda: real() + 3600\n"
# What the commands of a section must show of its symptom.
SHOWN = {
    "Is everything there": ["ok      database", "failed  intake", "ERA_DROP_DIR"],
    "Queue growing": ["era_chapters_pending [1-9]", "era_endpoint_limit", "era_dagster_runs", "warning daemon"],
    "High latency": [r'era_embedding_request_seconds_bucket\{.*le="0\.75"\} [1-9]', "texts/s, P95"],
    "The server refuses": [r'era_embedding_requests_total\{.*outcome="rate_limited"\} 1', "EndpointBusy"],
    "Memory grows": ["era_queue_texts [1-9]", "era_queue_limit_texts", "texts/s, P95"],
    "The embedding server does not answer": [rf"failed  model: .*{AWAY}"],
    "The model is missing or another": [
        "failed  model: The database holds vectors of test-model",
        "era spaces build",
        "test-model .*live",
    ],
    "The database does not answer": ["failed  database: PostgreSQL cannot be reached", '"url": "postgresql://127'],
    "Tables or schema are not as they should be": ["ok      schema", "ok      vector tables", "Differences"],
    "A run's process died": [
        r'era_runs_ended_total\{outcome="killed"\} 2',
        r'era_runs\{state="stale"\} 1',
        r"era_run_heartbeat_age_seconds\{.*\} [1-9]",
    ],
    "A chapter failed": ["failed: poison/0001: None of the 5 texts", "PermanentError"],
    "Dead letters": ["TextsRejected", "answered 400"],
    "Success under 99.5 %": ["check first_pass_success_is_99_5_percent: [0-9.]+%", "TextsRejected"],
    "A file cannot be read": ["quarantined: .*torn.json line 1 column 2"],
    "A dropped file is not picked up": [
        r"new: \d+ chapters \(late/0001",
        "never seen with this instance",
        "sensor: on by default",
    ],
    "A search finds nothing, or the wrong things": [r"\w+, chapter \d", "in tables"],
    "Minister files were changed by hand or are damaged": [r"different file .*ministers.\w+.\w+\.json"],
    "The UI does not show what is stored": ["Books", "level .* 2 "],
    "The disk is full": [r"failed  model folder: .* 0.0 GB free\. Free at least 1 GB", "PostgreSQL .* MB"],
    "No metrics": ["era_database_up 1", "something else listens there"],
    "The clocks disagree": ["warning clock: the database's is 3,[56][0-9][0-9].* behind ours"],
}


@dataclass(frozen=True)
class Section:
    """One symptom: its title, and the commands that look and that mend."""

    title: str
    look: list[str] = field(default_factory=list)
    do: list[str] = field(default_factory=list)


def sections() -> list[Section]:
    found = []
    for part in re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        section = Section(part.splitlines()[0])
        for kind, block in re.findall(r"^```(.*?)\n(.*?)^```$", part, flags=re.MULTILINE | re.DOTALL):
            assert kind in ("sh look", "sh do"), f"{section.title}: a block marked {kind!r} would not be run"
            (section.look if kind == "sh look" else section.do).extend(block.splitlines())
        found.append(section)
    return found


@dataclass
class Ill:
    """A project in trouble. Equal commands are run once: looking changes nothing. `shown_before`: what the first command of
    a section showed while there was still a run."""

    project: Project
    server: FakeEmbeddingServer
    places: dict[str, str]
    shown_before: dict[str, str]
    seen: dict[tuple[str, tuple[tuple[str, str], ...]], subprocess.CompletedProcess[str]] = field(default_factory=dict)

    def run(self, command: str, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
        words = shlex.split(command.replace("FINGERPRINT", self.places["fingerprint"]))
        done = self.project.run(*words, **{name: value.format(**self.places) for name, value in variables.items()})
        wrong_use = 2 if "listens there" in done.stderr else 1
        assert done.returncode in (0, wrong_use), f"{command}: {done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
        assert "Unexpected" not in done.stderr
        return done

    def look(self, command: str, variables: dict[str, str]) -> str:
        key = (command, tuple(variables.items()))
        if key not in self.seen:
            self.seen[key] = self.run(command, variables)
        return self.seen[key].stdout + self.seen[key].stderr


@contextmanager
def a_full_disk(folder: Path) -> Iterator[Path]:
    """A disk of one megabyte where this user may mount one, else an ordinary folder."""
    folder.mkdir()
    mounted = (
        sys.platform == "linux"
        and os.geteuid() == 0
        and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=False).returncode == 0
    )
    try:
        yield folder
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def a_taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        yield somebody.getsockname()[1]


def kill_a_slow_run(project: Project, server: FakeEmbeddingServer, book: str) -> tuple[str, str]:
    """A run that waits for a slow server, has told of itself, falls silent and is ended by the system; the metrics while it
    went, and while it was silent.

    It stands still while they are asked for: however long that takes, no chapter is done by then."""
    server.seconds_per_text = 1.0
    write_book(project.drop, book, 8)
    url = project.era("db", "url")["url"]
    run = subprocess.Popen(
        ["era", "ingest"],
        cwd=project.folder,
        env=project.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        until = time.monotonic() + 60.0
        while not _answers_told(url):
            assert time.monotonic() < until
            assert run.poll() is None
            time.sleep(0.1)
        os.kill(run.pid, signal.SIGSTOP)
        going = project.run("era", "metrics", "--once").stdout
        with psycopg.connect(url) as connection:
            # A minute passes.
            connection.execute(
                "UPDATE telemetry_runs SET beat_at = beat_at - interval '1 minute' WHERE state = 'running'"
            )
        silent = project.run("era", "metrics", "--once").stdout
    finally:
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
    server.seconds_per_text = 0.0
    return going, silent


def _answers_told(url: str) -> bool:
    """Has a run that goes now told of a request that was answered slowly?"""
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "SELECT count(*) FROM telemetry_runs WHERE state = 'running' AND (figures ->> 'p95_ms')::float > 500"
            " AND (figures ->> 'queue_texts')::int > 0"
        ).fetchone()
    return row is not None and row[0] > 0


def forget_in_dagster(project: Project, key: str) -> None:
    """As after a Dagster database that was restored from an older backup: it knows nothing of this chapter."""
    url = with_database(project.era("db", "url")["url"], "era_dagster")
    with psycopg.connect(url) as connection:
        assert connection.execute("DELETE FROM event_logs WHERE partition = %s", (key,)).rowcount > 0


@pytest.fixture(scope="module")
def ill(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ill]:
    """A chapter that failed, a dead letter, a torn file, refusals, a spoilt minister file, a drop nobody picked up, two
    runs that fell silent at a slow server and were killed, a chapter that Dagster forgot, a clock that is wrong, a port that is
    taken, a disk without space."""
    server = FakeEmbeddingServer()
    folder = tmp_path_factory.mktemp("ill")
    with serving(server) as url, a_full_disk(folder / "full") as full, a_taken_port() as taken:
        project = make_project(
            folder,
            {
                "ERA_EMBEDDING_PROVIDER": "ollama",
                "ERA_EMBEDDING_URLS": url,
                "ERA_EMBEDDING_MODEL": "test-model",
                "ERA_METRICS_INTERVAL_SECONDS": "0.25",
                "ERA_SETTLE_SECONDS": "0.01",
                "COLUMNS": "250",
            },
        )
        (folder / "ahead").mkdir()
        (folder / "ahead" / "sitecustomize.py").write_text(AN_HOUR_AHEAD, encoding="utf-8")
        try:
            assert project.run("era", "db", "migrate").returncode == 0
            kill_a_slow_run(project, server, "slow")
            server.poison.update(("poison", "A dated record beats a good memory. level 1"))
            server.faults.extend((None, None, Fault(status=429, message="slow down", headers={"Retry-After": "0.1"})))
            for name, chapters in (("level", 2), ("poison", 1)):
                write_book(project.drop, name, chapters)
            (project.drop / "torn.json").write_text("{", encoding="utf-8")
            assert project.run("era", "ingest").returncode == 1
            going, silent = kill_a_slow_run(project, server, "slower")
            forget_in_dagster(project, "level/0001")
            rules = folder / "data" / "ministers" / "truth" / "rules.json"
            rules.write_text("spoilt", encoding="utf-8")
            write_book(project.drop, "late", 1)
            fingerprint = re.search(r'"fingerprint": "(\w+)"', json.dumps(project.era("dead-letters", "list")))
            assert fingerprint is not None
            places = {"folder": str(folder), "full": str(full), "taken": str(taken), "fingerprint": fingerprint[1]}
            yield Ill(project, server, places, {"Memory grows": going, "A run's process died": silent})
        finally:
            project.run("era", "db", "stop")


def test_every_symptom_has_a_command_and_is_in_this_test() -> None:
    assert [section.title for section in sections()] == list(SHOWN)
    assert all(section.look for section in sections())


@pytest.mark.parametrize("title", SHOWN)
def test_the_commands_of_a_section_show_its_symptom(ill: Ill, title: str) -> None:
    if title == "The disk is full" and shutil.disk_usage(ill.places["full"]).free > 2**20:
        pytest.skip("this user may not mount a small disk")
    (section,) = (section for section in sections() if section.title == title)
    output = ill.shown_before.get(title, "")
    output += "\n".join(ill.look(command, VARIABLES.get(title, {})) for command in section.look)
    for shown in SHOWN[title]:
        assert re.search(shown, output), f"{title}: {shown} is not in\n{output}"


def test_the_commands_that_mend_leave_everything_well(ill: Ill) -> None:
    assert "level/0001" not in ill.project.materialized("vector_tables")
    ill.server.poison.clear()
    (ill.project.drop / "torn.json").unlink()
    commands = dict.fromkeys(command for section in sections() for command in section.do)
    for command in commands:
        # The server and the database are back.
        ill.run(command, {"DAGSTER_HOME": "{folder}"} if command.startswith("dagster") else {})
    doctor = ill.project.era("doctor")
    assert doctor["ok"], doctor["checks"]
    assert ill.project.run("era", "verify").returncode == 0
    assert {"level/0001", "slow/0008", "slower/0008"} <= ill.project.materialized("vector_tables")


def test_links_on_the_page_lead_somewhere() -> None:
    text = PAGE.read_text(encoding="utf-8")
    anchors = {re.sub(r"[^\w -]", "", section.title.lower()).replace(" ", "-") for section in sections()}
    assert set(re.findall(r"\]\(#([\w-]+)\)", text)) <= anchors
    for target in re.findall(r"\]\(([\w/-]+\.md)\)", text):
        assert (PAGE.parent / target).is_file()


def test_the_pages_names_of_metrics_and_settings_exist() -> None:
    text = PAGE.read_text(encoding="utf-8")
    metrics = (PAGE.parent / "metrics.md").read_text(encoding="utf-8")
    for name in set(re.findall(r"`(era_[a-z_]+)", text)) - {"era_dagster"}:
        assert f"`{name}`" in metrics, name
    settings = (REPOSITORY / "era_dagster" / "settings.py").read_text(encoding="utf-8")
    for name in set(re.findall(r"ERA_([A-Z_]+)", text)):
        assert f'"{name.lower()}"' in settings, name
