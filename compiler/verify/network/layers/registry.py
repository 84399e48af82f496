"""What is known of a layer kind: the interface that tells its attributes, and what reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from mm2c.verify.network.view import Evaluate, LayerView

Read: TypeAlias = Callable[[LayerView], Evaluate]


class Entry(NamedTuple):
    """``interface``: the class of the binding; ``read``: refuses the layer or gives what it computes; ``attributes``:
    what the interface has beside every layer's own, all of which ``read`` looks at or knows to say nothing."""

    interface: str
    read: Read
    attributes: frozenset[str]


# Of every layer. What a later version adds may change what a layer means.
COMMON = frozenset(
    [
        "get_input",
        "get_output",
        "get_output_type",
        "metadata",
        "name",
        "num_inputs",
        "num_outputs",
        "num_ranks",
        "set_input",
        "type",
    ]
)
LAYERS: dict[str, Entry] = {}


def unknown_attributes(trt: Any, entry: Entry) -> list[str]:
    """Attributes that the binding's interface has and this replay has never heard of."""
    found = {name for name in dir(getattr(trt, entry.interface)) if not name.startswith("_")}
    return sorted(found - COMMON - entry.attributes)


def evaluates(kind: str, interface: str, *attributes: str) -> Callable[[Read], Read]:
    """Decorates the reader of a LayerType."""

    def register(read: Read) -> Read:
        LAYERS[kind] = Entry(interface, read, frozenset(attributes))
        return read

    return register
