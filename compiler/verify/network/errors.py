"""Why a network is not replayed."""

from __future__ import annotations


class ReplayError(Exception):
    """The network or what it is fed has no defined result: a missing input, an index out of range, ranks that do not
    meet at the same collective, or a value that is not of the type and shape which the network declares."""


class UnknownLayer(ReplayError):
    """A layer kind, mode or attribute that is not evaluated exactly. Raised before anything is computed."""

    def __init__(self, name: str, kind: str, origin: str, why: str) -> None:
        self.name, self.kind, self.origin, self.why = name, kind, origin, why
        made_of = f", made of ONNX node {origin}" if origin else ""
        super().__init__(f"layer {name} ({kind}{made_of}) is not evaluated: {why}")
