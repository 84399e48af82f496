"""Where the memory of a GPU goes before the KV cache gets the rest: the engines' own rule, with estimates for what
they measure when they start.

The cuda engine runs the largest step, then keeps twice its bytes (captured decode steps have memory of their own), so
many bytes for each captured step, and a margin; what the driver, the libraries and NCCL took was gone before. Plans of
TensorRT-RTX are given one scratch memory, which captured steps share.
"""

from __future__ import annotations

from dataclasses import dataclass

from mm2c.config import PAGE, Engine, Mapping
from mm2c.memory import RankMemory

GRAPH_BYTES = 24 << 20  # of a captured decode step, as the cuda engine reserves it
MARGIN = 0.02  # of the GPU's memory, likewise
DRIVER_BYTES = (
    1 << 30
)  # what the driver keeps, the CUDA context, kernels and workspaces of libraries; a bound
CHANNELS_BYTES = 512 << 20  # NCCL's buffers of one communicator; a bound


@dataclass(frozen=True)
class Room:
    """Bytes of one GPU. ``reserve``: kept free for captured steps, and the margin; ``system``: driver and context;
    ``collectives``: NCCL's buffers. ``free``: what the KV cache gets, negative where everything else is too much;
    ``kept``: pages of it that no request has."""

    memory: int
    rank: RankMemory
    reserve: int
    system: int
    collectives: int
    kept: int = 0

    @property
    def fixed(self) -> int:
        """Bytes that are gone before the first token."""
        return self.rank.fixed + self.reserve + self.system + self.collectives

    @property
    def free(self) -> int:
        return self.memory - self.fixed

    @property
    def tokens(self) -> int:
        """Tokens of KV cache, in whole pages."""
        return max(0, self.free // (PAGE * self.rank.kv_per_token) - self.kept) * PAGE


def room_on(memory: int, rank: RankMemory, mapping: Mapping, rows: int, engine: Engine = "cuda") -> Room:
    """The room of a GPU of ``memory`` bytes that decodes up to ``rows`` rows."""
    again = 0 if engine == "tensorrt-rtx" else rank.step
    return Room(
        memory,
        rank,
        reserve=again + len(decode_buckets(rows)) * GRAPH_BYTES + int(MARGIN * memory),
        system=DRIVER_BYTES,
        collectives=communicators(mapping) * CHANNELS_BYTES,
        kept=int(mapping.attention_dp > 1),  # of the row that a group without requests runs
    )


def communicators(mapping: Mapping) -> int:
    """Groups of GPUs that one is in: its attention group, and the one that shares the experts."""
    return int(mapping.tp > 1) + int(mapping.attention_dp > 1)


def decode_buckets(rows: int) -> list[int]:
    """The numbers of rows that the cuda engine captures a decode step for: 1 to 8, then by thirds and halves."""
    found = [size for size in range(1, 9) if size <= rows]
    size = 8
    while size < rows:
        found += [more for more in (size + size // 2, 2 * size) if more <= rows]
        size *= 2
    return found if found[-1] == rows else [*found, rows]
