"""Runs the model on the rows of a step: decode in buckets of rows, captured where the device can, and prefill."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mm2c_runtime.executors.cuda.buckets import bucket_of, buckets
from mm2c_runtime.executors.cuda.graphs import DecodeGraphs
from mm2c_runtime.executors.cuda.inputs import InputBuffer
from mm2c_runtime.executors.cuda.model import RankModel
from mm2c_runtime.executors.cuda.pages import BlockTables, make_caches
from mm2c_runtime.executors.cuda.program import Program
from mm2c_runtime.step import RowStep


class Stepper:
    """Owns caches, block tables and buffers of one rank; nothing here waits for the device."""

    def __init__(self, program: Program, model: RankModel, pages: int, device: torch.device) -> None:
        self._program, self._model, self._device = program, model, device
        rows = program.max_rows
        # Of several attention groups, one without requests runs a row of one token, with a page of its own.
        self._dummy = RowStep(rows + 1, [0], 0, 1, sample=False)
        more = int(program.together)
        self.most_tokens = max(program.prefill_chunk, rows)  # of one run of the model
        self.buckets = buckets(rows)
        self.caches = make_caches(program.kv, pages + more, device)
        self.tables = BlockTables(rows + 1 + more, program.pages_per_row, pages, program.kv.page, device)
        if more:
            self.tables.reserve(self._dummy.row, pages)
        self._inputs = InputBuffer(self.most_tokens, rows + 1, device)
        self._logits = torch.empty((rows, program.columns), dtype=torch.float32, device=device)
        self._graphs: DecodeGraphs | None = None

    def capture(self) -> None:
        """Turn the decode steps into CUDA graphs, before the first step: they are run on the way, on row 0, whose
        table names page 0."""
        self._inputs.fill([_first_row(1)], self.buckets[-1], 1)
        self._graphs = DecodeGraphs(self._decode, self.buckets, self._device)
        for cache in self.caches:
            cache.view(torch.uint8)[0].zero_()

    def close(self) -> None:
        if self._graphs is not None:
            self._graphs.close()
        self.caches.clear()

    def decode(self, steps: Sequence[RowStep], most: int = 0) -> Tensor:
        """One token for each of the rows: logits f32[len(steps), columns], valid until the next step. ``most``: rows of
        the attention group that has most of them."""
        rows = bucket_of(self.buckets, max(len(steps), most))
        self._inputs.fill(steps or [self._dummy], rows, 1)
        self.tables.upload()
        if self._graphs is not None:
            self._graphs.replay(rows)
        else:
            self._decode(rows)
        return self._logits[: len(steps)]

    def _decode(self, rows: int) -> None:
        """From the input buffer to the logits' buffer."""
        self._logits[:rows].copy_(self._run(rows, 1).reshape(rows, -1))

    def prefill(self, steps: Sequence[RowStep]) -> Tensor:
        """Logits f32[len(steps), columns] of the rows' last tokens, or f32[len(steps), width, columns] of all. Rows are
        padded to the longest one, and run together as far as a run's number of tokens allows."""
        width = max(step.new_len for step in steps)
        together = max(1, self.most_tokens // width)
        self.tables.upload()
        found = []
        for begin in range(0, len(steps), together):
            some = steps[begin : begin + together]
            if begin:
                self.wait()  # for the copy out of the buffer that is filled again
            self._inputs.fill(some, len(some), width)
            found.append(self._run(len(some), width))
        return found[0] if len(found) == 1 else torch.cat(found)

    def beside(self, steps: Sequence[RowStep], tokens: int) -> Tensor:
        """What an attention group runs while another one prefills, in one run of the model: logits as ``prefill``
        has them. ``tokens``: of the group with most of them, padding included."""
        steps = steps or [self._dummy]
        width = max(step.new_len for step in steps)
        self.tables.upload()
        self._inputs.fill(steps, len(steps), width)
        return self._run(len(steps), width, tokens)

    def _run(self, rows: int, width: int, tokens: int = 0) -> Tensor:
        given = self._inputs.views(rows, width)
        table = self.tables.device.index_select(0, given.table_row)
        return self._model.run(
            given.ids, given.past, given.new, table, self.caches, max(tokens, rows * width)
        )

    def wait(self) -> None:
        """For the device to end what was enqueued."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()

    def largest(self) -> None:
        """Run the largest prefill and the largest decode step, to see what memory they take; on row 0, whose table
        names page 0."""
        for rows, width in ((1, self._program.prefill_chunk), (self.buckets[-1], 1)):
            self._inputs.fill([_first_row(width)], rows, width)
            self._run(rows, width)
            self.wait()


def _first_row(width: int) -> RowStep:
    return RowStep(0, [0] * width, 0, width, sample=False)
