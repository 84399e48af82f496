"""mypy --strict over the three packages and each Triton model by itself.

mypy does not follow setuptools' editable finder, so it gets a folder of symlinks with the import names.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAMES = {"mm2c": "compiler", "mm2c_plugins": "plugins", "mm2c_runtime": "model_repo/runtime"}


def main() -> int:
    path = ROOT / ".mypy_path"
    path.mkdir(exist_ok=True)
    for name, folder in NAMES.items():
        link = path / name
        if not link.is_symlink():
            link.symlink_to(ROOT / folder, target_is_directory=True)
    environment = {**os.environ, "MYPYPATH": str(path)}
    base = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
    packages = [flag for name in NAMES for flag in ("-p", name)]
    runs = [[*base, *packages]]
    runs += [[*base, str(model)] for model in sorted((ROOT / "model_repo").glob("*/1/model.py"))]
    return max(subprocess.run(run, cwd=path, env=environment, check=False).returncode for run in runs)


if __name__ == "__main__":
    sys.exit(main())
