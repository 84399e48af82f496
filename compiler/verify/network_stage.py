"""A plan of a bundle twice: as TensorRT's parser understands its graph, and as ONNX Runtime runs the wide one."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mm2c.engine.tensorrt.parse import NetworkRefused, parse_network
from mm2c.verify.network import CollectiveCall, NetworkReplay, Precision, collectives_of
from mm2c.verify.network.ranks import exchange
from mm2c.verify.network_router import Router, find_routers
from mm2c.verify.network_session import Joint, WideGraph, join, read_graph, run_lockstep
from mm2c.verify.network_weights import NUMPY, StageTensors, ort_of, torch_of
from mm2c_runtime.errors import BundleError

if TYPE_CHECKING:
    from torch import Tensor

    from mm2c_runtime.manifest_tensorrt import Plan

Array = np.ndarray[Any, Any]
Values = dict[str, Array]
# what computes: ONNX Runtime, as the graph says or with caches of f32; the network, in f32 or as it declares
Lane = Literal["onnxruntime", "exact", "wide", "declared"]
# TensorRT's names of types
DTYPES = {
    "FLOAT": "f32",
    "BF16": "bf16",
    "HALF": "f16",
    "INT32": "i32",
    "INT64": "i64",
    "BOOL": "bool",
    "FP8": "e4m3",
}


class StagePlan:
    """``routers``: of the graph. ``network_layers``: how many layers TensorRT made of it.

    Raises:
        BundleError: a graph cannot be read, TensorRT's parser refuses it, or the network's inputs and outputs are not
            those of the manifest.
        UnknownLayer: the network has a layer that cannot be evaluated.
    """

    def __init__(self, trt: Any, bundle: Path, plan: Plan, threads: int) -> None:
        self.plan = plan
        path = bundle / plan.graph
        model = read_graph(path)
        self.routers: list[Router] = find_routers(model)
        watched = [router.logits for router in self.routers]
        # a session of its own for each: the types of caches may differ
        self._wide = {
            lane: WideGraph(bundle / plan.wide, watched, threads=threads) for lane in ("onnxruntime", "exact")
        }
        self.replay, self.network_layers = _replay(trt, plan, path)
        self._narrow = {t.name: NUMPY[t.dtype] for t in plan.tensors if t.mode == "input"}

    def wide_steps(
        self, tensors: StageTensors, feeds: Mapping[str, Array], lane: str
    ) -> Generator[Joint, Array, Values]:
        """One rank on ONNX Runtime, from collective to collective: outputs and what the routers give."""
        return self._wide[lane].steps(
            {**tensors.wide, **{name: ort_of(value) for name, value in feeds.items()}}
        )

    def network_steps(
        self, tensors: StageTensors, feeds: Mapping[str, Array], precision: Precision
    ) -> Generator[CollectiveCall, Tensor, Values]:
        """One rank of the network, alike; in f32."""
        routers = {router.logits for router in self.routers}
        seen: dict[str, Tensor] = {}

        def observe(view: Any, made: tuple[Tensor, ...]) -> None:
            for facts, value in zip(view.outputs, made, strict=True):
                if facts.name in routers:
                    seen[facts.name] = value

        given = {**tensors.stored, **{name: torch_of(value) for name, value in feeds.items()}}
        made = yield from self.replay.steps(given, precision, observe)
        return {name: value.float().numpy() for name, value in {**seen, **made}.items()}

    def narrowed(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """What an engine would be fed: in the types that the plan declares."""
        return {name: np.ascontiguousarray(value.astype(self._narrow[name])) for name, value in feeds.items()}


def run_ranks(
    plans: Sequence[StagePlan],
    tensors: Sequence[StageTensors],
    feeds: Sequence[Mapping[str, Array]],
    lane: Lane,
) -> list[Values]:
    """Every rank's outputs, in lockstep."""
    ranks = list(zip(plans, tensors, feeds, strict=True))
    if lane == "wide" or lane == "declared":
        return run_lockstep([plan.network_steps(own, feed, lane) for plan, own, feed in ranks], exchange)
    return run_lockstep([plan.wide_steps(own, feed, lane) for plan, own, feed in ranks], join)


def _replay(trt: Any, plan: Plan, path: Path) -> tuple[NetworkReplay, int]:
    data = path.read_bytes()
    try:
        parsed = parse_network(trt, data)
    except NetworkRefused as refused:
        raise BundleError(
            f"{trt.__name__} {trt.__version__} does not take a plan's graph: {refused}", where=str(path)
        ) from None
    _check_tensors(plan, "input", parsed.inputs, path)
    _check_tensors(plan, "output", parsed.outputs, path)
    return NetworkReplay(trt, parsed.network, collectives_of(data)), int(parsed.network.num_layers)


def _check_tensors(plan: Plan, mode: str, found: Sequence[Any], path: Path) -> None:
    wanted = {
        t.name: (t.dtype, [s if isinstance(s, int) else -1 for s in t.shape])
        for t in plan.tensors
        if t.mode == mode
    }
    there = {str(t.name): (DTYPES.get(str(t.dtype.name), str(t.dtype.name)), list(t.shape)) for t in found}
    if wrong := [
        name for name in wanted.keys() | there.keys() if not _fits(wanted.get(name), there.get(name))
    ]:
        name = min(wrong)
        raise BundleError(
            f"the network's {mode} {name} is {there.get(name, 'not there')}, by the manifest "
            f"{wanted.get(name, 'not there')}",
            where=str(path),
        )


def _fits(wanted: tuple[str, list[int]] | None, found: tuple[str, list[int]] | None) -> bool:
    """A size that the parser did not find out, -1, may be any."""
    if wanted is None or found is None or wanted[0] != found[0] or len(wanted[1]) != len(found[1]):
        return False
    return all(size in (-1, known) for known, size in zip(wanted[1], found[1], strict=True))
