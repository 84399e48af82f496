"""The layers of TensorRT plans: of the engine by TensorRT's own inspector where it can be loaded here, else of the
network that the builder starts from, else of the ONNX graph.

Loading a plan takes a GPU, TensorRT-RTX too; parsing takes the library alone.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mm2c.engine.select import find_gpu
from mm2c.errors import UserError
from mm2c_runtime.manifest_tensorrt import Plan, TensorRTProgram

if TYPE_CHECKING:
    from mm2c.engine.tensorrt.library import Library

PLUGIN = "plugin_namespace"  # attribute of the nodes that a plugin may take
COLLECTIVE = "DistCollective"
SPELT = {"FLOAT": "FP32", "HALF": "FP16"}  # types whose names in the network are not the inspector's


@dataclass
class Inside:
    """``source``: who was asked; ``why`` the better source was not. ``kinds``: layers by kind; ``precision``: layers by
    the type of what they write; ``plugins``: nodes that the plugin library takes where it is there, by op; ``scratch``:
    bytes of device memory of each profile, by the engine; empty where it was not loaded."""

    source: Literal["inspector", "network", "graph"]
    why: str = ""
    layers: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    precision: dict[str, int] = field(default_factory=dict)
    plugins: dict[str, int] = field(default_factory=dict)
    collectives: int = 0
    scratch: list[int] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def look_inside(bundle: Path, engine: str, program: TensorRTProgram) -> dict[str, Inside]:
    """By the plans' names. ``engine``: of the manifest."""
    libraries, missing = _libraries(engine)
    if engine in libraries and program.plugins is not None and not program.deferred:
        missing = _load_plugins(libraries[engine], bundle / program.plugins.library)
        if missing:
            del libraries[engine]
    return {plan.name: _look(bundle, engine, plan, libraries, missing) for plan in program.plans}


def _load_plugins(library: Library, path: Path) -> str:
    """Before a plan that names them is loaded; why they are not, where that fails."""
    from mm2c.engine.tensorrt.registry import load_plugins

    try:
        load_plugins(library.load(), path)
    except UserError as error:
        return error.what
    return ""


def _libraries(engine: str) -> tuple[dict[str, Library], str]:
    """Those that are here, and why the engine's own is not. TensorRT-RTX parses the graphs of either engine."""
    from mm2c.engine.tensorrt.library import find_library

    found, missing = {}, ""
    for name in dict.fromkeys((engine, "tensorrt-rtx")):
        try:
            found[name] = find_library(name)
        except UserError as error:
            missing = missing or error.what
    return found, missing


def _look(bundle: Path, engine: str, plan: Plan, libraries: dict[str, Library], missing: str) -> Inside:
    nodes = _plugin_nodes(bundle / plan.graph) if engine == "tensorrt" else {}
    why = "the plan is still to be built" if plan.plan is None else missing
    if plan.plan is not None and engine in libraries:
        try:
            return _of_engine(libraries[engine].load(), bundle / plan.plan, nodes)
        except LookupError as error:
            why = str(error)
    if not libraries:
        return _of_graph(bundle / plan.graph, nodes, why)
    name, library = next(iter(libraries.items()))
    if name != engine:
        why = f"{why}; parsed by {library.name}, which takes the bodies of plugin nodes".removeprefix("; ")
    return _of_network(library.load(), bundle / plan.graph, nodes, why)


def _of_engine(trt: Any, path: Path, nodes: dict[str, int]) -> Inside:
    """Raises LookupError, saying why, where the engine cannot be loaded or tells nothing."""
    from mm2c.bundle.inspector_text import layers_of
    from mm2c.engine.tensorrt.parse import make_logger

    said: list[str] = []
    logger = make_logger(trt, lambda severity, text: said.append(text), "ERROR")
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        reason = (
            "there is no GPU" if find_gpu() is None else " ".join(said[-1:]) or "TensorRT gives no reason"
        )
        raise LookupError(f"the plan cannot be loaded here: {reason}")
    inspector = engine.create_engine_inspector()
    found = layers_of(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    profiles = range(engine.num_optimization_profiles)
    return Inside(
        "inspector",
        "" if found.detailed else "the plan was built without details: kinds and types are not in it",
        found.layers,
        found.kinds,
        found.precision,
        nodes,
        sum(count for kind, count in found.kinds.items() if "collective" in kind.lower()),
        [int(engine.get_device_memory_size_for_profile_v2(number)) for number in profiles],
    )


def _of_network(trt: Any, path: Path, nodes: dict[str, int], why: str) -> Inside:
    from mm2c.engine.tensorrt.parse import NetworkRefused, parse_network

    try:
        parsed = parse_network(trt, path.read_bytes())
    except NetworkRefused as error:
        return _of_graph(path, nodes, f"the parser refuses the graph: {error}")
    kinds: Counter[str] = Counter()
    precision: Counter[str] = Counter()
    for index in range(parsed.network.num_layers):
        layer = parsed.network.get_layer(index)
        kinds[_name(layer.type)] += 1
        if layer.num_outputs:
            written = _name(layer.get_output(0).dtype)
            precision[SPELT.get(written, written)] += 1
    return Inside(
        "network",
        why,
        sum(kinds.values()),
        dict(kinds.most_common()),
        dict(precision.most_common()),
        nodes,
        kinds["DIST_COLLECTIVE"],
    )


def _of_graph(path: Path, nodes: dict[str, int], why: str) -> Inside:
    from mm2c.bundle.rank_graph_file import load_model

    kinds = Counter(node.op_type for node in load_model(path).graph.node)
    return Inside("graph", why, sum(kinds.values()), dict(kinds.most_common()), {}, nodes, kinds[COLLECTIVE])


def _plugin_nodes(path: Path) -> dict[str, int]:
    from mm2c.bundle.rank_graph_file import load_model

    named = (
        node.op_type
        for node in load_model(path).graph.node
        if any(attribute.name == PLUGIN for attribute in node.attribute)
    )
    return dict(Counter(named).most_common())


def _name(value: Any) -> str:
    """``MATRIX_MULTIPLY`` of an enumeration's member."""
    return str(value).rpartition(".")[2]
