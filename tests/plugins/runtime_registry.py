"""Registers the plugin library as a served bundle does, in the registry of TensorRT's lean runtime; prints, as JSON,
what was refused.

runtime_registry.py FOLDER < [[creator, …], …]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lean_registry import lean_runtime

from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.tensorrt.library import Library
from mm2c_runtime.executors.tensorrt.plugins import register_plugins
from mm2c_runtime.manifest_tensorrt import PlanPlugins


def main() -> None:
    library = Library(lean_runtime())
    said = []
    for version, name, creators in json.load(sys.stdin):
        plugins = PlanPlugins(library=name, host="libmm2c_host.so", version=version, abi=1, creators=creators)
        try:
            register_plugins(Path(sys.argv[1]), plugins, library)
            said.append("")
        except BundleError as error:
            said.append(error.what)
    print(json.dumps(said))


if __name__ == "__main__":
    main()
