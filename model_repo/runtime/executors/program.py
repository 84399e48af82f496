"""A rank program in memory: its segments' sessions and what they read and write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort

from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.provider import CPU
from mm2c_runtime.executors.sessions import load_session
from mm2c_runtime.executors.values import ValueType, value_type
from mm2c_runtime.manifest import RankProgram


@dataclass(frozen=True, slots=True)
class LoadedSegment:
    session: ort.InferenceSession
    tensors: Mapping[str, object]  # given to the session, which does not keep their memory
    inputs: dict[str, ValueType]
    outputs: dict[str, ValueType]


@dataclass(frozen=True, slots=True)
class LoadedProgram:
    """One rank's segments, in order. ``last_use`` tells after which segment (and its collective) a value that
    travels is not needed any more; one that nobody reads is not there."""

    rank: int
    segments: list[LoadedSegment]
    last_use: dict[str, int]

    def end(self, name: str, made: int) -> int:
        """The segment after which ``name``, made by segment ``made``, is not needed any more."""
        return len(self.segments) if name == "logits" else self.last_use.get(name, made)


def load_program(
    bundle: Path,
    program: RankProgram,
    threads: int,
    *,
    alone: bool,
    tensors: Mapping[str, object] | None = None,
    providers: Sequence[Any] = CPU,
) -> LoadedProgram:
    """Create the sessions of one rank; ``alone`` where they are one session and the only rank's. ``tensors``: by name,
    where the bundle has no weights files. ``providers``: as ``load_session``'s.

    Raises BundleError where a file is missing or is not what the manifest says.
    """
    segments = []
    if len(program.collectives) != len(program.segments) - 1:
        raise BundleError(
            f"rank {program.rank}: {len(program.segments)} segments, {len(program.collectives)} collectives",
            where=str(bundle / "manifest.json"),
            remedy="build the bundle again with `mm2c build … --force`",
        )
    for segment in program.segments:
        path = bundle / segment.file
        own = {} if tensors is None else _named(segment.tensors, tensors, path)
        session = load_session(path, threads, alone=alone, tensors=own, providers=providers)
        inputs = {v.name: value_type(v.type, v.shape, where=str(path)) for v in session.get_inputs()}
        outputs = {v.name: value_type(v.type, v.shape, where=str(path)) for v in session.get_outputs()}
        for kind, said, found in (
            ("inputs", segment.inputs, inputs),
            ("outputs", segment.outputs, outputs),
        ):
            if set(said) != set(found):
                differing = ", ".join(sorted(set(said) ^ set(found)))
                raise BundleError(
                    f"the program's {kind} differ from the manifest's: {differing}",
                    where=str(path),
                    remedy="build the bundle again with `mm2c build … --force`",
                )
        segments.append(LoadedSegment(session, own, inputs, outputs))
    last_use = {name: index for index, segment in enumerate(segments) for name in segment.inputs}
    for index, collective in enumerate(program.collectives):
        last_use[collective.input] = max(index, last_use.get(collective.input, 0))
    return LoadedProgram(program.rank, segments, last_use)


def _named(names: list[str], tensors: Mapping[str, object], path: Path) -> dict[str, object]:
    for name in names:
        if name not in tensors:
            raise BundleError(
                f"the program reads {name}, of which the bundle has no recipe",
                where=str(path),
                remedy="build the bundle again with `mm2c build … --force`",
            )
    return {name: tensors[name] for name in names}


def step_symbols(program: LoadedProgram, batch: int, width: int, context: int, tokens: int) -> dict[str, int]:
    """Values of the symbolic sizes: the names that the program's own inputs use, and the contract's. ``tokens``: those
    of a rank in what attention groups exchange."""
    symbols = {"batch": batch, "seq": width, "kv_len": context, "step_tokens": tokens}
    for segment in program.segments:
        for name, kind in segment.inputs.items():
            if kind.shape is None:
                continue
            if name == "input_ids":
                named = zip(kind.shape, (batch, width), strict=True)
            elif name.startswith(("k_cache.", "v_cache.")):
                named = zip(kind.shape[::2], (batch, context), strict=True)
            else:
                continue
            symbols.update({symbol: size for symbol, size in named if isinstance(symbol, str)})
    return symbols
