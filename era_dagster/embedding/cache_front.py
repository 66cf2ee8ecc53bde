"""Between the embedder and its cache: texts are looked up, and vectors written, many at a time in a thread.

Knows items and keys, no endpoints and no callers. The cache itself is anything with the two methods of `VectorCache`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any

from era_dagster.embedding.vectors import Vector, VectorCache, in_key_order
from era_dagster.embedding.work import Item

Made = Sequence[tuple[Item, Vector]]
Remember = Callable[[bytes, Vector], Awaitable[Vector]]


def recalling(cache: VectorCache) -> Remember:
    """As `CacheFront.first_known`, for who only reads: what is remembered under a key, else the vector that was given."""

    async def recall(key: bytes, vector: Vector) -> Vector:
        return (await asyncio.to_thread(cache.get_many, [key])).get(key, vector)

    return recall


class CacheFront:
    """Two loops: one looks items up and reports them to `found`, one stores vectors and reports them to `stored`.

    While one call to the cache runs the next one fills, so that a slow cache gets larger calls, not more of them.
    """

    def __init__(
        self,
        cache: VectorCache,
        *,
        found: Callable[[Sequence[Item], Mapping[bytes, Vector]], None],
        stored: Callable[[Made], None],
    ) -> None:
        self._cache = cache
        self._found = found
        self._stored = stored
        self._asked: list[Item] = []
        self._made: list[tuple[Item, Vector]] = []
        self._asked_some = asyncio.Event()
        self._made_some = asyncio.Event()

    def loops(self) -> tuple[Coroutine[Any, Any, None], ...]:
        """The coroutines that do the work; they run until they are cancelled."""
        return self._look_up_loop(), self._store_loop()

    def look_up(self, item: Item) -> None:
        """Ask for one item; the answer comes through `found`."""
        self._asked.append(item)
        self._asked_some.set()

    def store(self, made: Made) -> None:
        """Remember vectors; `stored` is told when they are safe."""
        self._made.extend(made)
        self._made_some.set()

    async def first_known(self, key: bytes, vector: Vector) -> Vector:
        """What is remembered under `key`: where nothing was, `vector` from now on."""
        known = await asyncio.to_thread(self._cache.get_many, [key])
        if key not in known:
            await asyncio.to_thread(self._cache.put_many, {key: vector})
        return known.get(key, vector)

    async def flush(self) -> None:
        """Write what is still waiting; for the end, when the loops are cancelled."""
        await self._write()

    async def _look_up_loop(self) -> None:
        while True:
            await self._asked_some.wait()
            self._asked_some.clear()
            items, self._asked = [item for item in self._asked if not item.settled], []
            keys = [item.key for item in items if item.key is not None]
            known = await asyncio.to_thread(self._cache.get_many, keys) if keys else {}
            self._found([item for item in items if not item.settled], known)

    async def _store_loop(self) -> None:
        while True:
            await self._made_some.wait()
            self._made_some.clear()
            await self._write()

    async def _write(self) -> None:
        made = list(self._made)
        vectors = in_key_order((item.key, vector) for item, vector in made if item.key is not None)
        if vectors:
            await asyncio.to_thread(self._cache.put_many, vectors)
        # Only now: a write that is cancelled half-way is repeated by `flush`.
        del self._made[: len(made)]
        self._stored(made)
