"""Only the supervisor may load and unload models; clients may ask, and are refused."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as grpc
from served import Served
from tritonclient.utils import InferenceServerException

from mm2c_runtime.stub.model_control import SECRET_HEADER, SECRET_VARIABLE


def _post(server: Served, path: str, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(f"{server.http}{path}", b"{}", headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.parametrize(
    "path",
    [
        "/v2/repository/models/minimax_m2/unload",
        "/v2/repository/models/mm_gate/load",
        "/v2/repository/index",
        "/v2/logging",
        "/v2/trace/setting",
    ],
)
def test_http_refuses_who_has_no_secret(fake_server: Served, path: str) -> None:
    assert _post(fake_server, path)[0] == 403
    status, body = _post(fake_server, path, **{SECRET_HEADER: "a guess"})
    assert status == 403
    assert "restricted" in body
    assert fake_server.generate(text_input="t", max_tokens=2)["text_output"] == "t0 t1 "


@pytest.mark.parametrize(
    "ask",
    [
        lambda client, headers: client.unload_model("minimax_m2", headers=headers),
        lambda client, headers: client.load_model("mm_gate", headers=headers),
        lambda client, headers: client.get_model_repository_index(headers=headers),
        lambda client, headers: client.update_log_settings({"log_verbose_level": 1}, headers=headers),
    ],
)
def test_grpc_refuses_who_has_no_secret(fake_server: Served, ask: Callable[[Any, Any], Any]) -> None:
    with grpc.InferenceServerClient(fake_server.grpc) as client:
        for headers in (None, {f"triton-grpc-protocol-{SECRET_HEADER}": "a guess"}):
            with pytest.raises(InferenceServerException, match="restricted"):
                ask(client, headers)
        assert client.is_model_ready("minimax_m2")
    assert fake_server.generate(text_input="t", max_tokens=2)["text_output"] == "t0 t1 "


def test_ps_does_not_show_the_secret_and_the_supervisor_has_it(fake_server: Served) -> None:
    pid = fake_server.triton_pid
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    (mark,) = [entry for entry in environment if entry.startswith(SECRET_VARIABLE.encode())]
    secret = os.fsdecode(mark.partition(b"=")[2])
    assert len(secret) >= 32
    for process in (pid, fake_server.process.pid):
        assert secret.encode() not in Path(f"/proc/{process}/cmdline").read_bytes()
    status, body = _post(fake_server, "/v2/repository/index", **{SECRET_HEADER: secret})
    assert status == 200
    assert "minimax_m2_unary" in body
