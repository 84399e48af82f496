"""Whether a bundle fits into this machine's memory: asked before anything is loaded, not of the OOM killer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mm2c_runtime.errors import BundleError
from mm2c_runtime.weights.recipe_file import bytes_of, recipes_path

if TYPE_CHECKING:  # not at run time: the GPU's checks run where pydantic is not
    from mm2c_runtime.manifest import KvSpec, Limits, Lowering, Manifest

VARIABLE = "MM2C_KV_TOKENS"
_GIB = 2**30
_ITEMSIZE = {"f32": 4, "bf16": 2, "fp8": 1}


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes of a lowering's ranks together. ``copies``: cache outputs of a program that cannot write its cache in
    place; they do not shrink with the budget. ``per_token``: of the one attention group that holds the token."""

    weights: int
    copies: int
    per_token: int

    def total(self, tokens: int) -> int:
        """With ``tokens`` tokens in the KV cache."""
        return self.weights + self.copies + tokens * self.per_token


def asked_tokens(
    asked: int | None, limits: Limits, environment: Mapping[str, str] = os.environ, *, groups: int = 1
) -> int | None:
    """Tokens that the rows of an attention group may hold together: an equal part, rounded up, of ``asked``, else of
    ``$MM2C_KV_TOKENS``, which are for all ``groups``; at most every row full. None where neither says.

    Raises BundleError where that is no number of at least 1.
    """
    most = limits.max_rows * limits.context
    text, where = (
        (str(asked), "kv_tokens") if asked is not None else (environment.get(VARIABLE), f"${VARIABLE}")
    )
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise BundleError(
            f"the KV budget is {text!r}, not a whole number of tokens of at least 1",
            where=where,
            remedy=f"this bundle's rows hold at most {groups * most} tokens together; without {where} that is the "
            "budget",
        )
    return min(-(-int(text) // groups), most)


def kv_budget(
    asked: int | None, limits: Limits, environment: Mapping[str, str] = os.environ, *, groups: int = 1
) -> int:
    """The same, every row full where nobody says. Raises BundleError."""
    tokens = asked_tokens(asked, limits, environment, groups=groups)
    return limits.max_rows * limits.context if tokens is None else tokens


def check_memory(folder: Path, manifest: Manifest, lowering: str, tokens: int) -> None:
    """Raises BundleError, with the figures, where weights and caches of ``tokens`` tokens in all do not fit."""
    available = available_bytes()
    needs = needed(folder, manifest, manifest.lowerings[lowering])
    if available is None or needs.total(tokens) <= available:
        return
    limits, rows = manifest.limits, manifest.limits.max_rows * manifest.mapping.attention_dp
    parts = [f"{_gib(needs.weights)} for the weights"]
    if needs.copies:
        parts.append(f"{_gib(needs.copies)} because the lowering {lowering!r} copies its cache")
    parts.append(f"{_gib(tokens * needs.per_token)} for {tokens} tokens of KV cache")
    fitting = (available - needs.total(0)) // needs.per_token if needs.per_token else 0
    fitting -= fitting % manifest.mapping.attention_dp  # the groups get equal parts
    if fitting >= 1:
        remedy = (
            f"serve with kv_tokens={fitting} or less ({VARIABLE}={fitting}), "
            "or build with fewer --max-rows or a smaller --context"
        )
    elif needs.copies:
        remedy = "build with fewer --max-rows or a smaller --context, or serve the lowering 'fast'"
    else:
        remedy = f"serve on a machine with more than {_gib(needs.weights)} of free memory"
    raise BundleError(
        f"the bundle needs {_gib(needs.total(tokens))} of memory and {_gib(available)} are available: "
        f"{', '.join(parts)} (built for {rows} rows of {limits.context} tokens)",
        where=str(folder),
        remedy=remedy,
    )


def needed(folder: Path, manifest: Manifest, lowering: Lowering) -> Needs:
    """What the ranks of one process take: weights as in their files, or as these would be, the cache by token."""
    files = {rank.weights for rank in lowering.ranks}
    weights = sum(weight_bytes(folder, manifest, name) for name in files)
    copies = 0
    if not lowering.in_place:
        positions = manifest.limits.max_rows * manifest.limits.context
        for rank in lowering.ranks:
            for segment in rank.segments:  # the next segment uses the same memory again
                outputs = sum("_cache_out." in name for name in segment.outputs)
                copies = max(copies, outputs * positions * _side(rank.kv))
    one_group = lowering.ranks[: len(lowering.ranks) // manifest.mapping.attention_dp]
    return Needs(weights, copies, sum(2 * rank.kv.layers * _side(rank.kv) for rank in one_group))


def available_bytes() -> int | None:
    """Memory that this process can still take without swapping: the machine's, or what is left of its control
    group's limit. None where the system does not say."""
    found = [
        size
        for size in (_meminfo(Path("/proc/meminfo")), _cgroup(Path("/sys/fs/cgroup")))
        if size is not None
    ]
    return min(found, default=None)


def _meminfo(path: Path) -> int | None:
    try:
        lines = path.read_text("ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _cgroup(folder: Path) -> int | None:
    """Of version 2; its page cache counts as free, as in MemAvailable."""
    try:
        limit = int((folder / "memory.max").read_text("ascii"))
        used = int((folder / "memory.current").read_text("ascii"))
        counters = dict(line.split() for line in (folder / "memory.stat").read_text("ascii").splitlines())
        return max(0, limit - used + int(counters.get("inactive_file", 0)))
    except (OSError, ValueError):  # no such file, or "max"
        return None


def _side(kv: KvSpec) -> int:
    """Bytes of K (or V) of one token in one layer."""
    return kv.kv_heads * kv.head_dim * _ITEMSIZE[kv.dtype]


def weight_bytes(folder: Path, manifest: Manifest, name: str) -> int:
    """Of the weights file ``name``, or of the tensors that every start makes in its place; 0 where nothing says."""
    if manifest.weights == "checkpoint":
        return bytes_of(folder / name) if recipes_path(folder / name).is_file() else 0
    if name in manifest.files:
        return manifest.files[name].bytes
    return (folder / name).stat().st_size if (folder / name).is_file() else 0


def _gib(size: int) -> str:
    return f"{size / _GIB:.2f} GiB"
