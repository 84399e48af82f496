"""The host of TensorRT plugin libraries: opens one without TensorRT, creates its plugins and launches them.

Standard library only, so that a bundle can carry it: libmm2c_host.so does the calls, ctypes reaches it.

    library = Library(folder, expect_version="0.1.0+…")
    plugin = library.create("M2Fp8Linear", {"block_n": 128, "block_k": 128})
    op = plugin.attach()
    op.enqueue([TensorArg("bf16", (3, 256), x), …], [TensorArg("bf16", (3, 512), y)], workspace, stream)
"""

from mm2c_plugins.host.errors import PluginError
from mm2c_plugins.host.fields import Field
from mm2c_plugins.host.launch import Launch
from mm2c_plugins.host.library import Library
from mm2c_plugins.host.op import Op, Prepared
from mm2c_plugins.host.plugin import Plugin
from mm2c_plugins.host.tensors import Extent, TensorArg, TensorSpec

__all__ = [
    "Extent",
    "Field",
    "Launch",
    "Library",
    "Op",
    "Plugin",
    "PluginError",
    "Prepared",
    "TensorArg",
    "TensorSpec",
]
