"""How every linear is stored: read off the tensors, or assumed as released where there are none yet."""

from __future__ import annotations

from pathlib import Path

from mm2c.checkpoint.config_quant import QuantConfig
from mm2c.checkpoint.names import (
    EMBED,
    HEAD,
    SCALE_SUFFIX,
    attention_linears,
    expert_linears,
    expert_weight,
    experts_module,
    layer_vectors,
    outer_tensors,
)
from mm2c.checkpoint.shard import TensorInfo
from mm2c.config import ModelConfig, WeightFormats
from mm2c.errors import UserError

DENSE = ("bf16", "f32", "f16")


def assumed_formats(config: ModelConfig, quant: QuantConfig | None) -> WeightFormats:
    """Formats of a checkpoint that is not there: FP8 linears where ``quantization_config`` says so, else
    bf16."""
    if quant is None:
        return WeightFormats()
    fp8 = set()
    for layer in range(config.layers):
        released = [(linear.module, linear.module) for linear in attention_linears(config, layer)]
        first = expert_weight(layer, 0, "w1").removesuffix(".weight")
        for name, module in (*released, (first, experts_module(layer))):
            if not quant.skips(name):
                fp8.add(module)
    return WeightFormats(frozenset(fp8))


def detect_formats(
    config: ModelConfig, tensors: dict[str, TensorInfo], quant: QuantConfig | None, folder: Path, tied: bool
) -> WeightFormats:
    """Formats by the tensors' dtypes. All expected tensors are present. UserError where one graph tensor
    would mix dtypes, or where FP8 tensors contradict ``quantization_config``."""
    fp8: set[str] = set()
    dtypes: dict[str, str] = {}
    for name, _ in outer_tensors(config):
        if not (tied and name == HEAD):
            dtypes[name] = _dense(name, tensors, folder)
    if tied:
        dtypes[HEAD] = dtypes[EMBED]
    for layer in range(config.layers):
        for graph, key, _ in layer_vectors(config, layer):
            dtypes[graph] = _dense(key, tensors, folder)
        for linear in attention_linears(config, layer):
            if _is_fp8(linear.weight, tensors, quant, folder):
                fp8.add(linear.module)
            else:
                dtypes[linear.weight] = _dense(linear.weight, tensors, folder)
        module = experts_module(layer)
        of_part: dict[str, str] = {}
        for linear in expert_linears(config, layer):
            part = f"{module}.down_proj" if linear.weight.endswith("w2.weight") else f"{module}.gate_up_proj"
            stored = (
                "e4m3"
                if _is_fp8(linear.weight, tensors, quant, folder)
                else _dense(linear.weight, tensors, folder)
            )
            if of_part.setdefault(part, stored) != stored:
                what = f"{linear.weight} is {stored}, other experts of its layer {of_part[part]}"
                raise UserError(what, where=str(folder), remedy="store all experts of a layer alike")
        if len({stored == "e4m3" for stored in of_part.values()}) > 1:
            what = f"layer {layer} has FP8 and dense experts: {of_part}"
            raise UserError(what, where=str(folder), remedy="store w1, w2 and w3 of a layer alike")
        if "e4m3" in of_part.values():
            fp8.add(module)
        else:
            dtypes |= of_part
    kept = {name: dtype for name, dtype in dtypes.items() if dtype != "bf16"}
    return WeightFormats(frozenset(fp8), tuple(sorted(kept.items())))


def _dense(name: str, tensors: dict[str, TensorInfo], folder: Path) -> str:
    info = tensors[name]
    if info.dtype not in DENSE:
        what = f"{name} is stored as {info.dtype}; it must be bf16, f32 or f16"
        raise UserError(what, where=str(folder / info.file), remedy="store it in bf16, as the releases do")
    return info.dtype


def _is_fp8(weight: str, tensors: dict[str, TensorInfo], quant: QuantConfig | None, folder: Path) -> bool:
    info = tensors[weight]
    if info.dtype != "e4m3":
        if weight + SCALE_SUFFIX in tensors:
            what = f"{weight} is {info.dtype}, yet it has a {SCALE_SUFFIX.lstrip('_')}"
            raise UserError(
                what, where=str(folder / info.file), remedy="only float8_e4m3fn weights have scales"
            )
        return False
    if quant is None:
        what = f"{weight} is float8_e4m3fn, but config.json has no quantization_config"
        remedy = "restore the quantization_config of the released config.json"
        raise UserError(what, where=str(folder), remedy=remedy)
    if quant.skips(weight.removesuffix(".weight")):
        what = f"{weight} is float8_e4m3fn, but modules_to_not_convert names it"
        raise UserError(
            what, where=str(folder), remedy="config.json and tensors are of different checkpoints"
        )
    return True
