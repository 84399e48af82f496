"""The tensors of a checkpoint folder: ``model.safetensors.index.json`` and its shards, or one file without
index."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mm2c.checkpoint.config_file import read_json
from mm2c.checkpoint.shard import TensorInfo, read_shard
from mm2c.errors import UserError
from mm2c_runtime.weights.identity import headers_digest, index_bytes
from mm2c_runtime.weights.safetensors_file import INDEX, SINGLE

_LORA = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class TensorIndex:
    """``digest`` covers the index and every header, in the order of the file names."""

    tensors: dict[str, TensorInfo]
    notes: tuple[str, ...]
    digest: str


_AGAIN = f"download the checkpoint again, {INDEX} with its shards"


def read_index(folder: Path) -> TensorIndex:
    """Read the index and the header of every shard it names, and check each against the other."""
    for name in _LORA:
        if (folder / name).exists():
            remedy = (
                "merge the adapter into the weights first (peft: merge_and_unload), then build the result"
            )
            raise UserError(
                f"{name}: this is a LoRA adapter, and adapters are not compiled",
                where=str(folder),
                remedy=remedy,
            )
    index = folder / INDEX
    headers: list[tuple[str, bytes]] = []
    weight_map: dict[str, str] | None = None
    if index.is_file():
        weight_map = _weight_map(index)
        files = sorted(set(weight_map.values()))
    elif (folder / SINGLE).is_file():
        files = [SINGLE]
    else:
        remedy = f"the folder needs {INDEX} and its shards, or {SINGLE}"
        raise UserError("no safetensors weights here", where=str(folder), remedy=remedy)
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        found, header = read_shard(folder / file)
        headers.append((file, header))
        for name, info in found.items():
            if name in tensors:
                what = f"tensor {name} is in both {tensors[name].file} and {file}"
                raise UserError(what, where=str(folder), remedy="remove the shard that does not belong")
            tensors[name] = info
    if weight_map is not None:
        _check_against_map(index, weight_map, tensors)
    strays = sorted(p.name for p in folder.glob("*.safetensors") if p.name not in files)
    notes = (f"not named by {INDEX} and ignored: {', '.join(strays)}",) if strays else ()
    return TensorIndex(tensors, notes, headers_digest(index_bytes(folder), headers))


def _weight_map(index: Path) -> dict[str, str]:
    value = read_json(index).get("weight_map")
    if not isinstance(value, dict) or not value:
        raise UserError(f"{INDEX} has no weight_map", where=str(index), remedy=_AGAIN)
    for name, file in value.items():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise UserError(
                f"{INDEX} puts {name} into {file!r}, which is no shard of this folder",
                where=str(index),
                remedy=_AGAIN,
            )
    return value


def _check_against_map(index: Path, weight_map: dict[str, str], tensors: dict[str, TensorInfo]) -> None:
    remedy = "index and shards are of different downloads: download the checkpoint again"
    for name, file in weight_map.items():
        info = tensors.get(name)
        if info is None or info.file != file:
            other = f" (it is in {info.file})" if info else ""
            raise UserError(
                f"{INDEX} puts {name} into {file}, which does not hold it{other}",
                where=str(index),
                remedy=remedy,
            )
    for name, info in tensors.items():
        if name not in weight_map:
            raise UserError(
                f"{info.file} holds {name}, which {INDEX} does not name", where=str(index), remedy=remedy
            )
