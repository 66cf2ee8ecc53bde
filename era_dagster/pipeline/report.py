"""Turns what happened to one chapter into counts for the receipt and key numbers for its materializations. Pure."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from era_dagster.domain.doctrine import Chapter, Chunk
from era_dagster.domain.space import Space
from era_dagster.embedding.report import EmbedReport
from era_dagster.pipeline.receipt import Receipt
from era_dagster.storage.chapters import ChapterWritten
from era_dagster.storage.dead_letters import DeadText
from era_dagster.storage.minister_files import DOMAIN_FILES
from era_dagster.storage.spaces import numbered_name
from era_dagster.storage.vectors import Difference

# Of the unusable items; all of them are in `doctrine_sources`.
_MOST_NAMED = 20


@dataclass(slots=True, kw_only=True)
class ChapterVectors:
    chunks: list[npt.NDArray[np.float32] | None] | None = None
    entries: list[npt.NDArray[np.float32] | None] | None = None
    dead: list[DeadText] = field(default_factory=list[DeadText])
    texts: int = 0
    report: EmbedReport | None = None

    @property
    def from_cache(self) -> int:
        return 0 if self.report is None else self.report.from_cache

    @property
    def cached(self) -> Difference:
        """How many vectors are new in the cache, and how many were there."""
        vectors = sum(vector is not None for vector in (*(self.chunks or ()), *(self.entries or ())))
        return Difference(written=vectors - self.from_cache, unchanged=self.from_cache)


def dead_texts(texts: Sequence[str], report: EmbedReport) -> list[DeadText]:
    return [
        DeadText(
            text=texts[failure.position],
            error_class=failure.error_class,
            message=failure.message,
            fingerprint=failure.fingerprint,
            attempts=failure.attempts,
        )
        for failure in report.failures
    ]


def count_chapter(
    receipt: Receipt,
    chapter: Chapter,
    chunks: Sequence[Chunk] | None,
    vectors: ChapterVectors,
    written: ChapterWritten,
    *,
    with_tables: bool,
) -> None:
    receipt.count(
        "chapters",
        stored=written.entries.written,
        unchanged=written.entries.unchanged,
        removed=written.entries.removed,
        dead=len(chapter.unusable),
    )
    if chunks is not None:
        difference = written.chunks
        receipt.count("chunks", stored=difference.written, unchanged=difference.unchanged, removed=difference.removed)
    if vectors.texts:
        receipt.count(
            "embeddings",
            stored=vectors.texts - vectors.from_cache - len(vectors.dead),
            unchanged=vectors.from_cache,
            dead=len(vectors.dead),
        )
    if with_tables:
        for difference in (written.chunk_vectors, written.entry_vectors, written.domain_vectors):
            receipt.count(
                "vector_tables", stored=difference.written, unchanged=difference.unchanged, removed=difference.removed
            )
    if written.items is not None:
        receipt.add_items(**asdict(written.items))


def stage_metadata(
    chapter: Chapter,
    chunks: Sequence[Chunk] | None,
    vectors: ChapterVectors,
    written: ChapterWritten,
    space: Space | None,
) -> dict[str, Any]:
    # Each value costs a tenth of a millisecond in Dagster's event log: what is empty is left out.
    extras: dict[str, Any] = {
        "unusable_items": [
            f"{item.category}[{item.position}]: {item.reason}" for item in chapter.unusable[:_MOST_NAMED]
        ],
        "repairs": dict(chapter.repairs),
        "notes": [note.message for note in chapter.notes],
    }
    found: dict[str, Any] = {
        "chapters": {
            "characters": len(chapter.text),
            "entries": len(chapter.entries),
            "entry_domain_rows": sum(len(entry.domains) for entry in chapter.entries),
            "domains": _domains(chapter),
            **{name: value for name, value in extras.items() if value},
        }
    }
    if chunks is not None:
        sizes = sorted(len(chunk.text) for chunk in chunks)
        found["chunks"] = {"chunk_count": len(sizes)}
        if sizes:
            found["chunks"] |= {"min_chars": sizes[0], "median_chars": statistics.median(sizes), "max_chars": sizes[-1]}
    if vectors.entries is not None:
        found["embeddings"] = {
            "texts": vectors.texts,
            "from_cache": vectors.from_cache,
            "dead_letters": len(vectors.dead),
            "model": space.model if space else "",
            **_request_numbers(vectors.report),
        }
        rows = (written.chunk_vectors, written.entry_vectors, written.domain_vectors)
        found["vector_tables"] = {
            **({"space": numbered_name(written.space_id, space)} if space and written.space_id else {}),
            "rows_written": sum(difference.written for difference in rows),
            **({"items": asdict(written.items)} if written.items is not None else {}),
            **{
                name: number
                for name, number in (
                    ("rows_unchanged", sum(difference.unchanged for difference in rows)),
                    ("rows_removed", sum(difference.removed for difference in rows)),
                )
                if number
            },
        }
    return found


def files_metadata(folder: Path, domains: Mapping[str, int]) -> dict[str, Any]:
    """Of the files that a chapter stands in: how many, its rows in them by domain, and where; each domain is a folder there."""
    return {
        "files": len(domains) * len(DOMAIN_FILES),
        "entry_domain_rows": sum(domains.values()),
        **({"domains": domains, "folder": folder} if domains else {}),
    }


def _domains(chapter: Chapter) -> dict[str, int]:
    """Entries by domain, most first."""
    counted = Counter(domain for entry in chapter.entries for domain in entry.domains)
    return dict(sorted(counted.items(), key=lambda pair: (-pair[1], pair[0])))


def _request_numbers(report: EmbedReport | None) -> dict[str, Any]:
    """What embedding this chapter took; counts are 0 and the rest is absent when all of it was in the cache."""
    if report is None or not report.requests:
        return dict.fromkeys(("requests", "tokens", "retries", "refusals"), 0)
    latency = report.latency
    numbers: dict[str, float | None] = {
        "requests": report.requests,
        "tokens": report.tokens,
        "retries": report.retries,
        "refusals": report.refusals,
        "request_p50_ms": _ms(latency.p50_seconds),
        "request_p95_ms": _ms(latency.p95_seconds),
        "request_p99_ms": _ms(latency.p99_seconds),
    }
    return {name: number for name, number in numbers.items() if number is not None}


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000.0, 2)
