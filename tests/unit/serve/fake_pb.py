"""The parts of triton_python_backend_utils that the stub uses, without Triton."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1


class TritonError:
    INVALID_ARG, UNAVAILABLE, INTERNAL, CANCELLED = "INVALID_ARG", "UNAVAILABLE", "INTERNAL", "CANCELLED"

    def __init__(self, message: str, code: str) -> None:
        self.message, self.code = message, code


class Tensor:
    def __init__(self, name: str, array: np.ndarray[Any, Any]) -> None:
        self.name, self.array = name, array

    def as_numpy(self) -> np.ndarray[Any, Any]:
        return self.array


class InferenceResponse:
    def __init__(self, tensors: list[Tensor] | None = None, error: TritonError | None = None) -> None:
        self.values = {t.name: t.array for t in tensors or []}
        self.error = error


class Sender:
    """Keeps what is sent as (response, flags)."""

    def __init__(self) -> None:
        self.sent: list[tuple[InferenceResponse, int]] = []
        self.cancelled = False

    def send(self, response: InferenceResponse, flags: int = 0) -> None:
        self.sent.append((response, flags))

    def is_cancelled(self) -> bool:
        return self.cancelled


class Request:
    def __init__(
        self, tensors: dict[str, Any], parameters: dict[str, Any] | None = None, timeout: int = 0
    ) -> None:
        self.tensors = tensors
        self._parameters, self._timeout = parameters or {}, timeout
        self.sender = Sender()
        self.outputs: set[str] | None = None

    def parameters(self) -> str:
        return json.dumps(self._parameters)

    def timeout(self) -> int:
        return self._timeout

    def requested_output_names(self) -> set[str]:
        from mm2c_runtime.stub.options import OUTPUTS

        return set(OUTPUTS) if self.outputs is None else self.outputs

    def get_response_sender(self) -> Sender:
        return self.sender


class Logger:
    errors: tuple[str, ...] = ()

    @classmethod
    def log_error(cls, text: str) -> None:
        cls.errors = (*cls.errors, text)


def get_input_tensor_by_name(request: Request, name: str) -> Tensor | None:
    if name not in request.tensors:
        return None
    value = request.tensors[name]
    items = value if isinstance(value, list) else [value]
    raw = [i.encode() if isinstance(i, str) else i for i in items]
    dtype = object if isinstance(raw[0], bytes) else (np.float32 if isinstance(raw[0], float) else None)
    return Tensor(name, np.array(raw, dtype=dtype))
