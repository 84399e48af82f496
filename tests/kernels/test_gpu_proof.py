"""The GPU proof's own code on the CPU: its small cases with interpreted kernels, its measurements as dry runs."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from interpreted import Interpreter, Memory

from mm2c_plugins.host import Library
from mm2c_plugins.host.library import BUILD, NAME

PROOF = Path(__file__).resolve().parents[1] / "gpu"
SIZES = {"layers": 3, "hidden": 128, "heads": 4, "kv_heads": 4, "experts": 8, "top_k": 2, "intermediate": 512,
         "vocab": 700, "q_total": 512, "k_total": 512}  # fmt: skip  # the demo checkpoint's, at tp 1


class AnyMemory(Memory):
    def check(self, addresses: Any, mask: Any, size: int, *, write: bool) -> None:
        pass


@pytest.fixture
def library() -> Iterator[Library]:
    if not (BUILD / NAME).exists():
        pytest.skip(f"no {NAME} in {BUILD}: `make plugins` builds it")
    library = Library(BUILD)
    library.pretend_device(90, sm_count=8)
    yield library
    library.set_launcher(None)
    library.pretend_device(0)


@pytest.fixture
def proof(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """proof(name): a module of the GPU proof, for the CPU and small sizes."""
    monkeypatch.setenv("MM2C_PROOF_DEVICE", "cpu")
    monkeypatch.setenv("MM2C_PROOF_SIZES", json.dumps(SIZES))
    monkeypatch.syspath_prepend(str(PROOF))
    own = {path.stem for path in PROOF.glob("*.py")}
    yield importlib.import_module
    for name in own & set(sys.modules):
        del sys.modules[name]


def failures(report: Any) -> list[str]:
    return [f"{line.name}: {line.value}" for line in report.lines if line.outcome == "FAILED"]


def test_small_cases_pass(library: Library, proof: Any) -> None:
    library.set_launcher(Interpreter(90, AnyMemory()))
    report = proof("report").Report({}, 600)
    proof("check_small").check_small(report, library)
    assert not failures(report)
    assert len(report.lines) > 15


def test_a_wrong_kernel_fails(library: Library, proof: Any) -> None:
    """A launcher that computes nothing leaves the poison in every output."""
    library.set_launcher(lambda launch: None)
    report = proof("report").Report({}, 600)
    report.run("kernels", lambda r: proof("check_small").check_small(r, library))
    good = [line.name for line in report.lines if line.outcome == "passed"]
    assert report.failed
    assert not good, "they pass with no kernel at all"


class DryClock:
    """Runs what is timed once."""

    def __init__(self, time: ModuleType) -> None:
        self._time, self.runs = time, 0

    def graph(self, run: Any, repeats: int = 1, *, cold: bool = True) -> Any:
        self.runs += 1
        run()
        return self._time.Time(1e-3, 0.0)

    eager = graph


def test_measurements_run_through(
    library: Library, proof: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every measurement prepares, launches and reports; the figures mean nothing here."""
    launched: list[str] = []
    library.set_launcher(lambda launch: launched.append(launch.kernel))
    bench, slices = proof("bench_kernels"), proof("bench_slice")
    monkeypatch.setattr(bench, "BATCHES", (1, 8, 70))
    clock = DryClock(proof("timing"))
    machine = bench.Machine(library, clock, 4e12)
    report = proof("report").Report({}, 600)
    bench.bench_moe(report, machine)
    bench.bench_linears(report, machine)
    with monkeypatch.context() as patch:
        rows = proof("made").Rows
        patch.setattr(
            bench, "Rows", lambda past, new, fp8=False: rows([p % 300 for p in past[:4]], new[:4], fp8=fp8)
        )
        bench.bench_attention(report, machine)
    assert {"moe_small_gate_up", "moe_gate_up", "moe_count", "attention_decode", "fp8_linear"} <= set(
        launched
    )
    assert clock.runs > 20
    peers = proof("peers")
    monkeypatch.setattr(peers, "decode", _without_compile(peers.decode))
    monkeypatch.setattr(slices, "CONTEXT", 64)
    slices.bench_peers(report, machine, 0.1, layers=3)
    report.facts["gpu"] = {}
    report.write(tmp_path)
    document = json.loads((tmp_path / "gpu.json").read_text())
    assert len(document["lines"]) == len(report.lines)
    assert "moe B=70" in (tmp_path / "gpu.md").read_text()
    assert not report.failed


def _without_compile(decode: Any) -> Any:
    def run(layer: Any, batch: int, context: int, compiled: bool = False) -> Any:
        return decode(layer, batch, context, device="cpu")

    return run


def test_the_slice_runs_a_program(
    library: Library, proof: Any, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rank's slice on a small program: random weights of every kind, experts counted, bytes counted."""
    library.set_launcher(Interpreter(90, AnyMemory()))
    sizes = {**SIZES, "layers": 1, "heads": 2, "kv_heads": 1, "experts": 6, "intermediate": 128, "vocab": 100}
    monkeypatch.setenv("MM2C_PROOF_SIZES", json.dumps(sizes))
    slices = proof("slice_model")
    model = slices.SliceModel.random(small_bundle / "rank0" / "cuda.json", library, "cpu")
    step = model.step([70, 3], 1)
    experts = step.experts()
    assert len(experts) == sizes["layers"]
    assert all(2 <= count <= 4 for count in experts)
    assert step.logits is not None
    assert torch.isfinite(step.logits).all()
    assert step.logits.std() > 0
    weights = sum(3 * sizes["hidden"] * sizes["intermediate"] * count for count in experts)
    assert weights < step.bytes(experts) < 4 * weights + model.weight_bytes


def test_without_a_gpu_it_says_why(proof: Any, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert proof("run").main([]) == 0
    assert "skipped: PyTorch sees no NVIDIA GPU" in capsys.readouterr().out


def test_the_slice_has_a_program_of_four_ranks(
    proof: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mm2c_runtime.executors.cuda.program import read_program

    files = proof("files")
    monkeypatch.setattr(files, "CONTEXT", 256)
    files.write_m2_program(files.FIXTURES / "tiny-m2" / "config.json", tmp_path)
    program = read_program(tmp_path / "rank0" / "cuda.json")
    assert (program.rank, program.ranks, program.max_rows, program.kv.layers) == (0, 4, 256, 3)
    assert sum(node.op == "DistCollective" for node in program.nodes) == 11


def test_it_needs_torch_and_numpy_alone() -> None:
    """Of what a GPU machine may lack, nothing is imported."""
    absent = ["mm2c", "pydantic", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "transformers", "tokenizers",
              "jinja2", "safetensors", "llguidance", "ml_dtypes", "triton"]  # fmt: skip
    code = f"""
import sys
sys.modules.update(dict.fromkeys({absent!r}))
sys.path.insert(0, {str(PROOF)!r})
import environment
environment.add_packages()
import bench_kernels, bench_slice, check_sampling, check_small, checks, gpu_ranks, peers, slice_model, tiny, timing
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_demo_is_compared_with_the_cpu_engine(library: Library, proof: Any, cuda_bundle: Path,
                                                  monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # fmt: skip
    """With the reference ops; the golden answers are made as ``make gpu-files`` makes them."""
    from mm2c.verify.reference_ops import ReferenceOps

    files, tiny = proof("files"), proof("tiny")
    monkeypatch.setattr(files, "COUNT", 6)
    monkeypatch.setattr(files, "QUESTIONS", files.QUESTIONS[:2])
    files.build(tmp_path / "cpu", "engine=onnxruntime", "context=256", source=files.FIXTURES / "tiny-m2")
    (tmp_path / "golden.json").write_text(json.dumps(files.golden(tmp_path / "cpu")))
    for name in ("tiny-bf16", "tiny-fp8-kv"):
        (tmp_path / name).symlink_to(cuda_bundle)
    monkeypatch.setattr(tiny, "FILES", tmp_path)
    report = proof("report").Report({}, 600)
    tiny.check_tiny(report, ops=ReferenceOps(), device="cpu")
    assert not failures(report)
