"""Files on disk: segments over external tensors load and run; whole graphs pass the checker."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hand_graph import RandomCheckpoint, fp8_everywhere, hand_graph, model_config
from lockstep import Lockstep, programs

from mm2c.config import Mapping
from mm2c.engine.external import Entry
from mm2c.engine.onnxruntime import build, kv_spec, write_graph
from mm2c.lower.onnxruntime import LOWERINGS, WEIGHTS
from mm2c.lower.program import Program
from mm2c.passes.shard import shard
from mm2c_runtime.weights.evaluate import evaluate
from mm2c_runtime.weights.recipe import Recipe

CONFIG = model_config(hidden=128, head_dim=128, intermediate=512, layers=1)
GRAPH = hand_graph(CONFIG, fp8_everywhere(CONFIG))
READER = RandomCheckpoint(GRAPH.recipes)


def write_weights(path: Path, recipes: dict[str, Recipe]) -> dict[str, Entry]:
    path.parent.mkdir(parents=True, exist_ok=True)
    entries: dict[str, Entry] = {}
    content = b"header, of a length that aligns nothing"
    for name, recipe in recipes.items():
        data = np.ascontiguousarray(evaluate(recipe, READER)).tobytes()
        entries[name] = (recipe.dtype, recipe.shape, len(content), len(data))
        content += data
    path.write_bytes(content)
    return entries


def built(bundle: Path, lowering: str, tp: int) -> tuple[list[Program], list[Path]]:
    ranks = programs(GRAPH, CONFIG, tp, 1, LOWERINGS[lowering])
    written = []
    for rank, program in enumerate(ranks):
        entries = write_weights(bundle / f"rank{rank}" / WEIGHTS[lowering], program.recipes)
        files, record = build(
            program, bundle, rank=rank, lowering=lowering, entries=entries, kv=kv_spec(CONFIG, Mapping(tp))
        )
        assert record.rank == rank
        assert [bundle / s.file for s in record.segments] == files
        assert record.weights == f"rank{rank}/{WEIGHTS[lowering]}"
        assert len(record.collectives) == len(files) - 1
        assert record.kv.kv_heads == CONFIG.kv_heads // tp
        written += files
    return ranks, written


def session_of(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # as in memory: sums over threads depend on their number
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("lowering", list(LOWERINGS))
@pytest.mark.parametrize("tp", [1, 2])
def test_every_segment_loads(tmp_path: Path, lowering: str, tp: int) -> None:
    _, files = built(tmp_path, lowering, tp)
    assert files[0].name == f"{lowering}.000.onnx"
    for path in files:
        session_of(path)
    largest = max(path.stat().st_size for path in files)
    assert largest < 64 << 10  # graphs, not weights


def test_weights_come_from_the_file(tmp_path: Path) -> None:
    (program,), (path,) = built(tmp_path, "fast", 1)
    in_memory = Lockstep([program], READER, CONFIG)
    in_memory.reset(rows=1, capacity=8)
    expected = in_memory.step(np.asarray([[5, 9, 2]]), [0], [3])
    session = session_of(path)
    caches = {f"{x}_cache.0": np.zeros((1, CONFIG.kv_heads, 8, CONFIG.head_dim), np.float32) for x in "kv"}
    lengths = {"past_len": np.zeros(1, np.int32), "new_len": np.full(1, 3, np.int32)}
    (logits,) = session.run(["logits"], {"input_ids": np.asarray([[5, 9, 2]]), **lengths, **caches})
    np.testing.assert_array_equal(logits, expected)


def test_a_bad_entry_is_named(tmp_path: Path) -> None:
    (program,) = programs(GRAPH, CONFIG, 1, 1, LOWERINGS["fast"])
    entries = write_weights(tmp_path / "w", program.recipes)
    dtype, shape, offset, length = entries["model.norm.weight"]
    wrong = {**entries, "model.norm.weight": (dtype, shape, offset, length + 4)}
    with pytest.raises(ValueError, match=r"model\.norm\.weight is f32\[128\] of 516 bytes"):
        build(program, tmp_path, rank=0, lowering="fast", entries=wrong, kv=kv_spec(CONFIG, Mapping()))
    with pytest.raises(ValueError, match=r"has no tensor"):
        build(program, tmp_path, rank=0, lowering="fast", entries={}, kv=kv_spec(CONFIG, Mapping()))


@pytest.mark.parametrize("tp", [1, 2])
def test_the_whole_graph_without_weights(tmp_path: Path, tp: int) -> None:
    path = tmp_path / "model.onnx"
    write_graph(shard(GRAPH, CONFIG, Mapping(tp)), path)
    model = onnx.load(path, load_external_data=False)
    assert {f.name for f in model.functions} >= {
        "M2Attention",
        "M2MoeRouting",
        "M2MoeExpertsFp8",
        "M2Fp8Linear",
    }
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            stated = {entry.key: entry.value for entry in tensor.external_data}
            assert stated["location"] == "weights.safetensors"
            assert int(stated["length"]) > 0
    assert not any(
        value.const_value for name, value in GRAPH.model.graph.initializers.items() if name in GRAPH.recipes
    )
    onnx.shape_inference.infer_shapes(model)


def test_the_whole_graph_of_one_rank_runs(tmp_path: Path) -> None:
    entries = write_weights(tmp_path / "weights.safetensors", GRAPH.recipes)
    write_graph(GRAPH, tmp_path / "model.onnx", entries)
    session_of(tmp_path / "model.onnx")
