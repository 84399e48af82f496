"""A bundle served by the real `mm2c serve` in a process of its own, and what the tests ask it with."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpc

MM2C = str(Path(sys.executable).with_name("mm2c"))
_TYPES = {str: ("BYTES", object), bool: ("BOOL", bool), int: ("INT32", np.int32), float: ("FP32", np.float32)}

_WIDE = {"seed": ("INT64", np.int64), "random_seed": ("UINT64", np.uint64)}


class Served:
    """`mm2c serve BUNDLE` on free ports, from READY until ``stop``."""

    def __init__(self, bundle: Path, folder: Path, *options: str, cwd: Path | None = None) -> None:
        self.errors, self.log = folder / "serve.err", folder / "triton.log"
        command = [MM2C, "serve", str(bundle), "--json", "--log", str(self.log), "--drain", "2"]
        command += ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", *options]
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=cwd
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.errors.read_text()
        ready = json.loads(line)
        self.http, self.grpc, self.triton_pid = ready["http"], ready["grpc"], ready["triton_pid"]
        self.openai = ready.get("openai")  # the base URL of its OpenAI API, where it has one
        self.run = _run_directory(self.triton_pid)

    def stop(self, number: int = signal.SIGINT) -> int:
        """The exit status after Ctrl-C (or another signal)."""
        self.process.send_signal(number)
        return self.process.wait(30)

    def story(self) -> str:
        """How it is now, what the supervisor said, and the end of Triton's log without its information."""
        status = self.process.poll()
        said = [line for line in self.log.read_text(errors="replace").splitlines() if line[:1] not in "I|+"]
        return "\n".join(
            [
                "the supervisor runs" if status is None else f"the supervisor ended with status {status}",
                f"/v2/health/ready says {self.ready()}",
                "--- stderr of mm2c serve",
                self.errors.read_text(),
                f"--- {self.log}",
                *said[-40:],
            ]
        )

    def ready(self) -> int:
        """Status of /v2/health/ready; 0 where nobody answers."""
        try:
            with urllib.request.urlopen(f"{self.http}/v2/health/ready", timeout=2) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def post(self, path: str, **fields: Any) -> tuple[int, str]:
        """Status and body of a POST to ``/v2/models/<path>``."""
        request = urllib.request.Request(f"{self.http}/v2/models/{path}", json.dumps(fields).encode())
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def generate(self, **fields: Any) -> dict[str, Any]:
        status, body = self.post("minimax_m2/generate", **fields)
        assert status == 200, body
        return dict(json.loads(body))

    def generate_stream(self, **fields: Any) -> Iterator[dict[str, Any]]:
        """The server-sent events, as they come."""
        body = json.dumps({"stream": True, **fields}).encode()
        request = urllib.request.Request(f"{self.http}/v2/models/minimax_m2/generate_stream", body)
        with urllib.request.urlopen(request, timeout=30) as response:
            for line in response:
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])

    def stream(self, **fields: Any) -> Stream:
        """A gRPC stream of ``minimax_m2``, begun."""
        return Stream(self.grpc, {"stream": True, **fields})

    def infer(self, model: str, **fields: Any) -> dict[str, Any]:
        """Plain `infer` over gRPC: output name to numpy array."""
        with grpc.InferenceServerClient(self.grpc) as client:
            result = client.infer(model, tensors(fields), client_timeout=30)
        return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


def _run_directory(server: int) -> Path:
    """From the mark that every process below the supervisor carries."""
    environment = Path(f"/proc/{server}/environ").read_bytes().split(b"\0")
    (mark,) = [entry for entry in environment if entry.startswith(b"MM2C_SERVE_RUN=")]
    return Path(os.fsdecode(mark.partition(b"=")[2]))


@dataclass
class Whole:
    """A gathered stream: what its parts say together, and how many responses had output."""

    text: str = ""
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    last: dict[str, Any] = field(default_factory=dict)
    responses: int = 0


class Stream:
    """One decoupled gRPC request; iterate for its responses (name to value, arrays as lists)."""

    def __init__(self, url: str, fields: dict[str, Any], outputs: tuple[str, ...] = ()) -> None:
        self._answers: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        self._ended = False
        self._client = grpc.InferenceServerClient(url)
        # Without the header triton_grpc_error: with it Triton 2.51 may end with SIGSEGV at a later error.
        self._client.start_stream(lambda result, error: self._answers.put((result, error)))
        self._client.async_stream_infer(
            "minimax_m2",
            tensors(fields),
            outputs=[grpc.InferRequestedOutput(name) for name in outputs] or None,
            enable_empty_final_response=True,
            parameters={name: value for name, value in fields.items() if name.startswith("unknown_")},
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Raises InferenceServerException where the request failed, queue.Empty after 30 silent seconds."""
        try:
            while True:
                result, error = self._answers.get(timeout=30)
                if error is not None:
                    self._ended = True
                    raise error
                response = result.get_response()
                self._ended = response.parameters["triton_final_response"].bool_param
                if response.outputs:
                    yield {output.name: _value(result, output.name) for output in response.outputs}
                if self._ended:
                    return
        finally:
            self.close()

    def whole(self) -> Whole:
        gathered = Whole()
        for part in self:
            gathered.responses += 1
            gathered.text += part.get("text_output", "")
            gathered.reasoning += part.get("reasoning_output", "")
            gathered.tool_calls += json.loads(part.get("tool_calls", "[]"))
            gathered.token_ids += part.get("token_ids", [])
            gathered.last = part
        return gathered

    def cancel(self) -> None:
        self._client.stop_stream(cancel_requests=True)

    def close(self) -> None:
        self._client.stop_stream(cancel_requests=not self._ended)
        self._client.close()


def tensors(fields: dict[str, Any]) -> list[Any]:
    """Input tensors of Python values; a list becomes [n], everything else [1]."""
    made = []
    for name, value in fields.items():
        if name.startswith("unknown_"):
            continue
        items = value if isinstance(value, list) else [value]
        triton, dtype = _WIDE.get(name) or _TYPES[type(items[0])]
        raw = [item.encode() for item in items] if triton == "BYTES" else items
        tensor = grpc.InferInput(name, [len(items)], triton)
        tensor.set_data_from_numpy(np.array(raw, dtype=dtype))
        made.append(tensor)
    return made


def _value(result: Any, name: str) -> Any:
    """The list of ``token_ids``, the one value of everything else."""
    values = [i.decode() if isinstance(i, bytes) else i for i in result.as_numpy(name).reshape(-1).tolist()]
    return values if name == "token_ids" else values[0]
