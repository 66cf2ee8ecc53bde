"""A workbench for the tests of the pipeline."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from era_dagster.settings import Settings
from era_dagster.storage.database import Database
from era_dagster_tests.pipeline.workbench import Workbench


@pytest.fixture
def bench(settings: Settings, database: Database) -> Workbench:
    """An empty drop folder and knowledge base, and a fake embedding server that is well."""
    return Workbench(settings, database)


@pytest.fixture
def another_bench(settings: Settings, new_database_url: Callable[[], str]) -> Iterator[Callable[[str], Workbench]]:
    """Makes further workbenches over the same drop folder, each with a database and a data folder of its own."""
    with ExitStack() as stack:

        def make(name: str) -> Workbench:
            url = new_database_url()
            own = replace(settings, database_url=url, data_dir=settings.data_dir.with_name(name))
            return Workbench(own, stack.enter_context(Database(url, pool_size=4)))

        yield make
