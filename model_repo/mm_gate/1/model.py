"""mm_gate: loads only while the engine serves, so that Triton's readiness tells the truth."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        bundle = Path(args["model_repository"]).resolve().parents[1]
        sys.path.insert(0, str(bundle / "runtime"))
        from mm2c_runtime.stub.models import check_gate

        check_gate(args)

    def execute(self, requests: list[Any]) -> list[Any]:
        raise RuntimeError("mm_gate answers no requests: it only stands for the engine in /v2/health/ready")
