"""A run of any length takes the memory of what is under way."""

import asyncio
import gc
import tracemalloc

import httpx
import orjson

from era_dagster.embedding.config import EmbedderConfig
from era_dagster.embedding.embedder import Embedder
from era_dagster_tests.fakes.virtual_time import run_virtually


class Forgetful(httpx.AsyncBaseTransport):
    """Answers at once, and keeps nothing of it."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0.005)
        wanted = orjson.loads(request.content)["input"]
        return httpx.Response(200, json={"embeddings": [[0.6, 0.8]] * len(wanted), "prompt_eval_count": len(wanted)})


def test_twenty_thousand_texts_take_no_more_memory_than_five_thousand() -> None:
    async def main() -> tuple[int, int]:
        config = EmbedderConfig(urls=("http://server",), model="m", batch_items=16)
        async with Embedder(config, transport=Forgetful()) as embedder:

            async def embed(first: int, last: int) -> None:
                for start in range(first, last, 200):
                    await embedder.embed([f"text number {number}" for number in range(start, start + 200)])

            await embed(0, 4_000)
            gc.collect()
            tracemalloc.start()
            await embed(4_000, 5_000)
            gc.collect()
            before, _ = tracemalloc.get_traced_memory()
            await embed(5_000, 20_000)
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            return before, after

    before, after = run_virtually(main())
    assert after - before < 15_000 * 16, "bytes: less than a pointer and a number for each text"
