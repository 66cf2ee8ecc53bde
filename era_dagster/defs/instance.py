"""Opens Dagster's instance for commands that run outside `dagster`'s own, without asking the user for DAGSTER_HOME."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import resources
from pathlib import Path

import dagster as dg
import yaml
from dagster._check import CheckError
from dagster._core.instance.ref import InstanceRef

from era_dagster.defs.dagster_storage import KnowledgeBaseDagsterStorage, storage_errors, storage_is_there
from era_dagster.domain.errors import ConfigurationError
from era_dagster.settings import Settings, dagster_home

# Capturing would redirect the terminal of the command itself, progress bar included.
_NO_CAPTURE = {
    "compute_logs": {"module": "dagster._core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"}
}


@contextmanager
def open_instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """The instance of DAGSTER_HOME, or, when that is unset, one whose folder is `<home>/dagster`.

    Both share their history with `dagster dev`, because the storage is found through the project's settings. The output
    of runs is not captured. Raises `ConfigurationError` when DAGSTER_HOME is no folder, or its `dagster.yaml` cannot be used.
    """
    with _reference(settings) as ref:
        Path(ref.local_artifact_storage_data.config_dict["base_dir"]).mkdir(parents=True, exist_ok=True)
        with _opened(ref) as instance:
            yield instance


@contextmanager
def look_at_instance(settings: Settings) -> Iterator[dg.DagsterInstance | None]:
    """The same instance, and None while our storage for it was never made: opening it would make it.

    A storage that DAGSTER_HOME names instead of ours is opened as Dagster opens it.
    """
    with _reference(settings) as ref:
        storage = ref.storage_data
        ours = storage is not None and storage.class_name == KnowledgeBaseDagsterStorage.__name__
        if ours and not storage_is_there(settings):
            yield None
            return
        with _opened(ref) as instance:
            yield instance


@contextmanager
def _opened(ref: InstanceRef) -> Iterator[dg.DagsterInstance]:
    with storage_errors(), ExitStack() as opened:
        with _usable_file():
            instance = opened.enter_context(dg.DagsterInstance.from_ref(ref))
        yield instance


@contextmanager
def _reference(settings: Settings) -> Iterator[InstanceRef]:
    given = dagster_home(os.environ)
    with resources.as_file(resources.files("era_dagster.defs").joinpath("dagster.yaml")) as packaged:
        folder, config = (given, given) if given else (settings.home / "dagster", packaged.parent)
        with _usable_file():
            ref = InstanceRef.from_dir(str(folder.absolute()), config_dir=str(config), overrides=_NO_CAPTURE)
        yield ref


@contextmanager
def _usable_file() -> Iterator[None]:
    """Turn what Dagster says of a `dagster.yaml` that it cannot use into a `ConfigurationError`."""
    try:
        yield
    except (yaml.YAMLError, UnicodeDecodeError, CheckError, dg.DagsterInvalidConfigError) as error:
        said = error.errors[0].message if isinstance(error, dg.DagsterInvalidConfigError) else str(error)
        # Of a variable that is not set Dagster tells where in its own code it found that out, too.
        said = said.partition("Stack Trace:")[0].rpartition("PostProcessingError: ")[2]
        raise ConfigurationError(
            f"dagster.yaml in {os.environ.get('DAGSTER_HOME')} cannot be used: {' '.join(said.split())[:300].rstrip('.')}.",
            hint="Mend it, or set the variable that it asks for.",
        ) from error
