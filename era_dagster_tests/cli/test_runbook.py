"""The runbook's commands, taken out of the page and run: those that look, on a knowledge base that has the symptoms; then
those that mend, in the page's order, after which everything is well."""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from era_dagster_tests.cli.shell import write_book
from era_dagster_tests.e2e.project import REPOSITORY, Project, make_project
from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer, Fault, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PAGE = REPOSITORY / "docs" / "runbook.md"

AWAY = "http://127.0.0.1:9"
# What makes a symptom show that the knowledge base itself does not have.
VARIABLES: dict[str, dict[str, str]] = {
    "The embedding server does not answer": {"ERA_EMBEDDING_URLS": AWAY},
    "The model is missing or another": {"ERA_EMBEDDING_MODEL": "another"},
    "The database does not answer": {"ERA_DATABASE_URL": "postgresql://127.0.0.1:9/era"},
    "A dropped file is not picked up": {"DAGSTER_HOME": "{folder}"},
}
# What the commands of a section must show of its symptom.
SHOWN = {
    "Is everything there": ["ok      database", "failed  intake", "ERA_DROP_DIR"],
    "Queue growing": ["era_chapters_pending 1", "era_endpoint_limit", "era_dagster_runs", "warning daemon"],
    "High latency": ["era_embedding_request_seconds_bucket", "texts/s, P95"],
    "The server refuses": [r'era_embedding_requests_total\{.*outcome="rate_limited"\} 1', "EndpointBusy"],
    "Memory grows": ["era_queue_limit_texts", "texts/s, P95"],
    "The embedding server does not answer": [rf"failed  model: .*{AWAY}"],
    "The model is missing or another": ["failed  model: The database holds vectors of test-model"],
    "The database does not answer": ["failed  database: PostgreSQL cannot be reached", '"url": "postgresql://127'],
    "Tables or schema are not as they should be": ["ok      schema", "ok      vector tables", "Differences"],
    "A run's process died": ["era_runs_ended_total", "era_run_heartbeat_age_seconds"],
    "A chapter failed": ["failed: poison/0001: None of the 5 texts", "PermanentError"],
    "Dead letters": ["TextsRejected", "answered 400"],
    "Success under 99.5 %": ["check first_pass_success_is_99_5_percent: [0-9.]+%", "TextsRejected"],
    "A file cannot be read": ["quarantined: .*torn.json line 1 column 2"],
    "A dropped file is not picked up": [
        "new: 1 chapters",
        "never seen with this instance",
        "Sensor: chapter_drop_sensor",
    ],
    "A search finds nothing, or the wrong things": ["level, chapter 1", "in tables"],
    "Minister files were changed by hand or are damaged": [r"ministers.truth.rules\.json"],
    "The UI does not show what is stored": ["Books"],
    "The disk is full": ["GB free", "PostgreSQL .* MB"],
    "No metrics": ["era_database_up 1"],
    "The clocks disagree": ["ok      clock"],
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
    """A project in trouble. Equal commands are run once: looking changes nothing."""

    project: Project
    server: FakeEmbeddingServer
    fingerprint: str
    seen: dict[tuple[str, tuple[tuple[str, str], ...]], subprocess.CompletedProcess[str]] = field(default_factory=dict)

    def run(self, command: str, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
        words = shlex.split(command.replace("FINGERPRINT", self.fingerprint))
        here = {name: value.replace("{folder}", str(self.project.folder)) for name, value in variables.items()}
        done = self.project.run(*words, **here)
        assert done.returncode in (0, 1), f"{command}: {done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
        assert "Unexpected" not in done.stderr
        return done

    def look(self, command: str, variables: dict[str, str]) -> str:
        key = (command, tuple(variables.items()))
        if key not in self.seen:
            self.seen[key] = self.run(command, variables)
        return self.seen[key].stdout + self.seen[key].stderr


@pytest.fixture(scope="module")
def ill(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ill]:
    """A chapter that failed, a dead letter, a torn file, a refusal, a spoilt minister file, a drop nobody picked up."""
    server = FakeEmbeddingServer()
    server.poison.update(("poison", "A dated record beats a good memory. level 1"))
    server.faults.append(None)
    server.faults.append(Fault(status=429, message="slow down", headers={"Retry-After": "0.1"}))
    folder = tmp_path_factory.mktemp("ill")
    with serving(server) as url:
        project = make_project(
            folder,
            {
                "ERA_EMBEDDING_PROVIDER": "ollama",
                "ERA_EMBEDDING_URLS": url,
                "ERA_EMBEDDING_MODEL": "test-model",
                "ERA_SETTLE_SECONDS": "0.01",
                "COLUMNS": "250",
            },
        )
        for name, chapters in (("level", 2), ("poison", 1)):
            write_book(project.drop, name, chapters)
        (project.drop / "torn.json").write_text("{", encoding="utf-8")
        try:
            assert project.run("era", "ingest").returncode == 1
            rules = folder / "data" / "ministers" / "truth" / "rules.json"
            rules.write_text("spoilt", encoding="utf-8")
            write_book(project.drop, "late", 1)
            letters = project.era("dead-letters", "list")
            fingerprint = re.search(r'"fingerprint": "(\w+)"', json.dumps(letters))
            assert fingerprint is not None
            yield Ill(project, server, fingerprint[1])
        finally:
            project.run("era", "db", "stop")


def test_every_symptom_has_a_command_and_is_in_this_test() -> None:
    assert [section.title for section in sections()] == list(SHOWN)
    assert all(section.look for section in sections())


@pytest.mark.parametrize("title", SHOWN)
def test_the_commands_of_a_section_show_its_symptom(ill: Ill, title: str) -> None:
    (section,) = (section for section in sections() if section.title == title)
    output = "\n".join(ill.look(command, VARIABLES.get(title, {})) for command in section.look)
    for shown in SHOWN[title]:
        assert re.search(shown, output), f"{title}: {shown} is not in\n{output}"


def test_the_commands_that_mend_leave_everything_well(ill: Ill) -> None:
    ill.server.poison.clear()
    (ill.project.drop / "torn.json").unlink()
    commands = dict.fromkeys(command for section in sections() for command in section.do)
    for command in commands:
        # The server and the database are back.
        ill.run(command, {"DAGSTER_HOME": "{folder}"} if command.startswith("dagster") else {})
    doctor = ill.project.era("doctor")
    assert doctor["ok"], doctor["checks"]
    assert ill.project.run("era", "verify").returncode == 0


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
