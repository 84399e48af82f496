"""Collectives between the processes of a bundle's ranks."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Protocol

import torch
from torch import Tensor

from mm2c_runtime.errors import BundleError

JOIN_SECONDS = 600.0


class Collectives(Protocol):
    """``group``: the ranks that take part, in order, this one among them. Enqueued on the current stream.
    ``capturable``: whether that may be captured into a CUDA graph."""

    rank: int
    ranks: int
    capturable: bool

    def make_groups(self, groups: Sequence[tuple[int, ...]]) -> None:
        """Make what ``groups`` need: every rank calls it with the same list, those it is not in included."""

    def all_reduce(self, x: Tensor, group: tuple[int, ...]) -> None:
        """``x``, which is contiguous, becomes the sum over the group."""

    def all_gather(self, x: Tensor, axis: int, group: tuple[int, ...]) -> Tensor:
        """The group's tensors, equal in shape, one after another along ``axis``."""

    def reduce_scatter(self, x: Tensor, axis: int, group: tuple[int, ...]) -> Tensor:
        """Of the sum over the group, this rank's equal part along ``axis``."""

    def least(self, value: int) -> int:
        """The smallest of all ranks' values; they wait for each other."""

    def first_bytes(self, own: bytes) -> bytes:
        """What the first rank gave, on every rank; all give as many bytes."""

    def close(self) -> None: ...


class SingleRank:
    """One rank alone: everything is the identity."""

    def __init__(self) -> None:
        self.rank, self.ranks, self.capturable = 0, 1, True

    def make_groups(self, groups: Sequence[tuple[int, ...]]) -> None:
        pass

    def all_reduce(self, x: Tensor, group: tuple[int, ...]) -> None:
        pass

    def all_gather(self, x: Tensor, axis: int, group: tuple[int, ...]) -> Tensor:
        return x

    def reduce_scatter(self, x: Tensor, axis: int, group: tuple[int, ...]) -> Tensor:
        return x

    def least(self, value: int) -> int:
        return value

    def first_bytes(self, own: bytes) -> bytes:
        return own

    def close(self) -> None:
        pass


class TorchCollectives:
    """Over torch.distributed's default group, which ``join_group`` has made."""

    def __init__(self, rank: int, ranks: int, device: torch.device, backend: str) -> None:
        self.rank, self.ranks, self.capturable = rank, ranks, backend == "nccl"
        self._device = device if backend == "nccl" else torch.device("cpu")
        self._groups: dict[tuple[int, ...], Any] = {}

    def make_groups(self, groups: Sequence[tuple[int, ...]]) -> None:
        import torch.distributed as dist

        for group in groups:
            if group not in self._groups:
                whole = group == tuple(range(self.ranks))
                self._groups[group] = dist.group.WORLD if whole else dist.new_group(list(group))

    def all_reduce(self, x: Tensor, group: tuple[int, ...]) -> None:
        import torch.distributed as dist

        dist.all_reduce(x, group=self._groups[group])

    def all_gather(self, x: Tensor, axis: int, group: tuple[int, ...]) -> Tensor:
        import torch.distributed as dist

        parts = x.new_empty((len(group), *x.shape))
        if self.capturable:
            dist.all_gather_into_tensor(parts, x.contiguous(), group=self._groups[group])
        else:  # gloo knows the one into a single tensor on the CPU only
            dist.all_gather(list(parts.unbind(0)), x.contiguous(), group=self._groups[group])
        axis %= x.ndim
        # [group, …, n, …] -> […, group · n, …]
        return parts.movedim(0, axis).reshape(
            *x.shape[:axis], len(group) * x.shape[axis], *x.shape[axis + 1 :]
        )

    def reduce_scatter(self, x: Tensor, axis: int, group: tuple[int, ...]) -> Tensor:
        import torch.distributed as dist

        size, rest = divmod(x.shape[axis], len(group))
        if rest:
            raise ValueError(f"axis {axis} of {list(x.shape)} cannot be cut for {len(group)} ranks")
        if not self.capturable:  # gloo has none that takes tensors of a GPU
            whole = x.clone()
            dist.all_reduce(whole, group=self._groups[group])
            return whole.narrow(axis, group.index(self.rank) * size, size)
        parts = x.movedim(axis, 0).contiguous()
        own = parts.new_empty((size, *parts.shape[1:]))
        dist.reduce_scatter_tensor(own, parts, group=self._groups[group])
        return own.movedim(0, axis)

    def least(self, value: int) -> int:
        import torch.distributed as dist

        found = torch.tensor([value], dtype=torch.int64, device=self._device)
        dist.all_reduce(found, op=dist.ReduceOp.MIN)
        return int(found.item())

    def first_bytes(self, own: bytes) -> bytes:
        import torch.distributed as dist

        found = torch.frombuffer(bytearray(own), dtype=torch.uint8).to(self._device)
        dist.broadcast(found, src=0)
        return bytes(found.cpu().numpy())

    def close(self) -> None:
        import torch.distributed as dist

        self._groups.clear()
        if dist.is_initialized():
            dist.destroy_process_group()


def join_group(*, backend: str, store: str, rank: int, ranks: int, device: str) -> TorchCollectives:
    """Meet the other ranks over the file ``store``, which no earlier run has used. ``backend``: "nccl" or "gloo".

    Raises BundleError where that fails.
    """
    import torch.distributed as dist

    place = torch.device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    try:
        dist.init_process_group(
            backend,
            store=dist.FileStore(store, ranks),
            rank=rank,
            world_size=ranks,
            timeout=timedelta(seconds=JOIN_SECONDS),
            device_id=place if backend == "nccl" else None,
        )
    except (RuntimeError, ValueError) as error:
        raise BundleError(
            f"rank {rank} cannot join the other ranks over {backend}: {error}",
            remedy="see the log for a rank that ended; NCCL_DEBUG=INFO says more",
        ) from None
    return TorchCollectives(rank, ranks, place, backend)


def node_groups(groups: Sequence[int], size: int) -> list[tuple[int, ...]]:
    """The groups of a DistCollective node: ``groups`` are their ranks, ``size`` after ``size``."""
    return [tuple(groups[begin : begin + size]) for begin in range(0, len(groups), size)]
