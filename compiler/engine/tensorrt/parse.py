"""An ONNX graph as TensorRT's network: what the builder, the network replay and the inspector all start from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Said of every function that several nodes call: its tensors cannot be asked for by name, which nobody does. Of every
# input of that type: it is bound as such.
HARMLESS = ("the output tensors of this new instance will not be queryable", "has Int64 binding")
SEVERITIES = (
    "INTERNAL_ERROR",
    "ERROR",
    "WARNING",
    "INFO",
    "VERBOSE",
)  # by falling weight, as the library counts


class NetworkRefused(ValueError):
    """The parser does not take a graph. ``problems``: one line each, with the node where the parser names one."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(problems))


@dataclass
class ParsedNetwork:
    """A network and everything that must live as long as it does: the library frees what Python drops, and the network
    reads the parser's memory."""

    trt: Any
    logger: Any
    builder: Any
    network: Any
    parser: Any
    data: bytes

    @property
    def inputs(self) -> list[Any]:
        return [self.network.get_input(i) for i in range(self.network.num_inputs)]

    @property
    def outputs(self) -> list[Any]:
        return [self.network.get_output(i) for i in range(self.network.num_outputs)]


def make_logger(trt: Any, heard: Callable[[str, str], None], level: str = "WARNING") -> Any:
    """A logger of module ``trt`` that calls ``heard`` with severity (one of SEVERITIES) and text of what is at least as
    grave as ``level``; what is known to be harmless is left out."""
    least = SEVERITIES.index(level)

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            rank = int(severity)
            if rank <= least and not any(part in msg for part in HARMLESS):
                heard(SEVERITIES[rank], msg)

    return Log()


def parse_network(trt: Any, data: bytes, logger: Any = None) -> ParsedNetwork:
    """Parse a serialised ONNX model with module ``trt`` (tensorrt_rtx or tensorrt) into a strongly typed network.

    ``logger``: one of ``make_logger``; without it what the library says is kept for the error's text only. Every
    attention may be decomposed: sizes for which there is no fused kernel are refused otherwise.

    Raises:
        NetworkRefused: the parser refuses the graph, or finds nothing in it that would be computed.
    """
    said: list[str] = []
    logger = logger or make_logger(trt, lambda severity, text: said.append(f"{severity.lower()}: {text}"))
    builder = trt.Builder(logger)
    network = builder.create_network(_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(data):
        raise NetworkRefused([_problem(parser.get_error(i)) for i in range(parser.num_errors)] or said[-3:])
    if not network.num_outputs:  # what any bytes give that are no ONNX
        raise NetworkRefused(["there is no graph with outputs in these bytes"])
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True
    return ParsedNetwork(trt, logger, builder, network, parser, data)


def _flags(trt: Any) -> int:
    """Strongly typed. A library that knows nothing else may have dropped the flag."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _problem(error: Any) -> str:
    """One line of a ParserError."""
    node = f"{error.node_name()} ({error.node_operator()})" if error.node_name() else error.node_operator()
    stack = error.local_function_stack()
    within = f" in {' > '.join(stack)}" if stack else ""
    text = " ".join(error.desc().split()).partition(" [checkMacros")[
        0
    ]  # what follows is about the missing GPU
    return f"node {node}{within}: {text}" if node else text
