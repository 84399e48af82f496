"""From a bundle's files to a rank that can run steps: program, weights and model, each checked on the way."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.cuda.collectives import Collectives
from mm2c_runtime.executors.cuda.model import RankModel
from mm2c_runtime.executors.cuda.ops import Ops
from mm2c_runtime.executors.cuda.plugin_ops import PluginOps, open_library
from mm2c_runtime.executors.cuda.program import Program, read_program
from mm2c_runtime.executors.cuda.weights import load_weights, open_weights

if TYPE_CHECKING:  # not at run time: the GPU's checks run where pydantic is not
    from mm2c_runtime.manifest import CudaRank, Manifest

_REBUILD = "build the bundle again with `mm2c build … --force`"
log = logging.getLogger("mm2c.cuda")


@dataclass(frozen=True, slots=True)
class LoadedRank:
    """``weights``: bytes of the tensors on the device."""

    program: Program
    model: RankModel
    ops: Ops
    weights: int


def load_rank(
    bundle: Path,
    manifest: Manifest,
    collectives: Collectives,
    device: torch.device,
    ops: Ops | None,
) -> LoadedRank:
    """``ops`` replace the plugin library. Raises BundleError where a file is missing or does not fit the others."""
    spec = _rank(bundle, manifest, collectives)
    program = read_program(bundle / spec.program)
    _check(bundle, manifest, spec, program)
    assert manifest.cuda is not None
    if ops is None:
        ops = PluginOps(open_library(bundle, manifest.cuda.library, manifest.cuda.version), device)
    file = open_weights(bundle / spec.weights, program.weights)
    began = time.monotonic()
    try:
        weights = load_weights(file, device)
    except torch.OutOfMemoryError:
        free, total = torch.cuda.mem_get_info(device)
        raise BundleError(
            f"the weights take {file.size / 2**30:.2f} GiB, {free / 2**30:.2f} of the GPU's {total / 2**30:.2f} GiB "
            "are free",
            where=str(file.path),
            remedy="end other programs on this GPU, build for more ranks (--tp), or serve on a GPU with more memory",
        ) from None
    seconds = time.monotonic() - began
    log.info("weights: %.2f GiB in %.1f s", file.size / 2**30, seconds)
    return LoadedRank(program, RankModel(program, weights, ops, collectives, device), ops, file.size)


def _rank(bundle: Path, manifest: Manifest, collectives: Collectives) -> CudaRank:
    where = str(bundle / "manifest.json")
    if manifest.cuda is None:
        raise BundleError(
            f"the bundle is for the engine {manifest.engine} and has no programs for a GPU",
            where=where,
            remedy="build with `--engine cuda`",
        )
    ranks = manifest.cuda.ranks
    if collectives.ranks != len(ranks):
        raise BundleError(
            f"the bundle is for {len(ranks)} GPUs, {collectives.ranks} rank(s) load it",
            where=where,
            remedy=f"make {len(ranks)} GPUs visible, or build with `--tp {collectives.ranks}`",
        )
    return ranks[collectives.rank]


def _check(bundle: Path, manifest: Manifest, spec: CudaRank, program: Program) -> None:
    """Manifest and program say the same of what both name."""
    assert manifest.cuda is not None
    limits, kv = manifest.limits, spec.kv
    pairs = {
        "rank": (spec.rank, program.rank),
        "ranks": (len(manifest.cuda.ranks), program.ranks),
        "library": (manifest.cuda.version, program.library),
        "vocabulary": (manifest.model.vocab, program.vocab),
        "logits": (manifest.logits, program.logits),
        "context": (limits.context, program.context),
        "rows": (limits.max_rows, program.max_rows),
        "prefill chunk": (limits.prefill_chunk, program.prefill_chunk),
        "KV cache": (
            (kv.dtype, kv.page, kv.layers, kv.kv_heads, kv.head_dim),
            (program.kv.dtype, program.kv.page, program.kv.layers, program.kv.kv_heads, program.kv.head_dim),
        ),
    }
    for what, (said, found) in pairs.items():
        if said != found:
            raise BundleError(
                f"the program's {what} is {found}, the manifest's {said}",
                where=str(bundle / spec.program),
                remedy=_REBUILD,
            )
