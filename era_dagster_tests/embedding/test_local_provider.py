"""The provider around the local model, with a model small enough to compute by hand."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from era_dagster.domain.errors import ConfigurationError
from era_dagster.embedding import endpoint
from era_dagster.embedding.embed_texts import embed_texts
from era_dagster.embedding.local import embed_whole
from era_dagster.embedding.provider import CANARY, Answer, Identified
from era_dagster.settings import load_settings
from era_dagster_tests.fakes.virtual_time import run_virtually


class CountingModel:
    """Two dimensions: how often a text holds "a" and "b"; a token is a word, eight fit."""

    dimension = 2
    max_tokens = 8

    def __init__(self) -> None:
        self.seen: list[str] = []

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        return [max(1, len(text.split())) for text in texts]

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        self.seen.extend(texts)
        assert all(count <= self.max_tokens for count in self.token_counts(texts)), "the model would cut it"
        rows = np.array([[text.count("a"), text.count("b")] for text in texts], dtype=np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_short_texts_are_embedded_as_they_are() -> None:
    model = CountingModel()
    vectors, tokens = embed_whole(model, ["a b", "a"])
    assert model.seen == ["a b", "a"]
    assert tokens == 3
    assert vectors[1].tolist() == [1.0, 0.0]


def test_a_text_too_long_is_the_weighted_mean_of_its_pieces_and_nothing_is_cut() -> None:
    model = CountingModel()
    text = " ".join(["a"] * 16 + ["b"] * 16)
    vectors, tokens = embed_whole(model, ["b", text, "a"])
    assert tokens == 34
    assert "".join(model.seen[1:-1]) == text
    np.testing.assert_allclose(vectors[1], [16, 16], rtol=1e-5)
    assert (vectors[0].tolist(), vectors[2].tolist()) == ([0.0, 1.0], [1.0, 0.0])


def test_the_local_provider_holds_one_model_only(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nomic-embed-text"):
        asyncio.run(embed_texts(["a"], urls=(), model="nomic-embed-text", provider="local", model_dir=tmp_path))


def test_nobody_is_told_of_the_local_models_use(tmp_path: Path) -> None:
    """ONNX Runtime sends what it is used for to Microsoft unless told otherwise; the first sign is an id in the home folder."""
    kept = {
        name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    }
    program = (
        "import asyncio, sys; from pathlib import Path; from era_dagster.embedding.embed_texts import embed_texts;"
        "asyncio.run(embed_texts(['a'], urls=(), model='all-minilm-l6-v2', provider='local', model_dir=Path(sys.argv[1])))"
    )
    model_dir = str(load_settings(os.environ).model_dir)
    subprocess.run(
        [sys.executable, "-c", program, model_dir], env=kept | {"HOME": str(tmp_path)}, check=True, timeout=60
    )
    assert [path.name for path in tmp_path.rglob("*")] == []


class ComputingModel:
    """In the provider's place: 20 ms a text, but ten seconds for the thirtieth request, as while the machine is busy."""

    url = "the local model"

    def __init__(self) -> None:
        self.requests = 0
        self.computed: list[str] = []

    async def embed(self, texts: Sequence[str], timeout_seconds: float) -> Answer:
        self.requests += 1
        self.computed.extend(text for text in texts if text != CANARY)
        await asyncio.sleep(10.0 if self.requests == 30 else 0.02 * len(texts))
        return Answer(vectors=np.ones((len(texts), 2), dtype=np.float32), tokens=len(texts))

    async def identify(self, timeout_seconds: float, loading_timeout_seconds: float) -> Identified:
        return Identified(dimension=2, digest=None, server_version=None)

    async def close(self) -> None:
        pass


def test_what_this_process_computes_is_not_computed_twice_however_long_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ComputingModel()
    monkeypatch.setattr(endpoint, "LocalProvider", lambda *_: model)
    wanted = [f"text {number}" for number in range(800)]
    running = embed_texts(wanted, urls=(), model="any", provider="local", model_dir=tmp_path, concurrency=2)
    report = run_virtually(running)
    assert sorted(model.computed) == sorted(wanted)
    assert (len(report.failures), report.retries) == (0, 0)
