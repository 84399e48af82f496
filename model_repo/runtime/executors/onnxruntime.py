"""The ONNX Runtime executor: the programs of all ranks in this process, run in lockstep on the CPU or on GPUs."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mm2c_runtime.errors import RequestError
from mm2c_runtime.executors.base import KvFacts
from mm2c_runtime.executors.batch import check_batch
from mm2c_runtime.executors.cache import LinearCache
from mm2c_runtime.executors.device import Device, DeviceCache
from mm2c_runtime.executors.lowering import checked_lowering, lowered_limits
from mm2c_runtime.executors.plan import Plan, StepInputs
from mm2c_runtime.executors.rank_programs import load_on_devices, load_on_host
from mm2c_runtime.manifest import Limits, Manifest
from mm2c_runtime.sampling.sampler import NON_FINITE, Sampler
from mm2c_runtime.step import RowStep, StepBatch, StepResult

MOST_PLANS = 256  # of decode steps: one for each combination of the groups' numbers of rows
log = logging.getLogger("mm2c.engine")


class OnnxRuntimeExecutor:
    """Executor of a bundle's ``fast`` or ``portable`` lowering.

    ``rows`` and ``context`` may lower the manifest's limits, not raise them. ``threads`` run an operator
    (default: as many as CPUs that this process may use). A group without a batch runs a dummy row in its spare one.
    ``checkpoint``: the folder of a bundle without weights files, where it is not that of the build.
    ``forward_seconds`` is how long the last model run took, sampling left out.

    ``devices``: the ranks' GPUs (``provider.open_devices``), which this closes; None for the CPU. Weights, cache and
    what travels between segments stay there, and the cache has ``kv_tokens`` tokens for each attention group, in
    whole rows; None for every row, or as many as there is room for. ``step`` raises ConnectionError where a device is
    lost.

    Raises BundleError where the bundle lacks the lowering, a file of it is missing, cut short or not loadable, or it
    does not fit on the devices.
    """

    def __init__(
        self,
        bundle: Path | str,
        manifest: Manifest,
        lowering: Literal["fast", "portable"] | str = "fast",
        threads: int | None = None,
        rows: int | None = None,
        context: int | None = None,
        checkpoint: Path | None = None,
        devices: Sequence[Device] | None = None,
        kv_tokens: int | None = None,
    ) -> None:
        bundle = Path(bundle)
        self._vocab = manifest.model.vocab
        self._all_logits = manifest.logits == "all"
        limits = lowered_limits(manifest.limits, rows, context)
        self._lowering = checked_lowering(bundle, manifest, lowering)
        if devices is None:
            self._ranks = load_on_host(
                bundle, manifest, self._lowering, limits, threads=threads, checkpoint=checkpoint
            )
        else:
            self._ranks = load_on_devices(
                bundle,
                manifest,
                self._lowering,
                limits,
                devices,
                threads=threads,
                checkpoint=checkpoint,
                kv_tokens=kv_tokens,
            )
        self._limits, self._planner = self._ranks.limits, self._ranks.planner
        self._caches = self._ranks.caches
        self._groups, self._tp = manifest.mapping.attention_dp, manifest.mapping.tp
        self._plans: dict[tuple[int, ...], Plan] = {}  # decode steps by the groups' numbers of rows
        self._samplers = [Sampler(self._vocab) for _ in range(self._groups)]
        self.forward_seconds = 0.0

    @property
    def limits(self) -> Limits:
        return self._limits

    @property
    def kv(self) -> KvFacts:
        return KvFacts(
            self._limits.max_rows + 1,
            self._limits.context,
            sum(cache.bytes_per_token for cache in self._caches[: self._tp]),
            groups=self._groups,
        )

    def forward(self, batch: StepBatch) -> NDArray[np.float32]:
        """As ``Executor.forward``. A prefill of several rows, neighbours in order, is possible where the
        lowering is padded. Raises ValueError for a batch that this executor cannot run,
        RequestError("INTERNAL") where ONNX Runtime fails."""
        found = self.forwards(self._alone(batch))[0]
        assert found is not None
        return found

    def forwards(self, batches: Sequence[StepBatch | None]) -> list[NDArray[np.float32] | None]:
        """As ``Executor.forwards``; raises as ``forward``."""
        given = [self._prepared(group, batch) for group, batch in enumerate(self._checked_groups(batches))]
        logits = self._run(given, batches)
        return [None if batch is None else logits[group].copy() for group, batch in enumerate(batches)]

    def step(self, batch: StepBatch) -> StepResult:
        """As ``Executor.step``. Sampler state of released rows is dropped, then copies are carried out."""
        found = self._steps(self._alone(batch))[0]
        if isinstance(found, Exception):
            raise found
        assert found is not None
        return found

    def steps(self, batches: Sequence[StepBatch | None]) -> list[StepResult | None]:
        """As ``Executor.steps``."""
        results: list[StepResult | None] = []
        for batch, found in zip(batches, self._steps(batches), strict=True):
            if isinstance(found, Exception):
                assert batch is not None
                log.error("step %d failed in one group", batch.step_id, exc_info=found)
                found = StepResult(batch.step_id, [], failure=f"{type(found).__name__}: {found}")
            results.append(found)
        return results

    def close(self) -> None:
        self._plans.clear()
        self._ranks.close()

    def _steps(self, batches: Sequence[StepBatch | None]) -> list[StepResult | Exception | None]:
        """By group: its result, or what failed there alone."""
        found: list[StepResult | Exception | None] = [None] * len(batches)
        for sampler, batch in zip(self._samplers, self._checked_groups(batches), strict=True):
            if batch is not None:
                _observe(sampler, batch)
        began = time.perf_counter()
        given = []
        for group, batch in enumerate(batches):
            try:
                given.append(self._prepared(group, batch))
            except ValueError as error:
                found[group] = error
                given.append(self._prepared(group, None))
        if all(batch is None or error is not None for batch, error in zip(batches, found, strict=True)):
            return found
        logits = self._run(given, batches)
        self.forward_seconds = time.perf_counter() - began
        for group, batch in enumerate(batches):
            if batch is None or found[group] is not None:
                continue
            try:
                found[group] = self._sampled(group, logits[group], batch)
            except Exception as error:
                found[group] = error
        return found

    def _sampled(self, group: int, logits: NDArray[np.float32], batch: StepBatch) -> StepResult:
        results = self._samplers[group].sample(self._last(logits, batch.rows), batch.rows)
        for step, result in zip(batch.rows, results, strict=True):
            if result.error == NON_FINITE:
                for cache in self._own(group):
                    cache.clear(step.row, step.past_len + step.new_len)
        return StepResult(batch.step_id, results)

    def _own(self, group: int) -> list[LinearCache] | list[DeviceCache]:
        """The caches of a group's ranks."""
        return self._caches[group * self._tp : (group + 1) * self._tp]

    def _alone(self, batch: StepBatch) -> list[StepBatch | None]:
        """The first group's batch, and none for the others."""
        return [batch, *[None] * (self._groups - 1)]

    def _checked_groups(self, batches: Sequence[StepBatch | None]) -> Sequence[StepBatch | None]:
        if len(batches) != self._groups:
            raise ValueError(f"{len(batches)} batches for {self._groups} attention groups")
        return batches

    def _prepared(self, group: int, batch: StepBatch | None) -> StepInputs:
        """What a group's ranks read, after its batch was checked and its copies carried out."""
        if batch is None:
            one = np.ones(1, np.int32)
            return StepInputs(self._limits.max_rows, np.zeros((1, 1), np.int64), np.zeros_like(one), one)
        width = self._check(batch)
        for cache in self._own(group):
            for released in batch.released:
                cache.drop(released)
            for copy in batch.copies:
                cache.copy(copy)
                cache.drop(copy.source)  # so that no more memory is held than tokens
        rows = batch.rows
        ids = np.zeros((len(rows), width), np.int64)
        for index, row in enumerate(rows):
            ids[index, : row.new_len] = row.tokens
        if not 0 <= ids.min() <= ids.max() < self._vocab:
            raise ValueError(f"a token id is outside the vocabulary of {self._vocab}")
        past = np.array([row.past_len for row in rows], np.int32)
        new = np.array([row.new_len for row in rows], np.int32)
        return StepInputs(rows[0].row, ids, past, new)

    def _run(self, given: list[StepInputs], batches: Sequence[StepBatch | None]) -> list[NDArray[np.float32]]:
        """The groups' logits in the plan's own memory, valid until the next step."""
        try:
            return self._planned(given).logits
        except Exception as error:
            if lost := self._ranks.lost():
                raise ConnectionError(lost) from error
            numbers = ", ".join(str(batch.step_id) for batch in batches if batch is not None)
            raise RequestError("INTERNAL", f"ONNX Runtime failed in step {numbers}: {error}") from error

    def _planned(self, given: list[StepInputs]) -> Plan:
        """The plan of a step that was run. Decode plans are kept: they differ in their numbers of rows only, and
        binding costs more than the run of a small model. A prefill is bound anew."""
        key = tuple(len(inputs.ids) if inputs.first == 0 else 0 for inputs in given)
        idle = self._limits.max_rows
        kept = all(inputs.ids.shape[1] == 1 and inputs.first in (0, idle) for inputs in given)
        plan = self._plans.pop(key, None) if kept else None
        if plan is None:
            plan = self._planner.first_run(given)
        else:
            for own, inputs in zip(plan.given, given, strict=True):
                own.ids[...], own.past[...], own.new[...] = inputs.ids, inputs.past, inputs.new
            plan.run()
        if kept:
            self._plans[key] = plan  # the last one used is the last one here
            if len(self._plans) > MOST_PLANS:
                del self._plans[next(iter(self._plans))]
        return plan

    def _last(self, logits: NDArray[np.float32], rows: list[RowStep]) -> NDArray[np.float32]:
        """The logits of each row's last token."""
        if not self._all_logits:
            return logits
        return logits[np.arange(len(rows)), [row.new_len - 1 for row in rows]]

    def _check(self, batch: StepBatch) -> int:
        """The width of a batch that keeps to the protocol and to this lowering."""
        width = check_batch(batch, self._limits)
        if self._lowering.padded:
            return width
        if any(row.new_len != width for row in batch.rows):
            raise ValueError("this lowering takes rows of equal length only")
        if width > 1 and len(batch.rows) > 1:
            raise ValueError("this lowering prefills one row at a time")
        return width


def _observe(sampler: Sampler, batch: StepBatch) -> None:
    for released in batch.released:
        sampler.release(released)
    for copy in batch.copies:
        sampler.copy(copy.source, copy.target)
    for row in batch.rows:
        sampler.observe(row)
