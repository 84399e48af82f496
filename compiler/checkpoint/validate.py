"""Whether the tensors are those of the configuration: names, shapes, dtypes and scales, before any work."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from mm2c.checkpoint.names import (
    HEAD,
    SCALE_SUFFIX,
    attention_linears,
    expert_linears,
    layer_vectors,
    outer_tensors,
    scale_shape,
)
from mm2c.checkpoint.shard import TensorInfo
from mm2c.config import BLOCK, ModelConfig
from mm2c.errors import UserError

_SHOWN = 8  # lines of a list of names
_INV_FREQ = re.compile(r".*rotary_emb\.inv_freq$")
_MTP = re.compile(r"(.*\.)?mtp[._].*|.*\.mtp\..*|model\.mtp\w*\..*")
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_EXPERT = re.compile(r"block_sparse_moe\.experts\.(\d+)\.(w\d\..+)")


def expected_shapes(config: ModelConfig, tied: bool) -> Iterator[tuple[str, tuple[int, ...], bool]]:
    """(released name, shape, whether it may be FP8) of every tensor of the model, scales left out."""
    for name, shape in outer_tensors(config):
        if not (tied and name == HEAD):
            yield name, shape, False
    for layer in range(config.layers):
        for _, key, vector in layer_vectors(config, layer):
            yield key, vector, False
        for linear in (*attention_linears(config, layer), *expert_linears(config, layer)):
            yield linear.weight, linear.shape, True


def check_tensors(
    config: ModelConfig, tensors: dict[str, TensorInfo], folder: Path, *, tied: bool, mtp: bool
) -> tuple[str, ...]:
    """Raise UserError for missing, unknown or misshapen tensors; return notes on what is ignored."""
    missing, known = [], set()
    for name, shape, may_be_fp8 in expected_shapes(config, tied):
        info = tensors.get(name)
        known.add(name)
        if info is None:
            missing.append(name)
            continue
        _check_shape(name, info, shape, folder)
        if not may_be_fp8:
            continue
        scale = name + SCALE_SUFFIX
        known.add(scale)
        if info.dtype == "e4m3":
            if scale not in tensors:
                missing.append(scale)
            else:
                _check_scale(scale, tensors[scale], shape, folder)
    if missing:
        lines = "\n".join(f"    {line}" for line in summarise(missing))
        what = f"{_count(missing)} missing:\n{lines}"
        raise UserError(
            what, where=str(folder), remedy="download the checkpoint again, or mend config.json's sizes"
        )
    return _unknown(set(tensors) - known, config, folder, tied=tied, mtp=mtp)


def _check_shape(name: str, info: TensorInfo, shape: tuple[int, ...], folder: Path) -> None:
    if info.shape != shape:
        what = f"{name} has shape {list(info.shape)}; config.json makes it {list(shape)}"
        raise UserError(
            what, where=str(folder / info.file), remedy="config.json and tensors are of different models"
        )


def _check_scale(name: str, info: TensorInfo, weight: tuple[int, ...], folder: Path) -> None:
    shape = scale_shape((weight[0], weight[1]), (BLOCK, BLOCK))
    if info.shape != shape or info.dtype != "f32":
        needed = f"{BLOCK}x{BLOCK} blocks of {list(weight)} need f32{list(shape)}"
        what = f"{name} is {info.dtype}{list(info.shape)}; {needed}"
        raise UserError(
            what, where=str(folder / info.file), remedy="only the released block scales are compiled"
        )


def _unknown(names: set[str], config: ModelConfig, folder: Path, *, tied: bool, mtp: bool) -> tuple[str, ...]:
    notes, strange = [], []
    ignored_mtp = 0
    for name in sorted(names):
        layer = _LAYER.fullmatch(name)
        beyond = layer is not None and int(layer[1]) >= config.layers
        if _MTP.fullmatch(name) or (beyond and mtp):
            ignored_mtp += 1
        elif _INV_FREQ.fullmatch(name):
            continue  # a table that is always recomputed
        elif tied and name == HEAD:
            notes.append(f"{HEAD} is ignored: it is the embedding again, and tie_word_embeddings is true")
        else:
            strange.append(name)
    if ignored_mtp:
        notes.append(f"{ignored_mtp} tensors of multi-token prediction are ignored")
    if not strange:
        return tuple(notes)
    lines = "\n".join(f"    {line}" for line in summarise(strange))
    raise UserError(
        f"{_count(strange)} not M2's:\n{lines}", where=str(folder), remedy=_explain(strange, config)
    )


def _count(names: list[str]) -> str:
    return "1 tensor is" if len(names) == 1 else f"{len(names)} tensors are"


def _explain(names: list[str], config: ModelConfig) -> str:
    """What the first kind of stranger that is recognised means."""
    for pattern, meaning in (
        (r"lora_", "adapters are not compiled: merge them into the weights first"),
        (r"\.bias$", "the linears of M2 have no bias and none is compiled"),
        (r"(input|output|k|v|q)_scale$", "static activation or cache scales are not compiled"),
        (
            r"\.(gate_up_proj|down_proj)$",
            "fused experts: save with transformers' save_pretrained, which writes w1, w2, w3",
        ),
        (
            r"(qweight|qzeros|weight_packed|\.scales)",
            "integer-quantised weights are not compiled: use the FP8 or bf16 release",
        ),
        (re.escape(SCALE_SUFFIX) + "$", "scales belong to float8_e4m3fn weights only"),
        (r"^model\.layers\.", f"config.json says {config.layers} layers of {config.experts} experts"),
    ):
        if any(re.search(pattern, name) for name in names):
            return meaning
    return "config.json and tensors are of different models"


def summarise(names: Iterable[str]) -> list[str]:
    """``layers 3-7: experts 0-255 w1.weight``: layers with the same set of names share a line."""
    by_layer: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    lines = []
    for name in names:
        layer = _LAYER.fullmatch(name)
        if layer is None:
            lines.append(name)
            continue
        expert = _EXPERT.fullmatch(layer[2])
        kinds = by_layer[int(layer[1])]
        if expert:
            kinds[expert[2]].append(int(expert[1]))
        else:
            kinds[layer[2]] = []
    same: dict[str, list[int]] = defaultdict(list)
    for number, kinds in by_layer.items():
        parts: dict[str, list[str]] = defaultdict(list)
        for kind, experts in kinds.items():
            parts[f"experts {_ranges(experts)} " if experts else ""].append(kind)
        same["; ".join(experts + ", ".join(found) for experts, found in parts.items())].append(number)
    for text, layers in same.items():
        lines.append(f"{'layer' if len(layers) == 1 else 'layers'} {_ranges(layers)}: {text}")
    return lines if len(lines) <= _SHOWN else [*lines[:_SHOWN], f"… and {len(lines) - _SHOWN} lines more"]


def _ranges(numbers: list[int]) -> str:
    """``0-3, 7``."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
