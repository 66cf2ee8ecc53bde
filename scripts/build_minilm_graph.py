"""Makes `era_dagster/embedding/minilm.onnx`: the BERT encoder as a graph without weights, in about 28 kB.

Every weight is ONNX external data: offset and length inside a `model.safetensors` that lies beside the graph. The
offsets are fixed because that file is pinned by its hash (`local_weights`). Needs the `onnx` package, which nothing
needs at run time.

    python scripts/build_minilm_graph.py MODEL_FOLDER era_dagster/embedding/minilm.onnx

MODEL_FOLDER holds `model.safetensors` and `config.json` in the layout of a Hugging Face `BertModel`.
"""

import argparse
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper

WEIGHTS_FILE = "model.safetensors"
# Opset 20 is the first with Gelu, opset 17 the first with LayerNormalization: both one node here instead of ten.
OPSET = 20
IR_VERSION = 9
# Added to the score of a padding position; exp() of it is exactly 0 in float32.
MASKED_SCORE = 1e9


@dataclass(slots=True)
class _Graph:
    """The graph under construction; `header` maps a weight's name to its safetensors record."""

    header: Mapping[str, Any]
    data_start: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def add(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, values: Any, dtype: str) -> str:
        self.weights[name] = numpy_helper.from_array(numpy.asarray(values, dtype=dtype), name)
        return name

    def weight(self, name: str, *, rows: int | None = None) -> str:
        """Refer to a float32 weight of the file; `rows` takes only its first rows."""
        record = self.header[name]
        if record["dtype"] != "F32":
            raise SystemExit(f"{name} is {record['dtype']}, not F32.")
        shape = list(record["shape"])
        if rows is not None:
            shape[0] = rows
        length = 4
        for size in shape:
            length *= size
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        place = {"location": WEIGHTS_FILE, "offset": self.data_start + record["data_offsets"][0], "length": length}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        self.weights[name] = tensor
        return name

    def linear(self, values: str, name: str, output: str) -> str:
        # Gemm reads PyTorch's (out, in) layout as it lies in the file: no transposed copy in memory.
        return self.add("Gemm", [values, self.weight(f"{name}.weight"), self.weight(f"{name}.bias")], output, transB=1)

    def layer_norm(self, values: str, name: str, output: str, epsilon: float) -> str:
        inputs = [values, self.weight(f"{name}.weight"), self.weight(f"{name}.bias")]
        return self.add("LayerNormalization", inputs, output, axis=-1, epsilon=epsilon)


def build_graph(safetensors: Path, config: Mapping[str, Any]) -> onnx.ModelProto:
    """The encoder with mean pooling and L2 normalisation.

    Inputs: `ids` int64 (texts, tokens) and `mask` float32 (texts, tokens), 1 for a token and 0 for padding.
    Output: `vectors` float32 (texts, hidden size).
    """
    with safetensors.open("rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(header_bytes))
    graph = _Graph(header=header, data_start=8 + header_bytes)
    hidden, heads, epsilon = config["hidden_size"], config["num_attention_heads"], config["layer_norm_eps"]

    graph.constant("flat_shape", [-1, hidden], "int64")
    graph.constant("head_sizes", [heads, hidden // heads], "int64")
    graph.constant("hidden_size", [hidden], "int64")
    graph.constant("score_scale", (hidden // heads) ** -0.5, "float32")
    graph.constant("one", 1.0, "float32")
    graph.constant("masked_score", MASKED_SCORE, "float32")
    graph.constant("first", [0], "int64")
    graph.constant("row_axes", [1, 2], "int64")
    graph.constant("middle_axis", [1], "int64")

    graph.add("Shape", ["ids"], "batch_shape")
    graph.add("Shape", ["ids"], "token_count", start=1)
    graph.add("Concat", ["batch_shape", "head_sizes"], "heads_shape", axis=0)
    graph.add("Concat", ["batch_shape", "hidden_size"], "hidden_shape", axis=0)
    graph.add("Sub", ["mask", "one"], "minus_padding")
    graph.add("Mul", ["minus_padding", "masked_score"], "bias_rows")
    graph.add("Unsqueeze", ["bias_rows", "row_axes"], "bias")

    graph.add("Gather", [graph.weight("embeddings.word_embeddings.weight"), "ids"], "words")
    graph.add("Slice", [graph.weight("embeddings.position_embeddings.weight"), "first", "token_count"], "positions")
    # One sentence per text: only the first of the two token types is ever used.
    graph.add("Add", ["words", graph.weight("embeddings.token_type_embeddings.weight", rows=1)], "typed_words")
    graph.add("Add", ["typed_words", "positions"], "placed_words")
    graph.add("Reshape", ["placed_words", "flat_shape"], "flat_words")
    values = graph.layer_norm("flat_words", "embeddings.LayerNorm", "embedded", epsilon)
    for number in range(config["num_hidden_layers"]):
        values = _layer(graph, number, values, epsilon)

    graph.add("Reshape", [values, "hidden_shape"], "tokens")
    graph.add("Unsqueeze", ["mask", "middle_axis"], "mask_rows")
    graph.add("MatMul", ["mask_rows", "tokens"], "sum_rows")
    graph.add("Squeeze", ["sum_rows", "middle_axis"], "sums")
    # The mean is the sum over a count, and a count does not change a direction: no division before the L2 norm.
    graph.add("LpNormalization", ["sums"], "vectors", axis=-1, p=2)

    return helper.make_model(
        helper.make_graph(
            graph.nodes,
            "bert_mean_pooled",
            [
                helper.make_tensor_value_info("ids", TensorProto.INT64, ["texts", "tokens"]),
                helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["texts", "tokens"]),
            ],
            [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["texts", hidden])],
            initializer=list(graph.weights.values()),
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="era_dagster",
    )


def _layer(graph: _Graph, number: int, values: str, epsilon: float) -> str:
    name, short = f"encoder.layer.{number}", f"l{number}"
    turned = {}
    for part, order in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3])):
        flat = graph.linear(values, f"{name}.attention.self.{part}", f"{short}.{part}")
        split = graph.add("Reshape", [flat, "heads_shape"], f"{short}.{part}.heads")
        turned[part] = graph.add("Transpose", [split], f"{short}.{part}.turned", perm=order)
    scores = graph.add("MatMul", [turned["query"], turned["key"]], f"{short}.scores")
    scaled = graph.add("Mul", [scores, "score_scale"], f"{short}.scaled")
    biased = graph.add("Add", [scaled, "bias"], f"{short}.biased")
    shares = graph.add("Softmax", [biased], f"{short}.shares", axis=-1)
    mixed = graph.add("MatMul", [shares, turned["value"]], f"{short}.mixed")
    joined = graph.add("Transpose", [mixed], f"{short}.joined", perm=[0, 2, 1, 3])
    flat = graph.add("Reshape", [joined, "flat_shape"], f"{short}.context")
    projected = graph.linear(flat, f"{name}.attention.output.dense", f"{short}.projected")
    attended = graph.add("Add", [projected, values], f"{short}.attended")
    normed = graph.layer_norm(attended, f"{name}.attention.output.LayerNorm", f"{short}.attention", epsilon)
    wide = graph.linear(normed, f"{name}.intermediate.dense", f"{short}.wide")
    active = graph.add("Gelu", [wide], f"{short}.active")
    narrow = graph.linear(active, f"{name}.output.dense", f"{short}.narrow")
    fed = graph.add("Add", [narrow, normed], f"{short}.fed")
    return graph.layer_norm(fed, f"{name}.output.LayerNorm", f"{short}.out", epsilon)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model_folder", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    config = json.loads((arguments.model_folder / "config.json").read_text(encoding="utf-8"))
    model = build_graph(arguments.model_folder / WEIGHTS_FILE, config)
    arguments.output.write_bytes(model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
