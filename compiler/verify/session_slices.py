"""Parts of a bundle's ONNX programs as sessions of their own: a layer's nodes of one segment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort

from mm2c_runtime.errors import BundleError

if TYPE_CHECKING:
    from mm2c.verify.tensor_source import TensorSource

Array = np.ndarray[Any, Any]
_FOLDER = "session.model_external_initializers_file_folder_path"
_TYPES = {
    "float32": onnx.TensorProto.FLOAT,
    "float64": onnx.TensorProto.DOUBLE,
    "int64": onnx.TensorProto.INT64,
    "int32": onnx.TensorProto.INT32,
    "bool": onnx.TensorProto.BOOL,
    "uint8": onnx.TensorProto.UINT8,
}


class OnnxNode:
    """A NodeProto as ``AnyNode``. ``reads`` counts what its subgraphs read from outside too."""

    def __init__(self, proto: onnx.NodeProto) -> None:
        self.proto = proto
        self.op: str = proto.op_type
        self.inputs: tuple[str, ...] = tuple(proto.input)
        self.outputs: tuple[str, ...] = tuple(proto.output)
        self.reads: tuple[str, ...] = (*self.inputs, *_inner_reads(proto))


def _inner_reads(proto: onnx.NodeProto) -> Iterable[str]:
    for attribute in proto.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for node in graph.node:
                yield from node.input
                yield from _inner_reads(node)


class Segment:
    """One ONNX file of a rank, its weights not loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.model = onnx.load(str(path), load_external_data=False)
        except Exception as error:  # protobuf raises its own kinds
            raise BundleError(f"a program of the bundle cannot be read: {error}", where=str(path)) from None
        self.nodes = [OnnxNode(node) for node in self.model.graph.node]
        self.outputs = [value.name for value in self.model.graph.output]
        self._initializers = {tensor.name: tensor for tensor in self.model.graph.initializer}

    def session(
        self,
        begin: int,
        end: int,
        outputs: Sequence[str],
        values: Mapping[str, Array],
        source: TensorSource,
        threads: int,
    ) -> ort.InferenceSession:
        """Nodes ``begin`` to ``end``, from ``values`` to ``outputs``. Weights come from ``source``'s file.

        Raises BundleError where ONNX Runtime cannot load them.
        """
        nodes = self.nodes[begin:end]
        made = {name for node in nodes for name in node.outputs}
        reads = list(
            dict.fromkeys(name for node in nodes for name in node.reads if name and name not in made)
        )
        graph = onnx.GraphProto(name=f"{self.path.stem}.{begin}")
        graph.node.extend(node.proto for node in nodes)
        for name in reads:
            if name in self._initializers:
                graph.initializer.append(self._initializers[name])
            elif name in values:
                kind = _TYPES[values[name].dtype.name]
                shape = [None] * values[name].ndim
                graph.input.append(onnx.helper.make_tensor_value_info(name, kind, shape))
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        self._take_missing(graph, source)
        model = onnx.ModelProto(ir_version=self.model.ir_version, graph=graph)
        model.opset_import.extend(self.model.opset_import)
        model.functions.extend(self.model.functions)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry(_FOLDER, str(self.path.parent))
        try:
            return ort.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise BundleError(
                f"ONNX Runtime {ort.__version__} cannot load nodes {begin} to {end}: {error}",
                where=str(self.path),
            ) from error

    def _take_missing(self, graph: onnx.GraphProto, source: TensorSource) -> None:
        """Initializers whose file is not in the bundle travel in the model."""
        from mm2c.verify.tensor_source import read_whole

        for tensor in graph.initializer:
            place = {entry.key: entry.value for entry in tensor.external_data}
            if not place or (self.path.parent / place.get("location", "")).is_file():
                continue
            tensor.raw_data = np.ascontiguousarray(read_whole(source, tensor.name)).tobytes()
            del tensor.external_data[:]
            tensor.data_location = onnx.TensorProto.DEFAULT
