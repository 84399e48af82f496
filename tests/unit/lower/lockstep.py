"""Runs the cut programs of all ranks in lockstep, weights in memory: the smallest executor there can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from mm2c.config import PAGE, Mapping, ModelConfig
from mm2c.lower.cut import cut
from mm2c.lower.program import LoweredRank, Program
from mm2c.passes.shard import shard
from mm2c.weights.rank_graph import RankGraph
from mm2c_runtime.weights.evaluate import TensorReader, evaluate

Array = np.ndarray[Any, Any]


def programs(
    graph: RankGraph, config: ModelConfig, tp: int, ep: int, lower: Callable[[RankGraph], LoweredRank]
) -> list[Program]:
    return [cut(lower(shard(graph, config, Mapping(tp, ep, rank=rank)))) for rank in range(tp)]


class Lockstep:
    """``step`` feeds every rank and returns the logits of rank 0; all ranks must agree on them."""

    def __init__(self, ranks: Sequence[Program], reader: TensorReader, config: ModelConfig) -> None:
        self.ranks, self.config = ranks, config
        self.sessions = [[_session(segment, p, reader) for segment in p.segments] for p in ranks]
        self.caches: list[dict[str, Array]] = []

    def reset(self, rows: int, capacity: int) -> None:
        shape = (rows, self.config.kv_heads // len(self.ranks), capacity, self.config.head_dim)
        names = [f"{x}_cache.{i}" for i in range(self.config.layers) for x in "kv"]
        self.caches = [{name: np.zeros(shape, np.float32) for name in names} for _ in self.ranks]

    def step(self, ids: Array, past: Sequence[int], new: Sequence[int], first_row: int = 0) -> Array:
        rows = slice(first_row, first_row + len(ids))
        lengths = {"past_len": np.asarray(past, np.int32), "new_len": np.asarray(new, np.int32)}
        views = [self._views(cache, rows) for cache in self.caches]
        env: list[dict[str, Any]] = [
            {"input_ids": ids.astype(np.int64), **lengths, **self._more(rows), **view} for view in views
        ]
        collectives = self.ranks[0].collectives
        for i in range(len(collectives) + 1):
            for rank, sessions in enumerate(self.sessions):
                self._run(sessions[i], env[rank], self.ranks[rank].in_place)
            if i < len(collectives):
                record = collectives[i]
                parts = [values[record.input] for values in env]
                joined = sum(parts) if record.kind == "all_reduce" else np.concatenate(parts, record.axis)
                for values in env:
                    values[record.output] = joined
        if not self.ranks[0].in_place:
            for view, values in zip(views, env, strict=True):
                for name, part in view.items():
                    part[...] = values[name.replace("_cache", "_cache_out")]
        for values in env[1:]:
            np.testing.assert_array_equal(values["logits"], env[0]["logits"])
        return np.array(env[0]["logits"])

    def _views(self, cache: dict[str, Array], rows: slice) -> dict[str, Array]:
        """What of a rank's caches the step reads and writes."""
        return {name: whole[rows] for name, whole in cache.items()}

    def _more(self, rows: slice) -> dict[str, Array]:
        """Further inputs of the step."""
        return {}

    def _run(self, session: ort.InferenceSession, env: dict[str, Any], in_place: bool) -> None:
        binding = session.io_binding()
        bound = {}
        for value in session.get_inputs():
            bound[value.name] = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(env[value.name]))
            if "_cache." in value.name and in_place:
                # a view of the rows: the kernel writes into the cache itself
                assert env[value.name].flags.c_contiguous
            binding.bind_ortvalue_input(value.name, bound[value.name])
        names = [value.name for value in session.get_outputs()]
        for name in names:
            source = name.replace("_cache_out", "_cache")
            if in_place and source != name:
                binding.bind_ortvalue_output(name, bound[source])
            else:
                binding.bind_output(name)
        session.run_with_iobinding(binding)
        for name, value in zip(names, binding.get_outputs(), strict=True):
            env[name] = value.numpy()
            source = name.replace("_cache_out", "_cache")
            if in_place and source != name:
                env[source][...] = env[name]


class PagedLockstep(Lockstep):
    """The same for programs over pages: a row's pages lie scattered in one pool, and the table's rest is junk."""

    def reset(self, rows: int, capacity: int) -> None:
        each = -(-capacity // PAGE)
        pages = rows * each + 3
        order = np.random.default_rng(1).permutation(pages)[: rows * each].astype(np.int32)
        self.table = np.concatenate([order.reshape(rows, each), np.full((rows, 2), -7, np.int32)], 1)
        shape = (pages, PAGE, self.config.kv_heads // len(self.ranks), self.config.head_dim)
        names = [f"{x}_cache.{i}" for i in range(self.config.layers) for x in "kv"]
        self.caches = [{name: np.zeros(shape, np.float32) for name in names} for _ in self.ranks]

    def _views(self, cache: dict[str, Array], rows: slice) -> dict[str, Array]:
        return dict(cache)

    def _more(self, rows: slice) -> dict[str, Array]:
        return {"block_table": self.table[rows]}


def _session(segment: ir.Model, program: Program, reader: TensorReader) -> ort.InferenceSession:
    model = segment.clone()
    for name, value in model.graph.initializers.items():
        if value.const_value is None:
            value.const_value = ir.tensor(
                np.ascontiguousarray(evaluate(program.recipes[name], reader)), name=name
            )
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
