"""Reads the scenarios: data files with a sentence of intent, the server, the texts, the clients and what is expected.

One JSON file holds a list of scenarios of one kind; a new one needs no code.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from era_dagster.control.ceilings import Ceilings
from era_dagster.simulation.spec import Course, ServerSpec, course_from
from era_dagster_tests.bench.engine import Texts

FOLDER = Path(__file__).parent / "scenarios"

MEASURES = (
    "ratio",
    "p95_seconds",
    "refused_share",
    "lost",
    "most_in_flight",
    "concurrency_end",
    "work_end",
    "work_kept",
    "recovery",
    "fairness",
)
"""What a scenario may expect something of; `score.Score` says what each means."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One situation. `starts`: when each client begins; `told`: they know of each other. `disturbed`: from when to when the
    server is not itself, if it comes back to what it was. `expect`: lowest and highest value by measure; `short`: what is
    reached today of an expectation that the controller does not meet yet, so that it gets no worse and the gap stays
    written down."""

    name: str
    intent: str
    course: Course
    texts: Texts
    starts: tuple[float, ...] = (0.0,)
    told: bool = False
    seconds: float = 60.0
    disturbed: tuple[float, float] | None = None
    ceilings: Ceilings = field(default_factory=Ceilings)
    expect: Mapping[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])
    short: Mapping[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])

    @property
    def fingerprint(self) -> str:
        """Changes with everything in the scenario that the oracle's result depends on."""
        changed = {
            each.name: value
            for each in fields(ServerSpec)
            if (value := getattr(self.course.spec, each.name)) != each.default
        }
        bounds = (self.ceilings.concurrency, self.ceilings.items)
        told = [changed, self.course.changes, asdict(self.texts), self.seconds, bounds]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]


def scenario_from(data: Mapping[str, Any]) -> Scenario:
    """Read one scenario. Raises `TypeError` or `ValueError` for a field or a measure that does not exist."""
    given = dict(data)
    expect, short = (
        {name: (float(low), float(high)) for name, (low, high) in given.pop(key, {}).items()}
        for key in ("expect", "short")
    )
    unknown = set(expect) - set(MEASURES) | set(short) - set(expect)
    if unknown:
        raise ValueError(f"{given['name']} expects something of {', '.join(sorted(unknown))}")
    disturbed = given.pop("disturbed", None)
    return Scenario(
        course=course_from(given.pop("server")),
        texts=Texts(**given.pop("texts", {})),
        starts=tuple(given.pop("starts", (0.0,))),
        ceilings=Ceilings(**given.pop("ceilings", {})),
        disturbed=None if disturbed is None else (float(disturbed[0]), float(disturbed[1])),
        expect={"lost": (0.0, 0.0), **expect},
        short=short,
        **given,
    )


def all_scenarios(folder: Path = FOLDER) -> list[Scenario]:
    """Every scenario of every file, in the order of the files' names. Raises `ValueError` for a name used twice."""
    found = [scenario_from(data) for path in sorted(folder.glob("*.json")) for data in json.loads(path.read_text())]
    names = [scenario.name for scenario in found]
    if len(set(names)) < len(names):
        raise ValueError("two scenarios have the same name")
    return found
