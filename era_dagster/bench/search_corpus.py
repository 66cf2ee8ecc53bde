"""Rows for a search benchmark: as many as asked for, near each other as the vectors of real texts are.

The sample books, embedded by the local model, are the seeds. Every row blends a seed with three of its twenty nearest and
adds noise of length 0.6. That was fitted to 2,150 chunks of real books: similarity to the nearest and the tenth nearest
.70 and .61 (blends: .70 and .61), local intrinsic dimension 23 (23). Vectors of independent random numbers have an intrinsic
dimension above 100; there an HNSW index fails (recall .45), which says nothing of texts.
"""

import asyncio
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from era_dagster.domain.chunking import ChunkRules, cut_chunks
from era_dagster.domain.cleaning import clean_chapter
from era_dagster.domain.doctrine import CATEGORIES, Chapter, Chunk, DomainName, Entry
from era_dagster.domain.domains import slugify_domain
from era_dagster.domain.identity import doctrine_id, partition_key
from era_dagster.domain.space import Space
from era_dagster.embedding.embed_texts import embed_texts
from era_dagster.intake.reader import read_source
from era_dagster.storage.chapters import ChapterWrite

Array = NDArray[np.float32]
ENTRIES_OF_A_CHAPTER = 8
_BLENDED = 3
_NEIGHBOURS = 20
_NOISE = 0.6
_ROWS_AT_ONCE = 20_000
_PIECE = ChunkRules(mode="sentences", min_chars=60, max_chars=200, overlap_chars=0, words=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Texts of one kind: `ids` as a look-up names them, `domains` (one each), `vectors` of shape (rows, dimension)."""

    ids: list[str]
    texts: list[str]
    domains: list[str]
    vectors: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """`chapters` in the order of their rows: chapter i holds a slice of `entries` and one of `chunks`."""

    space: Space
    domains: list[str]
    entries: Rows
    chunks: Rows
    writes: list[ChapterWrite]
    questions: Array
    question_texts: list[str]
    question_domains: list[str]


def make_corpus(
    *, model_dir: Path, entries: int, chunks: int, domains: int, dimension: int, questions: int, seed: int = 1
) -> Corpus:
    """A deterministic corpus; `dimension` at least 384 (a larger one turns the local model's vectors into a larger space).

    Each chapter has one domain; domain n is as large as 1/n (Zipf), so that few are large and many are tiny.
    """
    random = np.random.default_rng(seed)
    pieces = sample_pieces()
    blend = _Blend(_seeds(pieces, model_dir), dimension, random)
    count = -(-entries // ENTRIES_OF_A_CHAPTER)
    names = [f"domain {number:03d}" for number in range(domains)]
    shares = 1.0 / np.arange(1, domains + 1)
    chosen = random.choice(domains, size=count, p=shares / shares.sum())
    slugs = [slugify_domain(names[number]) for number in chosen]
    entry_vectors, entry_seeds = blend.rows(entries)
    chunk_vectors, chunk_seeds = blend.rows(chunks)
    question_vectors, question_seeds = blend.rows(questions)
    entry_parts = np.array_split(np.arange(entries), count)
    chunk_parts = np.array_split(np.arange(chunks), count)
    space = Space(
        provider="bench", model="blend", digest=None, dimension=dimension, document_prefix="", query_prefix=""
    )
    writes: list[ChapterWrite] = []
    for number in range(count):
        chapter, pieces_of_it = _chapter(
            number,
            DomainName(slug=slugs[number], spelling=names[chosen[number]]),
            [f"{pieces[entry_seeds[row]]} ({row})" for row in entry_parts[number]],
            [
                " ".join(pieces[(chunk_seeds[row] + step) % len(pieces)] for step in range(5))
                for row in chunk_parts[number]
            ],
        )
        writes.append(
            ChapterWrite(
                chapter=chapter,
                path="",
                file_hash=None,
                run_id="bench",
                space=space,
                chunks=pieces_of_it,
                chunk_vectors=[chunk_vectors[row] for row in chunk_parts[number]],
                entry_vectors=[entry_vectors[row] for row in entry_parts[number]],
                write_vector_tables=True,
                dead=(),
                stamps={},
            )
        )
    asked = random.integers(0, entries, questions)
    domain_of = [slug for slug, part in zip(slugs, entry_parts, strict=True) for _ in part]
    return Corpus(
        space=space,
        domains=names,
        entries=Rows(
            ids=[str(entry.doctrine_id) for write in writes for entry in write.chapter.entries],
            texts=[entry.text for write in writes for entry in write.chapter.entries],
            domains=domain_of,
            vectors=entry_vectors,
        ),
        chunks=Rows(
            ids=[f"{write.chapter.partition_key}#{chunk.position}" for write in writes for chunk in write.chunks or ()],
            texts=[chunk.text for write in writes for chunk in write.chunks or ()],
            domains=[slug for slug, part in zip(slugs, chunk_parts, strict=True) for _ in part],
            vectors=chunk_vectors,
        ),
        writes=writes,
        questions=question_vectors,
        question_texts=[pieces[number] for number in question_seeds],
        question_domains=[domain_of[row] for row in asked],
    )


def sample_pieces() -> list[str]:
    """The sample books' texts in pieces of a sentence or two, and their doctrine."""
    found: dict[str, None] = {}
    with resources.as_file(resources.files("era_dagster").joinpath("samples")) as samples:
        for folder in sorted(path for path in samples.iterdir() if (path / "01_chapters.json").is_file()):
            for book in read_source(folder):
                for source in book.chapters:
                    chapter = clean_chapter(source)
                    found |= dict.fromkeys(chunk.text for chunk in cut_chunks(chapter.text, _PIECE))
                    found |= dict.fromkeys(entry.text for entry in chapter.entries)
    return list(found)


def _seeds(pieces: list[str], model_dir: Path) -> Array:
    report = asyncio.run(embed_texts(pieces, urls=(), model="all-minilm-l6-v2", provider="local", model_dir=model_dir))
    return np.stack([vector for vector in report.vectors if vector is not None])


class _Blend:
    """Draws vectors that lie among the seeds."""

    def __init__(self, seeds: Array, dimension: int, random: np.random.Generator) -> None:
        self._seeds = seeds
        self._random = random
        self._near = np.argsort(-(seeds @ seeds.T), axis=1)[:, 1 : _NEIGHBOURS + 1]
        basis, _ = np.linalg.qr(random.standard_normal((dimension, seeds.shape[1])))
        # An isometry: all distances stay what the model made them.
        self._turned = basis.T.astype(np.float32)

    def rows(self, count: int) -> tuple[Array, NDArray[np.int64]]:
        """`count` normalised vectors, and the seed that each is mostly made of."""
        parts = [self._part(min(_ROWS_AT_ONCE, count - first)) for first in range(0, count, _ROWS_AT_ONCE)]
        return np.concatenate([vectors for vectors, _ in parts]), np.concatenate([seeds for _, seeds in parts])

    def _part(self, count: int) -> tuple[Array, NDArray[np.int64]]:
        random = self._random
        first = random.integers(0, len(self._seeds), count)
        weights = random.dirichlet([1.0] * (_BLENDED + 1), count).astype(np.float32)
        others = np.stack([self._near[first, random.integers(0, _NEIGHBOURS, count)] for _ in range(_BLENDED)], axis=1)
        members = np.concatenate([first[:, None], others], axis=1)
        vectors = np.zeros((count, self._seeds.shape[1]), dtype=np.float32)
        for place in range(_BLENDED + 1):
            vectors += weights[:, place, None] * self._seeds[members[:, place]]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        noise = random.standard_normal(vectors.shape, dtype=np.float32) / np.sqrt(vectors.shape[1])
        vectors = (vectors + _NOISE * noise.astype(np.float32)) @ self._turned
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors, members[np.arange(count), weights.argmax(axis=1)]


def _chapter(
    number: int, domain: DomainName, entries: list[str], chunks: list[str]
) -> tuple[Chapter, tuple[Chunk, ...]]:
    book, index = f"bench-{number // 1000:03d}", number % 1000
    cut, start = [], 0
    for position, text in enumerate(chunks):
        cut.append(Chunk(position=position, start=start, end=start + len(text), text=text))
        start += len(text) + 1
    text = "\n".join(chunks)
    chapter = Chapter(
        partition_key=partition_key(book, index),
        book=book,
        book_slug=book,
        chapter=index,
        title=None,
        text=text,
        domains=(domain,),
        entries=tuple(_entries(book, index, domain.slug, entries)),
        unusable=(),
        notes=(),
        repairs={},
        content_hash=hashlib.sha256(text.encode("utf-8")).digest(),
    )
    return chapter, tuple(cut)


def _entries(book: str, chapter: int, domain: str, texts: list[str]) -> Iterator[Entry]:
    for position, text in enumerate(texts):
        category = CATEGORIES[position % len(CATEGORIES)]
        yield Entry(
            doctrine_id=doctrine_id(book, chapter, category, text),
            category=category,
            position=position,
            text=text,
            domains=(domain,),
            details={},
        )
