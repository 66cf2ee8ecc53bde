"""`era bench` as a user types it: real processes, tiny scenarios; what it accounts for, not how fast anything is."""

import json
import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest


def era_bench(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "era_dagster.cli", "bench", *words]
    environment = os.environ | variables
    return subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=120, check=False)


def runs_of(*words: str, code: int = 0) -> list[dict[str, Any]]:
    done = era_bench(*words, "--json", "-")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)["runs"]


def scenario_file(folder: Path, **scenario: Any) -> str:
    path = folder / "own.json"
    path.write_text(json.dumps({"name": "own", "intent": "A test.", **scenario}), encoding="utf-8")
    return str(path)


def test_ours_and_a_fixed_client_are_measured_side_by_side_tabulated_and_drawn(tmp_path: Path) -> None:
    figures, picture = tmp_path / "bench.json", tmp_path / "bench.svg"
    done = era_bench(
        *("--scenario", "steady-1", "--seconds", "1", "--warm-up", "0.3", "--client", "fixed:2x4"),
        *("--json", str(figures), "--plot", str(picture)),
    )
    assert done.returncode == 0, done.stderr
    runs = json.loads(figures.read_bytes())["runs"]
    assert [run["client"] for run in runs] == ["era", "fixed:2x4"]
    for run in runs:
        assert run["clean"] is True
        assert run["lost"] == run["wrong_vectors"] == 0
        assert run["vectors_checked"] > 0
        assert run["asked"] >= run["texts"] > 0
        assert 0 < run["ratio"] < 1.1
        assert run["limit_texts_per_second"] == pytest.approx(1 / 0.0066, rel=0.01)
        assert run["p50_seconds"] <= run["p95_seconds"] <= run["p99_seconds"]
        assert run["cpu_ms_per_text"] > 0
        assert len(run["samples"]) >= 10
        assert {"at", "limit", "batch", "rate", "in_flight"} <= set(run["samples"][0])
        assert f"{run['scenario']}: {run['client']}" in done.stderr
        assert run["client"] in done.stdout
    assert runs[1]["most_in_flight"] == 2
    drawn = "".join(ET.fromstring(picture.read_text(encoding="utf-8")).itertext())
    assert "steady-1 / era" in drawn
    assert "steady-1 / fixed:2x4" in drawn


def test_exactly_the_poison_texts_are_missing(tmp_path: Path) -> None:
    path = scenario_file(tmp_path, server={"slots": 4, "seconds_per_text": 0.002}, poison_every=50)
    (run,) = runs_of("--scenario", path, "--seconds", "1", "--warm-up", "0")
    assert run["poison_asked"] == run["poison_missing"] > 0
    assert run["clean"] is True


def test_a_lost_text_is_exit_code_1(tmp_path: Path) -> None:
    # A word of many texts that the server cannot take, and that nobody has called poison.
    # Slow enough that few texts wait: those asked for are all tried before the cool-down is over, and lost, not left over.
    server = {"slots": 4, "seconds_per_text": 0.04, "nan_marker": "winter"}
    (run,) = runs_of("--scenario", scenario_file(tmp_path, server=server), "--seconds", "0.5", "--warm-up", "0", code=1)
    assert run["lost"] > 0
    assert run["error"] is None
    assert run["clean"] is False


def test_a_naive_client_that_loses_is_shown_and_is_no_failure(tmp_path: Path) -> None:
    path = scenario_file(tmp_path, server={"slots": 4, "seconds_per_text": 0.002}, poison_every=50)
    ours, naive = runs_of("--scenario", path, "--seconds", "0.5", "--warm-up", "0", "--client", "fixed:1x100")
    assert ours["clean"] is True
    assert naive["lost"] > 0


def test_a_measurement_may_be_a_number_of_texts() -> None:
    (run,) = runs_of("--scenario", "instant", "--texts", "500", "--warm-up", "0")
    assert run["texts"] >= 500
    assert run["ratio"] is None
    assert run["memory_mb_end"] > 0


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for a single process")
def test_a_benchmark_that_is_stopped_tells_the_runs_that_were_finished(tmp_path: Path) -> None:
    figures, picture = tmp_path / "bench.json", tmp_path / "bench.svg"
    words = ("--scenario", "steady-1", "--seconds", "0.5", "--warm-up", "0", "--client", "fixed:2x4")
    words += ("--scenario", "steady-4", "--json", str(figures), "--plot", str(picture))
    command = [sys.executable, "-m", "era_dagster.cli", "bench", *words]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
    assert run.stderr is not None
    while "steady-1: era" not in (line := run.stderr.readline()):
        assert line, "it ended by itself"
    run.send_signal(signal.SIGINT)
    said, complained = run.communicate(timeout=60)
    assert run.returncode == 130
    assert complained.endswith("Stopped. The runs that were finished are told.\n")
    assert [(each["scenario"], each["client"]) for each in json.loads(figures.read_bytes())["runs"]] == [
        ("steady-1", "era")
    ]
    assert "steady-1 / era" in picture.read_text(encoding="utf-8")
    assert "steady-1" in said


def test_a_sweep_names_the_best_fixed_setting(tmp_path: Path) -> None:
    path = scenario_file(tmp_path, server={"seconds_per_text": 0.05})
    runs = runs_of("--scenario", path, "--seconds", "0.5", "--warm-up", "0", "--sweep")
    assert runs[0]["client"] == "era"
    assert runs[1]["client"].startswith("fixed:")
    assert runs[1]["p95_seconds"] <= 0.5


@pytest.mark.parametrize(
    "words",
    [
        ("--scenario", "nothing"),
        ("--client", "fixed"),
        ("--scenario", "missing.json"),
        ("--seconds", "0"),
        ("--seconds", "nan"),
        ("--warm-up", "inf"),
    ],
)
def test_wrong_use_is_named_with_exit_code_2(words: tuple[str, ...]) -> None:
    done = era_bench(*words)
    assert done.returncode == 2
    assert "Error" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("option", ["--plot", "--json"])
def test_a_file_that_cannot_be_written_is_named_before_anything_is_measured(option: str, tmp_path: Path) -> None:
    for path in (tmp_path / "missing" / "file", tmp_path):
        done = era_bench("--scenario", "steady-1", "--seconds", "0.5", "--warm-up", "0", option, str(path))
        assert done.returncode == 2
        assert "steady-1" not in done.stderr


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="whoever runs this may write everywhere")
def test_a_folder_that_is_closed_is_named_before_anything_is_measured(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    done = era_bench(
        "--scenario", "instant", "--texts", "100", "--warm-up", "0", "--json", str(tmp_path / "bench.json")
    )
    assert done.returncode == 2
    assert f"Nothing can be written into {tmp_path}." in done.stderr
    assert "instant" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
def test_figures_are_told_also_where_their_file_cannot_be_written() -> None:
    done = era_bench("--scenario", "instant", "--texts", "100", "--warm-up", "0", "--json", "/dev/full")
    assert done.returncode == 1
    assert "No space left" in done.stderr
    assert "instant" in done.stdout


@pytest.mark.parametrize(
    "wrong",
    [
        {"server": 5},
        {"server": {}, "changes": [["early", 0, {}]]},
        {"server": {}, "characters": [201, 200]},
        {"server": {}, "poison_every": "often"},
        {"server": {}, "expect": {"ratio": "much"}},
        {"server": {}, "name": 5},
    ],
)
def test_a_scenario_that_cannot_be_meant_is_refused_before_it_is_run(wrong: dict[str, Any], tmp_path: Path) -> None:
    done = era_bench("--scenario", scenario_file(tmp_path, **wrong), "--seconds", "0.5", "--warm-up", "0")
    assert done.returncode == 2
    assert "own.json holds no scenario: " in done.stderr


def test_garbage_is_a_loss_of_the_naive_client_and_no_end_of_the_benchmark(tmp_path: Path) -> None:
    garbage = {"share_garbage": 0.2, "garbage": ["html", "nothing", "wrong_count"]}
    path = scenario_file(tmp_path, server={"slots": 4, "seconds_per_text": 0.002, **garbage})
    ours, naive = runs_of("--scenario", path, "--seconds", "0.5", "--warm-up", "0", "--client", "fixed:4x4")
    assert (ours["lost"], naive["error"]) == (0, None)
    assert naive["texts"] > 0
    assert naive["retries"] > 0


def test_the_list_names_every_scenario_with_its_intent() -> None:
    done = era_bench("--list")
    assert done.returncode == 0
    assert "queue-limit" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--rivals", "no/such/python"), "no/such/python cannot be started: "),
        (("--rivals", sys.executable), "could not import the other stores: ModuleNotFoundError"),
        (("--json", "no-such-folder/figures.json"), "There is no folder no-such-folder."),
    ],
)
def test_a_benchmark_of_look_ups_that_cannot_end_well_does_not_begin(words: tuple[str, str], said: str) -> None:
    done = era_bench("search", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Making the corpus" not in done.stderr


@pytest.mark.slow
def test_look_ups_are_measured_on_rows_of_their_own() -> None:
    words = ("--entries", "200", "--chunks", "200", "--domains", "5", "--questions", "20")
    done = era_bench("search", *words, "--json", "-", ERA_EMBEDDING_MODEL="nomic-embed-text")
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert (measured["stored"]["texts"], measured["stored"]["domain_tables"]) == (400, 5)
    exact = [search for search in measured["searches"] if search["recall"] is not None]
    assert len(exact) == 3
    assert all(search["how"] == "exact" and search["recall"] == 1.0 for search in exact)
