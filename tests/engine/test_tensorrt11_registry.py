"""TensorRT 11's own Python bindings, its plugin registry and its ONNX parser, with the graphs that plans come from.

The registry is that of the lean runtime 11.4, a real one (see fixtures/tensorrt11_module.py); the parser is that of
TensorRT-RTX.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from m2_layout import released_config
from tensorrt11_module import HERE, made, python_with_bindings, run_with_tensorrt

import mm2c_plugins
from mm2c.dialect import ops
from mm2c.engine.plugin_library import NAMES, library_folder
from mm2c.engine.tensorrt.plugin_nodes import plugin_nodes
from mm2c.pipeline import BuildRequest, build_bundle

OPS = {
    "M2AddRmsNorm", "M2Fp8Linear", "M2MoeBf16", "M2MoeExpertsBf16", "M2MoeExpertsFp8", "M2MoeFp8", "M2MoeRouting",
    "M2PagedAttention", "M2QkSumSquares", "M2RouterLinear", "M2Sample",
}  # fmt: skip
BLOCKS = {"block_n": 128, "block_k": 128}
GOOD: list[tuple[str, dict[str, Any], int]] = [
    ("M2Fp8Linear", BLOCKS, 1),
    ("M2QkSumSquares", {}, 1),
    (
        "M2PagedAttention",
        {"heads": 12, "kv_heads": 2, "head_dim": 128, "rotary_dim": 64, "eps": 1e-6, "scale": 0.088, "q_total": 6144,
         "k_total": 1024},
        3,
    ),
    ("M2MoeRouting", {"top_k": 8}, 2),
    ("M2MoeFp8", {"top_k": 8, "first_expert": 192, **BLOCKS}, 1),
    ("M2MoeBf16", {"top_k": 8, "first_expert": 0}, 1),
    ("M2AddRmsNorm", {"eps": 1e-6}, 2),
    ("M2RouterLinear", {}, 1),
]  # fmt: skip
BAD: list[tuple[tuple[str, dict[str, Any], int], str]] = [
    (("M2Nothing", {}, 1), r"layer \(M2Nothing\): no creator of version 1 in namespace 'mm2c'"),
    (("M2Fp8Linear", {"block_n": 128}, 1), r"attribute block_k is missing"),
    (("M2Fp8Linear", {"block_n": 48, "block_k": 128}, 1), r"block_n must be from 64 to 128, got 48"),
    (
        ("M2Fp8Linear", {"block_n": 128.0, "block_k": 128}, 1),
        r"block_n must be int32 or int64, got field type 1",
    ),
    (("M2Fp8Linear", BLOCKS, 2), r"has 1 outputs, the node 2"),
    (("M2PagedAttention", {**GOOD[2][1], "heads": 7}, 3), r"heads"),
]


def deferred(folder: Path, source: Path, **options: Any) -> Path:
    """A bundle without plans: its graphs are the ones that plans are built from."""
    request = BuildRequest(
        source=str(source), output=folder, engine="tensorrt", config_only=True, defer_plan=True, **options
    )
    build_bundle(request)
    return folder


@pytest.fixture(scope="module")
def library() -> Path:
    path = library_folder() / NAMES[0]
    if not path.exists():
        pytest.skip(f"no {path}: `make plugins` builds it")
    return path


@pytest.fixture(scope="module")
def graphs(library: Path, tiny_m2: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Paged plan graphs of the demo checkpoint, and of the released widths with a cache of fp8; first, middle and last
    stages."""
    folder = tmp_path_factory.mktemp("graphs")
    tiny = deferred(folder / "tiny", tiny_m2 / "config.json", tp=2, context=256, max_rows=4)
    config = released_config(
        layers=3, hidden=3072, heads=48, kv_heads=8, head_dim=128, rotary_dim=64, intermediate=1536, experts=256,
        top_k=8, vocab=200064, context=204800, rope_theta=5_000_000,
    )  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    options: dict[str, Any] = dict(tp=4, max_rows=64, kv_dtype="fp8", layers_per_plan=1)
    full = deferred(folder / "full", folder / "config.json", **options)
    return {
        name: sorted(p for p in (bundle / "plans").glob("*.onnx") if not p.name.endswith(".f32.onnx"))
        for name, bundle in (("tiny", tiny), ("full", full))
    }


@pytest.fixture(scope="module")
def other_libraries(library: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What somebody might name in place of the library."""
    folder = tmp_path_factory.mktemp("libraries")
    version = (
        b'static char const v[] = "0.1.0+000000000000"; char const* mm2c_plugins_version(void) { return v; }'
    )
    rest = b'char const* mm2c_plugins_last_error(void) { return ""; } void setLoggerFinder(void* f) { (void) f; }'
    empty = b"void* getCreators(int* n) { *n = 0; return 0; }"
    sources = {
        "nothing": b"int nothing;",
        "interface": b"int mm2c_plugins_abi(void) { return 7; }" + version + rest + empty,
        "empty": b"int mm2c_plugins_abi(void) { return 1; }" + version + rest + empty,
    }
    found = {"absent": folder / "absent.so", "text": folder / "text.so", "second": folder / NAMES[0]}
    found["text"].write_text("not a library")
    for name, source in sources.items():
        found[name] = folder / f"{name}.so"
        command = ["cc", "-shared", "-fPIC", "-xc", "-", "-o", str(found[name])]
        subprocess.run(command, input=source, check=True)
    # the same library of another version, beside its host
    content = library.read_bytes()
    own = re.search(rb"0\.1\.0\+([0-9a-f]{12})\0", content)
    assert own is not None
    found["second"].write_bytes(content.replace(own[1], b"0" * 12))
    shutil.copy(library.with_name(NAMES[1]), folder)
    return found


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the module ``tensorrt``."""
    python_with_bindings()
    return made(tmp_path_factory.mktemp("tensorrt11"))


@pytest.fixture(scope="module")
def answer(
    library: Path, graphs: dict[str, list[Path]], other_libraries: dict[str, Path], packages: Path
) -> dict[str, Any]:
    """What the bindings say, in a process of their own."""
    asked = {
        "library": str(library),
        "graphs": [str(path) for paths in graphs.values() for path in paths],
        "nodes": [*GOOD, *(case for case, _ in BAD)],
        "wide": GOOD,
        "libraries": [str(path) for name, path in other_libraries.items() if name != "second"],
        "second": str(other_libraries["second"]),
        "version": "0.0.0+ffffffffffff",
    }
    run = subprocess.run(
        [python_with_bindings(), str(HERE / "ask_registry.py")],
        input=json.dumps(asked),
        env={**os.environ, "PYTHONPATH": str(packages)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def test_the_real_bindings_load(answer: dict[str, Any]) -> None:
    assert answer["module"] == {"engine": "tensorrt", "module": "tensorrt", "version": "11.4.0.106"}
    assert answer["file"].endswith("tensorrt/__init__.py")
    assert answer["imported"] == []


def test_every_creator_is_found(answer: dict[str, Any]) -> None:
    assert set(answer["creators"]) == OPS
    assert set(answer["again"]) == OPS
    assert {tuple(found[:2]) for found in answer["creators"].values()} == {("1", "IPluginCreatorV3One")}
    for spec in ops.values():
        if spec.plugin is not None:
            assert set(spec.schema.attributes) <= set(answer["creators"][spec.plugin][2])


def test_the_registry_makes_every_plugin_of_a_graph(
    answer: dict[str, Any], graphs: dict[str, list[Path]]
) -> None:
    layer = {"M2AddRmsNorm": 2, "M2Fp8Linear": 2, "M2MoeFp8": 1, "M2PagedAttention": 1, "M2QkSumSquares": 1,
             "M2RouterLinear": 1}  # fmt: skip
    (tiny,) = (answer["graphs"][str(path)] for path in graphs["tiny"])
    assert tiny["by_op"] == {op: 3 * count for op, count in layer.items()}
    full = [answer["graphs"][str(path)]["by_op"] for path in graphs["full"]]
    assert {op: sum(one.get(op, 0) for one in full) for op in layer} == tiny["by_op"]


def test_whole_numbers_come_as_int32_or_int64(answer: dict[str, Any]) -> None:
    assert answer["wide"] == {op: True for op, _, _ in GOOD}


@pytest.mark.parametrize("number", range(len(GOOD)), ids=[op for op, _, _ in GOOD])
def test_a_node_is_taken(answer: dict[str, Any], number: int) -> None:
    assert answer["nodes"][number] == 1


@pytest.mark.parametrize("number", range(len(BAD)))
def test_a_node_is_refused(answer: dict[str, Any], number: int) -> None:
    text = answer["nodes"][len(GOOD) + number]
    assert isinstance(text, str)
    assert re.search(BAD[number][1], text)
    assert "does not take the graph" in text


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("absent", "there is no plugin library"),
        ("text", "no library that can be loaded: .*(invalid ELF header|file too short)"),
        ("nothing", "no plugin library of mm2c: it does not export getCreators"),
        ("interface", "has interface 7, this mm2c needs 1"),
        (
            "empty",
            r"TensorRT 11\.4\.0\.106 does not take the plugin library: none of its creators was registered",
        ),
    ],
)
def test_a_wrong_library_is_refused(
    answer: dict[str, Any], other_libraries: dict[str, Path], name: str, complaint: str
) -> None:
    text = answer["refused"][str(other_libraries[name])]
    assert re.search(f"error: .*{complaint}", text)
    assert str(other_libraries[name]) in text
    assert "remedy:" in text


def test_a_library_of_another_version_is_refused(answer: dict[str, Any]) -> None:
    assert re.search(r"has version 0\.1\.0\+\w+, the graphs were made for 0\.0\.0\+f{12}", answer["other"])


def test_a_second_library_does_not_pass_for_the_first(answer: dict[str, Any]) -> None:
    """The registry keeps the creators that it has, and says nothing."""
    assert "is of another library that this process loaded before" in answer["second"]


def test_the_runtime_registers_the_library_of_a_bundle(graphs: dict[str, list[Path]], packages: Path) -> None:
    bundle = graphs["tiny"][0].parents[1]
    said = run_with_tensorrt(packages, HERE / "register_in_runtime.py", str(bundle))
    assert set(said["registered"]) == {"M2AddRmsNorm", "M2Fp8Linear", "M2MoeFp8", "M2PagedAttention",
                                       "M2QkSumSquares", "M2RouterLinear"}  # fmt: skip
    assert str(bundle) in said["lacking"]
    assert "the plugin library is missing" in said["absent"]
    assert "built with tensorrt 11.3.0.1, 11.4.0.106 is installed" in said["version"]


def test_the_parser_hands_over_what_is_checked(
    library: Path, graphs: dict[str, list[Path]], tmp_path: Path
) -> None:
    """The parser's own fields are the ones that plugins were made of above, and our creators take them."""
    pytest.importorskip("tensorrt_rtx")
    spy, written = tmp_path / "spy.so", tmp_path / "spy.txt"
    command = [python_with_bindings(), "-m", "mm2c_plugins.kernels.toolchain", "tensorrt-include"]
    include = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    compat = Path(mm2c_plugins.__file__).parent / "include" / "compat"
    search = [f"-I{compat}", "-isystem", include]
    subprocess.run(
        [
            "g++",
            "-std=c++17",
            "-shared",
            "-fPIC",
            *search,
            "-o",
            str(spy),
            str(HERE / "field_spy.cpp"),
            "-ldl",
        ],
        check=True,
    )
    paths = [path for of in graphs.values() for path in of]
    run = subprocess.run(
        [sys.executable, str(HERE / "parse_plugin_nodes.py"), str(spy), *map(str, paths)],
        env={**os.environ, "MM2C_SPIED": str(library), "MM2C_SPY": str(written)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    nodes = [node for path in paths for node in plugin_nodes(path.read_bytes())]
    assert run.stdout.split() == [str(len(nodes))]
    types = {"int32": "5", "float32": "1"}
    lines = iter(written.read_text().splitlines())
    for node in nodes:
        # op, layer, phase 0 (build), 1: the creator made a plugin
        assert next(lines).split() == ["create", node.op, node.name, "0", "1"]
        fields = {}
        for _ in node.needed:
            _, name, *rest = next(lines).split()
            fields[name] = rest
        for name in node.needed:
            kind, value = node.attributes[name]
            data = struct.pack(f"={len(value)}{'i' if kind == 'int32' else 'f'}", *value)
            assert fields[name] == [types[kind], str(len(value)), data.hex()]
    assert next(lines, None) is None
