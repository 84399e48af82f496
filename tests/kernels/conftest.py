"""The kernels' tests: run by the kernel environment's Python, on the CPU, in the corrected interpreter.

``make test`` runs them after the others; the main run leaves this folder out, for its environment has no triton.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")

try:
    from mm2c_plugins.kernels import interpreter

    interpreter.install()
except (ImportError, RuntimeError) as error:
    message = f"{error}: tests/kernels needs the Python of the kernel environment (make plugins makes it)"
    raise pytest.UsageError(message) from None


@pytest.fixture(scope="session")
def cuda_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint for the cuda engine at tp 1."""
    from mm2c.pipeline import BuildRequest, build_bundle

    output = tmp_path_factory.mktemp("cuda") / "tiny-m2"
    source = Path(__file__).resolve().parents[1] / "fixtures" / "tiny-m2"
    build_bundle(BuildRequest(source=str(source), output=output, engine="cuda", context=256, max_rows=4))
    return output


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer of random weights for the cuda engine at tp 1: interpreted kernels are slow."""
    from random_checkpoint import write_random_checkpoint

    from mm2c.pipeline import BuildRequest, build_bundle

    folder = tmp_path_factory.mktemp("small")
    write_random_checkpoint(
        folder / "checkpoint", layers=1, hidden=128, heads=2, kv_heads=1, head_dim=128, rotary_dim=64,
        intermediate=128, experts=6, top_k=2,
    )  # fmt: skip
    request = BuildRequest(
        source=str(folder / "checkpoint"), output=folder / "bundle", engine="cuda", context=256, max_rows=4
    )
    build_bundle(request)
    return folder / "bundle"
