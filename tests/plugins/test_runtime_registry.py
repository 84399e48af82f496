"""The runtime's side of the plugin registry, in a real one: the lean runtime's, in a process of its own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from test_registry import python_with_tensorrt

SCRIPT = Path(__file__).parent / "runtime_registry.py"
NAME, CREATORS = "libmm2c_plugins.so", ["M2Fp8Linear", "M2PagedAttention", "M2QkSumSquares"]


def test_a_bundles_plugins_are_registered_once(plugin_folder: Path) -> None:
    asked = [
        ["1", "kernels.json", CREATORS],
        ["1", NAME, ["M2None"]],
        ["1", NAME, CREATORS],
        ["1", NAME, CREATORS],
        ["2", NAME, CREATORS],
        ["1", NAME, [*CREATORS, "M2None"]],
    ]
    run = subprocess.run(
        [python_with_tensorrt(), str(SCRIPT), str(plugin_folder)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    said = json.loads(run.stdout.splitlines()[-1])
    lacking = "the plugin library has no creator M2None in the namespace mm2c, which the plans need"
    assert said[0].startswith("TensorRT cannot load the plugin library")
    assert said[1:4] == [lacking, "", ""]
    assert said[4] == "this process has registered the plugin library 1, the plans need 2"
    assert said[5] == lacking
