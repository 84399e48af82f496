"""One layout on one kind of GPU: what each of them holds, and what fits."""

from __future__ import annotations

from dataclasses import dataclass

from mm2c.config import PAGE, Mapping
from mm2c.memory import MemoryPlan, plan_memory
from mm2c.plan.ask import Ask
from mm2c.plan.gpus import Gpu
from mm2c.plan.room import Room, room_on


@dataclass(frozen=True)
class Fit:
    """``rooms``: of every rank of a replica; ``rows``: rows of an attention group; ``required``: tokens of cache
    that a group needs for what was asked."""

    ask: Ask
    gpu: Gpu
    mapping: Mapping
    memory: MemoryPlan
    rooms: tuple[Room, ...]

    @property
    def rows(self) -> int:
        return self.ask.rows(self.mapping)

    @property
    def required(self) -> int:
        return self.ask.required_tokens(self.mapping)

    @property
    def tightest(self) -> Room:
        return min(self.rooms, key=lambda room: room.free)

    @property
    def group_tokens(self) -> int:
        """Tokens of cache of an attention group: its ranks hold the same tokens, each its own heads."""
        return self.tightest.tokens

    @property
    def kv_capacity_tokens(self) -> int:
        """Tokens of cache of all groups of all replicas."""
        return self.mapping.dp * self.group_tokens

    @property
    def replica_tokens(self) -> int:
        return self.mapping.attention_dp * self.group_tokens

    @property
    def short(self) -> int:
        """Bytes that the tightest GPU lacks; 0 where everything that was asked for fits."""
        room = self.tightest
        return max(0, (self.required + room.kept * PAGE) * room.rank.kv_per_token - room.free)

    @property
    def weights_fit(self) -> bool:
        """Whether there is anything left for a cache."""
        return self.tightest.tokens > 0

    @property
    def fits(self) -> bool:
        return self.short == 0

    @property
    def full_rows(self) -> int:
        """Requests of the whole context that fit at once, over all groups."""
        return self.mapping.dp * (self.group_tokens // self.ask.row_tokens)

    def requests_of(self, context: int) -> int:
        """Requests of ``context`` tokens that fit at once, over all groups."""
        page = self.ask.page
        return self.mapping.dp * (self.group_tokens // (-(-context // page) * page))


def fit(ask: Ask, gpu: Gpu, mapping: Mapping) -> Fit:
    """The figures of ``mapping``, which is legal for the model, on ``mapping.gpus`` GPUs of kind ``gpu``."""
    memory = memory_of(ask, mapping)
    rows = ask.rows(mapping)
    rooms = tuple(room_on(gpu.memory, rank, mapping, rows, ask.engine) for rank in memory.ranks)
    return Fit(ask, gpu, mapping, memory, rooms)


def memory_of(ask: Ask, mapping: Mapping) -> MemoryPlan:
    """What each rank holds, whatever GPU it is on."""
    return plan_memory(
        ask.config,
        ask.formats,
        mapping,
        context=ask.context,
        rows=ask.rows(mapping),
        chunk=ask.chunk,
        weight_dtype="cuda",
        kv_dtype=ask.kv_dtype,
        page=ask.page,
        engine=ask.engine,
    )
