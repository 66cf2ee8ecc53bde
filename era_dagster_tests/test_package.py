"""What an installed package has that a checkout has anyway."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_file_of_the_package_that_is_no_module_is_installed_with_it_and_its_types_count() -> None:
    """`py.typed` was not there: type checkers took everything from the installed package for unknown."""
    package = ROOT / "era_dagster"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["era_dagster"]
    installed = {path for pattern in patterns for path in package.glob(pattern)}
    there = {path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc", "")}
    assert package / "py.typed" in installed
    assert installed == there
