"""What `era doctor` says of Dagster's daemon and of the drop sensor.

The daemon's signs of life are written into a real instance. A sensor's state needs a loaded code location, so its judgement is
tested on states of the same shape; that the states are found is tested where the containers' commands are run.
"""

import time
from dataclasses import dataclass
from enum import Enum
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
from dagster._daemon.types import DaemonHeartbeat
from dagster._utils.error import SerializableErrorInfo

from era_dagster.defs.health import DROP_SENSOR, daemon, sensor
from era_dagster.defs.sensors import chapter_drop_sensor


def beat(instance: dg.DagsterInstance, *, age_seconds: float, error: str | None = None) -> None:
    errors = [SerializableErrorInfo(error, [], "Exception")] if error else []
    for kind in instance.get_daemon_statuses():
        instance.add_daemon_heartbeat(DaemonHeartbeat(time.time() - age_seconds, kind, "here", errors))


def test_a_daemon_that_was_never_there_fell_silent_or_is_in_trouble_is_named_with_the_next_step() -> None:
    with dg.instance_for_test() as instance:
        assert daemon(instance).level == "warning"
        assert "never seen" in daemon(instance).found
        beat(instance, age_seconds=10)
        assert daemon(instance).level == "ok"
        beat(instance, age_seconds=10, error="the database went away")
        assert daemon(instance).level == "failed"
        assert "the database went away" in daemon(instance).found
        beat(instance, age_seconds=7300)
        assert daemon(instance).level == "warning"
        assert "2 hours ago" in daemon(instance).found
        assert "dagster dev" in daemon(instance).next_step


class Status(Enum):
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"


@dataclass(frozen=True)
class Remembered:
    """An instance that remembers one sensor and its last tick."""

    status: Status
    tick: Status
    name: str = DROP_SENSOR

    def all_instigator_state(self) -> list[Any]:
        return [
            SimpleNamespace(
                instigator_name=self.name, status=self.status, instigator_origin_id="origin", selector_id="selector"
            )
        ]

    def get_ticks(self, origin_id: str, selector_id: str, *, limit: int) -> list[Any]:
        assert (origin_id, selector_id, limit) == ("origin", "selector", 1)
        error = SimpleNamespace(message="The drop folder\ncannot be read.") if self.tick is Status.FAILURE else None
        return [SimpleNamespace(status=self.tick, error=error, timestamp=time.time() - 7)]


@pytest.mark.parametrize(
    ("remembered", "level", "said"),
    [
        (Remembered(Status.RUNNING, Status.SUCCESS), "ok", "on, last tick 7 s ago"),
        (Remembered(Status.STOPPED, Status.SUCCESS), "warning", "switched off"),
        (Remembered(Status.RUNNING, Status.FAILURE), "failed", "The drop folder cannot be read."),
        (Remembered(Status.STOPPED, Status.FAILURE, "another_sensor"), "ok", "on by default"),
    ],
)
def test_a_sensor_that_is_off_or_failing_is_named(remembered: Any, level: str, said: str) -> None:
    finding = sensor(remembered)
    assert finding.level == level
    assert said in finding.found
    assert bool(finding.next_step) == (level != "ok")


def test_of_a_sensor_known_under_several_names_of_its_code_location_the_one_that_ticks_is_meant() -> None:
    """`era doctor` took the first, and called a sensor on or off that no daemon runs any more, or never did."""
    ticked = {"of before": [time.time() - 9e5], "now": [time.time() - 7], "never": []}

    class Both(Remembered):
        def all_instigator_state(self) -> list[Any]:
            return [
                SimpleNamespace(
                    instigator_name=DROP_SENSOR,
                    status=Status.RUNNING if name == "now" else Status.STOPPED,
                    instigator_origin_id=name,
                    selector_id=name,
                )
                for name in ticked
            ]

        def get_ticks(self, origin_id: str, selector_id: str, *, limit: int) -> list[Any]:
            return [SimpleNamespace(status=Status.SUCCESS, error=None, timestamp=when) for when in ticked[selector_id]]

    both: Any = Both(Status.RUNNING, Status.SUCCESS)
    assert sensor(both).found == "on, last tick 7 s ago"


def test_the_sensor_looked_for_is_the_one_there_is() -> None:
    assert chapter_drop_sensor.name == DROP_SENSOR
