"""Runs the model on the rows of a step: decode in buckets of rows, captured where the device can, and prefill."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mm2c_runtime.executors.cuda.buckets import bucket_of, bucket_sizes
from mm2c_runtime.executors.cuda.graphs import DecodeGraphs
from mm2c_runtime.executors.cuda.inputs import InputBuffer
from mm2c_runtime.executors.cuda.places import make_places
from mm2c_runtime.executors.cuda.rank_model import RankFacts, StepModel
from mm2c_runtime.step import RowStep


class Stepper:
    """Owns caches, block tables and buffers of one rank; nothing here waits for the device. ``units``: pages, or linear
    rows that decode; ``rows``: the most of a decode step."""

    def __init__(self, program: RankFacts, model: StepModel, units: int, device: torch.device) -> None:
        self._program, self._model, self._device = program, model, device
        paged = program.kv.page > 0
        self.units = units
        self.rows = program.max_rows if paged else min(program.max_rows, units)
        # Of several attention groups, one without requests runs a row of one token, with a page of its own.
        self._dummy = RowStep(program.max_rows + 1, [0], 0, 1, sample=False)
        self.most_tokens = max(program.prefill_chunk, self.rows)  # of one run of the model
        self.buckets = bucket_sizes(self.rows, padded=paged)
        self.places = make_places(program, units, device, dummy=self._dummy.row)
        self._inputs = InputBuffer(self.most_tokens, program.max_rows + 1, device)
        self._logits = torch.empty((self.rows, program.columns), dtype=torch.float32, device=device)
        self._graphs: DecodeGraphs | None = None

    def capture(self) -> None:
        """Turn the decode steps into CUDA graphs, before the first step: they are run on the way, on row 0, whose
        table names page 0."""
        self._inputs.fill([_first_row(1)], self.buckets[-1], 1)
        self._graphs = DecodeGraphs(self._decode, self.buckets, self._device)
        self.places.clear_first(self.buckets[-1])

    def close(self) -> None:
        if self._graphs is not None:
            self._graphs.close()
        self.places.close()

    def decode(self, steps: Sequence[RowStep], most: int = 0) -> Tensor:
        """One token for each of the rows: logits f32[len(steps), columns], valid until the next step. ``most``: rows of
        the attention group that has most of them."""
        rows = max(len(steps), most)
        captured = rows <= self.buckets[-1]
        if captured:
            rows = bucket_of(self.buckets, rows)
        self._inputs.fill(steps or [self._dummy], rows, 1)
        self.places.upload()
        if self._graphs is not None and captured:
            self._graphs.replay(rows)
        else:
            self._decode(rows)
        return self._logits[: len(steps)]

    def _decode(self, rows: int) -> None:
        """From the input buffer to the logits' buffer; decoding rows are those from 0 on."""
        self._logits[:rows].copy_(self._run(0, rows, 1).reshape(rows, -1))

    def prefill(self, steps: Sequence[RowStep]) -> Tensor:
        """Logits f32[len(steps), columns] of the rows' last tokens, or f32[len(steps), width, columns] of all. Rows are
        padded to the longest one and run together as far as the model takes several; where it does not, each runs
        as it is."""
        width = max(step.new_len for step in steps)
        together = max(1, min(self._model.most_rows(width), self.most_tokens // width))
        self.places.upload()
        found = []
        for begin in range(0, len(steps), together):
            some = steps[begin : begin + together]
            wide = width if together > 1 else some[0].new_len
            if begin:
                self.wait()  # for the copy out of the buffer that is filled again
            self._inputs.fill(some, len(some), wide)
            found.append(_padded(self._run(some[0].row, len(some), wide), width))
        return found[0] if len(found) == 1 else torch.cat(found)

    def beside(self, steps: Sequence[RowStep], tokens: int) -> Tensor:
        """What an attention group runs while another one prefills, in one run of the model: logits as ``prefill``
        has them. ``tokens``: of the group with most of them, padding included."""
        steps = steps or [self._dummy]
        width = max(step.new_len for step in steps)
        self.places.upload()
        self._inputs.fill(steps, len(steps), width)
        return self._run(steps[0].row, len(steps), width, tokens)

    def _run(self, first: int, rows: int, width: int, tokens: int = 0) -> Tensor:
        given = self._inputs.views(rows, width)
        table, caches = self.places.bound(first, given)
        return self._model.run(given.ids, given.past, given.new, table, caches, max(tokens, rows * width))

    def wait(self) -> None:
        """For the device to end what was enqueued."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()

    def largest(self) -> None:
        """Run the largest prefill and the largest decode step, to see what memory they take; on row 0, whose table
        names page 0."""
        for rows, width in ((1, self._program.prefill_chunk), (self.rows, 1)):
            self._inputs.fill([_first_row(width)], rows, width)
            self._run(0, rows, width)
            self.wait()


def _padded(logits: Tensor, width: int) -> Tensor:
    """Logits [rows, tokens, columns] of all tokens become as wide as the step; those of the last ones stay."""
    if logits.ndim == 2 or logits.shape[1] == width:
        return logits
    return torch.nn.functional.pad(logits, (0, 0, 0, width - logits.shape[1]))


def _first_row(width: int) -> RowStep:
    return RowStep(0, [0] * width, 0, width, sample=False)
