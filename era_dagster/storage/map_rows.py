"""What a picture of the knowledge base is drawn from: counts by domain, and a sample of entries with their vectors.

Read-only. What is drawn of it is `pipeline.knowledge_map`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from era_dagster.domain.doctrine import CATEGORIES
from era_dagster.storage.database import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainCount:
    """How many entries a domain has, by category; an entry counts in each of its domains."""

    domain: str
    by_category: Mapping[str, int]

    @property
    def entries(self) -> int:
        """Of all categories."""
        return sum(self.by_category.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class EntrySample:
    """Some entries of the live space: `vectors` is float32 of shape (n, dimension), `domains[i]` belongs to row i."""

    vectors: npt.NDArray[np.float32]
    domains: tuple[tuple[str, ...], ...]
    entries: int


def domain_counts(database: Database) -> list[DomainCount]:
    """Every domain that has entries, the largest first."""
    found: dict[str, dict[str, int]] = {}
    with database.connection() as connection:
        for domain, category, number in connection.execute(
            "SELECT domain, category, count(*) FROM minister_entries GROUP BY 1, 2"
        ):
            found.setdefault(domain, dict.fromkeys(CATEGORIES, 0))[category] = number
    counts = [DomainCount(domain=domain, by_category=numbers) for domain, numbers in found.items()]
    return sorted(counts, key=lambda count: (-count.entries, count.domain))


def sample_entries(database: Database, most: int) -> EntrySample:
    """At most `most` entries of the live space with their vectors, picked by the hash of their ids: the same ones each
    time, from everywhere. None before anything is embedded."""
    with database.connection() as connection:
        there = connection.execute("SELECT to_regclass('doctrine_embeddings_all') IS NOT NULL").fetchone()
        if there is None or not there[0]:
            return EntrySample(vectors=np.empty((0, 0), np.float32), domains=(), entries=0)
        total = connection.execute("SELECT count(*) FROM doctrine_embeddings_all").fetchone()
        rows = connection.execute(
            "SELECT embedding, domains FROM doctrine_embeddings_all ORDER BY md5(doctrine_id::text) LIMIT %s",
            (most,),
            binary=True,
        ).fetchall()
    vectors = [np.asarray(vector.to_numpy(), dtype=np.float32) for vector, _ in rows]
    return EntrySample(
        vectors=np.stack(vectors) if vectors else np.empty((0, 0), np.float32),
        domains=tuple(tuple(domains) for _, domains in rows),
        entries=total[0] if total else 0,
    )
