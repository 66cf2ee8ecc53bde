"""Chapters, chunks and vectors for the tests of storage, made without files and models."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from era_dagster.domain.chunking import ChunkRules, cut_chunks
from era_dagster.domain.cleaning import clean_chapter
from era_dagster.domain.doctrine import Chapter, SourceChapter
from era_dagster.domain.space import Space
from era_dagster.domain.stages import STAGES
from era_dagster.storage.chapters import ChapterWrite, write_chapter
from era_dagster.storage.database import Database
from era_dagster.storage.dead_letters import DeadText
from era_dagster.storage.spaces import ensure_domain_tables, ensure_space
from era_dagster_tests.fakes.embedding_server import vector_of

DIMENSION = 16
SPACE = Space(provider="ollama", model="tiny", digest="d1", dimension=DIMENSION, document_prefix="", query_prefix="")
_RULES = ChunkRules(mode="sentences", min_chars=64, max_chars=128, overlap_chars=0, words=64)


def make_chapter(
    index: int = 1, text: str = "One line.", domains: Sequence[str] = ("risk",), **doctrine: Any
) -> Chapter:
    return clean_chapter(
        SourceChapter(
            book="ferry",
            book_slug="ferry",
            chapter=index,
            title=None,
            text=text,
            doctrine={"domains": list(domains), **doctrine},
        )
    )


def make_write(chapter: Chapter, *, dead: Sequence[str] = (), vectors: bool = True, **changes: Any) -> ChapterWrite:
    """A write of all stages; the vectors of the texts in `dead` are missing."""
    chunks = cut_chunks(chapter.text, _RULES)
    fields: dict[str, Any] = {
        "chapter": chapter,
        "path": "/drop/ferry",
        "file_hash": b"f" * 32,
        "run_id": "run",
        "space": SPACE,
        "chunks": chunks,
        "chunk_vectors": [_vector(chunk.text, dead) for chunk in chunks] if vectors else None,
        "entry_vectors": [_vector(entry.text, dead) for entry in chapter.entries] if vectors else None,
        "write_vector_tables": vectors,
        "dead": [
            DeadText(text=text, error_class="TextsRejected", message="no", fingerprint="f", attempts=1) for text in dead
        ],
        "stamps": {stage: f"{chapter.content_hash.hex()}/{stage}" for stage in STAGES},
    }
    return ChapterWrite(**(fields | changes))


def store(database: Database, chapter: Chapter, **options: Any):
    """Store a chapter as a run does, its domains first."""
    ensure_space(database, SPACE)
    ensure_domain_tables(database, [(name.slug, name.spelling) for name in chapter.domains])
    return write_chapter(database, make_write(chapter, **options))


def _vector(text: str, dead: Sequence[str]) -> npt.NDArray[np.float32] | None:
    return None if text in dead else vector_of(text, DIMENSION)
