"""What runs the ``mm2c`` nodes of a program: the plugin library on a GPU, references in tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor


class Call(Protocol):
    """As much of a program's node as an op needs."""

    @property
    def name(self) -> str: ...
    @property
    def op(self) -> str: ...
    @property
    def attributes(self) -> Any: ...


class Ops(Protocol):
    """Enqueues on the current stream and waits for nothing. An output that stands for an input written in place
    (the caches of M2PagedAttention) is that very tensor.

    ``samples`` (default False): whether the op M2Sample is there, which is no node of any program: logits
    f32[R, V], mask i32[R, ceil(V/32)], temperature f32[R], top_k i32[R], top_p f32[R], min_p f32[R], uniform i64[R]
    (an f64's bits) -> tokens i32[R], status i32[R]; attributes greedy and use_mask."""

    def run(self, node: Call, inputs: Sequence[Tensor]) -> Sequence[Tensor]: ...
