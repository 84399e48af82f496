"""From a bundle's files to a rank that can run steps: program, weights and model, each checked on the way."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.cuda.collectives import Collectives
from mm2c_runtime.executors.cuda.dtypes import ITEMSIZE
from mm2c_runtime.executors.cuda.model import RankModel
from mm2c_runtime.executors.cuda.ops import Ops
from mm2c_runtime.executors.cuda.plugin_ops import PluginOps, open_library
from mm2c_runtime.executors.cuda.program import Head, Program, TensorType, read_program
from mm2c_runtime.executors.cuda.rank_model import LoadedRank
from mm2c_runtime.executors.cuda.weights import ALIGNMENT, load_weights, open_weights

if TYPE_CHECKING:  # not at run time: the GPU's checks run where pydantic is not
    from mm2c_runtime.manifest import CudaRank, Manifest

_REBUILD = "build the bundle again with `mm2c build … --force`"
log = logging.getLogger("mm2c.cuda")


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
    size, weights = rank_weights(bundle / spec.weights, manifest, program.weights, device)
    return LoadedRank(program, RankModel(program, weights, ops, collectives, device), ops, size)


def rank_weights(
    path: Path,
    manifest: Manifest,
    expected: Mapping[str, TensorType],
    device: torch.device,
    alignment: int = ALIGNMENT,
) -> tuple[int, dict[str, torch.Tensor]]:
    """The rank's tensors on the device, and their bytes. ``alignment``: of each tensor, in bytes. Raises BundleError
    where there is not enough memory, or what is there is not what is ``expected``."""
    began = time.monotonic()
    try:
        size, weights = _weights(path, manifest, expected, device, alignment)
    except torch.OutOfMemoryError:
        free, total = torch.cuda.mem_get_info(device)
        size = sum(ITEMSIZE[kind.dtype] * math.prod(kind.shape) for kind in expected.values())
        raise BundleError(
            f"the weights take {size / 2**30:.2f} GiB, {free / 2**30:.2f} of the GPU's {total / 2**30:.2f} GiB "
            "are free",
            where=str(path),
            remedy="end other programs on this GPU, build for more ranks (--tp), or serve on a GPU with more memory",
        ) from None
    seconds = time.monotonic() - began
    log.info("weights: %.2f GiB in %.1f s", size / 2**30, seconds)
    return size, weights


def _weights(
    path: Path, manifest: Manifest, expected: Mapping[str, TensorType], device: torch.device, alignment: int
) -> tuple[int, dict[str, torch.Tensor]]:
    """From the bundle's file, or from the checkpoint."""
    if manifest.weights == "copy":
        file = open_weights(path, expected)
        return file.size, load_weights(file, device, alignment)
    from mm2c_runtime.executors.cuda.recipe_weights import load_from_checkpoint, open_recipes
    from mm2c_runtime.weights.checkpoint import StoredCheckpoint, checkpoint_folder

    assert manifest.checkpoint is not None  # or nothing can be served, and that was asked before
    with StoredCheckpoint.open(checkpoint_folder(manifest.checkpoint), manifest.checkpoint) as checkpoint:
        recipes = open_recipes(path, expected, checkpoint, alignment)
        return recipes.size, load_from_checkpoint(recipes, checkpoint, device)


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
        "part of the vocabulary": (_shown(_part(manifest, spec.rank)), _shown(program.head)),
        "exchange of tokens between groups": (manifest.mapping.attention_dp > 1, program.together),
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


def _part(manifest: Manifest, rank: int) -> Head | None:
    """What a rank's logits must be of: the runtime puts the parts of an attention group together in rank order."""
    assert manifest.cuda is not None
    if manifest.cuda.head == "gather":
        return None
    vocab, tp = manifest.model.vocab, manifest.mapping.tp
    width = -(-vocab // tp)
    first = rank % tp * width
    return Head(first, min(width, vocab - first), width)


def _shown(part: Head | None) -> str:
    if part is None:
        return "the whole vocabulary"
    return f"{part.tokens} tokens from {part.first} on in {part.width} columns"
