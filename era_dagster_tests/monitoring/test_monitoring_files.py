"""The alert rules, the dashboard and the scrape configuration: every name is one that is exported, every alert leads into the
runbook, and Prometheus' own tool accepts them and fires each alert on its trouble, where that tool is installed."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from era_dagster.settings import load_settings
from era_dagster.telemetry import catalogue
from era_dagster.telemetry.catalogue import Metric

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "monitoring"


def rules() -> list[dict[str, Any]]:
    return yaml.safe_load((FOLDER / "alerts.yml").read_text(encoding="utf-8"))["groups"][0]["rules"]


def panels() -> list[dict[str, Any]]:
    return json.loads((FOLDER / "grafana-dashboard.json").read_text(encoding="utf-8"))["panels"]


def expressions() -> list[str]:
    return [rule["expr"] for rule in rules()] + [target["expr"] for shown in panels() for target in shown["targets"]]


def exported() -> dict[str, Metric]:
    """The series a scrape shows, by name, a histogram's parts among them."""
    found: dict[str, Metric] = {}
    for metric in vars(catalogue).values():
        if isinstance(metric, Metric):
            parts = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
            found |= {metric.name + part: metric for part in parts}
    return found


def test_every_name_and_label_is_one_that_is_exported() -> None:
    known = exported()
    assert len(known) > 30
    used = {name for expression in expressions() for name in re.findall(r"\bera_\w+", expression)}
    assert used
    assert used <= set(known), used - set(known)
    for expression in expressions():
        for name, matchers in re.findall(r"\b(era_\w+)\{([^}]*)\}", expression):
            labels = set(re.findall(r"(\w+)(?:=|!=|=~)", matchers))
            assert labels <= set(known[name].labels), f"{name}: {labels}"


def test_the_values_of_outcomes_are_ones_that_the_catalogue_names() -> None:
    known = exported()
    for expression in expressions():
        for name, values in re.findall(r'\b(era_\w+)\{(?:outcome|state)=~?"([^"]+)"\}', expression):
            for value in values.split("|"):
                assert re.search(rf"\b{value}\b", known[name].help), f"{name}: {value} is not in its description"


def test_every_alert_leads_to_a_section_of_the_runbook_that_names_it() -> None:
    runbook = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    sections = {
        re.sub(r"[^\w -]", "", part.splitlines()[0].lower()).replace(" ", "-"): part
        for part in re.split(r"^## ", runbook, flags=re.MULTILINE)[1:]
    }
    for rule in rules():
        page, anchor = rule["annotations"]["runbook"].split("#")
        assert page == "docs/runbook.md"
        assert f"`{rule['alert']}`" in sections[anchor], rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")
    assert set(re.findall(r"`(Era[A-Z]\w+)`", runbook)) == {rule["alert"] for rule in rules()}


def test_what_the_promises_name_has_an_alert() -> None:
    by_name = {rule["alert"]: rule["expr"] for rule in rules()}
    assert "deriv(era_chapters_pending" in by_name["EraQueueGrowing"]
    assert "rate_limited|overloaded" in by_name["EraRefusals"]
    assert by_name["EraSuccessLow"].rstrip().endswith("> 0.005")
    assert by_name["EraLatencyHigh"].rstrip().endswith(f"> {load_settings({}).latency_target_seconds:g}")
    assert "era_dead_letters" in by_name["EraDeadLetters"]
    assert "era_run_heartbeat_age_seconds" in by_name["EraHeartbeatStale"]


def test_the_dashboard_is_whole() -> None:
    shown = panels()
    assert len({panel["id"] for panel in shown}) == len(shown)
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in shown]
    assert len(set(places)) == len(places)
    assert all(p["gridPos"]["x"] + p["gridPos"]["w"] <= 24 for p in shown)
    assert all(p["title"] and p["description"] and p["targets"] for p in shown)
    assert all(p["datasource"] == {"type": "prometheus", "uid": "${datasource}"} for p in shown)


def test_prometheus_asks_where_the_metrics_are() -> None:
    content = yaml.safe_load((FOLDER / "prometheus.yml").read_text(encoding="utf-8"))
    assert content["rule_files"] == ["alerts.yml"]
    (target,) = content["scrape_configs"][0]["static_configs"][0]["targets"]
    assert target == f"127.0.0.1:{load_settings({}).prometheus_port}"


def promtool(*words: str) -> None:
    """Prometheus' own tool, which must be content; skips the test where it is not installed."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed")
    done = subprocess.run([program, *words], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "words",
    [("check", "config", "prometheus.yml"), ("check", "rules", "alerts.yml"), ("test", "rules", "alerts.test.yml")],
    ids=["config", "rules", "each alert on its trouble"],
)
def test_prometheus_own_tool_is_content(words: tuple[str, ...]) -> None:
    promtool(*words)


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    cases = yaml.safe_load((FOLDER / "alerts.test.yml").read_text(encoding="utf-8"))["tests"]
    quiet = {test["alertname"] for test in cases[0]["alert_rule_test"] if not test["exp_alerts"]}
    fired = {
        name
        for case in cases
        for test in case.get("promql_expr_test", ())
        for sample in test["exp_samples"]
        for name in re.findall(r'alertname="(\w+)"', sample["labels"])
    }
    assert quiet == fired == {rule["alert"] for rule in rules()}


def test_the_success_of_the_last_hour_knows_no_item_from_before_the_first_scrape(tmp_path: Path) -> None:
    (shown,) = (panel for panel in panels() if panel["title"] == "Success, last hour")
    (target,) = shown["targets"]
    up = {"series": "era_database_up", "values": "1x120"}
    build = {"series": 'era_build_info{version="1"}', "values": "1x120"}

    def case(seen: str, dead: str | None, **at: float) -> dict[str, Any]:
        series = [up, build, {"series": "era_items_seen_total", "values": seen}]
        series += [{"series": 'era_items_total{outcome="dead"}', "values": dead}] if dead else []
        wanted = [
            {
                "expr": f"round({target['expr']}, 0.001)",
                "eval_time": time,
                "exp_samples": [{"labels": "{}", "value": share}],
            }
            for time, share in at.items()
        ]
        return {"interval": "1m", "input_series": series, "promql_expr_test": wanted}

    cases = [
        # An old database with many dead items, of which the run that comes adds none, and then one.
        case("500x20 700x100", "50x30 51x90", **{"25m": 1.0, "40m": 0.995}),
        # A new one, whose counters are born while it is watched.
        case("_x5 500x115", "_x5 5x115", **{"10m": 0.99}),
        case("_x5 500x115", None, **{"10m": 1.0}),
        # An hour later, the database having been away when that hour began.
        case("500x20 _x10 500x60 600x30", "50x20 _x10 50x90", **{"95m": 1.0}),
    ]
    promtool_agrees(tmp_path / "panel.test.yml", cases)


def test_the_first_error_of_a_kind_shows_on_the_dashboard_and_those_of_before_do_not(tmp_path: Path) -> None:
    """`increase()` knows no series that is born with its first error."""
    (shown,) = (panel for panel in panels() if panel["title"] == "Errors")
    (target,) = shown["targets"]
    kinds = {"old": "70x10 _x15 70x60", "new": "_x40 1x60"}
    series = [{"series": f'era_errors_total{{error_class="{name}"}}', "values": kinds[name]} for name in kinds]
    up = {"series": "era_database_up", "values": "1x10 _x15 1x60"}

    def at(time: str, **seen: float) -> dict[str, Any]:
        samples = [{"labels": f'{{error_class="{name}"}}', "value": count} for name, count in seen.items()]
        return {"expr": target["expr"], "eval_time": time, "exp_samples": samples}

    # The exporter was away from the 11th minute to the 25th.
    cases = [at("5m", old=0), at("26m"), at("30m", old=0), at("40m", old=0, new=1), at("45m", old=0, new=0)]
    promtool_agrees(
        tmp_path / "errors.test.yml", [{"interval": "1m", "input_series": [up, *series], "promql_expr_test": cases}]
    )


def promtool_agrees(file: Path, cases: list[dict[str, Any]]) -> None:
    file.write_text(json.dumps({"rule_files": [], "evaluation_interval": "1m", "tests": cases}), encoding="utf-8")
    promtool("test", "rules", str(file))
