"""A whole rank of M2.7 at tp 4 with random weights: the program that the compiler writes, run as the engine runs it.

The other three ranks are not there: collectives do nothing, and their time is not in the figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from made import distinct, rope_tables
from sizes import DEVICE, M2, e4m3, scales

from mm2c_plugins.host import Library
from mm2c_runtime.executors.cuda.dtypes import TORCH
from mm2c_runtime.executors.cuda.model import RankModel
from mm2c_runtime.executors.cuda.pages import make_caches
from mm2c_runtime.executors.cuda.plugin_ops import PluginOps
from mm2c_runtime.executors.cuda.program import Program, TensorType, read_program

Tensor = torch.Tensor


class Alone:
    """Collectives of a rank whose neighbours are missing: its own part stands for all of them."""

    capturable = True

    def __init__(self, rank: int, ranks: int) -> None:
        self.rank, self.ranks = rank, ranks

    def make_groups(self, groups: Sequence[tuple[int, ...]]) -> None:
        pass

    def all_reduce(self, x: Tensor, group: tuple[int, ...]) -> None:
        pass

    def all_gather(self, x: Tensor, axis: int, group: tuple[int, ...]) -> Tensor:
        return torch.cat([x] * len(group), axis)

    def least(self, value: int) -> int:
        return value

    def close(self) -> None:
        pass


class CountingOps(PluginOps):
    """Notes, while ``counting``, how many experts each layer's tokens choose."""

    def __init__(self, library: Library, device: torch.device) -> None:
        super().__init__(library, device)
        self.counting, self.experts = False, list[int]()

    def run(self, node: Any, inputs: Sequence[Tensor]) -> list[Tensor]:
        if self.counting and node.op == "M2MoeFp8":
            self.experts.append(distinct(inputs[1], inputs[2], int(node.attributes["top_k"])))
        return super().run(node, inputs)


@dataclass
class SliceModel:
    """``weight_bytes``: of everything on the device."""

    program: Program
    model: RankModel
    ops: CountingOps
    device: torch.device
    weight_bytes: int
    caches: list[Tensor] = field(default_factory=list)

    @classmethod
    def random(cls, path: Path, library: Library, device: str = DEVICE) -> SliceModel:
        program = read_program(path)
        place = torch.device(device)
        weights = {name: random_weight(name, kind) for name, kind in program.weights.items()}
        size = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
        ops = CountingOps(library, place)
        model = RankModel(program, weights, ops, Alone(program.rank, program.ranks), place)
        return cls(program, model, ops, place, size)

    def fill(self, tokens: int) -> None:
        """Caches of at least ``tokens`` tokens, of finite random content."""
        kv = self.program.kv
        pages = -(-tokens // kv.page) + 1
        if self.caches and len(self.caches[0]) >= pages:
            return
        self.caches = []  # the old ones go first
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.caches = make_caches(kv, pages, self.device)
        for cache in self.caches:
            cache.copy_(torch.randn_like(cache, dtype=torch.bfloat16))

    def step(self, past: Sequence[int], new: int) -> Step:
        """Rows that hold ``past`` tokens take ``new`` ones."""
        page = self.program.kv.page
        each = [-(-(length + new) // page) for length in past]
        self.fill(sum(each) * page)
        dealt = torch.randperm(len(self.caches[0]), device=self.device).int()
        table = torch.zeros(len(past), max(each), dtype=torch.int32, device=self.device)
        for row, count in enumerate(each):
            table[row, :count], dealt = dealt[:count], dealt[count:]
        i32 = {"dtype": torch.int32, "device": self.device}
        ids = torch.randint(0, M2.vocab, (len(past), new), device=self.device)
        lens = [torch.tensor(values, **i32) for values in (list(past), [new] * len(past))]  # type: ignore[arg-type]
        return Step(self, [ids, *lens, table])


@dataclass
class Step:
    owner: SliceModel
    inputs: list[Tensor]
    logits: Tensor | None = None

    def __call__(self) -> None:
        with torch.inference_mode():
            self.logits = self.owner.model.run(*self.inputs, self.owner.caches)

    def experts(self) -> list[int]:
        """Distinct experts of each layer, from a run of its own."""
        ops = self.owner.ops
        ops.counting, ops.experts = True, []
        self()
        ops.counting = False
        return ops.experts

    def bytes(self, experts: Sequence[int]) -> int:
        """The least that a decode step reads: attention, router and chosen experts of every layer, the rows' keys
        and values, and the head."""
        size, program = M2, self.owner.program
        router = size.experts * (size.hidden * 2 + 4)
        layers = program.kv.layers * (size.attention_bytes + router)
        tokens = int((self.inputs[1] + self.inputs[2]).sum())
        head = size.vocab * size.hidden * 2
        return layers + sum(experts) * size.expert_bytes + tokens * program.kv.bytes_per_token + head


def random_weight(name: str, kind: TensorType) -> Tensor:
    """By its name: e4m3 codes, block scales, rope tables, norms near 1, anything else about 1 / sqrt(width)."""
    shape, dtype = kind.shape, TORCH[kind.dtype]
    if kind.dtype == "e4m3":
        return e4m3(*shape)
    if "scale_inv" in name:
        return scales(*shape, width=shape[-1] * M2.block)
    if name in ("rope.cos", "rope.sin"):
        return rope_tables(shape[0])[name == "rope.sin"]
    if len(shape) == 1:
        bias = "correction_bias" in name
        return (torch.randn(shape, device=DEVICE) * 0.1 + (0.0 if bias else 1.0)).to(dtype)
    return (torch.randn(shape, device=DEVICE) / shape[-1] ** 0.5).to(dtype)
