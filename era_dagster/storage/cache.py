"""The content-addressed vector cache in PostgreSQL: a text that was ever embedded is never sent again.

Keys are made by `embedding.vectors`; this module stores and finds float32 vectors under them.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from era_dagster.storage.database import Database


class PostgresVectorCache:
    """Vectors of one model by 32-byte key; safe to use from several threads and processes."""

    def __init__(self, database: Database, *, model: str) -> None:
        self._database = database
        self._model = model

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, npt.NDArray[np.float32]]:
        """The stored vectors among `keys`; absent keys are absent from the answer."""
        if not keys:
            return {}
        with self._database.connection() as connection:
            rows = connection.execute(
                "SELECT cache_key, embedding FROM embedding_cache WHERE cache_key = ANY(%b)", (list(keys),), binary=True
            ).fetchall()
        return {bytes(key): np.frombuffer(data, dtype="<f4") for key, data in rows}

    def put_many(self, vectors: Mapping[bytes, npt.NDArray[np.float32]]) -> None:
        """Store `vectors`; a key that is there stays as it is. Rows go in key order, so that writers cannot deadlock."""
        if not vectors:
            return
        keys = sorted(vectors)
        with self._database.connection() as connection:
            connection.execute(
                "INSERT INTO embedding_cache (cache_key, model, dimension, embedding)"
                " SELECT i.key, %b, %b, i.data FROM unnest(%b::bytea[], %b::bytea[]) AS i (key, data)"
                " ON CONFLICT (cache_key) DO NOTHING",
                (
                    self._model,
                    len(vectors[keys[0]]),
                    keys,
                    [np.ascontiguousarray(vectors[key], dtype="<f4").tobytes() for key in keys],
                ),
            )
