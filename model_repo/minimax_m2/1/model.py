"""minimax_m2: streams answers and owns the engine process. The work is in mm2c_runtime.stub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        bundle = Path(args["model_repository"]).resolve().parents[1]
        sys.path.insert(0, str(bundle / "runtime"))
        from mm2c_runtime.stub.models import StreamingModel

        self._model = StreamingModel(pb_utils, args)

    def execute(self, requests: list[Any]) -> None:
        self._model.execute(requests)

    def finalize(self) -> None:
        self._model.close()
