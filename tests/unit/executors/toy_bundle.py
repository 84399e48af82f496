"""A hand-built bundle of two ranks and three segments, small enough to predict in numpy.

Each rank keeps the embeddings of a row's tokens in its cache and sums them; the sums are added over the ranks
(all_reduce), each rank computes half of the logits, and the halves are joined (all_gather).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx import helper as h

from mm2c_runtime.manifest import FileEntry, Manifest

VOCAB, WIDTH, CONTEXT, ROWS, CHUNK = 12, 4, 16, 3, 6
NAN_TOKEN = 11
RNG = np.random.default_rng(0)
EMBED = RNG.normal(size=(2, VOCAB, WIDTH)).astype(np.float32)
EMBED[:, NAN_TOKEN] = np.nan
HEAD = RNG.normal(size=(WIDTH, VOCAB)).astype(np.float32)


def expected(tokens: list[int]) -> NDArray[np.float32]:
    """Logits after ``tokens``."""
    return np.asarray((EMBED[0, tokens].sum(0) + EMBED[1, tokens].sum(0)) @ HEAD, np.float32)


def write_toy_bundle(
    folder: Path, *, in_place: bool = True, padded: bool = True, all_logits: bool = False
) -> Manifest:
    """Write the programs and return the manifest (not written)."""
    ranks = []
    for rank in range(2):
        (folder / f"rank{rank}").mkdir(parents=True)
        (folder / f"rank{rank}/weights").write_bytes(b"8 bytes.")
        segments = []
        for index, model in enumerate(_segments(rank, all_logits)):
            file = f"rank{rank}/toy.{index:03d}.onnx"
            onnx.save(model, str(folder / file))
            graph = model.graph
            segments.append(
                {
                    "file": file,
                    "inputs": [v.name for v in graph.input],
                    "outputs": [v.name for v in graph.output],
                }
            )
        ranks.append(
            {
                "rank": rank,
                "segments": segments,
                "collectives": [
                    {"kind": "all_reduce", "input": "part", "output": "sum", "groups": [[0, 1]]},
                    {
                        "kind": "all_gather",
                        "input": "half",
                        "output": "joined",
                        "axis": -1,
                        "groups": [[0, 1]],
                    },
                ],
                "weights": f"rank{rank}/weights",
                "kv": {"layers": 1, "kv_heads": 1, "head_dim": WIDTH, "dtype": "f32"},
            }
        )
    files = {
        str(p.relative_to(folder)): FileEntry(sha256="0" * 64, bytes=p.stat().st_size)
        for p in folder.rglob("*")
        if p.is_file()
    }
    model_info = {
        "name": "toy", "layers": 1, "hidden": WIDTH, "heads": 1, "kv_heads": 1, "head_dim": WIDTH,
        "rotary_dim": 2, "experts": 1, "top_k": 1, "intermediate": 1, "vocab": VOCAB, "context": CONTEXT,
        "bos": None, "eos": [1],
    }  # fmt: skip
    return Manifest.model_validate(
        {
            "mm2c_version": "0",
            "build_key": "0" * 64,
            "engine": "onnxruntime",
            "model": model_info,
            "mapping": {"tp": 2, "ep": 1},
            "limits": {"context": CONTEXT, "max_rows": ROWS, "prefill_chunk": CHUNK},
            "logits": "all" if all_logits else "last",
            "checkpoint": None,
            "lowerings": {"fast": {"ranks": ranks, "in_place": in_place, "padded": padded}},
            "libraries": {},
            "files": files,
        }
    )


def _segments(rank: int, all_logits: bool) -> list[onnx.ModelProto]:
    info = h.make_tensor_value_info
    cache = ["batch", 1, "kv_len", WIDTH]
    names = ["k_cache.0", "v_cache.0"]
    remember = h.make_node
    first = [
        remember("Gather", ["embed", "input_ids"], ["x"]),  # [B, S, D]
        remember("Shape", ["k_cache.0"], ["length"], start=2, end=3),
        remember("Squeeze", ["length"], ["length0"]),
        remember("Range", ["zero", "length0", "one"], ["slots"]),  # [L]
        remember("Shape", ["input_ids"], ["width"], start=1, end=2),
        remember("Squeeze", ["width"], ["width0"]),
        remember("Range", ["zero", "width0", "one"], ["queries"]),  # [S]
        remember("Cast", ["past_len"], ["past"], to=TensorProto.INT64),
        remember("Cast", ["new_len"], ["new"], to=TensorProto.INT64),
        remember("Unsqueeze", ["past", "last_two"], ["past3"]),  # [B, 1, 1]
        remember("Unsqueeze", ["new", "last_two"], ["new3"]),
        remember("Unsqueeze", ["slots", "last"], ["slots2"]),  # [L, 1]
        remember("Sub", ["slots2", "past3"], ["offset"]),  # [B, L, 1]
        remember("Equal", ["offset", "queries"], ["here"]),  # [B, L, S]
        remember("Less", ["offset", "new3"], ["real"]),
        remember("And", ["here", "real"], ["take"]),
        remember("Cast", ["take"], ["take_f"], to=TensorProto.FLOAT),
        remember("MatMul", ["take_f", "x"], ["placed"]),  # [B, L, D]
        remember("ReduceMax", ["take_f", "last"], ["any_f"], keepdims=1),
        remember("Cast", ["any_f"], ["any"], to=TensorProto.BOOL),
        remember("Unsqueeze", ["placed", "first_head"], ["placed4"]),
        remember("Unsqueeze", ["any", "first_head"], ["any4"]),
        remember("Where", ["any4", "placed4", "k_cache.0"], ["k_cache_out.0"]),
        remember("Where", ["any4", "placed4", "v_cache.0"], ["v_cache_out.0"]),
        remember("Squeeze", ["v_cache_out.0", "first_head"], ["kept"]),
        remember("Cast", ["real"], ["real_f"], to=TensorProto.FLOAT),  # slots up to past + new
        remember("Mul", ["kept", "real_f"], ["seen"]),
        remember("ReduceSum", ["seen", "first_head"], ["part"], keepdims=0),  # [B, D]
    ]
    constants = {
        "embed": EMBED[rank], "zero": np.int64(0), "one": np.int64(1), "last": np.asarray([-1]),
        "last_two": np.asarray([-2, -1]), "first_head": np.asarray([1]),
    }  # fmt: skip
    step = [info("input_ids", TensorProto.INT64, ["batch", "seq"])]
    step += [info(n, TensorProto.INT32, ["batch"]) for n in ("past_len", "new_len")]
    step += [info(n, TensorProto.FLOAT, cache) for n in names]
    caches_out = [info(n.replace("cache.", "cache_out."), TensorProto.FLOAT, cache) for n in names]
    half = {"head": np.ascontiguousarray(np.split(HEAD, 2, 1)[rank])}
    ending = [h.make_node("Identity", ["joined"], ["logits"])]
    more = []
    if all_logits:  # the same logits at every position
        ending = [
            h.make_node("Sub", ["input_ids", "input_ids"], ["none"]),
            h.make_node("Cast", ["none"], ["none_f"], to=TensorProto.FLOAT),
            h.make_node("Unsqueeze", ["none_f", "last"], ["none3"]),
            h.make_node("Unsqueeze", ["joined", "middle"], ["joined3"]),
            h.make_node("Add", ["joined3", "none3"], ["logits"]),
        ]
        more = step[:1]
    logits = ["batch", "seq", VOCAB] if all_logits else ["batch", VOCAB]
    # ``half`` has no declared shape: what ONNX Runtime says of it then depends on its own inference
    return [
        _model(first, step, [info("part", TensorProto.FLOAT, ["batch", WIDTH]), *caches_out], constants),
        _model(
            [h.make_node("MatMul", ["sum", "head"], ["half"])],
            [info("sum", TensorProto.FLOAT, None)],
            [info("half", TensorProto.FLOAT, None)],
            half,
        ),
        _model(
            ending,
            [info("joined", TensorProto.FLOAT, None), *more],
            [info("logits", TensorProto.FLOAT, logits)],
            {"last": np.asarray([-1]), "middle": np.asarray([1])} if all_logits else {},
        ),
    ]


def _model(nodes: list, inputs: list, outputs: list, constants: dict) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = h.make_graph(nodes, "segment", inputs, outputs, initializer=tensors)
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 21)], ir_version=10)
