"""The commands that the containers run, read out of the compose file and the Dockerfile, and adapted to one machine.

Adapted means: ports, the service names that are host names there, and the folders of the image. Nothing else, so that what
a test runs cannot drift away from what the containers run.
"""

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

DOCKER = Path(__file__).parents[2] / "docker"
BIN = Path(sys.executable).parent


def read(name: str) -> str:
    return (DOCKER / name).read_text(encoding="utf-8")


def services() -> dict[str, Any]:
    return yaml.safe_load(read("docker-compose.yml"))["services"]


def image_command() -> list[str]:
    """What a container of the image runs when compose says nothing."""
    found = re.search(r"^CMD (\[.*\])$", read("Dockerfile"), flags=re.MULTILINE)
    assert found is not None
    return yaml.safe_load(found[1])


def command(service: str) -> list[str]:
    """What the service runs."""
    return services()[service].get("command") or image_command()


def health_command(service: str) -> list[str]:
    """What tells whether it is well."""
    test = services()[service]["healthcheck"]["test"]
    assert test[0] == "CMD"
    return test[1:]


def interpolated(value: str, variables: dict[str, str]) -> str:
    """A value with compose's `${NAME}`, `${NAME:-default}` and `${NAME:?error}` filled in."""

    def filled(found: re.Match[str]) -> str:
        name, default = found[1], found[2]
        if variables.get(name):
            return variables[name]
        assert default is not None and not default.startswith("?"), f"{name} must be set"
        return default.removeprefix("-")

    return re.sub(r"\$\{(\w+)(?::([?-][^}]*))?\}", filled, value)


def environment(service: str, variables: dict[str, str]) -> dict[str, str]:
    """What the service's processes see of `docker/.env`, which holds `variables`; what compose itself names goes first."""
    of_file = variables if services()[service].get("env_file") == [".env"] else {}
    named = services()[service]["environment"]
    return of_file | {name: interpolated(value, variables) for name, value in named.items()}


@dataclass(frozen=True)
class Machine:
    """Where on this machine the things are that the containers know by other names.

    `ports` maps the containers' to free ones here; `folders` the image's folders to folders here; `hosts` the others.
    """

    ports: dict[str, int]
    folders: dict[str, Path]
    hosts: dict[str, str] = field(default_factory=dict)

    def adapted(self, text: str) -> str:
        for there, here in sorted(self.folders.items(), key=lambda pair: -len(pair[0])):
            text = re.sub(rf"(?<![\w/]){re.escape(there)}(?![\w-])", str(here), text)
        for there, port in self.ports.items():
            text = re.sub(rf"(?<!\d){there}(?!\d)", str(port), text)
        for there, here in self.hosts.items():
            text = re.sub(rf"(?<![\w.]){re.escape(there)}(?![\w.])", here, text)
        return text

    def words(self, command: list[str]) -> list[str]:
        """The command for this machine; the interpreter is that of the tests, as the image has only one."""
        found = [self.adapted(word) for word in command]
        return [str(BIN / found[0]) if found[0] == "python" else found[0], *found[1:]]
