"""Opens the knowledge base for commands that need nothing else of it."""

from collections.abc import Iterator
from contextlib import contextmanager

from era_dagster.settings import Settings
from era_dagster.storage.database import Database, database_url
from era_dagster.storage.migrations import migrate


@contextmanager
def open_knowledge_base(settings: Settings) -> Iterator[Database]:
    """The knowledge base, its schema up to date; starts the embedded server when no other is configured."""
    url = database_url(settings)
    migrate(url)
    with Database(url, pool_size=2) as database:
        yield database
