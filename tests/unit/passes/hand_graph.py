"""A dialect graph written by hand to the graph contract, for tests that should not need torch."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from mm2c.checkpoint.recipes import recipes_for_config
from mm2c.config import ModelConfig, Rope, WeightFormats
from mm2c.weights.rank_graph import RankGraph

_TYPES = {"f32": ir.DataType.FLOAT, "bf16": ir.DataType.BFLOAT16, "e4m3": ir.DataType.FLOAT8E4M3FN}


def model_config(**changes: Any) -> ModelConfig:
    """A small model that tp 1, 2, 4 and ep 2, 4 can cut."""
    values: dict[str, Any] = {
        "layers": 2, "hidden": 64, "heads": 8, "kv_heads": 4, "head_dim": 32, "intermediate": 64, "experts":
        8, "top_k": 3, "vocab": 96, "eps": 1e-6, "context": 64, "rope": Rope(1e4, 16), "bos": 1, "eos": (2,),
    }  # fmt: skip
    return ModelConfig(**{**values, **changes})


def fp8_everywhere(config: ModelConfig) -> WeightFormats:
    modules = [f"model.layers.{i}.self_attn.{p}_proj" for i in range(config.layers) for p in "qkvo"]
    return WeightFormats(
        fp8=frozenset(modules + [f"model.layers.{i}.mlp.experts" for i in range(config.layers)])
    )


class _Graph:
    def __init__(self, config: ModelConfig, formats: WeightFormats) -> None:
        self.config = config
        self.recipes = recipes_for_config(config, formats)
        self.nodes: list[ir.Node] = []
        self.tensors: dict[str, ir.Value] = {}

    def weight(self, name: str) -> ir.Value:
        recipe = self.recipes[name]
        value = ir.Value(name=name, shape=ir.Shape(recipe.shape), type=ir.TensorType(_TYPES[recipe.dtype]))
        return self.tensors.setdefault(name, value)

    def constant(self, name: str, data: Any) -> ir.Value:
        tensor = ir.tensor(np.asarray(data), name=name)
        value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        return self.tensors.setdefault(name, value)

    def op(
        self,
        op: str,
        *inputs: ir.Value,
        domain: str = "",
        outputs: int = 1,
        kind: str = "FLOAT",
        **attributes: Any,
    ) -> Any:
        node = ir.node(
            op, inputs, attributes, domain=domain, num_outputs=outputs, name=f"{op}_{len(self.nodes)}"
        )
        for i, value in enumerate(node.outputs):
            value.name = f"{op}_{len(self.nodes)}_{i}"
            value.type = ir.TensorType(ir.DataType[kind])
        self.nodes.append(node)
        return node.outputs[0] if outputs == 1 else node.outputs

    def f32(self, name: str) -> ir.Value:
        value = self.weight(name)
        return value if value.dtype == ir.DataType.FLOAT else self.op("Cast", value, to=ir.DataType.FLOAT)

    def linear(self, x: ir.Value, module: str) -> Any:
        if f"{module}.weight_scale_inv" in self.recipes:
            weights = self.weight(f"{module}.weight"), self.weight(f"{module}.weight_scale_inv")
            return self.op("M2Fp8Linear", x, *weights, domain="mm2c", block_n=128, block_k=128)
        return self.op("MatMul", x, self.op("Transpose", self.f32(f"{module}.weight"), perm=[1, 0]))

    def norm(self, x: ir.Value, name: str) -> Any:
        return self.op("RMSNormalization", x, self.f32(name), axis=-1, epsilon=self.config.eps)


def hand_graph(config: ModelConfig, formats: WeightFormats | None = None) -> RankGraph:
    """The whole model's graph, last-token logits."""
    g = _Graph(config, formats or WeightFormats())

    def given(name: str, kind: ir.DataType, *shape: str | int) -> ir.Value:
        return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(kind))

    ids = given("input_ids", ir.DataType.INT64, "batch", "seq")
    lengths = [given(n, ir.DataType.INT32, "batch") for n in ("past_len", "new_len")]
    cache_shape = ("batch", config.kv_heads, "kv_len", config.head_dim)
    inputs, caches = [ids, *lengths], []
    one = g.constant("one", np.asarray(1, np.int32))
    last = g.op("Cast", g.op("Sub", lengths[1], one, kind="INT32"), to=ir.DataType.INT64, kind="INT64")
    index = g.op("Unsqueeze", last, g.constant("axis_1", np.asarray([1])), kind="INT64")
    width = g.constant("width", np.asarray([config.hidden]))
    tokens = g.op("Concat", g.op("Shape", ids, kind="INT64"), width, axis=0, kind="INT64")
    embedding = g.weight("model.embed_tokens.weight")
    h = g.op("Gather", embedding, ids, axis=0)
    if embedding.dtype != ir.DataType.FLOAT:
        h.type = ir.TensorType(embedding.dtype)
        h = g.op("Cast", h, to=ir.DataType.FLOAT)
    for i in range(config.layers):
        layer = f"model.layers.{i}"
        kv = [given(f"{x}_cache.{i}", ir.DataType.FLOAT, *cache_shape) for x in "kv"]
        inputs += kv
        x = g.norm(h, f"{layer}.input_layernorm.weight")
        q, k, v = (g.linear(x, f"{layer}.self_attn.{p}_proj") for p in "qkv")
        sums = g.op("M2QkSumSquares", q, k, domain="mm2c")
        norms = [g.f32(f"{layer}.self_attn.{p}_norm.weight") for p in "qk"]
        tables = [g.weight("rope.cos"), g.weight("rope.sin")]
        out, *written = g.op(
            "M2Attention", q, k, v, sums, *norms, *tables, *lengths, *kv, domain="mm2c", outputs=3,
            heads=config.heads, kv_heads=config.kv_heads, head_dim=config.head_dim,
            rotary_dim=config.rope.rotary_dim, eps=config.eps, scale=1 / math.sqrt(config.head_dim),
            q_total=config.q_width, k_total=config.kv_width,
        )  # fmt: skip
        for value, name in zip(written, "kv", strict=True):
            value.name, value.shape = f"{name}_cache_out.{i}", ir.Shape(cache_shape)
        caches += written
        h = g.op("Add", h, g.linear(out, f"{layer}.self_attn.o_proj"))
        x = g.norm(h, f"{layer}.post_attention_layernorm.weight")
        flat = g.op("Reshape", x, g.constant("rows", np.asarray([-1, config.hidden])))
        logits = g.op("MatMul", flat, g.op("Transpose", g.f32(f"{layer}.mlp.gate.weight"), perm=[1, 0]))
        bias = g.f32(f"{layer}.mlp.e_score_correction_bias")
        bias.shape = ir.Shape([config.experts])
        weights, chosen = g.op("M2MoeRouting", logits, bias, domain="mm2c", outputs=2, top_k=config.top_k)
        chosen.type = ir.TensorType(ir.DataType.INT32)
        stem = f"{layer}.mlp.experts"
        if f"{stem}.down_proj_scale_inv" in g.recipes:
            names = [f"{stem}.{n}{s}" for n in ("gate_up_proj", "down_proj") for s in ("", "_scale_inv")]
            op, blocks = "M2MoeExpertsFp8", {"block_n": 128, "block_k": 128}
        else:
            names, op, blocks = [f"{stem}.gate_up_proj", f"{stem}.down_proj"], "M2MoeExpertsBf16", {}
        y = g.op(op, flat, weights, chosen, *map(g.weight, names), domain="mm2c", first_expert=0, **blocks)
        h = g.op("Add", h, g.op("Reshape", y, tokens))
    h = g.op("GatherND", h, index, batch_dims=1)
    logits = g.linear(g.norm(h, "model.norm.weight"), "lm_head")
    logits.name, logits.shape = "logits", ir.Shape(["batch", config.vocab])
    graph = ir.Graph(
        inputs, [logits, *caches], nodes=g.nodes, initializers=list(g.tensors.values()),
        opset_imports={"": 23, "mm2c": 1}, name="hand",
    )  # fmt: skip
    return RankGraph(ir.Model(graph, ir_version=10, producer_name="mm2c"), g.recipes)


class RandomCheckpoint:
    """A reader that makes up every checkpoint tensor from its key; activations stay near 1."""

    def __init__(self, recipes: dict[str, Any], seed: int = 0) -> None:
        self._sources: dict[str, Any] = {}
        self._seed = seed
        for recipe in recipes.values():
            self._collect(recipe)
        self._made: dict[str, np.ndarray[Any, Any]] = {}

    def _collect(self, recipe: Any) -> None:
        if hasattr(recipe, "key"):
            self._sources[recipe.key] = recipe
        for part in getattr(recipe, "parts", ()):
            self._collect(part)

    def read_rows(self, key: str, start: int, stop: int) -> np.ndarray[Any, Any]:
        if key not in self._made:
            self._made[key] = self._make(key)
        return self._made[key][start:stop]

    def _make(self, key: str) -> np.ndarray[Any, Any]:
        source = self._sources[key]
        rng = np.random.default_rng([self._seed, *key.encode()])
        values = rng.standard_normal(source.shape).astype(np.float32)
        if "norm" in key:
            values = 1 + 0.2 * values
        elif key.endswith("_scale_inv"):
            values = (0.5 + rng.random(source.shape)).astype(np.float32) * 0.02
        elif source.dtype == "e4m3":
            return (values * 4).astype(ml_dtypes.float8_e4m3fn)
        elif key.endswith("e_score_correction_bias"):
            values = 0.2 * values
        elif "embed" not in key:
            values = values / math.sqrt(source.shape[-1])
        kinds = {"bf16": ml_dtypes.bfloat16, "f32": np.float32, "f16": np.float16}
        return values.astype(kinds[source.dtype])
