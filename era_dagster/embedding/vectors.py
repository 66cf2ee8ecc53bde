"""What a vector must be before anyone believes it, and under which key it is remembered.

Pure functions on arrays, the identity of a model, and the protocol of the cache. Who implements the cache, and how
vectors travel, is not known here.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from era_dagster.domain.errors import BadVectors
from era_dagster.domain.space import Space, canonical_model_name
from era_dagster.embedding.model_profile import ModelProfile, Role

Vector = NDArray[np.float32]

LEAST_COSINE = 0.9
"""Of one text by one model on other hardware, or with fewer bits a weight. Unrelated models are near 0."""

_NUMBERS = frozenset({float, int, type(None)})


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """Which model makes the vectors, as far as its server tells.

    `digest` and `server_version` are None where the server does not say. Two identities with equal model, digest,
    dimension and profile give interchangeable vectors.
    """

    provider: str
    model: str
    digest: str | None
    dimension: int
    document_prefix: str
    query_prefix: str
    server_version: str | None
    uncased: bool = False

    @property
    def space(self) -> Space:
        """Where its vectors belong."""
        return Space(
            provider=self.provider,
            model=self.model,
            digest=self.digest,
            dimension=self.dimension,
            document_prefix=self.document_prefix,
            query_prefix=self.query_prefix,
        )

    @property
    def profile(self) -> ModelProfile:
        """How its texts are prepared."""
        return ModelProfile(document_prefix=self.document_prefix, query_prefix=self.query_prefix, uncased=self.uncased)


class VectorCache(Protocol):
    """Remembers normalised float32 vectors of shape (dimension,) by 32-byte key. Synchronous; called from threads."""

    def get_many(self, keys: Sequence[bytes]) -> Mapping[bytes, Vector]:
        """The vectors of those keys that are known."""
        ...

    def put_many(self, vectors: Mapping[bytes, Vector]) -> None:
        """Remember vectors; the mapping iterates in the order of sorted keys, so that two writers cannot deadlock."""
        ...


def cache_key(identity: ModelIdentity, role: Role, text: str) -> bytes:
    """SHA-256 over model name, digest, dimension, prefix and the hash of the prepared text; 32 bytes.

    `text` is the original text. The provider is no part of it: the same model gives the same vectors anywhere.
    """
    profile = identity.profile
    body = hashlib.sha256(profile.normalised(text).encode("utf-8", "surrogatepass")).digest()
    return hashlib.sha256(_key_head(identity, profile.prefix(role)) + body).digest()


def canary_key(identity: ModelIdentity) -> bytes:
    """The key of the vector by which the model itself is known again; 32 bytes, those of no text."""
    return hashlib.sha256(_key_head(identity, "") + b"the text that identifies").digest()


def _key_head(identity: ModelIdentity, prefix: str) -> bytes:
    parts = (canonical_model_name(identity.model), identity.digest or "", str(identity.dimension), prefix, "")
    return "\0".join(parts).encode("utf-8", "surrogatepass")


def matrix(rows: Any, count: int) -> NDArray[np.float32]:
    """An answer's rows as a float32 array of shape (count, dimension), not yet checked row by row.

    Raises `BadVectors` when there are not exactly `count` rows of one length of at least 1, all numbers: null is NaN, what
    float32 cannot hold is infinite, booleans and strings are no numbers.
    """
    if not isinstance(rows, (list, np.ndarray)) or len(rows) != count:
        found = len(rows) if isinstance(rows, (list, np.ndarray)) else "no list of"
        raise BadVectors(f"The server answered {found} vectors for {count} texts.")
    try:
        found = np.asarray(rows)
    except ValueError as error:
        raise BadVectors("The server's vectors are not lists of numbers of one length.") from error
    if found.ndim != 2 or found.shape[1] == 0 or found.dtype.kind not in "fiuO" or not _all_numbers(rows, found):
        raise BadVectors("The server's vectors are empty or not lists of numbers of one length.")
    try:
        with np.errstate(over="ignore"):
            return found.astype(np.float32, copy=False)
    except OverflowError as error:
        raise BadVectors("The server's vectors hold a number that no float can hold.") from error


def _all_numbers(rows: Any, found: NDArray[Any]) -> bool:
    """Whether the lists that became this array hold numbers and null only.

    Among numbers a boolean turns into 0 or 1, rare in a vector: only the rows with one are looked at again, by type.
    """
    if isinstance(rows, np.ndarray):
        return True
    suspect = range(len(rows)) if found.dtype.kind == "O" else np.flatnonzero(((found == 0) | (found == 1)).any(axis=1))
    return all(_NUMBERS.issuperset(map(type, rows[index])) for index in suspect)


def checked(array: NDArray[np.float32], dimension: int | None) -> tuple[NDArray[np.float32], dict[int, str]]:
    """The rows L2-normalised, and by row index the reason why a row is no vector (its content is then undefined).

    A row is bad when it is not finite, is zero, or when the array's width is not `dimension` (None: any width).
    """
    if dimension is not None and array.shape[1] != dimension:
        reason = f"it has {array.shape[1]} dimensions, the model has {dimension}"
        return array, dict.fromkeys(range(len(array)), reason)
    # Scaled by the largest component first: squares of values near the ends of float32 would overflow or vanish.
    with np.errstate(invalid="ignore", divide="ignore"):
        largest = np.abs(array).max(axis=1, keepdims=True)
        scaled = array / largest
        normalised = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
    bad = {}
    for index in np.flatnonzero(~np.isfinite(normalised).all(axis=1)):
        bad[int(index)] = "it is zero" if largest[index, 0] == 0 else "it holds a value that is not finite"
    return normalised.astype(np.float32, copy=False), bad


def of_one_model(one: Vector, other: Vector) -> bool:
    """Whether two vectors of one text may come from one model, at whatever precision: those of two models are unrelated."""
    if len(one) != len(other):
        return False
    both, _ = checked(np.stack((one, other)), None)
    return bool(both[0] @ both[1] > LEAST_COSINE)


def in_key_order(vectors: Iterable[tuple[bytes, Vector]]) -> dict[bytes, Vector]:
    """A mapping that iterates in the order of its keys."""
    return dict(sorted(vectors, key=lambda pair: pair[0]))
