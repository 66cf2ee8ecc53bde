"""The local embedding model: all-MiniLM-L6-v2 on ONNX Runtime, in this process and without torch.

Texts in, normalised vectors out. Where the files come from is the matter of `local_weights`; checks of vectors, retries
and batching across chapters happen elsewhere. Import this module only where the model is used: it loads ONNX Runtime.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from era_dagster.domain.errors import ConfigurationError, TextsRejected
from era_dagster.embedding.local_weights import GRAPH_FILE, MINILM, TOKENIZER_FILE

# Tokens of one forward pass, padding included. Larger passes fall out of the processor's cache and are slower per text.
TOKENS_PER_PASS = 512


class LocalModel:
    """One loaded model, shared by all threads of a process.

    `threads` forward passes run at once, whoever asked for them; each uses one core. The vector of a text does not
    depend on the texts around it beyond 1e-6.
    """

    name: ClassVar[str] = MINILM.folder
    dimension: ClassVar[int] = 384
    # The length the model was trained for (max_seq_length of its publisher), including the two marks around a text.
    max_tokens: ClassVar[int] = 256

    def __init__(self, session: onnxruntime.InferenceSession, tokenizer: Tokenizer, *, threads: int) -> None:
        self._session = session
        self._tokenizer = tokenizer
        self._workers = ThreadPoolExecutor(threads, thread_name_prefix="local-model")

    @classmethod
    def load(cls, folder: Path, *, threads: int) -> "LocalModel":
        """Load from a folder that `local_weights.ensure_weights` returned; takes about 0.1 seconds and 120 MB.

        Raises `ConfigurationError` where a file is missing.
        """
        for name in (*MINILM.files, GRAPH_FILE):
            if not (folder / name).is_file():
                raise ConfigurationError(
                    f"The local model's folder {folder} lacks {name}.", hint="Let ensure_weights prepare the folder."
                )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        # A memory plan is kept for every input shape ever seen, and here nearly every pass has a shape of its own.
        options.enable_mem_pattern = False
        session = onnxruntime.InferenceSession(folder / GRAPH_FILE, options, providers=["CPUExecutionProvider"])
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        # The publisher's file cuts at 128 tokens and pads every text to 128.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return cls(session, tokenizer, threads=threads)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Float32 array (texts, 384) in the order given, each row of length 1.

        A text over `max_tokens` is cut there; `token_counts` tells beforehand. Raises `TextsRejected` for a text that
        is no valid Unicode.
        """
        ids = [self._encode(text) for text in texts]
        ids = [row if len(row) <= self.max_tokens else [*row[: self.max_tokens - 1], row[-1]] for row in ids]
        vectors = np.empty((len(ids), self.dimension), dtype=np.float32)
        passes = list(_passes([len(row) for row in ids]))
        results = self._workers.map(self._forward, ([ids[row] for row in rows] for rows in passes))
        for rows, result in zip(passes, results, strict=True):
            vectors[rows] = result
        return vectors

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each whole text, the two marks around it included; above `max_tokens` means `embed` cuts it."""
        return [len(self._encode(text)) for text in texts]

    def _encode(self, text: str) -> list[int]:
        try:
            # One by one: encode_batch would start threads of its own on every core.
            return self._tokenizer.encode(text).ids
        except TypeError as error:
            raise TextsRejected(
                f"The local model cannot read a text of {len(text)} characters: it is no valid Unicode.",
                hint="Remove lone surrogates from it.",
            ) from error

    def _forward(self, rows: list[list[int]]) -> np.ndarray:
        longest = max(map(len, rows))
        ids = np.zeros((len(rows), longest), dtype=np.int64)
        mask = np.zeros((len(rows), longest), dtype=np.float32)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = row
            mask[number, : len(row)] = 1
        (vectors,) = self._session.run(["vectors"], {"ids": ids, "mask": mask})
        return np.asarray(vectors)


def _passes(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Positions grouped for forward passes: neighbours in length, so that little is padding."""
    group: list[int] = []
    for position in sorted(range(len(lengths)), key=lengths.__getitem__):
        # Ascending order: the newcomer is the longest, and all others are padded to it.
        if group and (len(group) + 1) * lengths[position] > TOKENS_PER_PASS:
            yield group
            group = []
        group.append(position)
    if group:
        yield group
