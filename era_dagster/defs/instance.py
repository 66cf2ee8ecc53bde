"""Opens Dagster's instance for commands that run outside `dagster`'s own, without asking the user for DAGSTER_HOME."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import dagster as dg
from dagster._core.instance.ref import InstanceRef

from era_dagster.domain.errors import ConfigurationError
from era_dagster.settings import Settings

# Capturing would redirect the terminal of the command itself, progress bar included.
_NO_CAPTURE = {
    "compute_logs": {"module": "dagster._core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"}
}


@contextmanager
def open_instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """The instance of DAGSTER_HOME, or, when that is unset, one whose folder is `<home>/dagster`.

    Both share their history with `dagster dev`, because the storage is found through the project's settings. The output
    of runs is not captured. Raises `ConfigurationError` when DAGSTER_HOME is no folder.
    """
    given = os.environ.get("DAGSTER_HOME", "").strip()
    with resources.as_file(resources.files("era_dagster.defs").joinpath("dagster.yaml")) as packaged:
        if given:
            folder = config = Path(given).expanduser()
            if not folder.is_dir():
                raise ConfigurationError(f"DAGSTER_HOME is {given}: it is no folder.", hint="Make it, or unset it.")
        else:
            folder, config = settings.home / "dagster", packaged.parent
            folder.mkdir(parents=True, exist_ok=True)
        ref = InstanceRef.from_dir(str(folder.absolute()), config_dir=str(config), overrides=_NO_CAPTURE)
        with dg.DagsterInstance.from_ref(ref) as instance:
            yield instance
