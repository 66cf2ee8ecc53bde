"""The vectors of a simulated server: one for each text, of length 1, for the price of a hash and a join.

A vector is sixteen pieces out of a pool of 256, chosen by the bytes of the text's hash, so that mixed-up vectors show
and two texts never share one. The pool is encoded as JSON once; no number is formatted while a request waits.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from functools import lru_cache
from random import Random

from era_dagster.domain.errors import ConfigurationError

PIECES = 16
LEAST_DIMENSION = 64
MOST_DIMENSION = 65_536
_CHOICES = 256


class VectorPool:
    """All pieces of vectors of `dimension` numbers; `pool_of` keeps one pool for each dimension."""

    def __init__(self, dimension: int) -> None:
        if not LEAST_DIMENSION <= dimension <= MOST_DIMENSION:
            raise ConfigurationError(
                f"A simulated model has {LEAST_DIMENSION} to {MOST_DIMENSION:,} dimensions, not {dimension}."
            )
        self.dimension = dimension
        short, longer = divmod(dimension, PIECES)
        sizes = {short + 1, short} if longer else {short}
        encoded, numbers = {}, {}
        for size in sorted(sizes):
            encoded[size], numbers[size] = _pieces(size, dimension)
        # The first pieces are one number longer where sixteen does not divide the dimension.
        widths = [short + 1] * longer + [short] * (PIECES - longer)
        self._encoded = [encoded[width] for width in widths]
        self._numbers = [numbers[width] for width in widths]

    def encoded(self, text: str) -> bytes:
        """The vector of `text` as a JSON array; numbers of nine decimals, about 9 bytes a dimension."""
        return b"[%b]" % b",".join([pool[byte] for pool, byte in zip(self._encoded, _hash(text), strict=True)])

    def vector(self, text: str) -> array[float]:
        """The same vector as float32 numbers; `numpy.frombuffer(..., "float32")` reads it."""
        joined = array("f")
        for pool, byte in zip(self._numbers, _hash(text), strict=True):
            joined.extend(pool[byte])
        return joined


@lru_cache(maxsize=8)
def pool_of(dimension: int) -> VectorPool:
    """The pool of one dimension, made on first use (about 20 ms for 768)."""
    return VectorPool(dimension)


def vector_of(text: str, dimension: int = 768) -> array[float]:
    """The float32 vector a simulated server answers for `text` as it was sent; shape (dimension,), length 1."""
    return pool_of(dimension).vector(text)


def cut(vector: array[float], dimension: int) -> array[float]:
    """The first `dimension` numbers of a vector, brought back to length 1."""
    first = vector[:dimension]
    length = math.hypot(*first) or 1.0
    return array("f", [number / length for number in first])


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=PIECES).digest()


def _pieces(size: int, dimension: int) -> tuple[list[bytes], list[array[float]]]:
    """256 pieces of `size` numbers whose squares add up to the piece's share of 1, as JSON and as numbers."""
    random = Random(size * 100_003 + dimension)
    encoded: list[bytes] = []
    numbers: list[array[float]] = []
    for _ in range(_CHOICES):
        values = [random.gauss(0.0, 1.0) for _ in range(size)]
        scale = math.sqrt(size / dimension / sum(value * value for value in values))
        written = [f"{value * scale:.9f}" for value in values]
        encoded.append(",".join(written).encode("ascii"))
        numbers.append(array("f", map(float, written)))
    return encoded, numbers
