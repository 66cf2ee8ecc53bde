"""One embedding server with two models of one dimension, whose vectors of a text have nothing in common.

So nothing but the code keeps a vector of one model from the rows of the other, and a mixture shows. In a thread by
`embedding_server.serving`, or as a process: `python -m era_dagster_tests.fakes.two_models` prints its URL as JSON.
"""

import argparse
import asyncio
import hashlib
import json
from collections.abc import Mapping

import numpy as np
import orjson

from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer, Reply, start, vector_of

MODELS = ("test-model", "second-model")


class TwoModels(FakeEmbeddingServer):
    """`held` are (model, text) that wait for their answer until they are taken out."""

    def __init__(self, *, dimension: int) -> None:
        super().__init__(dimension=dimension)
        self.held: set[tuple[str, str]] = set()

    async def handle(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        if path == "/api/tags":
            listed = [{"name": f"{name}:latest", "model": name, "digest": digest(name)} for name in MODELS]
            return Reply(200, orjson.dumps({"models": listed}))
        if path == "/api/embed":
            asked = orjson.loads(body)
            while any((asked["model"], text) in self.held for text in asked["input"]):
                await asyncio.sleep(0.005)
            rows = [made_by(asked["model"], text, self.dimension) for text in asked["input"]]
            answer = {"model": asked["model"], "embeddings": rows}
            return Reply(200, orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY))
        return await super().handle(method, path, headers, body)


def digest(model: str) -> str:
    return hashlib.sha256(model.encode()).hexdigest()


def made_by(model: str, text: str, dimension: int) -> np.ndarray:
    """The vector of a text by one of the models."""
    return vector_of(f"{model}: {text}", dimension)


def _main() -> None:
    parser = argparse.ArgumentParser(description="Serve two models on loopback; prints the URL as JSON.")
    parser.add_argument("--dimension", type=int, default=768)
    given = parser.parse_args()

    async def main() -> None:
        listening = await start(TwoModels(dimension=given.dimension), 0)
        port = listening.sockets[0].getsockname()[1]
        print(json.dumps({"url": f"http://127.0.0.1:{port}"}), flush=True)  # noqa: T201
        await listening.serve_forever()

    asyncio.run(main())


if __name__ == "__main__":
    _main()
