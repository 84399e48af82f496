"""Decode steps as CUDA graphs: one for each bucket, captured at start, all in one pool of memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import torch

LOG_SECONDS = 5.0
log = logging.getLogger("mm2c.cuda")


class DecodeGraphs:
    """``run(rows)`` enqueues the step of a bucket: it reads buffers whose addresses stay, and leaves its result in
    such a one. What it allocates on the way lies in the pool that the graphs share, so only one may run at a time.
    """

    def __init__(self, run: Callable[[int], None], buckets: Sequence[int], device: torch.device) -> None:
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        stream = torch.cuda.Stream(device)
        pool = torch.cuda.graph_pool_handle()
        began = said = time.monotonic()
        for rows in sorted(buckets, reverse=True):  # the largest first: the others fit into its memory
            # Once without capturing: plugins are attached, kernels and cuBLAS loaded, communicators connected.
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                run(rows)
            torch.cuda.current_stream(device).wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # thread_local: NCCL's watchdog may go on asking for its events meanwhile
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                run(rows)
            self._graphs[rows] = graph
            if time.monotonic() - said >= LOG_SECONDS:
                said = time.monotonic()
                log.info("decode graphs: %d of %d captured", len(self._graphs), len(buckets))
        torch.cuda.synchronize(device)
        log.info("decode graphs: %d captured in %.1f s", len(buckets), time.monotonic() - began)

    def replay(self, rows: int) -> None:
        """Enqueue the step of a bucket on the current stream."""
        self._graphs[rows].replay()

    def close(self) -> None:
        self._graphs.clear()
