"""`era metrics`, `era errors` and `era status --watch` as a user starts them: real processes, several runs, one page."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from era_dagster.pipeline.scrape import scraper
from era_dagster.settings import load_settings
from era_dagster.storage.database import Database, with_database
from era_dagster.telemetry import exposition
from era_dagster_tests.cli.shell import Shell, write_book
from era_dagster_tests.cli.terminal import HIDE_CURSOR, SHOW_CURSOR, Terminal
from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer, serving
from era_dagster_tests.waiting import wait_until

PATIENCE_SECONDS = 60.0
Samples = dict[tuple[str, ...], float]


@pytest.fixture
def slow_shell(shell: Shell) -> Iterator[Shell]:
    """A shell whose runs take seconds and tell of themselves four times a second."""
    server = FakeEmbeddingServer()
    server.seconds_per_text = 0.1
    with serving(server) as url:
        shell.environment |= {"ERA_EMBEDDING_URLS": url, "ERA_METRICS_INTERVAL_SECONDS": "0.25"}
        yield shell


@contextmanager
def exporter(shell: Shell) -> Iterator[str]:
    """`era metrics` on a free port; the URL it prints."""
    process = subprocess.Popen(
        [sys.executable, "-m", "era_dagster.cli", "metrics", "--port", "0"],
        cwd=shell.folder,
        env=shell.environment,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    assert process.stderr is not None
    try:
        found = re.search(r"http://127\.0\.0\.1:\d+/metrics", process.stderr.readline())
        assert found is not None
        yield found.group()
        process.terminate()
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def scrape(url: str) -> Samples:
    """One scrape, read with Prometheus's own parser; its content type must be the text format's."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        text = answer.read().decode("utf-8")
    return samples(text)


def samples(text: str) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, *sample.labels.values())
            assert key not in found, f"{key} is there twice"
            found[key] = sample.value
    return found


def total(found: Samples, name: str) -> float:
    return sum(value for key, value in found.items() if key[0] == name)


def test_one_page_shows_two_runs_while_they_go_and_adds_up_to_their_receipts_after(slow_shell: Shell) -> None:
    shell = slow_shell
    books = [write_book(shell.folder / "books", name, chapters=4) for name in ("one", "two")]
    with exporter(shell) as url:
        assert scrape(url)["era_runs", "running"] == 0
        runs = [
            subprocess.Popen(
                [sys.executable, "-m", "era_dagster.cli", "ingest", str(book), "--json"],
                cwd=shell.folder,
                env=shell.environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            for book in books
        ]
        seen: list[Samples] = []

        def both_go() -> bool:
            seen.append(scrape(url))
            found = seen[-1]
            told = total(found, "era_endpoint_limit") >= 1 and found["era_queue_texts",] > 0
            return told and found["era_runs", "running"] == 2 and total(found, "era_embedding_requests_total") > 0

        try:
            wait_until(both_go)
        finally:
            receipts = [json.loads(run.communicate(timeout=PATIENCE_SECONDS)[0]) for run in runs]
        during, after = seen[-1], scrape(url)
    assert total(during, "era_run_chapters") == 8
    assert during["era_queue_limit_texts",] > 0
    assert during["era_items_seen_total",] < after["era_items_seen_total",]
    assert all(after.get(key, 0) >= value for key, value in during.items() if key[0].endswith(("_total", "_bucket")))
    assert after["era_runs", "running"] == 0
    assert after["era_runs_ended_total", "succeeded"] == 2
    for outcome in ("stored", "unchanged", "dead", "unusable"):
        assert after.get(("era_items_total", outcome), 0) == sum(each["items"][outcome] for each in receipts)
    assert total(after, "era_embedding_requests_total") == sum(each["embedding"]["requests"] for each in receipts)
    assert after["ingestion_jobs_submitted",] == after["ingestion_jobs_completed",] == 8
    assert after["ingestion_queue_depth",] == 0


def test_a_run_that_is_killed_keeps_its_figures_and_is_counted_by_the_next_scrape(slow_shell: Shell) -> None:
    shell = slow_shell
    write_book(shell.folder / "data" / "drop", "one", chapters=6)
    run = shell.start("ingest")
    try:
        wait_until(lambda: total(page(shell), "era_embedding_requests_total") > 2)
    finally:
        run.kill()
        run.wait()
    before = page(shell)
    assert total(before, "era_embedding_requests_total") > 2
    assert before["ingestion_queue_depth",] > 0
    with psycopg.connect(shell.environment["ERA_DATABASE_URL"]) as connection:
        connection.execute("UPDATE telemetry_runs SET beat_at = beat_at - interval '1 minute'")
    (run_id,) = (key[1] for key in before if key[0] == "era_run_heartbeat_age_seconds")
    with Database(shell.environment["ERA_DATABASE_URL"], pool_size=1, run_id=run_id) as alive, alive.connection():
        assert page(shell)["era_runs", "stale"] == 1  # still connected: only silent
    wait_until(lambda: page(shell).get(("era_runs_ended_total", "killed")) == 1)
    assert total(page(shell), "era_run_heartbeat_age_seconds") == 0
    receipt = shell.json("ingest")
    after = page(shell)
    assert after["era_runs_ended_total", "killed"] == 1
    assert after["era_runs", "stale"] == 0
    requests = total(before, "era_embedding_requests_total") + receipt["embedding"]["requests"]
    assert total(after, "era_embedding_requests_total") == requests
    assert after["ingestion_queue_depth",] == 0


def page(shell: Shell) -> Samples:
    """What `era metrics --once` would print, without its process."""
    settings = load_settings(shell.environment)
    return samples(exposition.page(scraper(settings, shell.environment["ERA_DATABASE_URL"])))


def test_a_port_that_is_taken_ends_the_exporter_with_one_sentence(shell: Shell) -> None:
    with exporter(shell) as url:
        port = url.rsplit(":", 1)[1].split("/")[0]
        done = shell.era("metrics", ERA_PROMETHEUS_PORT=port)
    assert done.returncode == 2
    assert f"cannot be served on 127.0.0.1:{port}: something else listens there" in done.stderr
    assert "Traceback" not in done.stderr


def test_while_the_database_is_away_the_page_says_so_and_after_it_the_figures_are_back(
    shell: Shell, postgres_server: str
) -> None:
    name = psycopg.conninfo.conninfo_to_dict(shell.environment["ERA_DATABASE_URL"])["dbname"]
    elsewhere = with_database(postgres_server, "postgres")
    with exporter(shell) as url, psycopg.connect(elsewhere, autocommit=True) as connection:
        assert scrape(url)["era_database_up",] == 1
        connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        try:
            away = scrape(url)
        finally:
            connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        assert away["era_database_up",] == 0
        assert ("era_chapters_pending",) not in away
        assert scrape(url)["era_chapters_pending",] == 0


def test_a_database_that_is_silent_is_told_before_prometheus_gives_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://era@127.0.0.1:{silent.getsockname()[1]}/era"
        began = time.monotonic()
        figures = scraper(load_settings({}), url)()
        assert time.monotonic() - began < 6.0  # of the ten that a scrape and a probe may take
    assert [(metric.name, value) for metric, _, value in figures.gauges if metric.name == "era_database_up"] == [
        ("era_database_up", 0.0)
    ]


def test_what_waits_is_not_told_with_a_broken_alias_table_and_the_log_says_why_once(
    shell: Shell, caplog: pytest.LogCaptureFixture
) -> None:
    """The alerts of the queue were blind then, and nothing said so."""
    aliases = shell.folder / "aliases.json"
    aliases.write_text("{", encoding="utf-8")
    settings = load_settings(shell.environment | {"ERA_DOMAIN_ALIASES": str(aliases)})
    read = scraper(settings, shell.environment["ERA_DATABASE_URL"])
    for _ in range(2):
        found = samples(exposition.page(read))
        assert (found["era_database_up",], found.get(("era_chapters_pending",))) == (1, None)
    aliases.write_text("{}", encoding="utf-8")
    assert samples(exposition.page(read))["era_chapters_pending",] == 0
    (line,) = caplog.messages
    assert "cannot tell how many chapters are pending" in line
    assert "aliases.json is not valid JSON" in line


def test_an_exporter_that_starts_before_its_database_serves_and_has_the_figures_once_it_is_there(
    shell: Shell, postgres_server: str
) -> None:
    name = psycopg.conninfo.conninfo_to_dict(shell.environment["ERA_DATABASE_URL"])["dbname"]
    with psycopg.connect(with_database(postgres_server, "postgres"), autocommit=True) as connection:
        connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        try:
            assert shell.era("metrics", "--once").returncode == 1
            with exporter(shell) as url:
                assert scrape(url)["era_database_up",] == 0
                connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
                assert scrape(url)["era_chapters_pending",] == 0
        finally:
            connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')


def test_dagster_s_waiting_runs_are_on_the_page_when_its_database_is(shell: Shell) -> None:
    once = shell.era("metrics", "--once")
    assert "era_dagster_runs" not in {name for name, *_ in samples(once.stdout)}
    write_book(shell.folder / "data" / "drop", "one")
    assert shell.json("ingest")["ok"]
    url = shell.environment["ERA_DATABASE_URL"]
    name = psycopg.conninfo.conninfo_to_dict(url)["dbname"]
    with psycopg.connect(with_database(url, f"{name}_dagster")) as connection:
        assert connection.execute("UPDATE runs SET status = 'QUEUED'").rowcount == 1
    found = page(shell)
    assert found["era_dagster_runs", "queued"] == 1
    assert found["era_dagster_runs", "started"] == 0


def test_errors_are_listed_by_kind_shown_and_forgotten(
    shell: Shell, embedding_server: tuple[FakeEmbeddingServer, str]
) -> None:
    server, _ = embedding_server
    server.poison.add("Write the level down before breakfast. one")
    try:
        write_book(shell.folder / "data" / "drop", "one", chapters=3)
        shell.era("ingest")
    finally:
        server.poison.clear()
    (group,) = shell.json("errors")["errors"]
    assert (group["error_class"], group["stage"], group["occurrences"]) == ("TextsRejected", "embeddings", 3)
    assert group["partition_key"].startswith("one/000")
    listed = shell.era("errors").stdout
    assert f"{group['fingerprint']}  3 x TextsRejected" in listed
    assert group["message"] in shell.era("errors", group["fingerprint"]).stdout
    assert "No errors so far" not in shell.era("errors", "--run", "another").stdout
    assert shell.json("errors", group["fingerprint"], "--forget", "--yes") == {"forgotten": 1}
    assert shell.era("errors").stdout == "No errors so far.\n"
    gone = shell.era("errors", group["fingerprint"])
    assert (gone.returncode, gone.stdout) == (2, "")


def test_watching_shows_a_run_of_another_process_and_its_end(slow_shell: Shell) -> None:
    shell = slow_shell
    write_book(shell.folder / "data" / "drop", "one", chapters=3)
    lines: list[dict] = []
    watch = subprocess.Popen(
        [sys.executable, "-m", "era_dagster.cli", "status", "--watch", "--every", "0.2", "--json"],
        cwd=shell.folder,
        env=shell.environment,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    assert watch.stdout is not None
    run = shell.start("ingest")
    try:
        until = time.monotonic() + PATIENCE_SECONDS
        while not (lines and lines[-1]["ended"]):
            assert time.monotonic() < until
            lines.append(json.loads(watch.stdout.readline()))
    finally:
        assert run.wait(timeout=PATIENCE_SECONDS) == 0
        os.kill(watch.pid, signal.SIGINT)
        assert watch.wait(timeout=30) == 0
        watch.stdout.close()
    running = [line["running"][0]["figures"] for line in lines if line["running"]]
    assert running
    assert running[-1]["chapters"] == 3
    (ended,) = lines[-1]["ended"]
    assert (ended["state"], ended["figures"]["chapters_done"]) == ("succeeded", 3)


@pytest.mark.skipif(sys.platform == "win32", reason="a terminal of POSIX")
def test_watching_in_a_terminal_draws_a_bar_and_ends_at_ctrl_c_with_the_terminal_as_it_was(slow_shell: Shell) -> None:
    shell = slow_shell
    write_book(shell.folder / "data" / "drop", "one", chapters=3)
    with Terminal(shell, "status", "--watch", "--every", "0.2") as terminal:
        terminal.read_until("No run goes now")
        run = shell.start("ingest")
        terminal.read_until("[12]/3")
        terminal.read_until("[12] of 3 chapters")
        assert run.wait(timeout=PATIENCE_SECONDS) == 0
        terminal.read_until("succeeded")
        before = terminal.attributes()
        assert terminal.press_ctrl_c() == 0
        assert terminal.attributes() == before
    shown = terminal.shown
    assert "3 of 3 chapters" in shown
    assert "Traceback" not in shown
    assert shown.rindex(SHOW_CURSOR) > shown.rindex(HIDE_CURSOR)
    assert shown.endswith("\n") or shown.endswith(SHOW_CURSOR)


@pytest.mark.skipif(sys.platform == "win32", reason="a terminal of POSIX")
def test_watching_in_a_narrow_terminal_folds_its_lines_and_cuts_nothing_off(shell: Shell) -> None:
    write_book(shell.folder / "data" / "drop", "one", chapters=1)
    assert shell.era("ingest").returncode == 0
    with Terminal(shell, "status", "--watch", columns=50) as terminal:
        terminal.read_until(r"succeeded")
        terminal.read_until(r"batch\s+\d")


def test_the_log_of_a_run_is_a_file_of_json_lines(shell: Shell, tmp_path: Path) -> None:
    write_book(shell.folder / "data" / "drop", "one")
    log = tmp_path / "era.jsonl"
    done = shell.era("ingest", "--json", ERA_JSON_LOGS="true", ERA_LOG_FILE=str(log), ERA_LOG_LEVEL="debug")
    receipt = json.loads(done.stdout)
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    events = [line["event"] for line in lines]
    assert events[0] == "run_started"
    assert events[-1] == "run_ended"
    requests = [line for line in lines if line["event"] == "request"]
    assert len(requests) == receipt["embedding"]["requests"]
    assert len({line["request_id"] for line in requests}) == len(requests)
    assert {line["partition"] for line in lines if line["event"] == "chapter_stored"} == {"one/0001", "one/0002"}
    assert len({line["run_id"] for line in lines}) == 1
    password = psycopg.conninfo.conninfo_to_dict(shell.environment["ERA_DATABASE_URL"]).get("password")
    assert not password or str(password) not in log.read_text(encoding="utf-8")
