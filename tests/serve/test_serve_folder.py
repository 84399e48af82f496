"""Where `mm2c serve` is started lies whatever lies there: none of it becomes part of the server."""

from __future__ import annotations

import signal
from pathlib import Path

from served import Served

from mm2c.serve.processes import marked

MODULES = ("numpy", "json", "tokenizers", "argparse", "mm2c_runtime", "triton_python_backend_utils", "model")


def test_no_process_imports_from_it_and_options_reach_the_engine(fake_bundle: Path, tmp_path: Path) -> None:
    here, imported = tmp_path / "here", tmp_path / "imported"
    here.mkdir()
    for name in MODULES:
        (here / f"{name}.py").write_text(f"open({str(imported)!r}, 'a').write('{name} ')")
    server = Served(fake_bundle, tmp_path, "--no-checksums", cwd=here)
    try:
        assert server.generate(text_input="t", max_tokens=2)["text_output"] == "t0 t1 "
        assert server.infer("minimax_m2_parse", text="x", starts_in_reasoning=False)["content"][0] == b"x"
        lines = [
            Path(f"/proc/{pid}/cmdline").read_bytes() for pid in marked("MM2C_SERVE_RUN", str(server.run))
        ]
        (engine,) = [line.split(b"\0") for line in lines if b"mm2c_runtime.server.process" in line]
        assert engine[engine.index(b"--checksums") + 1] == b"sizes"
    finally:
        server.stop(signal.SIGINT)
    assert not imported.exists(), imported.read_text()
