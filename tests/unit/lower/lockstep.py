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
from mm2c_runtime.manifest import Collective
from mm2c_runtime.weights.evaluate import TensorReader, evaluate

Array = np.ndarray[Any, Any]


def programs(
    graph: RankGraph, config: ModelConfig, tp: int, ep: int, lower: Callable[[RankGraph], LoweredRank]
) -> list[Program]:
    return programs_of(graph, config, Mapping(tp, ep), lower)


def programs_of(
    graph: RankGraph, config: ModelConfig, mapping: Mapping, lower: Callable[[RankGraph], LoweredRank]
) -> list[Program]:
    return [cut(lower(shard(graph, config, mapping.at(rank)))) for rank in range(mapping.ranks)]


def joined(record: Collective, parts: dict[int, Array]) -> dict[int, Array]:
    """What each rank gets, from what each gives."""
    found: dict[int, Array] = {}
    for group in record.groups:
        given = [parts[rank] for rank in group]
        if record.kind == "all_gather":
            assert len({part.shape for part in given}) == 1  # as every library of collectives asks
            found.update(dict.fromkeys(group, np.concatenate(given, record.axis)))
            continue
        total = sum(given[1:], start=given[0])
        if record.kind == "reduce_scatter":
            assert total.shape[record.axis] % len(group) == 0
            found.update(zip(group, np.split(total, len(group), record.axis), strict=True))
        else:
            found.update(dict.fromkeys(group, total))
    assert found.keys() == parts.keys()
    return found


class Lockstep:
    """``step`` feeds every rank and returns the logits of rank 0; all ranks must agree on them. ``sent`` has name,
    kind and size in bytes of what a rank gave to each collective of the last step."""

    def __init__(
        self, ranks: Sequence[Program], reader: TensorReader, config: ModelConfig, kv_heads: int = 0
    ) -> None:
        self.ranks, self.config = ranks, config
        self.kv_heads = kv_heads or max(config.kv_heads // len(ranks), 1)
        self.sessions = [[_session(segment, p, reader) for segment in p.segments] for p in ranks]
        self.caches: list[dict[str, Array]] = []
        self.sent: list[tuple[str, str, int]] = []

    def reset(self, rows: int, capacity: int) -> None:
        shape = (rows, self.kv_heads, capacity, self.config.head_dim)
        names = [f"{x}_cache.{i}" for i in range(self.config.layers) for x in "kv"]
        self.caches = [{name: np.zeros(shape, np.float32) for name in names} for _ in self.ranks]

    def step(self, ids: Array, past: Sequence[int], new: Sequence[int], first_row: int = 0) -> Array:
        rows = slice(first_row, first_row + len(ids))
        given = {"input_ids": ids.astype(np.int64), **_lengths(past, new), **self._more(rows)}
        found = self._run_all([given] * len(self.ranks), [rows] * len(self.ranks))
        for logits in found[1:]:
            np.testing.assert_array_equal(logits, found[0])
        return found[0]

    def _run_all(self, given: list[dict[str, Any]], rows: list[slice]) -> list[Array]:
        """Every rank's logits of one step, from its inputs and the cache rows that they are for."""
        views = [self._views(cache, some) for cache, some in zip(self.caches, rows, strict=True)]
        env: list[dict[str, Any]] = [{**inputs, **view} for inputs, view in zip(given, views, strict=True)]
        collectives = self.ranks[0].collectives
        self.sent = []
        for i in range(len(collectives) + 1):
            for rank, sessions in enumerate(self.sessions):
                self._run(sessions[i], env[rank], self.ranks[rank].in_place)
            if i < len(collectives):
                record = collectives[i]
                parts = {rank: values[record.input] for rank, values in enumerate(env)}
                self.sent.append((record.output, record.kind, parts[0].nbytes))
                for rank, value in joined(record, parts).items():
                    env[rank][record.output] = value
        if not self.ranks[0].in_place:
            for view, values in zip(views, env, strict=True):
                for name, part in view.items():
                    part[...] = values[name.replace("_cache", "_cache_out")]
        return [np.array(values["logits"]) for values in env]

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
        shape = (pages, PAGE, self.kv_heads, self.config.head_dim)
        names = [f"{x}_cache.{i}" for i in range(self.config.layers) for x in "kv"]
        self.caches = [{name: np.zeros(shape, np.float32) for name in names} for _ in self.ranks]

    def _views(self, cache: dict[str, Array], rows: slice) -> dict[str, Array]:
        return dict(cache)

    def _more(self, rows: slice) -> dict[str, Array]:
        return {"block_table": self.table[rows]}


Batch = tuple[Array, Sequence[int], Sequence[int], int]  # input_ids, past_len, new_len, first cache row


class Groups:
    """Attention-DP over a lockstep of its ranks: ``step`` takes one batch, or None, for each attention group.

    The cache's last row belongs to nobody: a group without a batch runs one token there.
    """

    def __init__(self, run: Lockstep, mapping: Mapping) -> None:
        self.run, self.mapping = run, mapping
        run.kv_heads = mapping.kv_heads_of_rank(run.config.kv_heads)
        self.rows = 0

    def reset(self, rows: int, capacity: int) -> None:
        self.rows = rows
        self.run.reset(rows + 1, capacity)

    def step(self, batches: Sequence[Batch | None], spare: int = 0) -> list[Array | None]:
        """Logits of each group's batch. ``spare``: tokens of the exchange beyond what the largest batch needs."""
        nothing: Batch = (np.zeros((1, 1), np.int64), [0], [1], self.rows)
        filled = [nothing if batch is None else batch for batch in batches]
        tokens = np.asarray([max(ids.size for ids, *_ in filled) + spare], np.int64)
        given, places = [], []
        for ids, past, new, first in filled:
            rows = slice(first, first + len(ids))
            lengths = _lengths(past, new)
            inputs = {"input_ids": ids.astype(np.int64), **lengths, **self.run._more(rows)}
            given += [{**inputs, "step_tokens": tokens}] * self.mapping.tp
            places += [rows] * self.mapping.tp
        logits = self.run._run_all(given, places)
        found: list[Array | None] = []
        for group, batch in zip(self.mapping.tp_groups, batches, strict=True):
            for rank in group[1:]:
                np.testing.assert_array_equal(logits[rank], logits[group[0]])
            found.append(None if batch is None else logits[group[0]])
        return found


def _lengths(past: Sequence[int], new: Sequence[int]) -> dict[str, Array]:
    return {"past_len": np.asarray(past, np.int32), "new_len": np.asarray(new, np.int32)}


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
