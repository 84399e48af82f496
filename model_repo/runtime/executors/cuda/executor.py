"""The executor of one rank on an NVIDIA GPU: the step protocol, sampling, and what failures of the device mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mm2c_runtime.errors import RequestError
from mm2c_runtime.executors.base import KvFacts
from mm2c_runtime.executors.batch import Together, check_batch, together
from mm2c_runtime.executors.cuda.collectives import Collectives, SingleRank
from mm2c_runtime.executors.cuda.cut_head import CutHead, need_whole_logits
from mm2c_runtime.executors.cuda.device import is_lost, open_device
from mm2c_runtime.executors.cuda.loading import load_rank
from mm2c_runtime.executors.cuda.memory import make_stepper
from mm2c_runtime.executors.cuda.ops import Ops
from mm2c_runtime.executors.cuda.places import unit
from mm2c_runtime.executors.cuda.rank_model import LoadedRank
from mm2c_runtime.executors.cuda.sampling import DeviceSampler
from mm2c_runtime.executors.cuda.timing import Stopwatch
from mm2c_runtime.sampling.sampler import NON_FINITE, Sampler
from mm2c_runtime.step import RowResult, RowStep, StepBatch, StepResult

if TYPE_CHECKING:  # not at run time: the GPU's checks run where pydantic is not
    from mm2c_runtime.manifest import Limits, Manifest


class DeviceExecutor:
    """Executor of one rank whose model runs on a GPU, whatever computes it; ``collectives`` join it to the others.

    ``loaded``: the rank's model, on the device. ``kv_tokens``: tokens of KV cache; without it, all that is left of the
    GPU's memory, at most every row full. The attribute of that name says what it came to. ``forward_seconds`` is how
    long the last model run took, sampling left out. Only the first rank of an attention group samples: the results
    of others are empty.

    Of several attention groups this one runs the batches of its own, ``group``: each of its steps is a joint one, which
    all ranks run, with what they agreed on. A batch that is refused fails after a dummy row was run in its place, so
    that the other groups go on.

    ``step`` raises ConnectionError where the GPU's context is lost, RequestError("INTERNAL") for any other failure
    of the device, ValueError for a batch against the protocol, before anything has run.

    Raises BundleError where the bundle or the GPU cannot be used.
    """

    def __init__(
        self,
        manifest: Manifest,
        collectives: Collectives,
        device: torch.device,
        loaded: LoadedRank,
        *,
        kv_tokens: int | None,
        where: str,
    ) -> None:
        self.rank = collectives.rank
        self._collectives, self._device = collectives, device
        self._program, self._model = loaded.program, loaded.model
        self.group, place = divmod(self.rank, manifest.mapping.tp)
        self._groups, self._samples = manifest.mapping.attention_dp, place == 0
        self._stepper = make_stepper(loaded, collectives, device, kv_tokens, where=where)
        self._model.started()
        self._limits = manifest.limits
        if self._stepper.rows < self._limits.max_rows:  # linear rows, of which no more fit
            self._limits = self._limits.model_copy(update={"max_rows": self._stepper.rows})
        self._sampler = Sampler(self._program.vocab)
        rows = self._limits.max_rows + 1
        self._draw = DeviceSampler(self._sampler, loaded.ops, rows, self._device)
        self._watch = Stopwatch(self._device)
        self._head: CutHead | None = None
        if self._program.head is not None:
            groups = manifest.mapping.tp_groups
            self._head = CutHead(self._program.head, self._program.vocab, self._collectives, groups)
        self.kv_tokens = self._stepper.units * unit(self._program)
        self.forward_seconds = 0.0

    @property
    def limits(self) -> Limits:
        return self._limits

    @property
    def kv(self) -> KvFacts:
        """Of this rank; every rank has the same pages."""
        kv = self._program.kv
        rows, context = self._limits.max_rows + 1, self._limits.context
        pages = self._stepper.units if kv.page else 0
        return KvFacts(rows, context, kv.bytes_per_token, kv.page, pages, self._groups)

    def forward(self, batch: StepBatch) -> NDArray[np.float32]:
        """As ``Executor.forward``. A prefill may have several rows, neighbours in order, padded to the longest."""
        found = self.forwards(self._alone(batch))[0]
        assert found is not None
        return found

    def forwards(self, batches: Sequence[StepBatch | None]) -> list[NDArray[np.float32] | None]:
        """As ``Executor.forwards``, but that only this rank's group has logits."""
        own = self.joint_forward(batches[self.group], together(batches, self._limits))
        return [own if group == self.group else None for group in range(self._groups)]

    def step(self, batch: StepBatch) -> StepResult:
        """As ``Executor.step``."""
        found = self.steps(self._alone(batch))[0]
        assert found is not None
        return found

    def steps(self, batches: Sequence[StepBatch | None]) -> list[StepResult | None]:
        """As ``Executor.steps``, but that only this rank's group has a result, and raises what failed there."""
        own = self.joint_step(batches[self.group], together(batches, self._limits))
        return [own if group == self.group else None for group in range(self._groups)]

    def joint_forward(self, batch: StepBatch | None, agreed: Together) -> NDArray[np.float32] | None:
        """This group's part of ``forwards``: the same ``agreed`` on all ranks."""
        with self._running(batch):
            logits, refused = self._forward(batch, agreed)
            if self._head is not None and batch is not None and refused is None:
                logits = self._head.whole(logits)
            found: NDArray[np.float32] = logits.cpu().numpy()
        if refused is not None:
            raise refused
        if batch is None:
            return None
        return found.copy() if self._device.type == "cpu" else found

    def joint_step(self, batch: StepBatch | None, agreed: Together) -> StepResult | None:
        """This group's part of ``steps``: the same ``agreed`` on all ranks."""
        if batch is not None:
            for released in batch.released:
                self._sampler.release(released)
            for copy in batch.copies:
                self._sampler.copy(copy.source, copy.target)
            for row in batch.rows:
                self._sampler.observe(row)
        with self._running(batch):
            self._watch.start()
            logits, refused = self._forward(batch, agreed)
            if batch is None or refused is not None:
                self._watch.stop()
                self._stepper.wait()
                self.forward_seconds = self._watch.seconds()
                if refused is not None:
                    raise refused
                return None
            results = self._sampled(self._last(logits, batch.rows), batch.rows)
            self.forward_seconds = self._watch.seconds()
            for step, result in zip(batch.rows, results, strict=True):
                if result.error == NON_FINITE:
                    self._stepper.places.clear(step)
        return StepResult(batch.step_id, results if self._samples else [])

    def _sampled(self, logits: Tensor, rows: Sequence[RowStep]) -> list[RowResult]:
        """Tokens on the rank that samples, and on all ranks which rows are finite. Waits for the device."""
        if self._head is not None:
            params = [self._sampler.parameters(row.row) if row.sample else None for row in rows]
            if not need_whole_logits(rows, params):
                keys = self._head.candidates(logits)
                self._watch.stop()
                return self._sampler.sample_candidates(keys.cpu().numpy(), rows, choose=self._samples)
            logits = self._head.whole(logits)
        self._watch.stop()
        return self._draw.sample(logits, rows) if self._samples else _finite(logits, rows)

    def close(self) -> None:
        self._stepper.close()
        self._model.close()
        self._collectives.close()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    @contextmanager
    def _running(self, batch: StepBatch | None) -> Iterator[None]:
        """On this rank's device, without autograd; failures of the device as the protocol has them."""
        try:
            with torch.inference_mode():
                if self._device.type == "cuda":
                    torch.cuda.set_device(self._device)  # current for a thread, and this may be another one
                yield
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if is_lost(self._device):  # which waits for what was enqueued: the next step uses its buffers
                raise ConnectionError(f"{self._device} is lost: {reason}") from error
            if isinstance(error, (RequestError, ValueError, ConnectionError)):
                raise
            which = "a step" if batch is None else f"step {batch.step_id}"
            raise RequestError("INTERNAL", f"{which} failed on {self._device}: {reason}") from error

    def _forward(self, batch: StepBatch | None, agreed: Together) -> tuple[Tensor, ValueError | None]:
        """Table changes, then the model. Logits on the device, valid until the next step; a refused batch's are a
        dummy row's where other groups need this one, else it raises."""
        refused = None
        rows: Sequence[RowStep] = []
        try:
            if batch is not None:
                rows = self._given(batch)
        except ValueError as error:
            if self._groups == 1:
                raise
            refused = error
        if agreed.decode:
            logits = self._stepper.decode(rows, agreed.tokens if self._groups > 1 else 0)
            return (logits[:, None] if self._program.logits == "all" else logits), refused
        if self._groups > 1:
            return self._stepper.beside(rows, agreed.tokens), refused
        return self._stepper.prefill(rows), None

    def _given(self, batch: StepBatch) -> list[RowStep]:
        """The rows of a batch, which was checked; their places know of it."""
        places = self._stepper.places
        for released in batch.released:
            places.release(released)
        for copy in batch.copies:
            places.move(copy)
        self._check(batch)
        for row in batch.rows:
            places.give(row)
        return batch.rows

    def _alone(self, batch: StepBatch) -> list[StepBatch | None]:
        """The first group's batch, and none for the others."""
        return [batch, *[None] * (self._groups - 1)]

    def _last(self, logits: Tensor, rows: Sequence[RowStep]) -> Tensor:
        """The logits of each row's last token."""
        if self._program.logits == "last":
            return logits
        return torch.stack([logits[place, row.new_len - 1] for place, row in enumerate(rows)])

    def _check(self, batch: StepBatch) -> None:
        """Raises ValueError for a batch against the protocol, or beyond what buffers and graphs were made for."""
        width = check_batch(batch, self._limits)
        for row in batch.rows:
            if not 0 <= min(row.tokens) <= max(row.tokens) < self._program.vocab:
                raise ValueError(f"a token id is outside the vocabulary of {self._program.vocab}")
        if batch.kind == "decode" and len(batch.rows) > self._limits.max_rows:
            raise ValueError(f"{len(batch.rows)} rows: a decode step has at most {self._limits.max_rows}")
        most = self._stepper.most_tokens
        if width > most:
            raise ValueError(f"{width} tokens of a row: a step takes at most {most}")
        if not self._model.most_rows(width):
            chunk = self._limits.prefill_chunk
            raise ValueError(f"{width} tokens of a row: a prefill step takes at most {chunk}")
        if self._groups > 1 and width * len(batch.rows) > most:  # of one run of the model
            raise ValueError(f"{len(batch.rows)} rows of {width} tokens: a joint step takes at most {most}")


class CudaExecutor(DeviceExecutor):
    """Of the cuda engine. ``ops`` replace the plugin library, and then ``device`` may be "cpu": the control path is the
    same but for the CUDA graphs."""

    def __init__(
        self,
        bundle: Path | str,
        manifest: Manifest,
        *,
        rank: int = 0,
        collectives: Collectives | None = None,
        device: str = "cuda:0",
        ops: Ops | None = None,
        kv_tokens: int | None = None,
    ) -> None:
        found = collectives or SingleRank()
        if found.rank != rank:
            raise ValueError(f"rank {rank} was given the collectives of rank {found.rank}")
        place = open_device(device)
        loaded = load_rank(Path(bundle), manifest, found, place, ops)
        super().__init__(manifest, found, place, loaded, kv_tokens=kv_tokens, where=str(bundle))


def _finite(logits: Tensor, rows: Sequence[RowStep]) -> list[RowResult]:
    """Which rows are finite, on a rank that does not sample. Waits for the device."""
    finite = torch.isfinite(logits).all(-1).tolist()
    return [
        RowResult(row.row, error=None if good else NON_FINITE) for row, good in zip(rows, finite, strict=True)
    ]
