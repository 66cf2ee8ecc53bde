"""Thin Dagster resources: they read the settings once per run and hand out plain objects of the layers below.

No logic and no SQL here. Empty fields mean "as the `ERA_*` variables say", so that a run can be given another model or
folder from the launchpad without touching the environment; secrets are never fields.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field, model_validator

from era_dagster.settings import Settings, absolute, load_settings
from era_dagster.storage.database import Database, database_url
from era_dagster.storage.migrations import migrate


def without_cleared(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a config but those that a person cleared in the launchpad (null, blank): they are as if never given.

    Dagster's own check lets null pass for every field that has a default.
    """
    stripped = {name: value.strip() if isinstance(value, str) else value for name, value in fields.items()}
    return {name: value for name, value in stripped.items() if value is not None and value != ""}


class KnowledgeBaseResource(dg.ConfigurableResource):
    """The settings of a run and its connection to the knowledge base."""

    drop_dir: str = Field(default="", description="Folder that books are dropped into (ERA_DROP_DIR).")
    data_dir: str = Field(default="", description="Folder of the minister files (ERA_DATA_DIR).")
    embedding_provider: str = Field(default="", description="ollama, openai or local (ERA_EMBEDDING_PROVIDER).")
    embedding_urls: list[str] = Field(default=[], description="Embedding servers (ERA_EMBEDDING_URLS).")
    embedding_model: str = Field(default="", description="Model name (ERA_EMBEDDING_MODEL).")
    _cleared = model_validator(mode="before")(without_cleared)

    def settings(self) -> Settings:
        """The resolved settings. Raises `ConfigurationError` for a wrong value."""
        environment = dict(os.environ)
        for name in ("embedding_provider", "embedding_model"):
            if getattr(self, name):
                environment[f"ERA_{name.upper()}"] = getattr(self, name)
        if self.embedding_urls:
            environment["ERA_EMBEDDING_URLS"] = ",".join(self.embedding_urls)
        overrides: dict[str, Any] = {
            name: absolute(Path(getattr(self, name))) for name in ("drop_dir", "data_dir") if getattr(self, name)
        }
        return load_settings(environment, **overrides)

    @contextmanager
    def database(self, settings: Settings, *, run_id: str | None = None) -> Iterator[Database]:
        """An open, migrated knowledge base; starts the embedded server when no other is configured."""
        url = database_url(settings)
        migrate(url)
        with Database(url, pool_size=settings.database_pool, run_id=run_id) as database:
            yield database
