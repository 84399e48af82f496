"""Stacks of experts of which one is in memory at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

KEPT = 1 << 30  # bytes of experts that are remembered; one of the released size takes 57 MB in fp32


class ExpertCache:
    """The experts used last, up to ``capacity`` bytes, the one at hand included however large it is.

    ``loads``: how many experts were made; ``peak``: most bytes that were kept.
    """

    def __init__(self, capacity: int = KEPT) -> None:
        self.capacity, self.loads, self.peak = capacity, 0, 0
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._bytes = 0

    def get(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        made = make()
        self.loads += 1
        self._kept[key] = made
        self._bytes += made.nbytes
        while self._bytes > self.capacity and len(self._kept) > 1:
            _, old = self._kept.popitem(last=False)
            self._bytes -= old.nbytes
        self.peak = max(self.peak, self._bytes)
        return made

    def clear(self) -> None:
        self._kept.clear()
        self._bytes = 0


class LazyStack:
    """In place of a parameter [experts, N, K]: indexing by an expert's number gives that expert alone, f32[N, K].

    An experts module that goes from expert to expert computes with it what it computes with the parameter.
    """

    def __init__(self, name: str, shape: tuple[int, ...], cache: ExpertCache, make: Callable[[int], Tensor]):
        self.name, self.shape, self._cache, self._make = name, shape, cache, make

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, expert: Any) -> Tensor:
        number = int(expert)
        if not 0 <= number < self.shape[0]:
            raise IndexError(f"expert {number} of {self.shape[0]}")
        return self._cache.get((self.name, number), lambda: self._make(number))
