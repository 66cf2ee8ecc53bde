"""A run under observation: what a scrape shows is what the receipt says, and nothing that observes can harm the run."""

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from era_dagster.domain.errors import ChaptersFailed, EndpointRefused, EndpointUnavailable
from era_dagster.pipeline.receipt import Receipt
from era_dagster.pipeline.recorder import Recorder
from era_dagster.pipeline.scrape import scraper
from era_dagster.pipeline.watch import RunWatch, describe, duration
from era_dagster.storage.errors import error_groups
from era_dagster.storage.telemetry import RunFigures, read_runs
from era_dagster.telemetry.catalogue import CHAPTERS
from era_dagster.telemetry.exposition import page
from era_dagster.telemetry.webhook import post_json
from era_dagster_tests.fakes.embedding_server import BUSY, Fault
from era_dagster_tests.fakes.webhook import Webhook, webhook
from era_dagster_tests.pipeline.workbench import Workbench, chapter, error_note


@pytest.fixture
def hook() -> Iterator[Webhook]:
    with webhook() as opened:
        yield opened


def scrape(bench: Workbench) -> dict[tuple[str, ...], float]:
    """A page as (name, label values...) to value."""
    text = page(scraper(bench.settings, bench.database.url))
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(found: dict[tuple[str, ...], float], name: str) -> float:
    return sum(value for key, value in found.items() if key[0] == name)


def assert_equal_to(receipt: Receipt, found: dict[tuple[str, ...], float]) -> None:
    for outcome in ("stored", "unchanged", "dead", "unusable"):
        assert found.get(("era_items_total", outcome), 0) == getattr(receipt.items, outcome)
    assert found["era_items_seen_total",] == receipt.items.seen
    assert found.get(("era_chapters_total", "stored"), 0) == receipt.chapters_stored
    assert found.get(("era_chapters_total", "failed"), 0) == len(receipt.chapters_failed)
    assert total(found, "era_embedding_requests_total") == receipt.embedding_requests
    assert total(found, "era_embedding_texts_retried_total") == receipt.embedding_retries
    assert total(found, "era_embedding_tokens_total") == receipt.tokens
    assert found.get(("era_texts_total", "embedded"), 0) == receipt.texts_embedded
    for asset, counts in receipt.assets.items():
        for outcome in ("stored", "unchanged", "removed", "dead"):
            assert found.get(("era_rows_total", asset, outcome), 0) == getattr(counts, outcome)


def three_books(bench: Workbench) -> None:
    for book in ("one", "two", "three"):
        chapters = [
            chapter(number, text=f"{book} {number}. It stands. " * 200, principles=[f"{book} {number} stands."])
            for number in (1, 2, 3)
        ]
        bench.drop(book, *chapters)
    bench.look()


def test_a_scrape_after_a_run_is_its_receipt(bench: Workbench) -> None:
    three_books(bench)
    bench.server.faults.extend(
        [Fault(), Fault(), Fault(status=503, message=BUSY)]
    )  # the first two are for the model's name
    receipt = bench.run()
    found = scrape(bench)
    assert receipt.items.seen > 20
    assert receipt.embedding_retries > 0
    assert_equal_to(receipt, found)
    assert found["ingestion_jobs_submitted",] == found["ingestion_jobs_completed",] == 9
    assert found["era_chapter_seconds_count",] == 9
    assert found["era_chunk_chars_count",] == receipt.assets["chunks"].stored
    assert total(found, "era_embedding_request_seconds_count") == total(found, "era_embedding_request_texts_count") - 1
    assert found["era_runs_ended_total", "succeeded"] == 1
    assert found["era_database_up",] == 1
    assert found["era_stored", "chapters"] == 9


def test_a_scrape_of_several_runs_is_the_sum_of_their_receipts(bench: Workbench) -> None:
    three_books(bench)
    first = bench.run(chapters=bench.pending()[:4])
    second = bench.run()
    found = scrape(bench)
    assert found["era_items_seen_total",] == first.items.seen + second.items.seen
    assert total(found, "era_embedding_requests_total") == first.embedding_requests + second.embedding_requests
    assert found["era_runs_started_total",] == 2


def test_a_run_that_fails_leaves_its_figures_and_its_errors_by_kind(bench: Workbench) -> None:
    bench.server.poison.add("spoiled")
    bench.drop("one", chapter(1), chapter(2, text="spoiled", principles=["spoiled too"]))
    bench.drop("two", chapter(1, text="spoiled as well", principles=["spoiled again"]))
    bench.look()
    with pytest.raises(ChaptersFailed):
        bench.run()
    found = scrape(bench)
    assert_equal_to(bench.heard.receipt, found)
    assert found["era_runs_ended_total", "failed"] == 1
    groups = {group.error_class: group for group in error_groups(bench.database)}
    assert groups["TextsRejected"].occurrences == bench.heard.receipt.items.dead == 4
    assert groups["PermanentError"].occurrences == 2
    assert groups["PermanentError"].partition_key in ("one/0002", "two/0001")


def test_what_stops_a_run_is_recorded_once(bench: Workbench) -> None:
    bench.drop("one", chapter(1))
    bench.look()
    bench.server.faults.extend([Fault(status=401, message="no key")] * 20)
    with pytest.raises(EndpointRefused):
        bench.run()
    assert [(group.error_class, group.occurrences) for group in error_groups(bench.database)] == [
        ("EndpointRefused", 1)
    ]


def test_what_no_database_stores_in_the_words_of_an_unexpected_error_is_left_out(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("broken \0 words \ud800")

    bench.drop("one", chapter(1))
    bench.look()
    monkeypatch.setattr("era_dagster.pipeline.ingest.stored_stamps", broken)
    with pytest.raises(RuntimeError):
        bench.run()
    assert [group.message for group in error_groups(bench.database)] == ["broken words"]


def test_with_an_interval_of_zero_nothing_is_written_and_the_report_is_there_all_the_same(bench: Workbench) -> None:
    three_books(bench)
    bench.settings = replace(bench.settings, metrics_interval_seconds=0.0)
    receipt = bench.run()
    assert bench.count("telemetry_runs") == bench.count("metric_totals") == 0
    assert bench.heard.report is not None
    assert bench.heard.report.receipt == receipt
    assert sum(bench.heard.report.chunk_chars.values()) == receipt.assets["chunks"].stored


def test_a_run_that_waits_for_its_embedding_server_says_so_once(
    bench: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    """Its log said "0 of 3 chapters" for two minutes, and nothing of a server that is away."""
    three_books(bench)
    bench.run()
    bench.drop("two", chapter(1, "new"))
    bench.look()
    bench.server.down = True
    bench.settings = replace(bench.settings, retry_budget_seconds=2.5)
    with caplog.at_level(logging.WARNING, logger="era_dagster"), pytest.raises(EndpointUnavailable):
        bench.run()
    with bench.database.connection() as connection:
        latest, _ = read_runs(connection, running=False, ended=2)
    assert [endpoint["mode"] for endpoint in latest.figures["endpoints"]] == ["down"]
    (line,) = [line for line in caplog.records if getattr(line, "event", "") == "waiting"]
    assert line.getMessage().startswith("Waiting up to 2 s: ")
    assert "127.0.0.1" in line.getMessage()


def test_lengths_that_no_chunk_has_keep_their_place_between_those_that_some_have(bench: Workbench) -> None:
    """Left out, the bar "≤896" stood beside "≤256" and seemed to cover all between."""
    watch = RunWatch(bench.settings, bench.database.url, run_id="r", chapters=1)
    assert watch.report().chunk_chars == {}
    watch.chunks_cut([100, 500])
    assert watch.report().chunk_chars == {128.0: 1, 256.0: 0, 384.0: 0, 512.0: 1}


def test_a_database_that_is_away_for_the_figures_does_not_touch_the_run(
    bench: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    three_books(bench)
    url, bench.database.url = bench.database.url, "postgresql://u:s3cret@127.0.0.1:9/none"
    with caplog.at_level(logging.WARNING, logger="era_dagster"):
        receipt = bench.run()
    bench.database.url = url
    assert receipt.chapters_stored == 9
    assert [getattr(line, "event", "") for line in caplog.records] == ["figures_wait", "figures_lost"]
    assert "s3cret" not in caplog.text


class Raising(logging.Handler):
    """As Dagster's, when its database is away."""

    def emit(self, record: logging.LogRecord) -> None:
        raise RuntimeError("too many retries for DB connection")


def test_a_log_handler_that_raises_ends_neither_the_run_nor_its_telling(
    bench: Workbench, capsys: pytest.CaptureFixture[str], postgres_server: str
) -> None:
    three_books(bench)
    handler, logger = Raising(), logging.getLogger("era_dagster")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    url = bench.database.url
    settings = replace(bench.settings, metrics_interval_seconds=0.02)
    try:
        assert bench.run().chapters_stored == 9
        recorder = Recorder(settings, "postgresql://127.0.0.1:9/none", "run-1", figures=dict[str, Any])
        recorder.start()
        time.sleep(0.2)  # the thread says that the database is away
        recorder._url = url
        until = time.monotonic() + 30.0
        while not any(run.run_id == "run-1" for run in runs(bench)):
            assert time.monotonic() < until
            time.sleep(0.05)
        recorder.stop("succeeded")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    said = capsys.readouterr().err
    assert "9 chapters to do (not logged: RuntimeError: too many retries" in said
    assert "Figures wait for the database" in said


def runs(bench: Workbench) -> list[RunFigures]:
    with bench.database.connection() as connection:
        return read_runs(connection)


def test_figures_wait_for_a_database_that_comes_back_and_none_is_lost(bench: Workbench, postgres_server: str) -> None:
    name = psycopg.conninfo.conninfo_to_dict(bench.database.url)["dbname"]

    def connections(allowed: bool) -> None:
        with psycopg.connect(postgres_server, autocommit=True) as connection:
            connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS {allowed}')

    settings = replace(bench.settings, metrics_interval_seconds=0.02)
    recorder = Recorder(settings, bench.database.url, "run-1", figures=dict[str, Any])
    recorder.tally.add(CHAPTERS, "stored", by=2)
    connections(False)
    try:
        recorder.start()
        time.sleep(0.1)  # several writes are tried in vain
        recorder.tally.add(CHAPTERS, "stored", by=3)
    finally:
        connections(True)
    recorder.stop("succeeded")
    assert scrape(bench)["era_chapters_total", "stored"] == 5


def test_a_clock_that_goes_back_spoils_no_figure(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    three_books(bench)
    real, started = time.time, time.time()
    monkeypatch.setattr(time, "time", lambda: started - (real() - started) * 3600)
    receipt = bench.run()
    monkeypatch.undo()
    assert receipt.seconds > 0
    found = scrape(bench)
    assert found["era_run_seconds_sum",] > 0
    assert found["era_chapter_seconds_sum",] > 0
    assert bench.rows("SELECT ended_at >= started_at FROM telemetry_runs") == [True]


def recorder_with(bench: Workbench, hook: Webhook, run_id: str = "run-1") -> Recorder:
    settings = replace(bench.settings, metrics_interval_seconds=30.0, error_webhook_url=hook.url)
    return Recorder(settings, bench.database.url, run_id, figures=dict[str, Any])


def test_the_webhook_hears_of_a_new_kind_of_error_once_and_of_no_secret(bench: Workbench, hook: Webhook) -> None:
    for run_id in ("run-1", "run-2"):
        recorder = recorder_with(bench, hook, run_id)
        recorder.start()
        recorder.errors.add(error_note(f"postgresql://u:hidden@h/db and {hook.url} are busy."))
        recorder.stop("succeeded")
    (told,) = hook.taken
    assert (told["fingerprint"], told["run_id"], told["error_class"]) == ("f1", "run-1", "EndpointBusy")
    assert "New error" in told["text"]
    assert "hidden" not in json.dumps(told)
    assert "T0KEN" not in json.dumps(told)
    (group,) = error_groups(bench.database)
    assert (group.occurrences, group.told_at is not None) == (2, True)


@pytest.mark.parametrize("trouble", ["down", "refuses", "redirects", "speaks TLS alone", "no address"])
def test_a_webhook_that_is_down_or_refuses_harms_nothing_and_is_told_later(
    bench: Workbench, hook: Webhook, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    """A redirect was followed without the message and taken for a success; what is no HTTP ended telemetry and the run.

    So did an address with a letter beyond ASCII, which the client only finds when it asks.
    """
    hook.status = 301 if trouble == "redirects" else 500
    hook.raw = b"\x15\x03\x01\x00\x02\x02F" if trouble == "speaks TLS alone" else b""
    url = {"down": "http://127.0.0.1:9/T0KEN", "no address": f"{hook.url}/T0KEN-ü"}.get(trouble, hook.url)
    recorder = recorder_with(bench, replace(hook, url=url))
    with caplog.at_level(logging.WARNING, logger="era_dagster"):
        recorder.start()
        recorder.errors.add(error_note())
        recorder.stop("succeeded")
    assert [getattr(line, "event", "") for line in caplog.records] == ["webhook_failed"]
    assert "T0KEN" not in caplog.text
    hook.taken.clear()
    hook.status, hook.raw = 200, b""
    with bench.database.connection() as connection:
        connection.execute("UPDATE error_groups SET tell_after = now()")  # a minute later
    recorder = recorder_with(bench, hook, "run-2")
    recorder.start()
    recorder.stop("succeeded")
    assert [told["fingerprint"] for told in hook.taken] == ["f1"]


def test_a_scrape_does_not_wait_for_ever_for_the_table_in_which_it_marks_killed_runs(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("era_dagster.pipeline.scrape._CONNECT_SECONDS", 1)
    with psycopg.connect(bench.database.url) as other:
        other.execute("SET idle_in_transaction_session_timeout = '4s'")
        other.execute("LOCK TABLE telemetry_runs IN SHARE MODE")
        assert scrape(bench)["era_database_up",] == 1
        other.execute("SELECT")  # it holds the lock still


def test_a_webhook_that_never_answers_holds_the_end_of_a_run_up_for_seconds_only(
    bench: Workbench, hook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("era_dagster.pipeline.recorder._LAST_WORDS_SECONDS", 0.3)
    hook.held = True
    recorder = recorder_with(bench, hook)
    recorder.start()
    for number in range(5):
        recorder.errors.add(error_note(fingerprint=f"f{number}"))
    recorder.stop("succeeded")
    with bench.database.connection() as connection:
        (run,) = read_runs(connection, running=False, ended=1)
    assert run.state == "succeeded"
    assert [group.told_at for group in error_groups(bench.database)] == [None] * 5


def test_a_webhook_that_answers_byte_by_byte_gets_no_more_time_than_one_that_is_silent(hook: Webhook) -> None:
    """Each byte came in time, so that the answer as a whole could take for ever."""
    hook.raw, hook.pause_seconds = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 0.1
    began = time.monotonic()
    with pytest.raises(EndpointUnavailable, match="did not answer in time"):
        post_json(hook.url, {"text": "new"}, timeout_seconds=0.3)
    assert time.monotonic() - began < 2.0


def test_progress_is_one_line_with_what_a_person_asks_for() -> None:
    endpoint = {"limit": 12, "batch": 8}
    figures = {
        "chapters": 600,
        "chapters_done": 120,
        "items": 1700,
        "items_per_second": 85.2,
        "seconds_left": 190.0,
        "endpoints": [endpoint, endpoint],
        "retries": 0,
        "refusals": 4,
        "dead_letters": 2,
        "chapters_failed": 0,
    }
    assert describe(figures) == (
        "120 of 600 chapters, 1,700 items, 85 a second, about 3 min 10 s left, limit 24, batch 8, 4 refusals, 2 dead letters"
    )
    assert [duration(seconds) for seconds in (4.4, 95, 7260)] == ["4 s", "1 min 35 s", "2 h 1 min"]
