"""Look-up: the doctrine entries or chapter chunks nearest to a vector, or nearest and by words, as frozen records.

Reads only; folding of domain names and embedding of query texts belong to `knowledge`. A consumer may import this
module without Dagster and without an embedding model.
"""

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, LiteralString

import numpy as np
import numpy.typing as npt
import psycopg
from pgvector import HalfVector
from psycopg import sql

from era_dagster.domain.doctrine import CATEGORIES
from era_dagster.domain.errors import ConfigurationError
from era_dagster.domain.fusion import fuse_rankings
from era_dagster.domain.identity import safe_name
from era_dagster.domain.space import Space
from era_dagster.storage.database import SEARCH_SETTINGS
from era_dagster.storage.full_text import question_words, words_match
from era_dagster.storage.spaces import live_space_in, space_name

LARGEST_TOP_K = 1000
# How far down each of the two rankings of a hybrid search counts.
_FUSED_FROM = 50
# Of the rows an HNSW index looks at (`hnsw.ef_search`, 100 by itself), those found last are the doubtful ones; 1,000 is its most.
_LOOKED_AT_FOR_EACH = 4
_MOST_LOOKED_AT = 1000
_HINT = "Pass one vector made by the model whose vectors the database holds."
_CHUNK_SHOWN = (
    "SELECT f.partition_key || '#' || f.position, 1 - f.distance, c.text,"
    " ARRAY(SELECT DISTINCT e.domain FROM minister_entries AS e WHERE e.partition_key = f.partition_key),"
    " s.book, s.chapter"
    " FROM found AS f JOIN chapter_chunks AS c USING (partition_key, position)"
    " JOIN doctrine_sources AS s USING (partition_key)"
)
_OF_BOOK = "partition_key IN (SELECT partition_key FROM doctrine_sources WHERE book = ANY(%(book)s) OR book_slug = ANY(%(book)s))"


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchHit:
    """One found text. `score` is its cosine similarity to the query, -1 to 1, exact to half precision.

    For an entry `doctrine_id` is its uuid as text; for a chunk it is "<partition key>#<position>" and `category` is
    None. `domains` are all domains of the entry, or of the entries of the chunk's chapter. `book` is the original name.
    """

    doctrine_id: str
    score: float
    text: str
    domains: tuple[str, ...]
    category: str | None
    book: str
    chapter: int
    weight: float
    kind: Literal["entry", "chunk"]


class OtherModel(ConfigurationError):
    """The query's vector is of another model than the live one."""


def search_entries(
    connection: psycopg.Connection,
    vector: Sequence[float] | npt.NDArray[np.floating],
    *,
    domain: str | None = None,
    category: str | None = None,
    book: str | None = None,
    top_k: int = 5,
    words: str | None = None,
    made_by: Space | None = None,
) -> list[SearchHit]:
    """The `top_k` (at most 1,000; none below 1) entries nearest to `vector`, best first, equal scores by id.

    `vector` has the live model's dimension and any length but zero; `domain` is a slug; `book` is the original name, as
    the drop or as a hit has it, or the slug. With `words` (the question as text) the search is hybrid: the order is the
    fusion of nearness and words, and `score` stays the cosine similarity. An unknown domain or book, or a database
    without vectors, gives an empty list. Raises `ConfigurationError` for a vector that cannot be compared and for a
    category there is not; `OtherModel` when `made_by` is not the live space, looked at in the connection's present
    transaction.
    """
    if category is not None and category not in CATEGORIES:
        raise ConfigurationError(
            f"There is no category {category!r}.", hint=f"The categories are {', '.join(CATEGORIES)}."
        )
    query = _query(connection, vector, made_by)
    if query is None or top_k < 1:
        return []
    conditions: list[LiteralString] = []
    if domain is not None:
        conditions.append("domain = %(domain)s")
    if category is not None:
        conditions.append("category = %(category)s")
    if book is not None:
        conditions.append(_OF_BOOK)
    parameters = {
        "query": query,
        "domain": domain,
        "category": category,
        "book": None if book is None else _stored_names(book),
    }
    # Of a category that is far from the question an index finds too few or none, for it gives up after some thousand rows
    # (`hnsw.max_scan_tuples`).
    tries = (True,) if book is not None else (False,) if category is None else (False, True)
    nearest = [
        sql.SQL(
            "WITH nearest AS MATERIALIZED ("
            " SELECT doctrine_id, {distance} AS distance, text, {domains} AS domains, category,"
            " source_book, source_chapter, weight FROM {table}{where}"
            " ORDER BY distance, doctrine_id LIMIT %(limit)s)"
            " SELECT n.doctrine_id::text, 1 - n.distance, n.text, coalesce(a.domains, n.domains), n.category,"
            " n.source_book, n.source_chapter, n.weight"
            " FROM nearest AS n LEFT JOIN doctrine_embeddings_all AS a USING (doctrine_id)"
            # A sum, that they are sorted anew: the index, which the order was taken from, rounds otherwise.
            " ORDER BY n.distance + 0, n.doctrine_id"
        ).format(
            distance=_distance(exact=exact),
            domains=sql.SQL("domains" if domain is None else "ARRAY[domain]"),
            table=sql.Identifier("doctrine_embeddings_all" if domain is None else "doctrine_embeddings"),
            where=_where(map(sql.SQL, conditions)),
        )
        for exact in tries
    ]
    # An entry has a row for each of its domains here, with the same words in each.
    worded = (
        "WITH worded AS MATERIALIZED ("
        " SELECT DISTINCT doctrine_id, {rank} AS rank FROM minister_entries{where}"
        " ORDER BY rank DESC, doctrine_id LIMIT %(limit)s)"
        " SELECT w.doctrine_id::text, 1 - (a.embedding <=> %(query)s), a.text, a.domains, a.category,"
        " a.source_book, a.source_chapter, a.weight"
        " FROM worded AS w JOIN doctrine_embeddings_all AS a USING (doctrine_id)"
        " ORDER BY w.rank DESC, w.doctrine_id"
    )
    return _found(
        connection, nearest, worded, "minister_entries", conditions, parameters, words=words, top_k=top_k, hit=_entry
    )


def search_chunks(
    connection: psycopg.Connection,
    vector: Sequence[float] | npt.NDArray[np.floating],
    *,
    domain: str | None = None,
    book: str | None = None,
    top_k: int = 5,
    words: str | None = None,
    made_by: Space | None = None,
) -> list[SearchHit]:
    """The `top_k` (at most 1,000; none below 1) chunks of chapter text nearest to `vector`, best first, equal scores by place.

    A chunk belongs to the domains its chapter's entries belong to. Otherwise as `search_entries`.
    """
    query = _query(connection, vector, made_by)
    if query is None or top_k < 1:
        return []
    conditions: list[LiteralString] = []
    if domain is not None:
        conditions.append("partition_key IN (SELECT partition_key FROM minister_entries WHERE domain = %(domain)s)")
    if book is not None:
        conditions.append(_OF_BOOK)
    parameters = {"query": query, "domain": domain, "book": None if book is None else _stored_names(book)}
    nearest = sql.SQL(
        "WITH found AS MATERIALIZED ("
        " SELECT partition_key, position, {distance} AS distance FROM chunk_embeddings{where}"
        " ORDER BY distance, partition_key, position LIMIT %(limit)s)"
        # A sum, as in `search_entries`.
        " {shown} ORDER BY f.distance + 0, f.partition_key, f.position"
    ).format(
        distance=_distance(exact=bool(conditions)),
        where=_where(map(sql.SQL, conditions)),
        shown=sql.SQL(_CHUNK_SHOWN),
    )
    worded = (
        "WITH worded AS MATERIALIZED ("
        " SELECT partition_key, position, {rank} AS rank FROM chapter_chunks{where}"
        " ORDER BY rank DESC, partition_key, position LIMIT %(limit)s),"
        " found AS (SELECT partition_key, position, rank, embedding <=> %(query)s AS distance"
        " FROM worded JOIN chunk_embeddings USING (partition_key, position))"
        " {shown} ORDER BY f.rank DESC, f.partition_key, f.position"
    )
    return _found(
        connection, [nearest], worded, "chapter_chunks", conditions, parameters, words=words, top_k=top_k, hit=_chunk
    )


def _found(
    connection: psycopg.Connection,
    nearest: Sequence[sql.Composed],
    worded: LiteralString,
    worded_table: LiteralString,
    conditions: list[LiteralString],
    parameters: Mapping[str, Any],
    *,
    words: str | None,
    top_k: int,
    hit: Callable[[tuple[Any, ...]], SearchHit],
) -> list[SearchHit]:
    """Run the search by nearness, and with `words` the one by words too; best first.

    `nearest` are statements for the same search: each is run when those before it find too little.
    """
    top_k = min(top_k, LARGEST_TOP_K)
    limit = top_k if words is None else max(top_k, _FUSED_FROM)
    if top_k * _LOOKED_AT_FOR_EACH > int(SEARCH_SETTINGS["hnsw.ef_search"]):
        looked_at = min(top_k * _LOOKED_AT_FOR_EACH, _MOST_LOOKED_AT)
        connection.execute("SELECT set_config('hnsw.ef_search', %s, true)", (str(looked_at),))
    # Planned with these values each time: of the 150 domain tables the planner opens the one that is asked for.
    rows: list[tuple[Any, ...]] = []
    for statement in nearest:
        rows = connection.execute(statement, {**parameters, "limit": limit}, prepare=False).fetchall()
        if len(rows) == limit:
            break
    near = list(map(hit, rows))
    asked = [] if words is None else question_words(connection, worded_table, words)
    if not asked:
        return near[:top_k]
    condition, rank, word_parameters = words_match(asked)
    statement = sql.SQL(worded).format(
        rank=rank, shown=sql.SQL(_CHUNK_SHOWN), where=_where([condition, *map(sql.SQL, conditions)])
    )
    rows = connection.execute(statement, {**parameters, **word_parameters, "limit": limit}, prepare=False).fetchall()
    by_words = list(map(hit, rows))
    hits = {found.doctrine_id: found for found in (*by_words, *near)}
    order = fuse_rankings([[found.doctrine_id for found in ranking] for ranking in (near, by_words)])
    return [hits[identifier] for identifier in order[:top_k]]


def _entry(row: tuple[Any, ...]) -> SearchHit:
    return SearchHit(
        doctrine_id=row[0],
        score=row[1],
        text=row[2],
        domains=tuple(sorted(row[3])),
        category=row[4],
        book=row[5],
        chapter=row[6],
        weight=row[7],
        kind="entry",
    )


def _chunk(row: tuple[Any, ...]) -> SearchHit:
    return SearchHit(
        doctrine_id=row[0],
        score=row[1],
        text=row[2],
        domains=tuple(sorted(row[3])),
        category=None,
        book=row[4],
        chapter=row[5],
        weight=1.0,
        kind="chunk",
    )


def _query(
    connection: psycopg.Connection, vector: Sequence[float] | npt.NDArray[np.floating], made_by: Space | None
) -> HalfVector | None:
    """The checked query as pgvector takes it, of length 1; None while the database holds no vectors."""
    try:
        values = np.asarray(vector, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigurationError("The query vector is not a list of numbers.", hint=_HINT) from error
    if values.ndim != 1:
        raise ConfigurationError(f"The query vector has {values.ndim} axes instead of one.", hint=_HINT)
    if not np.isfinite(values).all():
        raise ConfigurationError("The query vector holds a number that is not finite.", hint=_HINT)
    # Scaled first, because the squares of very large or very small numbers are lost in a plain norm.
    largest = np.abs(values).max(initial=0.0)
    if largest == 0.0:
        raise ConfigurationError("The query vector is empty or zero, so it has no direction to compare.", hint=_HINT)
    # First in its transaction: until it ends no other space becomes live, so the tables below are this model's.
    live = live_space_in(connection)
    if live is None:
        return None
    if made_by is not None and not made_by.same_model(live):
        raise OtherModel(
            f"The database now holds vectors of {space_name(live)}, and the query's vector is of {space_name(made_by)}.",
            hint="Embed the query with the live model, and open the knowledge base anew for it.",
        )
    if len(values) != live.dimension:
        raise ConfigurationError(
            f"The query vector has {len(values)} dimensions, and the database holds {live.dimension} of {live.model}.",
            hint=_HINT,
        )
    scaled = values / largest
    return HalfVector(scaled / np.linalg.norm(scaled))


def _stored_names(book: str) -> list[str]:
    """How the name of a book may be stored: as it is, and with its accents as keyboards (NFC) and Macs' file names (NFD)
    have them."""
    return [safe_name(name) for name in (book, *(unicodedata.normalize(form, book) for form in ("NFC", "NFD")))]


def _distance(*, exact: bool) -> sql.Composable:
    # A sum is no expression an index is sorted by. Behind a filter by chapter an HNSW index is worse than no index:
    # it walks through thousands of rows that are filtered out, 10 times slower, and gives up before it found the best.
    return sql.SQL("(embedding <=> %(query)s) + 0" if exact else "embedding <=> %(query)s")


def _where(conditions: Iterable[sql.Composable]) -> sql.Composable:
    joined = list(conditions)
    return sql.SQL(" WHERE ") + sql.SQL(" AND ").join(joined) if joined else sql.SQL("")
