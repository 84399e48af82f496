"""`mm2c inspect --engine`: what the engine runs, from the manifest, TensorRT's inspector, the network or the graph."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from plan_bundle import make_plan_bundle
from resealed import reseal
from typer.testing import CliRunner, Result

from mm2c.bundle import inspect_engine
from mm2c.bundle.describe_engine import describe_engine
from mm2c.bundle.inspect_engine import look_inside
from mm2c.bundle.inspector_text import layers_of
from mm2c.cli.main import app
from mm2c.engine.tensorrt import library
from mm2c.errors import UserError
from mm2c_runtime.errors import BundleError
from mm2c_runtime.manifest_file import read_manifest

DETAILED = {
    "Layers": [
        {
            "Name": "fused",
            "LayerType": "kgen",
            "Outputs": [{"Name": "a", "Format/Datatype": "Row major linear BFloat16 format"}],
        },
        {
            "Name": "sum",
            "LayerType": "DistCollective",
            "Outputs": [{"Name": "b", "Format/Datatype": "Row major linear FP32"}],
        },
        {"Name": "done", "LayerType": "kgen", "Outputs": []},
    ],
    "Bindings": ["a"],
}


def mm2c(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["inspect", *(str(a) for a in arguments)])


@pytest.fixture(scope="module")
def bundles(
    random_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Of two ranks and three layers, two a plan; plans are still to be built."""
    checkpoint = random_checkpoint(layers=3, kv_heads=2, vocab=300, seed=6)
    root = tmp_path_factory.mktemp("inspect-engine")
    for engine in ("tensorrt-rtx", "tensorrt"):
        options: dict[str, Any] = {"tp": 2, "engine": engine, "rows": 20, "layers_per_plan": 2}
        make_plan_bundle(root / engine, checkpoint, weights=False, **options)
    return {engine: root / engine for engine in ("tensorrt-rtx", "tensorrt")}


def need_rtx() -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX (the extra rtx)")


def test_plans_are_described_from_the_manifest_and_the_network(bundles: dict[str, Path]) -> None:
    need_rtx()
    facts = json.loads(mm2c(bundles["tensorrt-rtx"], "--engine", "--json").stdout)
    program = facts["tensorrt"]
    assert (facts["engine"], facts["programs"], facts["plugins"]) == ("tensorrt-rtx", [], None)
    assert program["deferred"]
    assert [plan["name"] for plan in program["plans"]] == ["decode.0", "decode.1", "prefill.0", "prefill.1"]
    first = program["plans"][0]
    assert (first["layers"], first["stages"], first["file"]) == (2, 2, None)
    assert first["profiles"] == [{"name": "decode", "batch": [1, 16, 16], "seq": [1, 1, 1]}]
    assert first["tensors"]["cache"] == {"tensors": 4, "dtypes": {"bf16": 4}, "bytes": None}
    assert first["tensors"]["weight"]["bytes"] > 2 * 8 * 3 * 128 * 128  # two layers' experts in FP8
    inside = first["inside"]
    assert (inside["source"], inside["why"]) == ("network", "the plan is still to be built")
    assert inside["kinds"]["KV_CACHE_UPDATE"] == 4
    assert inside["kinds"]["ATTENTION_INPUT"] == 2
    assert inside["collectives"] == 7  # the embedding's, three a layer
    assert sum(inside["kinds"].values()) == inside["layers"] > sum(inside["precision"].values()) * 0.9
    assert "BF16" in inside["precision"]
    assert inside["plugins"] == {}
    chain = [(stage["plan"], stage["first_layer"]) for stage in program["ranks"][1]["runs"][0]["stages"]]
    assert chain == [("decode.0", 0), ("decode.1", 2)]


def test_what_is_printed(bundles: dict[str, Path]) -> None:
    need_rtx()
    text = mm2c(bundles["tensorrt-rtx"], "--engine").stdout
    for word in (
        "tensorrt-rtx engine", "none built yet: `mm2c build --finish`", "decode: 1-16 rows × 1 token",
        "decode.many: 17-20 rows × 1 token", "prefill: 1 row × 1-8 tokens", "deferred", "writes",
        "of the network that the plan is built from: the plan is still to be built",
        "steps     decode.many: 17-20 rows × 1 token: prefill.0 → prefill.1",
    ):  # fmt: skip
        assert word in text


def test_plugin_nodes_are_counted(bundles: dict[str, Path]) -> None:
    facts = describe_engine(bundles["tensorrt"])["tensorrt"]
    nodes = facts["plans"][0]["inside"]["plugins"]
    assert nodes["M2PagedAttention"] == nodes["M2MoeFp8"] == 2
    assert nodes["M2Fp8Linear"] == 4
    assert "DistCollective" not in nodes
    assert facts["kv"]["page"] == 64
    assert "plugin nodes: " in mm2c(bundles["tensorrt"], "--engine").stdout


def test_the_rest_of_inspect_knows_plans(bundles: dict[str, Path]) -> None:
    facts = json.loads(mm2c(bundles["tensorrt-rtx"], "--json").stdout)
    assert facts["collectives"]["matches"]
    assert [(rank["lowering"], rank["segments"]) for rank in facts["ranks"]] == [("tensorrt-rtx", 2)] * 2
    assert facts["ranks"][0]["weight_bytes"] == facts["shards"][0]["bytes"]
    assert facts["ranks"][0]["all_reduces"] == 10


def without(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(engine: str) -> Any:
        raise UserError(f"{engine} is not installed")

    monkeypatch.setattr(library, "find_library", missing)


def test_without_a_library_the_graph_tells(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch)
    inside = describe_engine(bundles["tensorrt-rtx"])["tensorrt"]["plans"][0]["inside"]
    assert (inside["source"], inside["precision"]) == ("graph", {})
    assert inside["kinds"]["M2MoeFp8"] == 2
    assert inside["collectives"] == 7
    assert "of the ONNX graph" in mm2c(bundles["tensorrt-rtx"], "--engine").stdout


def double(text: str | None, log: str = "") -> Any:
    """A TensorRT whose runtime loads any plan; None: none."""
    inspector = SimpleNamespace(get_engine_information=lambda kind: text)
    engine = SimpleNamespace(
        create_engine_inspector=lambda: inspector,
        num_optimization_profiles=2,
        get_device_memory_size_for_profile_v2=lambda number: 1000 + number,
    )

    class Logger:
        def __init__(self) -> None:
            return

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, data: bytes) -> Any:
            assert data == b"plan"
            if text is None:
                self.logger.log(1, log)
            return None if text is None else engine

    return SimpleNamespace(
        ILogger=Logger, Runtime=Runtime, LayerInformationFormat=SimpleNamespace(JSON="json"), __version__="9"
    )


def looked(bundle: Path, trt: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Inside of the first plan, as if it was built."""
    program = read_manifest(bundle).tensorrt
    assert program is not None
    plan = program.plans[0].model_copy(update={"plan": "decode.plan"})
    (tmp_path / plan.graph).parent.mkdir(exist_ok=True)
    (tmp_path / plan.graph).write_bytes((bundle / plan.graph).read_bytes())
    (tmp_path / "decode.plan").write_bytes(b"plan")
    found = library.Library("tensorrt-rtx", "tensorrt_rtx", "9")
    monkeypatch.setattr(library.Library, "load", lambda self: trt)
    monkeypatch.setattr(inspect_engine, "_libraries", lambda engine: ({"tensorrt-rtx": found}, ""))
    return look_inside(tmp_path, "tensorrt-rtx", program.model_copy(update={"plans": [plan]}))[plan.name]


def test_a_plan_that_loads_is_told_by_the_inspector(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    inside = looked(bundles["tensorrt-rtx"], double(json.dumps(DETAILED)), monkeypatch, tmp_path)
    assert (inside.source, inside.why, inside.layers) == ("inspector", "", 3)
    assert inside.kinds == {"kgen": 2, "DistCollective": 1}
    assert inside.precision == {"BF16": 1, "FP32": 1, "unknown": 1}
    assert (inside.collectives, inside.scratch) == (1, [1000, 1001])


def test_a_plan_without_details_says_so(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = json.dumps({"Layers": ["fused", "sum"], "Bindings": []})
    inside = looked(bundles["tensorrt-rtx"], double(names), monkeypatch, tmp_path)
    assert (inside.layers, inside.kinds) == (2, {})
    assert "without details" in inside.why


def test_a_plan_that_does_not_load_says_why(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    refusal = UserError("no parser here")

    def parse(trt: Any, data: bytes) -> Any:
        from mm2c.engine.tensorrt.parse import NetworkRefused

        raise NetworkRefused([refusal.what])

    monkeypatch.setattr("mm2c.engine.tensorrt.parse.parse_network", parse)
    inside = looked(bundles["tensorrt-rtx"], double(None, "no driver"), monkeypatch, tmp_path)
    assert (inside.source, inside.why) == ("graph", "the parser refuses the graph: no parser here")
    with pytest.raises(LookupError, match="there is no GPU"):
        inspect_engine._of_engine(double(None, "no driver"), tmp_path / "decode.plan", {})


def test_what_the_inspector_may_say() -> None:
    assert layers_of(json.dumps({"Layers": []})).layers == 0
    for text in ("", "[]", "{}", json.dumps({"Layers": None})):
        with pytest.raises(LookupError):
            layers_of(text)


def test_programs_of_onnx_runtime(random_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    from mm2c.bundle.describe_engine import _program, _segment

    program = _program("fast", 1, "rank1/w", [_segment("a", ["Add", "Add"], 2, 1, "all_reduce")])
    assert (program["nodes"], program["ops"]) == (2, {"Add": 2})
    assert program["segments"][0]["collective_after"] == "all_reduce"


def test_a_cuda_program_is_counted_and_a_damaged_one_refused(tmp_path: Path) -> None:
    from mm2c.bundle.describe_engine import _cuda_program

    rank: Any = SimpleNamespace(program="program.json", rank=0, weights="rank0/w")
    with pytest.raises(BundleError, match=r"program\.json cannot be read"):
        _cuda_program(tmp_path, rank)
    nodes = [{"op": "M2Fp8Linear"}, {"op": "DistCollective"}, {"op": "M2Fp8Linear"}]
    (tmp_path / "program.json").write_text(json.dumps({"nodes": nodes}))
    assert _cuda_program(tmp_path, rank)["ops"] == {"M2Fp8Linear": 2, "DistCollective": 1}


def test_engine_draws_nothing(bundles: dict[str, Path]) -> None:
    result = mm2c(bundles["tensorrt-rtx"], "--engine", "--picture")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--engine draws nothing" in result.stderr


def test_an_altered_bundle_is_found_out(bundles: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    bundle = tmp_path / "altered"
    shutil.copytree(bundles["tensorrt-rtx"], bundle)
    (bundle / "plans" / "decode.0.onnx").write_bytes(b"no graph")
    assert "decode.0.onnx" in mm2c(bundle, "--engine").stderr
    reseal(bundle, "plans/decode.0.onnx")
    result = mm2c(bundle, "--engine")
    assert (result.exit_code, result.stdout) == (2, "")
