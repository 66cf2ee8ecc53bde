"""Tells an embedder which of its endpoints other runs of this knowledge base use too, so that all get equal shares."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from era_dagster.domain.errors import DatabaseUnavailable
from era_dagster.embedding.embedder import Embedder
from era_dagster.storage.company import Company
from era_dagster.storage.database import Database

ASK_SECONDS = 2.0
"""So late a run may learn that another one began, or ended."""
AFTER_FAILURE_SECONDS = 10.0
"""A database that did not answer, or refuses to, is asked less often; a run that is seen again so late has lost little."""


@asynccontextmanager
async def sharing(embedder: Embedder, database: Database) -> AsyncIterator[None]:
    """While it is open, other runs know of this embedder, and it of theirs. Without the database it is alone."""
    if not embedder.urls:
        yield
        return
    ended = asyncio.Event()
    asking = asyncio.create_task(_ask(embedder, Company(database.url, embedder.urls), ended))
    try:
        yield
    finally:
        ended.set()
        await asking


async def _ask(embedder: Embedder, company: Company, ended: asyncio.Event) -> None:
    with company:
        while not ended.is_set():
            seconds = ASK_SECONDS
            try:
                others = await asyncio.to_thread(company.others)
            except DatabaseUnavailable:
                # Whatever ails the database, who writes to it says so; here it only means that nobody is known.
                others, seconds = frozenset[str](), AFTER_FAILURE_SECONDS
            embedder.told_of_others(others)
            try:
                async with asyncio.timeout(seconds):
                    await ended.wait()
            except TimeoutError:
                continue
