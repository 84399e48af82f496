"""How much of a GPU the KV cache gets: what is left beside weights, steps and captured graphs."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.cuda.buckets import bucket_sizes
from mm2c_runtime.executors.cuda.collectives import Collectives
from mm2c_runtime.executors.cuda.places import spare, unit
from mm2c_runtime.executors.cuda.rank_model import LoadedRank, RankFacts
from mm2c_runtime.executors.cuda.stepper import Stepper
from mm2c_runtime.memory import VARIABLE

GRAPH_BYTES = (
    24 << 20
)  # what the driver keeps of one captured step; whether that was enough is checked afterwards
MARGIN = 0.02  # of the GPU's memory, for what the driver and others in this process take later
_GIB = 2**30
log = logging.getLogger("mm2c.cuda")


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes of a GPU. ``free``: now, with the weights loaded; ``step``: what the largest step takes meanwhile;
    ``graphs``: the number of steps that are to be captured."""

    total: int
    free: int
    weights: int
    step: int
    graphs: int

    @property
    def reserve(self) -> int:
        """What must stay free of KV cache. Captured steps have memory of their own, at most a step's."""
        return 2 * self.step + self.graphs * GRAPH_BYTES + int(MARGIN * self.total)


def make_stepper(
    loaded: LoadedRank,
    collectives: Collectives,
    device: torch.device,
    kv_tokens: int | None,
    *,
    where: str,
) -> Stepper:
    """With as many pages (or linear rows) on every rank as fit on each, and its decode steps captured. Raises
    BundleError where memory does not suffice."""
    program = loaded.program
    with torch.inference_mode():
        if device.type == "cpu":
            pages = collectives.least(pages_wanted(program, kv_tokens))
            return Stepper(program, loaded.model, pages, device)
        try:
            room = _measure(loaded, device, collectives.capturable)
            pages = collectives.least(pages_that_fit(program, room, kv_tokens, where=where))
            stepper = Stepper(program, loaded.model, pages, device)
            if collectives.capturable and loaded.model.capturable:
                stepper.capture()
        except torch.OutOfMemoryError as error:
            raise BundleError(
                f"the GPU's memory does not suffice: {str(error).splitlines()[0]}",
                where=where,
                remedy=f"end other programs on this GPU, or serve with fewer kv_tokens ({VARIABLE})",
            ) from None
        except BundleError:
            raise
        except Exception as error:  # whatever the plugin library, torch or the driver raise
            raise BundleError(
                f"the first steps failed on {device}: {error}",
                where=where,
                remedy="see the log; build the bundle again with `mm2c build … --force` where it names a plugin",
            ) from error
        torch.cuda.empty_cache()
        _check_left(program, room, pages, device, where=where)
    tokens = pages * unit(program)
    size = tokens * program.kv.bytes_per_token / _GIB
    log.info("KV cache: %d %s, %d tokens, %.2f GiB", pages, _units(program), tokens, size)
    return stepper


def _measure(loaded: LoadedRank, device: torch.device, capture: bool) -> Room:
    """By running the largest steps on a cache of one page or row."""
    stepper = Stepper(loaded.program, loaded.model, 1, device)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    stepper.largest()
    step = torch.cuda.max_memory_allocated(device) - before
    graphs = len(bucket_sizes(loaded.program.max_rows, padded=loaded.program.kv.page > 0)) if capture else 0
    stepper.close()
    del stepper
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return Room(total, free, loaded.weights, step, graphs)


def pages_wanted(program: RankFacts, kv_tokens: int | None) -> int:
    """Pages (or linear rows) for every row full, or for ``kv_tokens`` tokens in all."""
    most = program.max_rows * -(-program.context // unit(program))
    if program.most_pages is not None:
        most = min(most, program.most_pages)
    return most if kv_tokens is None else max(1, min(most, -(-kv_tokens // unit(program))))


def pages_that_fit(program: RankFacts, room: Room, kv_tokens: int | None, *, where: str) -> int:
    """As many as are wanted, or as fit where nobody asked for a number. Raises BundleError, with the figures, where
    not even a prefill chunk fits, or fewer tokens than were asked for."""
    page = unit(program)
    page_bytes = page * program.kv.bytes_per_token
    wanted = pages_wanted(program, kv_tokens)
    fitting = max(0, max(0, room.free - room.reserve) // page_bytes - spare(program))
    least = -(-min(program.context, program.prefill_chunk + 1) // page)
    if fitting >= wanted or (kv_tokens is None and fitting >= least):
        return min(wanted, fitting)
    needed = wanted if kv_tokens is not None else least
    if fitting >= 1 and kv_tokens is not None:
        tokens = fitting * page
        remedy = f"serve with kv_tokens={tokens} or less ({VARIABLE}={tokens}); without it, all that is free is used"
    else:
        remedy = (
            "end other programs on this GPU, build for more ranks (--tp), with "
            + ("`--kv-dtype fp8`, with " if program.kv.page else "a shorter --context, ")
            + "fewer --max-rows or a smaller --prefill-chunk, or serve on a GPU with more memory"
        )
    cache = (needed + spare(program)) * page_bytes
    raise BundleError(
        f"the bundle needs {_gib(cache + room.reserve + room.weights)} of memory on this GPU and "
        f"{_gib(room.free + room.weights)} of its {_gib(room.total)} are available: {_gib(room.weights)} for the "
        f"weights, {_gib(room.reserve)} for steps, captured graphs and a margin, {_gib(cache)} for "
        f"{needed * page} tokens of KV cache",
        where=where,
        remedy=remedy,
    )


def _check_left(program: RankFacts, room: Room, pages: int, device: torch.device, *, where: str) -> None:
    """Whether the largest step still fits beside the captured ones."""
    free, _ = torch.cuda.mem_get_info(device)
    if free >= room.step:
        return
    page = unit(program)
    page_bytes = page * program.kv.bytes_per_token
    tokens = max(0, pages - -(-(room.step - free) // page_bytes)) * page
    raise BundleError(
        f"{_gib(free)} of the GPU's memory are left beside weights, KV cache and captured steps; the largest step "
        f"takes {_gib(room.step)}",
        where=where,
        remedy=f"serve with kv_tokens={tokens} or less ({VARIABLE}={tokens})",
    )


def _units(program: RankFacts) -> str:
    return "pages" if program.kv.page else "rows"


def _gib(size: int) -> str:
    return f"{size / _GIB:.2f} GiB"
