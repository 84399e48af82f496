"""An ONNX Runtime bundle's layers: of every rank's segments the nodes of one layer, in lockstep, then dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mm2c.verify.layer_engine import Computed, HeadOutput, LayerOutput
from mm2c.verify.layer_slices import Boundary, add_parts, find_slices
from mm2c.verify.session_slices import Array, Segment
from mm2c_runtime.executors import collectives
from mm2c_runtime.executors.sessions import default_threads

if TYPE_CHECKING:
    import onnxruntime as ort

    from mm2c.verify.script import Script, Step
    from mm2c.verify.tensor_source import TensorSource
    from mm2c_runtime.manifest import Collective, Manifest

Values = dict[str, Any]
_INPUTS = ("input_ids", "past_len", "new_len", "step_tokens")


@dataclass(frozen=True)
class _Part:
    """Nodes ``begin`` to ``end`` of a segment, counted within it; ``keeps``: outputs that are read later."""

    segment: int
    begin: int
    end: int
    keeps: tuple[str, ...]


class SessionLayers:
    """``LayerEngine`` of one lowering. Raises BundleError where a program cannot be loaded."""

    dtype = "f32"

    def __init__(
        self, bundle: Path, manifest: Manifest, lowering: str, sources: Sequence[TensorSource], script: Script
    ) -> None:
        self.name = f"onnxruntime, {lowering}"
        self._script, self._layers = script, manifest.model.layers
        self._in_place = manifest.lowerings[lowering].in_place
        self._sources = sources
        programs = manifest.lowerings[lowering].ranks
        self._kv = programs[0].kv
        self._collectives: list[Collective] = programs[0].collectives
        self._segments = [[Segment(bundle / s.file) for s in p.segments] for p in programs]
        self._tp = manifest.mapping.tp
        self._slices = [
            find_slices([n for s in own for n in s.nodes], self._layers, f"rank {rank}, {lowering}")
            for rank, own in enumerate(self._segments)
        ]
        self._starts = [np.cumsum([0, *(len(s.nodes) for s in own)]).tolist() for own in self._segments]
        self._read = [self._readers(rank) for rank in range(len(programs))]
        self._reached = 0  # the layer that the chain has come to
        # fed and chained values by step and rank
        self._fed = [[self._inputs(step, rank) for rank in range(len(programs))] for step in script.steps]
        self._chain = [[dict(own) for own in step] for step in self._fed]

    def embed(self) -> LayerOutput:
        first = [s.inputs[0].at for s in self._slices]
        sessions = _Sessions(self)
        output = LayerOutput()
        for step, fed, chain in zip(self._script.steps, self._fed, self._chain, strict=True):
            sessions.run(fed, [0] * len(first), first)
            for own, same in zip(chain, fed, strict=True):
                own.update(same)
            output.chain += self._parts(step, chain, [s.inputs[0] for s in self._slices])
        return output

    def run_layer(self, layer: int, hidden: list[Any]) -> LayerOutput:
        sessions, output = _Sessions(self), LayerOutput()
        spans = [s.span(layer) for s in self._slices]
        begin, end = [s[0] for s in spans], [s[1] for s in spans]
        middle = [s.middles[layer].at for s in self._slices]
        for values, found in ((self._fed, output.fed), (self._chain, output.chain)):
            caches = [self._caches(layer, rank) for rank in range(len(self._segments))]
            for step, own in zip(self._script.steps, values, strict=True):
                self._carry(own, layer)
                if found is output.fed:
                    self._feed(step, own, layer, hidden)
                for rank, cache in enumerate(caches):
                    own[rank].update(self._views(step, rank, cache))
                sessions.run(own, begin, middle)
                if found is output.fed:
                    output.attention += self._parts(step, own, [s.middles[layer] for s in self._slices])
                sessions.run(own, middle, end)
                found += self._parts(step, own, [s.entry(layer + 1) for s in self._slices])
                for rank, cache in enumerate(caches):
                    for name in cache:
                        own[rank].pop(name)
                    self._forget(own[rank], rank, end[rank])
        self._reached = layer + 1
        return output

    def logits(self, hidden: list[Any]) -> HeadOutput:
        sessions, output = _Sessions(self), HeadOutput()
        begin = [s.end.at for s in self._slices]
        end = [starts[-1] for starts in self._starts]
        for values, found in ((self._fed, output.fed), (self._chain, output.chain)):
            for step, own in zip(self._script.steps, values, strict=True):
                self._carry(own, self._layers)
                if found is output.fed:
                    self._feed(step, own, self._layers, hidden)
                sessions.run(own, begin, end)
                for group, pieces in enumerate(step.groups):
                    logits = own[group * self._tp]["logits"]
                    for index, piece in enumerate(pieces):
                        row = logits[index]
                        found[piece] = row if row.ndim == 1 else row[piece.stop - piece.start - 1]
        return output

    def close(self) -> None:
        self._fed, self._chain = [], []

    def _inputs(self, step: Step, rank: int) -> Values:
        pieces = step.groups[rank // self._tp]
        ids = [list(self._script.rows[p.row].ids[p.start : p.stop]) for p in pieces] or [[0]]
        widest = max(len(g) * max((p.stop - p.start for p in g), default=1) or 1 for g in step.groups)
        return {
            "input_ids": np.array(ids, np.int64),
            "past_len": np.array([p.start for p in pieces] or [0], np.int32),
            "new_len": np.array([len(row) for row in ids], np.int32),
            "step_tokens": np.array([widest], np.int64),
        }

    def _caches(self, layer: int, rank: int) -> dict[str, Array]:
        rows = max(len(self._script.rows_of(rank // self._tp)), 1)
        shape = (rows, self._kv.kv_heads, self._script.longest, self._kv.head_dim)
        return {f"{side}_cache.{layer}": np.zeros(shape, np.float32) for side in "kv"}

    def _views(self, step: Step, rank: int, cache: dict[str, Array]) -> dict[str, Array]:
        """The cache rows of a step: a batch's rows are neighbours."""
        pieces = step.groups[rank // self._tp]
        first = self._script.rows[pieces[0].row].place if pieces else 0
        return {name: block[first : first + max(len(pieces), 1)] for name, block in cache.items()}

    def _carry(self, values: list[Values], layer: int) -> None:
        """The chain's hidden states as the values that ``layer`` reads, where layers before it are left out."""
        if layer == self._reached:
            return
        for slices, own in zip(self._slices, values, strict=True):
            total = add_parts([own[name] for name in slices.entry(self._reached).hidden])
            for number, name in enumerate(slices.entry(layer).hidden):
                own[name] = total if number == 0 else np.zeros_like(total)

    def _forget(self, values: Values, rank: int, end: int) -> None:
        """Drop what no node from ``end`` on reads."""
        last = self._read[rank]
        for name in [n for n in values if n not in _INPUTS and last.get(n, -1) < end]:
            del values[name]

    def _feed(self, step: Step, values: list[Values], layer: int, hidden: list[Any]) -> None:
        for rank, own in enumerate(values):
            pieces = step.groups[rank // self._tp]
            for number, name in enumerate(self._slices[rank].entry(layer).hidden):
                value = np.zeros_like(own[name])
                rows = value.reshape(max(len(pieces), 1), -1, value.shape[-1])
                for index, piece in enumerate(pieces):
                    if number == 0:
                        rows[index] = hidden[piece.row][piece.start : piece.stop].numpy()[-rows.shape[1] :]
                own[name] = value

    def _parts(self, step: Step, values: list[Values], boundaries: list[Boundary]) -> list[Computed]:
        found = []
        for group, pieces in enumerate(step.groups):
            for index, piece in enumerate(pieces):
                parts = []
                for rank in range(group * self._tp, (group + 1) * self._tp):
                    total = add_parts([values[rank][name] for name in boundaries[rank].hidden])
                    row = total.reshape(len(pieces), -1, total.shape[-1])[index]
                    parts.append((rank, row[: piece.stop - piece.start].copy()))
                found.append(Computed(piece, tuple(parts)))
        return found

    def _readers(self, rank: int) -> dict[str, int]:
        """By value, the place of its last reader among the rank's nodes; a collective reads where the next segment
        begins."""
        last: dict[str, int] = {}
        at = 0
        for segment in self._segments[rank]:
            for node in segment.nodes:
                last.update(dict.fromkeys(node.reads, at))
                at += 1
        for index, collective in enumerate(self._collectives):
            last[collective.input] = max(last.get(collective.input, 0), self._starts[rank][index + 1])
        return {**last, "logits": at}


class _Sessions:
    """Sessions of the parts that were run, kept for the steps of one layer."""

    def __init__(self, engine: SessionLayers) -> None:
        self._engine = engine
        self._known: dict[tuple[int, int, int], ort.InferenceSession] = {}

    def run(self, values: list[Values], begin: list[int], end: list[int]) -> None:
        """Nodes ``begin`` to ``end`` of all ranks, with the collectives between them."""
        engine = self._engine
        for index in range(len(engine._segments[0])):
            ran = False
            for rank, own in enumerate(values):
                start, stop = engine._starts[rank][index], engine._starts[rank][index + 1]
                a, b = max(begin[rank], start), min(end[rank], stop)
                if a < b:
                    self._run_part(rank, index, a - start, b - start, own)
                ran = ran or (a < b and b == stop)
            if ran and index < len(engine._collectives):
                _join(engine._collectives[index], values)

    def _run_part(self, rank: int, index: int, begin: int, end: int, values: Values) -> None:
        engine = self._engine
        segment, offset = engine._segments[rank][index], engine._starts[rank][index]
        last = engine._read[rank]
        made = [name for node in segment.nodes[begin:end] for name in node.outputs if name]
        wanted = set(segment.outputs)
        outputs = [n for n in made if last.get(n, -1) >= offset + end or n in wanted or "_cache_out." in n]
        key = (rank, index, begin)
        if key not in self._known:
            self._known[key] = segment.session(
                begin, end, outputs, values, engine._sources[rank], default_threads()
            )
        _run(self._known[key], outputs, values, in_place=engine._in_place)


def _run(session: ort.InferenceSession, outputs: list[str], values: Values, *, in_place: bool) -> None:
    binding = session.io_binding()
    for value in session.get_inputs():
        array = values[value.name] = np.ascontiguousarray(values[value.name])
        binding.bind_input(value.name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    for name in outputs:
        cache = name.replace("_cache_out.", "_cache.")
        if cache != name and in_place:
            array = values[cache]
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        else:
            binding.bind_output(name)
    session.run_with_iobinding(binding)
    for name, found in zip(outputs, binding.get_outputs(), strict=True):
        if "_cache_out." not in name:
            values[name] = found.numpy()
        elif not in_place:
            written, rows = found.numpy(), values[name.replace("_cache_out.", "_cache.")]
            for row, (past, new) in enumerate(zip(values["past_len"], values["new_len"], strict=True)):
                rows[row, :, past : past + new] = written[row, :, past : past + new]


def _join(collective: Collective, values: list[Values]) -> None:
    for group in collective.groups:
        parts = [values[rank][collective.input] for rank in group]
        if collective.kind == "all_gather":
            shape = collectives.gathered_shape(parts[0].shape, collective.axis, len(group))
            out = np.empty(shape, parts[0].dtype)
            collectives.all_gather(parts, collective.axis, out)
        else:
            out = np.empty(parts[0].shape, parts[0].dtype)
            collectives.all_reduce(parts, out)
        shares = [out] * len(group)
        if collective.kind == "reduce_scatter":
            shares = np.split(out, len(group), collective.axis)
        for rank, share in zip(group, shares, strict=True):
            values[rank][collective.output] = share
