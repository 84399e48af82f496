"""A bundle of plans so small that its logits can be told: every layer adds to a token the scaled sum of what its row
holds up to it.

Four stages of one layer run three plans: the two in the middle are the same plan with other weights. A wrong row, a
forgotten copy, or weights of another layer change the logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from tensorrt_double import VERSION
from tensorrt_plan_files import write_plan
from toy_program import write_weights

from mm2c_runtime.manifest import FileEntry, Manifest
from mm2c_runtime.manifest_tensorrt import Plan, PlanTensor, Profile

VOCAB, WIDTH, CONTEXT, ROWS, CHUNK, LAYERS, PAGE = 10, 128, 16, 20, 6, 4, 4
FEW = 16  # rows of the plans for decode
NAN_TOKEN = 9
F32, I64 = TensorProto.FLOAT, TensorProto.INT64
_STEP = {
    "input_ids": ("i64", ["batch", "seq"]),
    "past_len": ("i32", ["batch"]),
    "new_len": ("i32", ["batch"]),
}


def tensors() -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(0)
    embed = torch.tensor(rng.normal(size=(VOCAB, WIDTH)), dtype=torch.bfloat16)
    embed[NAN_TOKEN] = float("nan")
    scales = {
        f"model.layers.{n}.scale": torch.tensor(rng.normal(size=WIDTH) / 4, dtype=torch.bfloat16)
        for n in range(LAYERS)
    }
    head = torch.tensor(rng.normal(size=(VOCAB, WIDTH)), dtype=torch.bfloat16)
    return {"model.embed_tokens.weight": embed, "lm_head.weight": head, **scales}


def expected(tokens: list[int]) -> np.ndarray[Any, Any]:
    """Logits after ``tokens``, without roundings in between."""
    known = {name: tensor.float().numpy() for name, tensor in tensors().items()}
    x = known["model.embed_tokens.weight"][tokens]
    for layer in range(LAYERS):
        x = x + known[f"model.layers.{layer}.scale"] * np.cumsum(x, 0)
    return x[-1] @ known["lm_head.weight"].T


def close(found: Any, wanted: Any) -> bool:
    """But for hidden states and cache in bf16."""
    found, wanted = np.asarray(found), np.asarray(wanted)
    return found.shape == wanted.shape and bool(np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max())


def write_bundle(folder: Path, *, paged: bool = False, all_logits: bool = False) -> Manifest:
    """The manifest and the files that it names; ``paged``: of the engine tensorrt."""
    for name in ("plans", "rank0"):
        (folder / name).mkdir(exist_ok=True)
    write_weights(folder / "rank0/weights.safetensors", tensors())
    runs = _runs(paged)
    plans: list[Plan] = []
    for variant, profiles in runs.items():
        for part in ("first", "middle", "last"):
            plans.append(_plan(folder, variant, part, profiles, paged, all_logits))
    files: dict[str, FileEntry] = {}
    for plan in plans:
        assert plan.plan is not None
        files[plan.plan] = write_plan(folder, plan)
    placed: list[dict[str, Any]] = []
    for number, profiles in enumerate(runs.values()):
        for index, profile in enumerate(profiles):
            stages = [
                {"plan": 3 * number + part, "profile": index, "first_layer": layer}
                for layer, part in enumerate((0, 1, 1, 2))
            ]
            placed.append({"profile": profile.model_dump(), "stages": stages})
    size = (folder / "rank0/weights.safetensors").stat().st_size
    files["rank0/weights.safetensors"] = FileEntry(sha256="", bytes=size)
    kv = {"layers": LAYERS, "kv_heads": 1, "head_dim": WIDTH, "page": PAGE if paged else 0, "dtype": "bf16"}
    return Manifest.model_validate(
        {
            "mm2c_version": "0",
            "build_key": "",
            "engine": "tensorrt" if paged else "tensorrt-rtx",
            "model": {
                **dict.fromkeys(("hidden", "heads", "kv_heads", "rotary_dim", "experts", "top_k"), 1),
                "name": "toy",
                "layers": LAYERS,
                "head_dim": WIDTH,
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
            "tensorrt": {
                "version": VERSION,
                "target": [],
                "plans": [plan.model_dump() for plan in plans],
                "ranks": [
                    {
                        "rank": 0,
                        "weights": "rank0/weights.safetensors",
                        "constants": {"vocabulary.first": [0]},
                        "runs": placed,
                    }
                ],
                "kv": kv,
                "head": "gather",
            },
            "libraries": {},
            "files": {name: entry.model_dump() for name, entry in files.items()},
        }
    )


def _runs(paged: bool) -> dict[str, list[Profile]]:
    """Profiles by set of plans, as the compiler has them."""
    prefill = Profile(name="prefill", batch=(1, 1, 1), seq=(1, CHUNK, CHUNK))
    if paged:
        return {"step": [Profile(name="decode", batch=(1, ROWS, ROWS), seq=(1, 1, 1)), prefill]}
    return {
        "decode": [Profile(name="decode", batch=(1, FEW, FEW), seq=(1, 1, 1))],
        "prefill": [Profile(name="decode.many", batch=(FEW + 1, ROWS, ROWS), seq=(1, 1, 1)), prefill],
    }


def _plan(
    folder: Path, variant: str, part: str, profiles: list[Profile], paged: bool, all_logits: bool
) -> Plan:
    name = f"{variant}.{part}"
    table = _table(part, paged, all_logits)
    onnx.save(_graph(table, part, paged, all_logits), str(folder / f"plans/{name}.f32.onnx"))
    return Plan(
        name=name,
        graph=f"plans/{name}.onnx",
        wide=f"plans/{name}.f32.onnx",
        plan=f"plans/{name}.plan",
        layers=1,
        profiles=profiles,
        tensors=table,
    )


def _table(part: str, paged: bool, all_logits: bool) -> list[PlanTensor]:
    cache: list[int | str] = ["pages", PAGE, 1, WIDTH] if paged else ["batch", 1, CONTEXT, WIDTH]
    hidden: list[int | str] = ["batch", "seq", WIDTH]
    given: list[tuple[str, str, str, list[int | str]]] = []
    for name, (dtype, shape) in _STEP.items():
        if name != "input_ids" or part == "first":
            given.append((name, "step", dtype, list(shape)))
    if paged:
        given.append(("block_table", "step", "i32", ["batch", "pages_of_row"]))
    if part == "first":
        given.append(("model.embed_tokens.weight", "weight", "bf16", [VOCAB, WIDTH]))
    else:
        given.append(("hidden.0", "hidden", "bf16", hidden))
    given += [(f"{side}_cache.0", "cache", "bf16", cache) for side in "kv"]
    given.append(("layers.0.scale", "weight", "bf16", [WIDTH]))
    if part == "last":
        given.append(("lm_head.weight", "weight", "bf16", [VOCAB, WIDTH]))
        given.append(("vocabulary.first", "constant", "i64", [1]))
        made: list[tuple[str, str, str, list[int | str]]] = [
            ("logits", "logits", "f32", ["batch", "seq", VOCAB] if all_logits else ["batch", VOCAB])
        ]
    else:
        made = [("hidden_out.0", "hidden", "bf16", hidden)]
    made += [(f"{side}_cache_out.0", "cache", "bf16", cache) for side in "kv"]
    rows = [("input", *row) for row in given] + [("output", *row) for row in made]
    return [
        PlanTensor.model_validate({"mode": mode, "name": name, "kind": kind, "dtype": dtype, "shape": shape})
        for mode, name, kind, dtype, shape in rows
    ]


def _graph(table: list[PlanTensor], part: str, paged: bool, all_logits: bool) -> onnx.ModelProto:
    nodes: list[Any] = []
    constants: dict[str, np.ndarray[Any, Any]] = {
        "zero": np.array(0, np.int64),
        "one": np.array(1, np.int64),
        "axis0": np.array([0], np.int64),
        "axis1": np.array([1], np.int64),
        "axis2": np.array([2], np.int64),
        "row": np.array([-1, CONTEXT, WIDTH], np.int64),
        "slots": np.arange(CONTEXT, dtype=np.int64),
        "page": np.array(PAGE, np.int64),
    }

    def op(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    x = (
        op("Gather", ["model.embed_tokens.weight", "input_ids"], "embedded")
        if part == "first"
        else "hidden.0"
    )
    op("Shape", [x], "seq_size", start=1, end=2)
    op("Squeeze", ["seq_size", "axis0"], "seq_scalar")
    op("Range", ["zero", "seq_scalar", "one"], "steps")
    op("Cast", ["past_len"], "past", to=I64)
    op("Unsqueeze", ["past", "axis1"], "past_column")
    op("Add", ["past_column", "steps"], "positions")  # [B, S]
    op("Cast", ["new_len"], "new", to=I64)
    if paged:
        _write_pages(op, x)
    else:
        _write_rows(op, x)
    for side in "v":  # written as it is, read by nobody
        op("Identity", [f"{side}_cache.0"], f"{side}_cache_out.0")
    op("Unsqueeze", ["positions", "axis2"], "upto")
    op("LessOrEqual", ["slots", "upto"], "seen_bool")
    op("Cast", ["seen_bool"], "seen", to=F32)  # [B, S, C]; a NaN beyond spoils the sum, as in attention
    op("MatMul", ["seen", "held"], "sums")
    op("Mul", ["sums", "layers.0.scale"], "scaled")
    if part != "last":
        op("Add", [x, "scaled"], "hidden_out.0")
    else:
        op("Add", [x, "scaled"], "summed")
        last = "summed"
        if not all_logits:
            op("Sub", ["new", "one"], "last_place")
            op("Unsqueeze", ["last_place", "axis1"], "last_index")
            last = op("GatherND", ["summed", "last_index"], "last", batch_dims=1)
        op("Transpose", ["lm_head.weight"], "head", perm=[1, 0])
        op("Cast", ["vocabulary.first"], "first", to=F32)  # 0: read, and changes nothing
        op("MatMul", [last, "head"], "product")
        op("Add", ["product", "first"], "logits")
    values = {tensor.name: _value(tensor) for tensor in table}
    graph = helper.make_graph(
        nodes,
        "toy",
        [values[tensor.name] for tensor in table if tensor.mode == "input"],
        [values[tensor.name] for tensor in table if tensor.mode == "output"],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _write_rows(op: Any, x: str) -> None:
    """x[B, S, W] into k_cache.0 [B, 1, C, W] at its positions; "held" is the cache as [B, C, W]."""
    op("Reshape", ["k_cache.0", "row"], "flat")
    op("Unsqueeze", ["positions", "axis2"], "places")
    op("Shape", ["positions"], "sizes")
    op("ConstantOfShape", ["sizes"], "nought", value=numpy_helper.from_array(np.array([0], np.int64)))
    op("Shape", ["positions"], "batch_size", start=0, end=1)
    op("Squeeze", ["batch_size", "axis0"], "batch_scalar")
    op("Range", ["zero", "batch_scalar", "one"], "rows")
    op("Unsqueeze", ["rows", "axis1"], "rows_column")
    op("Add", ["nought", "rows_column"], "row_of")
    op("Unsqueeze", ["row_of", "axis2"], "row_places")
    op("Concat", ["row_places", "places"], "where", axis=2)
    op("ScatterND", ["flat", "where", x], "held")
    op("Shape", ["k_cache.0"], "shape")
    op("Reshape", ["held", "shape"], "k_cache_out.0")


def _write_pages(op: Any, x: str) -> None:
    """x[B, S, W] into the pages k_cache.0 [P, page, 1, W] that the block table names; "held" is what the rows hold as
    [B, C, W]."""
    op("Squeeze", ["k_cache.0", "axis2"], "pages")  # [P, page, W]
    op("Cast", ["block_table"], "table", to=I64)
    op("Div", ["positions", "page"], "page_of")
    op("Mod", ["positions", "page"], "slot_of")
    op("GatherElements", ["table", "page_of"], "page_at", axis=1)
    op("Unsqueeze", ["page_at", "axis2"], "page_places")
    op("Unsqueeze", ["slot_of", "axis2"], "slot_places")
    op("Concat", ["page_places", "slot_places"], "where", axis=2)
    op("ScatterND", ["pages", "where", x], "written")
    op("Unsqueeze", ["written", "axis2"], "k_cache_out.0")
    op("Gather", ["written", "table"], "gathered")  # [B, M, page, W]
    op("Reshape", ["gathered", "row"], "held")


def _value(tensor: PlanTensor) -> Any:
    kinds: Mapping[str, int] = {"bf16": F32, "f32": F32, "i64": I64, "i32": TensorProto.INT32}
    return helper.make_tensor_value_info(tensor.name, kinds[tensor.dtype], list(tensor.shape))
