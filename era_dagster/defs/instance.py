"""Opens Dagster's instance for commands that run outside `dagster`'s own, without asking the user for DAGSTER_HOME."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources

import dagster as dg

from era_dagster.settings import Settings


@contextmanager
def open_instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """The instance of DAGSTER_HOME, or, when that is unset, one whose folder is `<home>/dagster`.

    Both share their history with `dagster dev`, because the storage is found through the project's settings.
    """
    if not os.environ.get("DAGSTER_HOME", "").strip():
        folder = settings.home / "dagster"
        folder.mkdir(parents=True, exist_ok=True)
        template = resources.files("era_dagster.defs").joinpath("dagster.yaml").read_text(encoding="utf-8")
        target = folder / "dagster.yaml"
        if not target.exists() or target.read_text(encoding="utf-8") != template:
            target.write_text(template, encoding="utf-8")
        os.environ["DAGSTER_HOME"] = str(folder)
    with dg.DagsterInstance.get() as instance:
        yield instance
