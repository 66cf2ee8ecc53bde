"""The provider in process: wraps `embedding.local_model`, which is loaded at the first request and run in threads.

Nothing is cut off silently: a text over the model's length is embedded in pieces, and its vector is their mean.
"""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from era_dagster.domain.errors import ConfigurationError
from era_dagster.embedding.local_weights import MINILM, ensure_weights
from era_dagster.embedding.provider import CANARY, Answer, Identified
from era_dagster.embedding.responses import Verdict

if TYPE_CHECKING:
    from era_dagster.embedding.local_model import LocalModel


class LocalProvider:
    """The one model this process can run. Has no time-outs: a computation cannot be abandoned.

    Raises `ConfigurationError` for a model it does not hold; at the first request also when the weights are missing and
    cannot be fetched.
    """

    def __init__(self, model: str, model_dir: Path) -> None:
        if model != MINILM.folder:
            raise ConfigurationError(
                f"The local provider holds {MINILM.folder}, not {model}.",
                hint=f"Set ERA_EMBEDDING_MODEL to {MINILM.folder}, or choose another provider.",
            )
        self._model_dir = model_dir
        self._loading = asyncio.Lock()
        self._loaded: LocalModel | None = None

    @property
    def url(self) -> str:
        """A name for messages."""
        return "the local model"

    async def embed(self, texts: Sequence[str], timeout_seconds: float) -> Answer | Verdict:
        """The vectors of `texts`; never a verdict."""
        vectors, tokens = await asyncio.to_thread(embed_whole, await self._model(), texts)
        return Answer(vectors=vectors, tokens=tokens)

    async def identify(self, timeout_seconds: float, loading_timeout_seconds: float) -> Identified | Verdict:
        """Its dimension; the digest is that of its weights."""
        answer = await self.embed([CANARY], timeout_seconds)
        if isinstance(answer, Verdict):
            return answer
        digest = MINILM.files["model.safetensors"]
        return Identified(dimension=answer.vectors.shape[1], digest=digest, server_version=None)

    async def close(self) -> None:
        """Forget the model."""
        self._loaded = None

    async def _model(self) -> "LocalModel":
        async with self._loading:
            if self._loaded is None:
                self._loaded = await asyncio.to_thread(_load, self._model_dir)
            return self._loaded


def embed_whole(model: "LocalModel", texts: Sequence[str]) -> tuple[NDArray[np.float32], int]:
    """Vectors of shape (texts, dimension) and the tokens read; a long text gets the weighted mean of its pieces."""
    pieces: list[str] = []
    owners: list[int] = []
    for owner, (text, tokens) in enumerate(zip(texts, model.token_counts(texts), strict=True)):
        whole = [text] if tokens <= model.max_tokens else _pieces(model, text)
        pieces.extend(whole)
        owners.extend([owner] * len(whole))
    weights = np.asarray(model.token_counts(pieces), dtype=np.float32)
    vectors = np.zeros((len(texts), model.dimension), dtype=np.float32)
    np.add.at(vectors, owners, model.embed(pieces) * weights[:, None])
    return vectors, int(weights.sum())


def _pieces(model: "LocalModel", text: str) -> list[str]:
    """Halved, at a space near the middle if there is one, until every piece fits."""
    if model.token_counts([text])[0] <= model.max_tokens or len(text) < 2:
        return [text]
    middle = len(text) // 2
    space = text.find(" ", middle)
    cut = space if middle <= space < len(text) * 3 // 4 else middle
    return [piece for half in (text[:cut], text[cut:]) if half.strip() for piece in _pieces(model, half)]


def _load(model_dir: Path) -> "LocalModel":
    # Else ONNX Runtime tells Microsoft of its use, and notes an id of this machine in the home folder. It reads this once.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    from era_dagster.embedding.local_model import LocalModel  # loads ONNX Runtime: only where it is used

    return LocalModel.load(ensure_weights(model_dir), threads=os.cpu_count() or 1)
