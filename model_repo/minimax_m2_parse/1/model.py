"""minimax_m2_parse: text to reasoning, content and tool calls. Needs no engine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        bundle = Path(args["model_repository"]).resolve().parents[1]
        sys.path.insert(0, str(bundle / "runtime"))
        from mm2c_runtime.stub.parse import ParseModel

        self._model = ParseModel(pb_utils)

    def execute(self, requests: list[Any]) -> list[Any]:
        return self._model.execute(requests)
