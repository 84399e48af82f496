"""The GPU proof as `make test-gpu` runs it: where there is a GPU it must pass, elsewhere it says why it cannot run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parents[1] / "gpu" / "run.py"


def proof(**environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return subprocess.run(
        [sys.executable, str(RUN)], capture_output=True, text=True, check=False, env={**kept, **environment}
    )


@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_the_proof_passes() -> None:
    done = proof()
    if done.stdout.startswith("skipped: "):
        pytest.skip(done.stdout.strip().removeprefix("skipped: "))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_without_a_gpu_it_skips_with_the_reason() -> None:
    done = proof(CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "skipped: PyTorch sees no NVIDIA GPU\n"
