"""A cuda bundle's layers, without a GPU: every rank's nodes of a layer by the dialect's references, in lockstep.

Each row is there twice: fed with the reference's hidden states, and on its own chain.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mm2c.verify.expert_stacks import KEPT, ExpertCache
from mm2c.verify.layer_engine import Computed, HeadOutput, LayerOutput
from mm2c.verify.layer_slices import Boundary, add_parts, find_slices, last_readers
from mm2c.verify.program_nodes import RankNodes
from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.cuda.collectives import node_groups
from mm2c_runtime.executors.cuda.dtypes import TORCH
from mm2c_runtime.executors.cuda.program import Node, read_program

if TYPE_CHECKING:
    from mm2c.verify.script import Piece, Script, Step
    from mm2c.verify.tensor_source import TensorSource
    from mm2c_runtime.manifest import Manifest

PAGE = 8  # tokens: so small that short rows have several
_KEPT = ("input_ids", "past_len", "new_len", "block_table", "step_tokens", "logits")
Values = dict[str, Any]


class ProgramLayers:
    """``LayerEngine`` of a cuda bundle. ``wide``: all in fp32, else as stored (bf16 activations). ``memory``: bytes of
    experts that are kept while a layer runs.

    Raises BundleError where the programs of the ranks are not alike, or hold a node that is not known.
    """

    def __init__(
        self,
        bundle: Path,
        manifest: Manifest,
        sources: Sequence[TensorSource],
        script: Script,
        *,
        wide: bool,
        memory: int = KEPT,
    ) -> None:
        assert manifest.cuda is not None
        self.dtype = "f32" if wide else "bf16"
        self.name = f"cuda program, {'fp32' if wide else 'as stored'}"
        self._script, self._layers, self._where = script, manifest.model.layers, str(bundle)
        self._experts = ExpertCache(memory)
        programs = [read_program(bundle / rank.program) for rank in manifest.cuda.ranks]
        self._ranks = [
            RankNodes(program, source, self._experts, wide=wide)
            for program, source in zip(programs, sources, strict=True)
        ]
        self._nodes = [program.nodes for program in programs]
        self._check_alike()
        self._slices = [find_slices(p.nodes, self._layers, f"rank {p.rank}, cuda.json") for p in programs]
        self._last = [last_readers(nodes) for nodes in self._nodes]
        self._kv = manifest.cuda.ranks[0].kv
        self._cache_dtype = torch.float32 if wide else TORCH["e4m3" if self._kv.dtype == "fp8" else "bf16"]
        self._tp, self._vocab = manifest.mapping.tp, manifest.model.vocab
        self._local_head = programs[0].head is not None
        self._reached = 0  # the layer that the chain has come to
        self._values = [[self._inputs(step, rank) for rank in range(len(programs))] for step in script.steps]

    def embed(self) -> LayerOutput:
        with torch.inference_mode(), self._read_once():
            output = LayerOutput()
            for step, values in zip(self._script.steps, self._values, strict=True):
                self._run(values, 0, self._slices[0].inputs[0].at)
                output.chain += self._hidden(step, values, 0)[1]
        return output

    def run_layer(self, layer: int, hidden: list[Tensor]) -> LayerOutput:
        output = LayerOutput()
        begin, end = self._slices[0].span(layer)
        with torch.inference_mode(), self._read_once():
            caches = [self._caches(layer) for _ in self._ranks]
            for step, values in zip(self._script.steps, self._values, strict=True):
                self._carry(values, layer)
                self._feed(step, values, layer, hidden)
                for own, cache in zip(values, caches, strict=True):
                    own.update(cache)
                middle = self._slices[0].middles[layer]
                self._run(values, begin, middle.at)
                output.attention += self._parts(step, values, [s.middles[layer] for s in self._slices])[0]
                self._run(values, middle.at, end)
                fed, chain = self._hidden(step, values, layer + 1)
                output.fed += fed
                output.chain += chain
                for own, cache in zip(values, caches, strict=True):
                    for name in (*cache, *(c.replace("_cache.", "_cache_out.") for c in cache)):
                        own.pop(name, None)
        self._reached = layer + 1
        return output

    def logits(self, hidden: list[Tensor]) -> HeadOutput:
        output = HeadOutput()
        with torch.inference_mode(), self._read_once():
            for step, values in zip(self._script.steps, self._values, strict=True):
                self._carry(values, self._layers)
                self._feed(step, values, self._layers, hidden)
                self._run(values, self._slices[0].end.at, len(self._nodes[0]))
                for group, pieces in enumerate(step.groups):
                    logits = self._whole_logits(values, group)
                    for index, piece in enumerate(pieces):
                        for found, place in ((output.fed, index), (output.chain, len(pieces) + index)):
                            row = logits[place]
                            last = row if row.ndim == 1 else row[piece.stop - piece.start - 1]
                            found[piece] = last.numpy().copy()
        return output

    def _whole_logits(self, values: list[Values], group: int) -> Tensor:
        """Of the whole vocabulary, where each rank of the group may have its own part alone."""
        first = group * self._tp
        ranks = range(first, first + (self._tp if self._local_head else 1))
        parts: list[Tensor] = [values[rank]["logits"].float() for rank in ranks]
        return torch.cat(parts, -1)[..., : self._vocab]

    def close(self) -> None:
        self._values = []
        self._experts.clear()

    @contextmanager
    def _read_once(self) -> Iterator[None]:
        """Weights stay for the steps of one layer."""
        try:
            yield
        finally:
            for rank in self._ranks:
                rank.forget()
            self._experts.clear()

    def _check_alike(self) -> None:
        for rank, nodes in enumerate(self._nodes[1:], 1):
            if [(n.op, n.name) for n in nodes] != [(n.op, n.name) for n in self._nodes[0]]:
                raise BundleError(
                    f"rank {rank}: its program has other nodes than rank 0's", where=self._where
                )

    def _pages(self) -> int:
        return -(-self._script.longest // PAGE)

    def _table(self, place: int, copies: int) -> list[int]:
        """The pages of a row: every ``copies``-th, from the last, so that neighbours are not in order."""
        return [page * copies + place for page in reversed(range(self._pages()))]

    def _group_rows(self, group: int) -> int:
        return max(len(self._script.rows_of(group)), 1)

    def _inputs(self, step: Step, rank: int) -> Values:
        """A group's batch, first as fed rows, then as chained ones; one row of one token where it has none."""
        group = rank // self._tp
        pieces, rows = step.groups[group], self._group_rows(group)
        ids, past, new, table = [], [], [], []
        for chained in (0, rows):
            for piece in pieces:
                row = self._script.rows[piece.row]
                tokens = list(row.ids[piece.start : piece.stop])
                ids.append(tokens)
                past.append(piece.start)
                new.append(len(tokens))
                table.append(self._table(row.place + chained, 2 * rows))
        if not pieces:
            ids, past, new, table = [[0]], [0], [1], [self._table(0, 2 * rows)]
        width = max(map(len, ids))
        widest = max(2 * len(g) * max((p.stop - p.start for p in g), default=1) or 1 for g in step.groups)
        return {
            "input_ids": torch.tensor([row + [0] * (width - len(row)) for row in ids]),
            "past_len": torch.tensor(past, dtype=torch.int32),
            "new_len": torch.tensor(new, dtype=torch.int32),
            "block_table": torch.tensor(table, dtype=torch.int32),
            "step_tokens": np.array([widest], np.int64),  # a size: it stays on the host
        }

    def _caches(self, layer: int) -> Values:
        pages = max(2 * self._group_rows(group) for group in range(self._script.groups)) * self._pages()
        shape = (pages, PAGE, self._kv.kv_heads, self._kv.head_dim)
        zeros = torch.zeros(shape).to(self._cache_dtype)
        return {f"{side}_cache.{layer}": zeros.clone() for side in "kv"}

    def _carry(self, values: list[Values], layer: int) -> None:
        """The chain's hidden states as the values that ``layer`` reads, where layers before it are left out."""
        if layer == self._reached:
            return
        for slices, own in zip(self._slices, values, strict=True):
            total = add_parts([own.pop(name) for name in slices.entry(self._reached).hidden])
            for number, name in enumerate(slices.entry(layer).hidden):
                own[name] = total if number == 0 else torch.zeros_like(total)

    def _feed(self, step: Step, values: list[Values], layer: int, hidden: list[Tensor]) -> None:
        """Put the reference's hidden states in place of the first copy of the rows."""
        for rank, own in enumerate(values):
            pieces = step.groups[rank // self._tp]
            for number, name in enumerate(self._slices[rank].entry(layer).hidden):
                value = own[name].clone()
                for index, piece in enumerate(pieces):
                    row = _row_of(value, index, 2 * len(pieces))
                    part = hidden[piece.row][piece.start : piece.stop][-len(row) :]
                    row[: len(part)] = part.to(value.dtype) if number == 0 else 0
                own[name] = value

    def _hidden(self, step: Step, values: list[Values], layer: int) -> tuple[list[Computed], list[Computed]]:
        return self._parts(step, values, [s.entry(layer) for s in self._slices])

    def _parts(
        self, step: Step, values: list[Values], boundaries: list[Boundary]
    ) -> tuple[list[Computed], list[Computed]]:
        fed: list[Computed] = []
        chain: list[Computed] = []
        for group, pieces in enumerate(step.groups):
            ranks = range(group * self._tp, (group + 1) * self._tp)
            totals = {
                rank: add_parts([values[rank][name].float() for name in boundaries[rank].hidden])
                for rank in ranks
            }
            for index, piece in enumerate(pieces):
                for found, place in ((fed, index), (chain, len(pieces) + index)):
                    found.append(
                        Computed(piece, tuple((r, _piece_of(totals[r], place, pieces, piece)) for r in ranks))
                    )
        return fed, chain

    def _run(self, values: list[Values], begin: int, end: int) -> None:
        """Nodes ``begin`` to ``end`` of all ranks, and what they agree on."""
        for at in range(begin, end):
            nodes = [nodes[at] for nodes in self._nodes]
            if nodes[0].op == "DistCollective":
                results = _join(nodes, [own[node.inputs[0]] for node, own in zip(nodes, values, strict=True)])
            else:
                results = [
                    rank.run(node, own) for rank, node, own in zip(self._ranks, nodes, values, strict=True)
                ]
            for rank, (node, own) in enumerate(zip(nodes, values, strict=True)):
                own.update(zip(node.outputs, results[rank], strict=True))
                for name in {*node.inputs, *node.outputs}.difference(_KEPT):
                    if self._last[rank].get(name, -1) <= at and not name.startswith(("k_cache", "v_cache")):
                        own.pop(name, None)


def _row_of(value: Tensor, index: int, rows: int) -> Tensor:
    """Row ``index`` of a batch as [tokens, H], a view: the value is [rows, S, H] or [rows, H]."""
    return value.view(rows, -1, value.shape[-1])[index]


def _piece_of(total: Tensor, place: int, pieces: Sequence[Piece], piece: Piece) -> Any:
    row = _row_of(total, place, 2 * len(pieces))
    return row[: piece.stop - piece.start].numpy().copy()


def _join(nodes: Sequence[Node], parts: Sequence[Tensor]) -> list[list[Tensor]]:
    """What a collective leaves on every rank, summed in rank order in the tensors' own type."""
    results: list[list[Tensor]] = [[part] for part in parts]
    kind, axis = nodes[0].attributes["collective_operation"], nodes[0].attributes["axis"]
    for group in node_groups(nodes[0].attributes["groups"], nodes[0].attributes["group_size"]):
        own = [parts[rank] for rank in group]
        if kind == "all_gather":
            gathered = torch.cat(own, axis)
            for rank in group:
                results[rank] = [gathered]
            continue
        total = add_parts(own)
        shares = total.chunk(len(group), axis) if kind == "reduce_scatter" else [total] * len(group)
        for rank, share in zip(group, shares, strict=True):
            results[rank] = [share.clone()]
    return results
