"""Inputs and graphs with which Polygraphy compares a TensorRT plan and ONNX Runtime, from a bundle of mm2c.

`report/polygraphy.sh` calls this file, which stands beside it; the variables PLAN, PROFILE, RANK, LAYER, ROWS, TOKENS
and SEED say what is compared. It needs the Python of mm2c or of the server: numpy, ml_dtypes, pydantic, torch, onnx.

    python polygraphy_inputs.py onnxrt OUT.onnx      the graph that ONNX Runtime runs: f32, FP8 tensors given as f16
    python polygraphy_inputs.py tensorrt OUT.onnx    the graph of the plan, to be built where the plan cannot run alone
    python polygraphy_inputs.py shapes               its inputs' shapes, as Polygraphy's --trt-*-shapes take them

`polygraphy run … --data-loader-script polygraphy_inputs.py:onnxrt_inputs` (or `:tensorrt_inputs`) makes the same step
for both. One process is one rank. On both sides alike a sum over ranks is of this rank's part alone, and what would be
gathered is this rank's part as many times: neither waits for others, and every layer but the collectives is compared.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).resolve().parent
if (HERE.parent / "runtime" / "mm2c_runtime").is_dir():  # of a bundle; its own runtime reads it
    sys.path.insert(0, str(HERE.parent / "runtime"))

import numpy as np  # noqa: E402

from mm2c_runtime.manifest_tensorrt import TensorRTProgram  # noqa: E402
from mm2c_runtime.plan_step import Step, choose, inputs_of  # noqa: E402

if TYPE_CHECKING:
    import onnx
    from torch import Tensor

COLLECTIVE = "DistCollective"


def onnxrt_feed(step: Step) -> dict[str, Tensor]:
    """As the wide graph takes them: bf16 as f32, and e4m3 as f16, which Polygraphy can hand to ONNX Runtime."""
    import torch

    wide = {"bf16": np.float32, "e4m3": np.float16}
    types = {tensor.name: wide.get(tensor.dtype) for tensor in step.plan.tensors}
    return {
        name: torch.from_numpy(np.array(value, types[name] or value.dtype))
        for name, value in inputs_of(step).items()
    }


def tensorrt_feed(step: Step) -> dict[str, Tensor]:
    """As the plan takes them, in the machine's memory; Polygraphy copies them to the GPU."""
    import torch

    raw = {"bf16": (np.uint16, torch.bfloat16), "e4m3": (np.uint8, torch.float8_e4m3fn)}
    types = {tensor.name: raw.get(tensor.dtype) for tensor in step.plan.tensors}
    found = {}
    for name, value in inputs_of(step).items():
        as_bits = types[name]
        if as_bits is None:
            found[name] = torch.from_numpy(np.array(value))
        else:
            found[name] = torch.from_numpy(np.array(value.view(as_bits[0]))).view(as_bits[1])
    return found


def know_fp8() -> None:
    """Teach Polygraphy torch's e4m3, which it has a name for but no rule."""
    import torch
    from polygraphy.datatype import DataType, from_torch, register_dtype_importer

    def known(dtype: Any) -> Any:
        return DataType.FLOAT8E4M3FN if dtype == torch.float8_e4m3fn else from_torch(dtype)

    register_dtype_importer("torch")(known)


def load_plugins(step: Step) -> None:
    """Into TensorRT's registry, of a bundle whose plans have plugin nodes."""
    if step.program.plugins is None:
        return
    tensorrt = import_module("tensorrt")
    # what it returns says nothing: of a library that is there already it is None
    tensorrt.get_plugin_registry().load_library(str(step.bundle / step.program.plugins.library))


def onnxrt_graph(step: Step) -> onnx.ModelProto:
    """The wide graph with e4m3 inputs declared f16, and without collectives."""
    import onnx

    model = onnx.load(str(step.bundle / step.plan.wide))
    for value in model.graph.input:
        kind = value.type.tensor_type
        if kind.elem_type == onnx.TensorProto.FLOAT8E4M3FN:
            kind.elem_type = onnx.TensorProto.FLOAT16
    return alone(model)


def tensorrt_graph(step: Step) -> onnx.ModelProto:
    """The graph of the plan without collectives."""
    import onnx

    return alone(onnx.load(str(step.bundle / step.plan.graph)))


def alone(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same with each collective replaced by what it would do if all ranks gave the same and sums were of one:
    nothing, or as many copies along axis 0."""
    from onnx import helper

    nodes = []
    for node in model.graph.node:
        if node.op_type == COLLECTIVE:
            given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            gathers = given["collective_operation"] == b"all_gather"
            copies = [node.input[0]] * (given["group_size"] if gathers else 1)
            if len(copies) > 1:
                node = helper.make_node("Concat", copies, node.output, node.name, axis=given["axis"])
            else:
                node = helper.make_node("Identity", copies, node.output, node.name)
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def needs_own_build(program: TensorRTProgram) -> bool:
    """Whether a plan cannot run in one process: its collectives wait for other ranks."""
    return len(program.ranks) > 1


def shapes(step: Step) -> list[str]:
    """``name:[1,2]`` of the inputs that are not of one shape."""
    return [f"{name}:[{','.join(map(str, shape))}]" for name, shape in step.varying.items()]


def postprocess(network: Any) -> None:
    """For --trt-network-postprocess-script: attention of sizes without a fused kernel may be decomposed."""
    trt = sys.modules[type(network).__module__.partition(".")[0].removesuffix("_bindings")]
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True


def _asked(environ: Mapping[str, str]) -> Step:
    layer = environ.get("LAYER", "")
    number = {name: int(environ.get(name) or 0) for name in ("PROFILE", "RANK", "ROWS", "TOKENS", "SEED")}
    return choose(
        HERE.parent,
        environ.get("PLAN", ""),
        profile=number["PROFILE"],
        rank=number["RANK"],
        first_layer=int(layer) if layer else None,
        rows=number["ROWS"],
        tokens=number["TOKENS"],
        seed=number["SEED"],
    )


def onnxrt_inputs() -> Iterator[dict[str, Tensor]]:
    import_module("onnxruntime").set_default_logger_severity(
        3
    )  # errors: it warns of every cache that it copies
    yield onnxrt_feed(_asked(os.environ))


def tensorrt_inputs() -> Iterator[dict[str, Tensor]]:
    step = _asked(os.environ)
    know_fp8()
    load_plugins(step)
    yield tensorrt_feed(step)


def main(arguments: list[str]) -> int:
    graphs = {"onnxrt": onnxrt_graph, "tensorrt": tensorrt_graph}
    if arguments == ["shapes"]:
        print(" ".join(shapes(_asked(os.environ))))
    elif len(arguments) == 2 and arguments[0] in graphs:
        Path(arguments[1]).write_bytes(graphs[arguments[0]](_asked(os.environ)).SerializeToString())
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
