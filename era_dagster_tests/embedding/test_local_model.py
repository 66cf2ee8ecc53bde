"""The local model against an oracle of its own (BERT in plain numpy), golden numbers, and a semantic gate.

The weights are the real ones, fetched once into the user's model folder.
"""

import collections
import importlib.util
import json
import math
import os
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tokenizers import Tokenizer

from era_dagster.domain.errors import ConfigurationError, TextsRejected
from era_dagster.embedding.local_model import LocalModel
from era_dagster.embedding.local_weights import GRAPH_FILE, TOKENIZER_FILE, WEIGHTS_FILE, ensure_weights
from era_dagster.settings import load_settings

GRAPH_SCRIPT = Path(__file__).parents[2] / "scripts" / "build_minilm_graph.py"
CONFIG = {"hidden_size": 384, "num_attention_heads": 12, "num_hidden_layers": 6, "layer_norm_eps": 1e-12}
LONG = "one word after another " * 200
SENTENCES = [
    "This is an example sentence",
    "Each sentence is converted",
    "Correct a subordinate in private.",
    "Čeština, français, Ελληνικά 日本語",
    LONG,
]
# The first eight numbers of each, made by this code when it agreed with the oracle below.
GOLDEN = [
    [0.06765688, 0.0634959, 0.04871308, 0.07930493, 0.03744801, 0.00265281, 0.03937498, -0.00709838],
    [0.08643857, 0.10276259, 0.00539451, 0.0020444, -0.00996338, 0.0253855, 0.04928753, -0.0306266],
    [-0.01632127, 0.04922462, 0.04742594, -0.01714818, -0.08012802, 0.01089226, -3.494e-05, -0.07000335],
    [0.00724204, 0.03061858, 0.05041098, -0.08814718, -0.06686229, -0.0398686, 0.07713798, 0.0463962],
    [-0.03018276, -0.08295559, 0.06554932, -0.07140478, -0.11388992, -0.03419132, 0.01914424, -0.04483702],
]

Tensors = Mapping[str, np.ndarray]


def read_tensors(path: Path) -> Tensors:
    content = path.read_bytes()
    (header_bytes,) = struct.unpack("<Q", content[:8])
    data = memoryview(content)[8 + header_bytes :]
    tensors = {}
    for name, record in json.loads(content[8 : 8 + header_bytes]).items():
        if record.get("dtype") == "F32":
            first, last = record["data_offsets"]
            tensors[name] = np.frombuffer(data[first:last], "<f4").reshape(record["shape"]).astype(np.float64)
    return tensors


def oracle(tensors: Tensors, ids: Sequence[int], config: Mapping[str, Any]) -> np.ndarray:
    """The vector of one text by the definition of BERT, in float64 and without any batch."""
    erf = np.vectorize(math.erf)
    heads = config["num_attention_heads"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(axis=-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + config["layer_norm_eps"])
        return centred / scale * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    def split(x: np.ndarray) -> np.ndarray:
        return x.reshape(len(ids), heads, -1).swapaxes(0, 1)

    x = tensors["embeddings.word_embeddings.weight"][list(ids)]
    x = x + tensors["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(x + tensors["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for number in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{number}"
        query, key, value = (split(linear(x, f"{layer}.attention.self.{part}")) for part in ("query", "key", "value"))
        scores = query @ key.swapaxes(1, 2) / math.sqrt(query.shape[-1])
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares = shares / shares.sum(axis=-1, keepdims=True)
        context = (shares @ value).swapaxes(0, 1).reshape(x.shape)
        x = norm(linear(context, f"{layer}.attention.output.dense") + x, f"{layer}.attention.output.LayerNorm")
        wide = linear(x, f"{layer}.intermediate.dense")
        wide = wide * 0.5 * (1 + erf(wide / math.sqrt(2)))
        x = norm(linear(wide, f"{layer}.output.dense") + x, f"{layer}.output.LayerNorm")
    mean = x.mean(axis=0)
    return mean / np.linalg.norm(mean)


@pytest.fixture(scope="session")
def model_folder() -> Path:
    return ensure_weights(load_settings(os.environ).model_dir)


@pytest.fixture(scope="session")
def model(model_folder: Path) -> LocalModel:
    return LocalModel.load(model_folder, threads=2)


def test_vectors_equal_those_of_a_plain_numpy_bert(model: LocalModel, model_folder: Path) -> None:
    tensors = read_tensors(model_folder / WEIGHTS_FILE)
    tokenizer = Tokenizer.from_file(str(model_folder / TOKENIZER_FILE))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    expected = [oracle(tensors, tokenizer.encode(text).ids, CONFIG) for text in SENTENCES]
    assert np.abs(model.embed(SENTENCES) - np.array(expected)).max() <= 1e-5


def test_vectors_equal_the_golden_numbers(model: LocalModel) -> None:
    assert np.abs(model.embed(SENTENCES)[:, :8] - np.array(GOLDEN)).max() <= 1e-5


def test_each_vector_is_float32_of_length_one(model: LocalModel) -> None:
    vectors = model.embed(SENTENCES)
    assert vectors.shape == (len(SENTENCES), LocalModel.dimension)
    assert vectors.dtype == np.float32
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-6


def test_a_vector_depends_neither_on_the_texts_beside_it_nor_on_its_place(model: LocalModel) -> None:
    rng = np.random.default_rng(5)
    words = LONG.split() + " ".join(SENTENCES[:4]).split()
    texts = [" ".join(rng.choice(words, size=int(size))) for size in rng.integers(1, 300, size=40)]
    alone = np.concatenate([model.embed([text]) for text in texts])
    order = rng.permutation(len(texts))
    together = model.embed([texts[place] for place in order])
    assert np.abs(together - alone[order]).max() <= 2e-6


def test_the_same_call_gives_the_same_bits_from_any_thread(model: LocalModel) -> None:
    expected = model.embed(SENTENCES)
    with ThreadPoolExecutor(6) as callers:
        answers = list(callers.map(model.embed, [SENTENCES] * 12))
    assert all(np.array_equal(answer, expected) for answer in answers)


def test_no_texts_give_no_vectors(model: LocalModel) -> None:
    assert model.embed([]).shape == (0, LocalModel.dimension)


def test_the_token_count_is_that_of_the_whole_text(model: LocalModel) -> None:
    # "one word after another" is four tokens, and two marks stand around a text.
    assert model.token_counts(["one word after another", LONG, ""]) == [6, 802, 2]


def test_a_long_text_is_cut_at_the_limit(model: LocalModel) -> None:
    kept = " ".join(LONG.split()[: LocalModel.max_tokens - 2])
    shorter = " ".join(LONG.split()[: LocalModel.max_tokens - 3])
    whole, cut, less = model.embed([LONG, kept, shorter])
    assert np.abs(whole - cut).max() <= 2e-6
    assert np.abs(whole - less).max() > 1e-4


def test_case_and_accents_do_not_matter(model: LocalModel) -> None:
    assert np.array_equal(model.embed(["CAFÉ Society"]), model.embed(["cafe society"]))


def test_a_text_that_is_no_valid_unicode_is_refused(model: LocalModel) -> None:
    with pytest.raises(TextsRejected, match="3 characters"):
        model.embed(["fine", "a\ud800b"])


@pytest.mark.parametrize("missing", [WEIGHTS_FILE, TOKENIZER_FILE, GRAPH_FILE])
def test_a_folder_that_lacks_a_file_is_a_configuration_error(tmp_path: Path, missing: str) -> None:
    for name in {WEIGHTS_FILE, TOKENIZER_FILE, GRAPH_FILE} - {missing}:
        (tmp_path / name).touch()
    with pytest.raises(ConfigurationError, match=re.escape(missing)):
        LocalModel.load(tmp_path, threads=1)


def graph_builder() -> Callable[[Path, Mapping[str, Any]], Any]:
    """`build_graph` of the script; skips the test where the `onnx` package is not installed."""
    pytest.importorskip("onnx")
    spec = importlib.util.spec_from_file_location("build_minilm_graph", GRAPH_SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script.build_graph


def test_the_committed_graph_is_what_the_script_makes_of_the_weights(model_folder: Path) -> None:
    made = graph_builder()(model_folder / WEIGHTS_FILE, CONFIG).SerializeToString(deterministic=True)
    assert made == (model_folder / GRAPH_FILE).read_bytes()


def tiny_bert(path: Path, rng: np.random.Generator) -> Mapping[str, Any]:
    """Write a random BERT of two layers and return its configuration."""
    size, wide, words, places = 8, 12, 30, 16
    shapes = {
        "embeddings.word_embeddings.weight": [words, size],
        "embeddings.position_embeddings.weight": [places, size],
        "embeddings.token_type_embeddings.weight": [2, size],
    }
    blocks = {"embeddings.LayerNorm": [size]}
    for number in range(2):
        layer = f"encoder.layer.{number}"
        blocks |= {f"{layer}.attention.self.{part}": [size, size] for part in ("query", "key", "value")}
        blocks |= {f"{layer}.attention.output.dense": [size, size], f"{layer}.attention.output.LayerNorm": [size]}
        blocks |= {f"{layer}.intermediate.dense": [wide, size], f"{layer}.output.dense": [size, wide]}
        blocks |= {f"{layer}.output.LayerNorm": [size]}
    for name, shape in blocks.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    header: dict[str, Any] = {"embeddings.position_ids": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}
    data = bytearray(8)
    for name, shape in shapes.items():
        raw = rng.normal(size=shape).astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    path.write_bytes(struct.pack("<Q", len(head)) + head + data)
    return {"hidden_size": size, "num_attention_heads": 2, "num_hidden_layers": 2, "layer_norm_eps": 1e-12}


def test_the_script_builds_the_graph_of_any_bert_and_padding_changes_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    config = tiny_bert(tmp_path / WEIGHTS_FILE, rng)
    graph = graph_builder()(tmp_path / WEIGHTS_FILE, config)
    (tmp_path / GRAPH_FILE).write_bytes(graph.SerializeToString())
    session = onnxruntime.InferenceSession(tmp_path / GRAPH_FILE, providers=["CPUExecutionProvider"])
    texts = [[int(number) for number in rng.integers(0, 30, size=size)] for size in (1, 5, 16, 9)]
    ids = np.array([text + [0] * (16 - len(text)) for text in texts])
    mask = np.array([[1.0] * len(text) + [0.0] * (16 - len(text)) for text in texts], dtype=np.float32)
    (vectors,) = session.run(None, {"ids": ids, "mask": mask})
    tensors = read_tensors(tmp_path / WEIGHTS_FILE)
    assert np.abs(vectors - np.array([oracle(tensors, text, config) for text in texts])).max() <= 1e-5


def words_in(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def bag_of_words(pool: Sequence[str]) -> Callable[[Sequence[str]], np.ndarray]:
    """TF-IDF vectors of length one over the words of `pool`."""
    texts_with = collections.Counter(word for text in pool for word in set(words_in(text)))
    columns = {word: column for column, word in enumerate(texts_with)}

    def embed(texts: Sequence[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), len(columns)))
        for row, text in enumerate(texts):
            for word in words_in(text):
                if word in columns:
                    vectors[row, columns[word]] += math.log(len(pool) / texts_with[word])
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    return embed


def recall_at_5(
    embed: Callable[[Sequence[str]], np.ndarray], questions: list[dict[str, str]], pool: list[str]
) -> float:
    scores = embed([question["query"] for question in questions]) @ embed(pool).T
    targets = [pool.index(question["target"]) for question in questions]
    better = (scores > scores[range(len(questions)), targets][:, None]).sum(axis=1)
    return float((better < 5).mean())


def test_questions_in_other_words_find_their_sentence_where_counting_words_does_not(model: LocalModel) -> None:
    """60 questions, each a paraphrase of one of 500 sentences; measured .90, and .08 for the bag of words."""
    content = json.loads(Path(__file__).with_name("semantic_pool.json").read_text(encoding="utf-8"))
    questions = content["questions"]
    pool = sorted([*(question["target"] for question in questions), *content["others"]])
    assert len(pool) == len(set(pool)) == 500
    assert recall_at_5(model.embed, questions, pool) >= 0.70
    assert recall_at_5(bag_of_words(pool), questions, pool) <= 0.20
