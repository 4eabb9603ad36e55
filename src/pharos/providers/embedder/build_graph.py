"""The graph of a BERT encoder as ONNX: one text in, one vector out.

Weights are stored in 7 bits a column and activations are quantised a row (one token) at a time. So a token's numbers
never depend on what stands beside it, and products of 8 by 7 bits cannot overflow the 16-bit sums of processors without
VNNI, where 8-bit weights silently saturate. Why this and not another way: docs/adr/0018-embedder-determinism.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
Weights = Mapping[str, Array]

MICROSOFT = "com.microsoft"  # onnxruntime's own operators
LAYER_NORM_EPSILON = 1e-12  # `layer_norm_eps` of the model's config.json
WEIGHT_MAX = 63  # 7 bits: 255 * 63 * 2 < 2**15
ROW_MAX = 127
SMALLEST_ROW = 1e-9


@dataclass
class Graph:
    """Nodes and constants in the order they were added."""

    quantised: bool
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    quantised_rows: dict[str, tuple[str, str]] = field(default_factory=dict)

    def constant(self, name: str, value: Array) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def node(self, operator: str, inputs: Sequence[str], output: str, *, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], domain=domain, **attributes))
        return output

    def linear(self, rows: str, weight: Array, output: str) -> str:
        """`rows` times `weight` of shape (in, out), without the bias."""
        if not self.quantised:
            return self.node("MatMul", [rows, self.constant(f"{output}.weight", weight)], output)
        integers, row_scale = self._quantise_rows(rows)
        scale = np.abs(weight).max(axis=0) / WEIGHT_MAX
        self.constant(f"{output}.weight", np.round(weight / scale).astype(np.int8))
        self.constant(f"{output}.scale", scale.astype(np.float32))
        inputs = [integers, f"{output}.weight", self._float("one", 1), f"{output}.scale", self._middle()]
        product = self.node("MatMulIntegerToFloat", inputs, f"{output}.product", domain=MICROSOFT)
        return self.node("Mul", [product, row_scale], output)

    def _quantise_rows(self, rows: str) -> tuple[str, str]:
        """Unsigned bytes around 128, and the scale of each row; the same rows are quantised once."""
        if rows not in self.quantised_rows:
            largest = self.node("ReduceMax", [self.node("Abs", [rows], f"{rows}.abs"), self._axis(-1)], f"{rows}.max")
            floored = self.node("Max", [largest, self._float("smallest", SMALLEST_ROW)], f"{rows}.floored")
            scale = self.node("Div", [floored, self._float("row_max", ROW_MAX)], f"{rows}.scale")
            scaled = self.node("Div", [rows, scale], f"{rows}.scaled")
            inputs = [scaled, self._float("one", 1), self._middle()]
            self.quantised_rows[rows] = self.node("QuantizeLinear", inputs, f"{rows}.bytes"), scale
        return self.quantised_rows[rows]

    def normalise(self, inputs: Sequence[str], weights: Weights, prefix: str, output: str, bias: str | None) -> str:
        """LayerNorm of one input, or of the sum of two and a bias."""
        scale = self.constant(f"{output}.norm", weights[f"{prefix}.LayerNorm.weight"])
        shift = self.constant(f"{output}.shift", weights[f"{prefix}.LayerNorm.bias"])
        if bias is None:
            return self.node("LayerNormalization", [*inputs, scale, shift], output, axis=-1, epsilon=LAYER_NORM_EPSILON)
        added = self.constant(f"{output}.bias", weights[bias])
        return self.node(
            "SkipLayerNormalization",
            [*inputs, scale, shift, added],
            output,
            domain=MICROSOFT,
            epsilon=LAYER_NORM_EPSILON,
        )

    def _float(self, name: str, value: float) -> str:
        return self.constant(name, np.array(value, np.float32))

    def _middle(self) -> str:
        return self.constant("middle", np.array(128, np.uint8))

    def _axis(self, value: int) -> str:
        return self.constant(f"axis{value}", np.array([value], np.int64))

    def embed(self, weights: Weights) -> str:
        """Rows of the words, one scale each (a shared one would cost the rare words their precision), and positions."""
        words = weights["embeddings.word_embeddings.weight"]
        if self.quantised:
            scale = np.maximum(np.abs(words).max(axis=1, keepdims=True), SMALLEST_ROW) / ROW_MAX
            self.constant("words", np.round(words / scale).astype(np.int8))
            self.constant("words.scale", scale.astype(np.float32))
            self.node("Gather", ["words", "input_ids"], "word.bytes")
            self.node("Cast", ["word.bytes"], "word.floats", to=TensorProto.FLOAT)
            self.node("Gather", ["words.scale", "input_ids"], "word.scale")
            self.node("Mul", ["word.floats", "word.scale"], "word")
        else:
            self.node("Gather", [self.constant("words", words), "input_ids"], "word")
        # every token is of the first kind, so that its vector is folded into the positions
        kind = weights["embeddings.token_type_embeddings.weight"][0]
        self.constant("positions", weights["embeddings.position_embeddings.weight"] + kind)
        self.node("Shape", ["input_ids"], "shape")
        self.node("Slice", ["shape", self._axis(1), self._axis(2), self._axis(0)], "length")
        # a Gather over a Range is rewritten by onnxruntime 1.31 into a Slice that it then refuses
        self.node("Slice", ["positions", self._axis(0), "length", self._axis(0)], "position")
        self.node("Add", ["word", "position"], "embedded")
        return self.normalise(["embedded"], weights, "embeddings", "layer0", None)

    def layer(self, weights: Weights, number: int, rows: str, heads: int) -> str:
        prefix, name = f"encoder.layer.{number}", f"layer{number + 1}"
        parts = [f"{prefix}.attention.self.{part}" for part in ("query", "key", "value")]
        joined = np.concatenate([weights[f"{part}.weight"].T for part in parts], axis=1)
        projected = self.linear(rows, joined, f"{name}.projected")
        split = [f"{name}.query", f"{name}.key", f"{name}.value"]
        self.nodes.append(helper.make_node("Split", [projected], split, axis=-1, num_outputs=3))
        self.constant(f"{name}.heads.bias", np.concatenate([weights[f"{part}.bias"] for part in parts]))
        attended = self.node(
            "MultiHeadAttention",
            [*split, f"{name}.heads.bias"],
            f"{name}.attended",
            domain=MICROSOFT,
            num_heads=heads,
        )
        output = f"{prefix}.attention.output"
        mixed = self.linear(attended, weights[f"{output}.dense.weight"].T, f"{name}.mixed")
        middle = self.normalise([mixed, rows], weights, output, f"{name}.middle", f"{output}.dense.bias")
        wide = self.linear(middle, weights[f"{prefix}.intermediate.dense.weight"].T, f"{name}.wide")
        self.constant(f"{name}.wide.bias", weights[f"{prefix}.intermediate.dense.bias"])
        active = self.node("BiasGelu", [wide, f"{name}.wide.bias"], f"{name}.active", domain=MICROSOFT)
        narrow = self.linear(active, weights[f"{prefix}.output.dense.weight"].T, f"{name}.narrow")
        return self.normalise([narrow, middle], weights, f"{prefix}.output", name, f"{prefix}.output.dense.bias")

    def pool(self, rows: str) -> str:
        """The mean of the rows, of length 1."""
        self.node("ReduceMean", [rows, self._axis(1)], "mean", keepdims=0)
        self.node("ReduceL2", ["mean", self._axis(-1)], "length_of_mean", keepdims=1)
        return self.node("Div", ["mean", "length_of_mean"], "vector")


def write_graph(weights: Weights, path: Path, *, heads: int, quantised: bool) -> None:
    """Write a model with input `input_ids` int64 (1, tokens) and output `vector` float32 (1, dimension)."""
    graph = Graph(quantised=quantised)
    rows = graph.embed(weights)
    layers = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.layer."))
    for number in range(layers):
        rows = graph.layer(weights, number, rows, heads)
    vector = graph.pool(rows)
    dimension = weights["embeddings.LayerNorm.weight"].shape[0]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "encoder",
            [helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "tokens"])],
            [helper.make_tensor_value_info(vector, TensorProto.FLOAT, [1, dimension])],
            list(graph.constants.values()),
        ),
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(MICROSOFT, 1)],
        ir_version=9,
    )
    onnx.save(model, str(path))
