"""`mm2c serve` refuses what it cannot serve before it starts anything, and says what to do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from served import MM2C


def _serve(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [MM2C, "serve", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


FREE_PORTS = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")


def test_port_in_use(fake_bundle: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = _serve(str(fake_bundle), "--grpc-port", str(port), "--http-port", "0", "--metrics-port", "0")
    assert done.returncode == 2
    assert f"port {port} cannot be used: address already in use" in done.stderr
    assert "--grpc-port" in done.stderr


def test_triton_not_where_it_is_said_to_be(fake_bundle: Path, tmp_path: Path) -> None:
    done = _serve(str(fake_bundle), "--triton", str(tmp_path))
    assert done.returncode == 2
    assert "no tritonserver installation" in done.stderr
    done = _serve(str(fake_bundle), MM2C_TRITON=str(tmp_path))
    assert done.returncode == 2
    assert "$MM2C_TRITON" in done.stderr


def test_no_bundle(tmp_path: Path) -> None:
    done = _serve(str(tmp_path), *FREE_PORTS)
    assert done.returncode == 2
    assert "manifest.json" in done.stderr


def test_altered_bundle(fake_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(fake_bundle, bundle)
    (bundle / "config.json").write_text("{}")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"] = {"config.json": {"sha256": "0" * 64, "bytes": 2}}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    done = _serve(str(bundle), *FREE_PORTS)
    assert done.returncode == 2
    assert "config.json was altered" in done.stderr


@pytest.fixture
def broken_engine(fake_bundle: Path, tmp_path: Path) -> Path:
    bundle = tmp_path / "bundle"
    shutil.copytree(fake_bundle, bundle)
    process = bundle / "runtime" / "mm2c_runtime" / "server" / "process.py"
    process.write_text("import sys; sys.exit('the weights are missing')")
    return bundle


def test_engine_that_does_not_start(broken_engine: Path, tmp_path: Path) -> None:
    done = _serve(str(broken_engine), *FREE_PORTS, "--log", str(tmp_path / "log"))
    assert done.returncode == 1
    assert "the weights are missing" in done.stderr
    assert str(tmp_path / "log") in done.stderr.replace("\n", "")


def test_ctrl_c_while_starting(fake_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(fake_bundle, bundle)
    process = bundle / "runtime" / "mm2c_runtime" / "server" / "process.py"
    process.write_text("import time; time.sleep(600)")
    log = tmp_path / "log"
    command = [MM2C, "serve", str(bundle), "--log", str(log), "--http-port", "0", "--grpc-port", "0"]
    starting = subprocess.Popen([*command, "--metrics-port", "0"], stderr=subprocess.PIPE)
    while not (log.exists() and b"minimax_m2_0" in log.read_bytes()):
        assert starting.poll() is None
        time.sleep(0.05)
    starting.send_signal(signal.SIGINT)
    assert starting.wait(10) == 130
    assert not list(Path("/dev/shm").glob(f"mm2c_serve_{starting.pid}_*"))


@pytest.mark.parametrize("name", ["", "none/log"])
def test_a_log_that_cannot_be_written(fake_bundle: Path, tmp_path: Path, name: str) -> None:
    log = tmp_path / name
    done = _serve(str(fake_bundle), *FREE_PORTS, "--log", str(log))
    assert done.returncode == 2
    assert "the log cannot be written" in done.stderr
    assert f"--log {log}" in done.stderr
    assert "starting tritonserver" not in done.stderr


def test_a_log_is_added_to_and_the_error_quotes_this_start_only(broken_engine: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("E1 an error of yesterday\n")
    done = _serve(str(broken_engine), *FREE_PORTS, "--log", str(log))
    assert done.returncode == 1
    assert log.read_text().startswith("E1 an error of yesterday\n")
    assert "the weights are missing" in log.read_text()
    assert "yesterday" not in done.stderr


def test_kv_tokens_reach_the_engine(fake_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(fake_bundle, bundle)
    process = bundle / "runtime" / "mm2c_runtime" / "server" / "process.py"
    process.write_text("import os, sys; sys.exit('told: ' + os.environ['MM2C_KV_TOKENS'])")
    done = _serve(str(bundle), *FREE_PORTS, "--log", str(tmp_path / "log"), "--kv-tokens", "4096")
    assert done.returncode == 1
    assert "told: 4096" in done.stderr
