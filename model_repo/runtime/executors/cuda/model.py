"""A rank program, ready to run: every node bound to what computes it, weights and constants in place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.cuda import shapes, standard
from mm2c_runtime.executors.cuda.collectives import Collectives, node_groups
from mm2c_runtime.executors.cuda.dense import dense_linear
from mm2c_runtime.executors.cuda.dtypes import TORCH
from mm2c_runtime.executors.cuda.ops import Ops
from mm2c_runtime.executors.cuda.program import Constant, Node, Program
from mm2c_runtime.executors.cuda.standard import Value

_RUNTIME = "serve the bundle with the runtime that it carries"
Compute = Callable[[list[Any]], Any]


@dataclass(frozen=True, slots=True)
class _Step:
    """``last``: the slots that nothing reads afterwards."""

    compute: Compute
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    last: tuple[int, ...]


class RankModel:
    """What depends on weights and constants alone is computed here, once.

    Raises BundleError for a node that this runtime cannot run.
    """

    def __init__(
        self,
        program: Program,
        weights: Mapping[str, Tensor],
        ops: Ops,
        collectives: Collectives,
        device: torch.device,
    ) -> None:
        self._program, self._ops, self._collectives, self._device = program, ops, collectives, device
        self._readers = Counter(name for node in program.nodes for name in node.inputs)
        known: dict[str, Value | None] = {
            name: self._constant(value) for name, value in program.constants.items()
        }
        known.update(weights)
        known[""] = None  # an input that a node does without
        host = {name for name, value in known.items() if not isinstance(value, Tensor)}
        host |= {"step_tokens"}
        self._make_groups()
        nodes: list[tuple[Node, Compute]] = []
        for node in program.nodes:
            try:
                compute = self._bound(node, host)
            except KeyError as error:
                raise BundleError(
                    f"node {node.name} ({node.op}): attribute or value {error}", remedy=_RUNTIME
                ) from None
            if node.domain == "" and all(name in known for name in node.inputs):
                known.update(zip(node.outputs, self._now(node, compute, known), strict=True))
            else:
                nodes.append((node, compute))
        self._lay_out(nodes, known)

    def _lay_out(self, nodes: list[tuple[Node, Compute]], known: Mapping[str, Value | None]) -> None:
        """Give every value its slot, and each slot its last reader."""
        program = self._program
        names = [*program.inputs]
        names += {name: None for node, _ in nodes for name in node.inputs if name in known}
        names += [name for node, _ in nodes for name in node.outputs]
        place = {name: slot for slot, name in enumerate(names)}
        last = {
            name: index for index, (node, _) in enumerate(nodes) for name in (*node.inputs, *node.outputs)
        }
        kept = {*program.inputs, *program.outputs, *known}
        self._slots: list[Any] = [known.get(name) for name in names]
        self._steps = [
            _Step(
                compute,
                tuple(place[name] for name in node.inputs),
                tuple(place[name] for name in node.outputs),
                tuple(
                    place[name]
                    for name in {*node.inputs, *node.outputs}
                    if last[name] == index and name not in kept
                ),
            )
            for index, (node, compute) in enumerate(nodes)
        ]
        self._logits = place["logits"]
        self._caches = [
            (place[name], place[name.replace("_cache.", "_cache_out.")]) for name in program.caches
        ]

    @property
    def capturable(self) -> bool:
        return True

    def most_rows(self, width: int) -> int:
        """As many as there are tokens of the largest step."""
        program = self._program
        return max(program.prefill_chunk, program.max_rows) // width

    def started(self) -> None:
        pass

    def close(self) -> None:
        self._slots.clear()

    def run(
        self,
        input_ids: Tensor,
        past_len: Tensor,
        new_len: Tensor,
        block_table: Tensor,
        caches: Sequence[Tensor],
        step_tokens: int = 0,
    ) -> Tensor:
        """Enqueue a step: input_ids i64[B, S], past_len and new_len i32[B], block_table i32[B, M], caches in the
        program's order, written in place. ``step_tokens``: B · S of the attention group that has most of them,
        the same on all ranks, where groups exchange tokens. Logits f32[B, V] or [B, S, V]."""
        slots = self._slots.copy()
        together = [np.array([step_tokens], np.int64)] if self._program.together else []
        inputs = [input_ids, past_len, new_len, block_table, *together, *caches]
        slots[: len(inputs)] = inputs
        for step in self._steps:
            found = step.compute([slots[slot] for slot in step.inputs])
            for slot, value in zip(step.outputs, found, strict=True):
                slots[slot] = value
            for slot in step.last:
                slots[slot] = None
        for given, made in self._caches:
            if slots[given] is not slots[made]:
                raise RuntimeError("an op did not write its cache in place")
        logits: Tensor = slots[self._logits]
        return logits

    def _bound(self, node: Node, host: set[str]) -> Compute:
        if node.domain == "":
            return self._standard(node, host)
        if node.op == "DistCollective":
            return self._collective(node)
        if node.op == "M2DenseLinear":
            dtype = TORCH[node.attributes["out_dtype"]]
            return lambda inputs: [dense_linear(inputs[0], inputs[1], dtype)]
        run = self._ops.run
        return lambda inputs: run(node, inputs)

    def _standard(self, node: Node, host: set[str]) -> Compute:
        """On the host where all inputs are there; what it makes stays there."""
        here = all(name in host for name in node.inputs)
        function: Callable[..., Any] | None = (shapes if here else standard).OPS.get(node.op)
        if function is None:
            raise BundleError(
                f"node {node.name}: this runtime cannot run {node.op}{' on host values' if here else ''}",
                remedy=_RUNTIME,
            )
        if here or node.op == "Shape":
            host.update(node.outputs)
        attributes = node.attributes
        if node.op == "Split":
            return lambda inputs: function(attributes, *inputs)
        return lambda inputs: [function(attributes, *inputs)]

    def _now(self, node: Node, compute: Compute, known: Mapping[str, Value | None]) -> list[Value]:
        try:
            return list(compute([known[name] for name in node.inputs]))
        except (ValueError, RuntimeError, TypeError, KeyError) as error:
            raise BundleError(f"node {node.name} cannot be computed: {error}") from error

    def _collective(self, node: Node) -> Compute:
        collectives, attributes = self._collectives, node.attributes
        group = next(
            (g for g in _groups_of(node) if collectives.rank in g),
            (),
        )
        if len(group) <= 1:
            return lambda inputs: inputs
        if attributes["collective_operation"] == "all_gather":
            axis = attributes["axis"]
            return lambda inputs: [collectives.all_gather(inputs[0], axis, group)]
        if attributes["collective_operation"] == "reduce_scatter":
            axis = attributes["axis"]
            return lambda inputs: [collectives.reduce_scatter(inputs[0], axis, group)]
        alone = self._readers[node.inputs[0]] == 1

        def reduce(inputs: list[Any]) -> list[Tensor]:
            x: Tensor = inputs[0].contiguous() if alone else inputs[0].clone()
            collectives.all_reduce(x, group)
            return [x]

        return reduce

    def _make_groups(self) -> None:
        nodes = [node for node in self._program.nodes if node.op == "DistCollective"]
        found = {group: None for node in nodes for group in _groups_of(node) if len(group) > 1}
        ranks = max((rank for group in found for rank in group), default=0) + 1
        if max(ranks, self._program.ranks) != self._collectives.ranks:
            raise BundleError(
                f"the program is for {max(ranks, self._program.ranks)} ranks, "
                f"{self._collectives.ranks} run it",
                remedy="serve it with a GPU for each rank",
            )
        self._collectives.make_groups(list(found))

    def _constant(self, constant: Constant) -> Value:
        kind = constant.type
        if kind.dtype in shapes.NUMPY:
            return np.array(constant.data, shapes.NUMPY[kind.dtype]).reshape(kind.shape)
        return (
            torch.tensor(constant.data, dtype=torch.float32)
            .to(TORCH[kind.dtype])
            .view(kind.shape)
            .to(self._device)
        )


def _groups_of(node: Node) -> list[tuple[int, ...]]:
    return node_groups(node.attributes["groups"], node.attributes["group_size"])
