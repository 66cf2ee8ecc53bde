"""The scenarios of `era bench`: a server, the texts it is given, and what a good client reaches.

Data with its reading; `scenarios.json` beside this module holds ours.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from era_dagster.domain.errors import ConfigurationError
from era_dagster.embedding.config import EmbedderConfig
from era_dagster.simulation.dialects import CHARACTERS_A_TOKEN
from era_dagster.simulation.spec import Course, course_from


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a good client reaches at least (`ratio` to the server's own limit) and at most; None: not judged."""

    ratio: float | None = None
    p95_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One server and its texts. `changes` are (share of the measured time, seconds on top, fields of the server).

    Texts have between the two numbers of `characters`; every `poison_every`-th is poison, 0 for none. `on_request`:
    only run when named.
    """

    name: str
    intent: str
    server: Mapping[str, Any]
    changes: Sequence[tuple[float, float, Mapping[str, Any]]] = ()
    characters: tuple[int, int] = (200, 200)
    poison_every: int = 0
    provider: Literal["ollama", "openai"] = "ollama"
    expect: Expected = field(default_factory=Expected)
    on_request: bool = False

    def course(self, *, warm_up_seconds: float, seconds: float) -> dict[str, Any]:
        """The server with its changes at the times of a run, as `era simulate` reads it."""
        changes = [[warm_up_seconds + share * seconds + plus, fields] for share, plus, fields in self.changes]
        return {**self.server, "changes": changes}

    def config(self, url: str) -> EmbedderConfig:
        """A client that is told nothing but the address of the simulated server."""
        return EmbedderConfig(provider=self.provider, urls=(url,), model="simulated")

    def most_texts_per_second(self) -> float:
        """The server's own limit in its best stretch, for texts of the mean length."""
        course: Course = course_from(self.course(warm_up_seconds=0.0, seconds=1.0))
        tokens = sum(self.characters) / 2.0 / CHARACTERS_A_TOKEN
        return max(spec.texts_per_second_limit(tokens) for _, _, spec in course.phases(1e9))


def packaged_scenarios() -> list[Scenario]:
    """Ours, in the order they are run."""
    text = resources.files("era_dagster.bench").joinpath("scenarios.json").read_text(encoding="utf-8")
    return [scenario_from(each) for each in json.loads(text)]


def chosen_scenarios(names: Sequence[str]) -> list[Scenario]:
    """Those named, in the order named; a name that ends in .json is a file of one or several. Without names all of ours
    that are not `on_request`.

    Raises `ConfigurationError` for an unknown name and for a file that holds no scenario.
    """
    known = {scenario.name: scenario for scenario in packaged_scenarios()}
    if not names:
        return [scenario for scenario in known.values() if not scenario.on_request]
    found: list[Scenario] = []
    for name in names:
        if name.endswith(".json"):
            found.extend(_from_file(Path(name)))
        elif name in known:
            found.append(known[name])
        else:
            raise ConfigurationError(f"There is no scenario {name}.", hint=f"There are {', '.join(known)}.")
    return found


def _from_file(path: Path) -> list[Scenario]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        scenarios = [scenario_from(each) for each in (data if isinstance(data, list) else [data])]
        for scenario in scenarios:
            course_from(scenario.course(warm_up_seconds=0.0, seconds=1.0))
    except (OSError, TypeError, ValueError) as error:
        raise ConfigurationError(f"{path} holds no scenario: {error}.") from error
    if not scenarios:
        raise ConfigurationError(f"{path} holds no scenario.")
    return scenarios


def scenario_from(data: Mapping[str, Any]) -> Scenario:
    """Read one scenario. Raises `TypeError` and `ValueError` for what is none."""
    given = dict(data)
    expect = Expected(**given.pop("expect", {}))
    changes = tuple((share, plus, fields) for share, plus, fields in given.pop("changes", []))
    low, high = given.pop("characters", (200, 200))
    scenario = Scenario(**given, expect=expect, changes=changes, characters=(low, high))
    fits = {
        "name": isinstance(scenario.name, str),
        "intent": isinstance(scenario.intent, str),
        "server": isinstance(scenario.server, Mapping),
        "characters": type(low) is type(high) is int and 0 <= low <= high,
        "poison_every": type(scenario.poison_every) is int and scenario.poison_every >= 0,
        "provider": scenario.provider in ("ollama", "openai"),
        "expect": all(type(each) in (float, int, type(None)) for each in (expect.ratio, expect.p95_seconds)),
    }
    if wrong := [name for name, fit in fits.items() if not fit]:
        raise ValueError(f"its {' and '.join(wrong)} cannot be meant")
    return scenario
