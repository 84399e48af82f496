"""Edits a checkpoint folder tensor by tensor, for tests that damage one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from mm2c.checkpoint.shard import read_shard
from mm2c_runtime.weights.dtypes import NUMPY

Tensors = dict[str, np.ndarray]
SHARDS = 2


def load(folder: Path) -> Tensors:
    tensors: Tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        raw = path.read_bytes()
        for name, info in read_shard(path)[0].items():
            data = raw[info.offset : info.offset + info.nbytes]
            tensors[name] = np.frombuffer(data, NUMPY[info.dtype]).reshape(info.shape)
    return tensors


def edited(
    source: Path,
    target: Path,
    edit: Callable[[Tensors], Any] = lambda tensors: None,
    **config: Any,
) -> Path:
    """A copy of ``source`` in ``target`` with ``edit`` applied to its tensors and keys of config.json
    replaced."""
    target.mkdir()
    values = {**json.loads((source / "config.json").read_text()), **config}
    (target / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))
    for name in ("generation_config.json",):
        shutil.copy(source / name, target / name)
    tensors = load(source)
    edit(tensors)
    weight_map = {}
    for number in range(SHARDS):
        file = f"model-{number + 1:05d}-of-{SHARDS:05d}.safetensors"
        part = dict(list(tensors.items())[number::SHARDS])
        save_file(part, target / file)
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {}, "weight_map": weight_map}
    (target / "model.safetensors.index.json").write_text(json.dumps(index))
    return target
