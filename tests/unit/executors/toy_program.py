"""A rank program so small that its logits can be told: a row's logits are the sum of its ids' embeddings.

The op M2Toy keeps the embeddings themselves as its cache and sums what the pages hold, so that a wrong page, a
forgotten move or a wrong position changes the logits.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mm2c_runtime.manifest import Manifest

VOCAB, WIDTH, PAGE, CONTEXT, ROWS, CHUNK = 10, 4, 4, 18, 12, 6
NAN_TOKEN = 9


def embeddings() -> torch.Tensor:
    """Multiples of 1/8, whose sums are exact in bf16."""
    values = np.random.default_rng(0).integers(-8, 8, (VOCAB, WIDTH)) / 8
    values[NAN_TOKEN] = np.nan
    return torch.tensor(values, dtype=torch.bfloat16)


def head() -> torch.Tensor:
    return torch.tensor(np.random.default_rng(1).integers(-8, 8, (VOCAB, WIDTH)) / 8, dtype=torch.bfloat16)


def expected(tokens: list[int]) -> np.ndarray[Any, Any]:
    """Logits after ``tokens``: twice the sum of embeddings, through the head."""
    total = embeddings()[tokens].float().sum(0).to(torch.bfloat16) * 2
    return (total.float() @ head().float().T).numpy()


def node(op: str, name: str, inputs: list[str], outputs: list[str], **attributes: Any) -> dict[str, Any]:
    domain = "mm2c" if op.startswith(("M2", "Dist")) else ""
    return {
        "name": name,
        "domain": domain,
        "op": op,
        "inputs": inputs,
        "outputs": outputs,
        "attributes": attributes,
    }


def program(*, all_logits: bool = False) -> dict[str, Any]:
    caches = ["k_cache.0", "v_cache.0"]
    dense = node("M2DenseLinear", "head", ["doubled", "lm_head"], ["logits"], out_dtype="f32")
    nodes = [
        node("Gather", "embedding", ["embed", "input_ids"], ["embedded"]),
        node(
            "M2Toy",
            "attend",
            ["embedded", "past_len", "new_len", "block_table", *caches],
            ["summed", "k_cache_out.0", "v_cache_out.0"],
        ),
    ]
    if all_logits:
        nodes += [node("Mul", "double", ["summed", "two"], ["doubled"]), dense]
    else:
        nodes += [
            node("Cast", "wide", ["new_len"], ["new"], to="i64"),
            node("Sub", "before", ["new", "one"], ["index"]),
            node("Unsqueeze", "column", ["index", "axis"], ["at"]),
            node("GatherND", "pick", ["summed", "at"], ["last"], batch_dims=1),
            node("Mul", "double", ["last", "two"], ["doubled"]),
            dense,
        ]
    constants = {
        "two": {"dtype": "bf16", "shape": [], "data": [2.0]},
        "one": {"dtype": "i64", "shape": [], "data": [1]},
        "axis": {"dtype": "i64", "shape": [1], "data": [1]},
    }
    return {
        "format": 2,
        "abi": 1,
        "library": "toy",
        "rank": 0,
        "ranks": 1,
        "kv": {"dtype": "bf16", "page": PAGE, "layers": 1, "kv_heads": 1, "head_dim": WIDTH},
        "vocab": VOCAB,
        "logits": "all" if all_logits else "last",
        "context": CONTEXT,
        "max_rows": ROWS,
        "prefill_chunk": CHUNK,
        "weights_file": "weights.safetensors",
        "head": None,
        "inputs": ["input_ids", "past_len", "new_len", "block_table", *caches],
        "outputs": ["logits", "k_cache_out.0", "v_cache_out.0"],
        "constants": constants,
        "weights": {
            "embed": {"dtype": "bf16", "shape": [VOCAB, WIDTH]},
            "lm_head": {"dtype": "bf16", "shape": [VOCAB, WIDTH]},
        },
        "nodes": nodes if all_logits else sorted(nodes, key=lambda n: n["op"] == "M2DenseLinear"),
    }


def write(folder: Path, raw: dict[str, Any]) -> Path:
    path = folder / "cuda.json"
    path.write_text(json.dumps(raw))
    return path


def write_weights(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    names = {torch.bfloat16: "BF16", torch.float32: "F32", torch.float8_e4m3fn: "F8_E4M3"}
    header, data = {}, b""
    for name, tensor in tensors.items():
        raw = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        place = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place}
        data += raw
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def write_bundle(folder: Path, *, all_logits: bool = False) -> Manifest:
    (folder / "rank0").mkdir(exist_ok=True)
    write(folder / "rank0", program(all_logits=all_logits))
    write_weights(folder / "rank0/weights.safetensors", {"embed": embeddings(), "lm_head": head()})
    kv = {"layers": 1, "kv_heads": 1, "head_dim": WIDTH, "page": PAGE, "dtype": "bf16"}
    rank = {"rank": 0, "program": "rank0/cuda.json", "weights": "rank0/weights.safetensors", "kv": kv}
    return Manifest.model_validate(
        {
            "format": 2,
            "mm2c_version": "0",
            "build_key": "",
            "engine": "cuda",
            "model": {
                **dict.fromkeys(
                    ("layers", "hidden", "heads", "kv_heads", "head_dim", "rotary_dim", "experts", "top_k"), 1
                ),
                "name": "toy",
                "intermediate": 1,
                "vocab": VOCAB,
                "context": CONTEXT,
                "bos": None,
                "eos": [0],
            },
            "mapping": {"tp": 1, "ep": 1},
            "limits": {"context": CONTEXT, "max_rows": ROWS, "prefill_chunk": CHUNK},
            "logits": "all" if all_logits else "last",
            "checkpoint": None,
            "lowerings": {},
            "cuda": {
                "ranks": [rank],
                "library": "plugins/libmm2c_plugins.so",
                "host": "plugins/libmm2c_host.so",
                "version": "toy",
                "abi": 1,
            },
            "libraries": {},
            "files": {},
        }
    )


class ToyOps:
    """M2Toy: x[B, S, W] into the pages, and for every token the sum of what its row holds up to it."""

    def __init__(self) -> None:
        self.widths: list[tuple[int, int]] = []

    def run(self, call: Any, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        assert call.op == "M2Toy"
        x, past, new, table, k_cache, v_cache = inputs
        self.widths.append((x.shape[0], x.shape[1]))
        out = torch.zeros_like(x)
        for row in range(x.shape[0]):
            for index in range(int(new[row])):
                position = int(past[row]) + index
                pages = table[row, : position // PAGE + 1].long()
                k_cache[pages[-1], position % PAGE, 0] = x[row, index]
                held = k_cache[pages].reshape(-1, WIDTH)
                seen = torch.zeros(len(held), 1)
                seen[: position + 1] = 1
                out[row, index] = (held.float() * seen).sum(0)  # a NaN beyond spoils it, as in attention
        return [out, k_cache, v_cache]
