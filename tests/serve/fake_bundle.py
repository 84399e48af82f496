"""A bundle whose engine computes nothing: real Triton models and stubs, a fake engine behind the socket."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from mm2c_runtime.manifest import FORMAT

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("minimax_m2", "minimax_m2_unary", "minimax_m2_parse", "mm_gate")


def make(folder: Path) -> Path:
    """``folder`` becomes a bundle that `mm2c serve` accepts."""
    for model in MODELS:
        shutil.copytree(ROOT / "model_repo" / model, folder / "model_repository" / model)
    runtime = folder / "runtime" / "mm2c_runtime"
    shutil.copytree(ROOT / "model_repo" / "runtime", runtime, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(Path(__file__).with_name("fake_engine_process.py"), runtime / "server" / "process.py")
    (folder / "manifest.json").write_text(json.dumps(_manifest()))
    return folder


def _manifest() -> dict[str, object]:
    model = {
        "name": "fake", "layers": 1, "hidden": 1, "heads": 1, "kv_heads": 1, "head_dim": 1, "rotary_dim": 1,
        "experts": 1, "top_k": 1, "intermediate": 1, "vocab": 1, "context": 1, "bos": None, "eos": [],
    }  # fmt: skip
    checkpoint = {"source": "none", "revision": None, "identity": "0", "format": "fp8"}
    return {
        "format": FORMAT,
        "mm2c_version": "0.1.0",
        "build_key": "0",
        "engine": "onnxruntime",
        "model": model,
        "mapping": {"tp": 1, "ep": 1},
        "limits": {"context": 1, "max_rows": 1, "prefill_chunk": 1},
        "logits": "last",
        "checkpoint": checkpoint,
        "lowerings": {},
        "libraries": {},
        "files": {},
    }
