"""The ONNX Runtime executor: the programs of all ranks in this process, run in lockstep on the CPU."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mm2c_runtime.errors import BundleError, RequestError
from mm2c_runtime.executors.base import KvFacts
from mm2c_runtime.executors.batch import check_batch
from mm2c_runtime.executors.cache import LinearCache
from mm2c_runtime.executors.plan import Plan, Planner
from mm2c_runtime.executors.program import load_program
from mm2c_runtime.executors.sessions import default_threads
from mm2c_runtime.manifest import Limits, Lowering, Manifest
from mm2c_runtime.sampling.sampler import NON_FINITE, Sampler
from mm2c_runtime.step import RowStep, StepBatch, StepResult

_REBUILD = "build the bundle again with `mm2c build … --force`"


class OnnxRuntimeExecutor:
    """Executor of a bundle's ``fast`` or ``portable`` lowering.

    ``rows`` and ``context`` may lower the manifest's limits, not raise them. ``threads`` run an operator
    (default: as many as CPUs that this process may use).
    ``forward_seconds`` is how long the last model run took, sampling left out.

    Raises BundleError where the bundle lacks the lowering, or a file of it is missing, cut short or not
    loadable.
    """

    def __init__(
        self,
        bundle: Path | str,
        manifest: Manifest,
        lowering: Literal["fast", "portable"] | str = "fast",
        threads: int | None = None,
        rows: int | None = None,
        context: int | None = None,
    ) -> None:
        bundle = Path(bundle)
        self._vocab = manifest.model.vocab
        self._all_logits = manifest.logits == "all"
        self._limits = _limits(manifest.limits, rows, context)
        self._lowering = _checked(bundle, manifest, lowering)
        ranks = self._lowering.ranks
        threads = threads or default_threads()
        alone = len(ranks) == 1 and len(ranks[0].segments) == 1
        programs = [load_program(bundle, rank, threads, alone=alone) for rank in ranks]
        # One spare row, so that two rows can be exchanged by copies.
        self._caches = [LinearCache(r.kv, self._limits.max_rows + 1, self._limits.context) for r in ranks]
        self._planner = Planner(
            programs, ranks[0].collectives, self._caches, in_place=self._lowering.in_place
        )
        self._plans: dict[int, Plan] = {}  # decode steps by their number of rows
        self._sampler = Sampler(self._vocab)
        self.forward_seconds = 0.0

    @property
    def limits(self) -> Limits:
        return self._limits

    @property
    def kv(self) -> KvFacts:
        return KvFacts(
            self._limits.max_rows + 1,
            self._limits.context,
            sum(cache.bytes_per_token for cache in self._caches),
        )

    def forward(self, batch: StepBatch) -> NDArray[np.float32]:
        """As ``Executor.forward``. A prefill of several rows, neighbours in order, is possible where the
        lowering is padded. Raises ValueError for a batch that this executor cannot run,
        RequestError("INTERNAL") where ONNX Runtime fails."""
        return self._forward(batch).copy()

    def step(self, batch: StepBatch) -> StepResult:
        """As ``Executor.step``. Sampler state of released rows is dropped, then copies are carried out."""
        for released in batch.released:
            self._sampler.release(released)
        for copy in batch.copies:
            self._sampler.copy(copy.source, copy.target)
        for row in batch.rows:
            self._sampler.observe(row)
        began = time.perf_counter()
        logits = self._forward(batch)
        self.forward_seconds = time.perf_counter() - began
        results = self._sampler.sample(self._last(logits, batch.rows), batch.rows)
        for step, result in zip(batch.rows, results, strict=True):
            if result.error == NON_FINITE:
                for cache in self._caches:
                    cache.clear(step.row, step.past_len + step.new_len)
        return StepResult(batch.step_id, results)

    def close(self) -> None:
        self._plans.clear()
        self._planner.close()
        self._caches.clear()

    def _forward(self, batch: StepBatch) -> NDArray[np.float32]:
        """The logits in the plan's own memory, valid until the next step."""
        width = self._check(batch)
        for cache in self._caches:
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
        try:
            return self._run(rows[0].row, ids, past, new)
        except Exception as error:
            raise RequestError("INTERNAL", f"ONNX Runtime failed in step {batch.step_id}: {error}") from error

    def _run(
        self, first: int, ids: NDArray[np.int64], past: NDArray[np.int32], new: NDArray[np.int32]
    ) -> NDArray[np.float32]:
        """Decode plans are kept: they differ in their number of rows only, and binding costs more than the
        run of a small model. A prefill is bound anew."""
        batch, width = ids.shape
        kept = first == 0 and width == 1
        plan = self._plans.get(batch) if kept else None
        if plan is None:
            plan = self._planner.first_run(first, ids, past, new)
            if kept:
                self._plans[batch] = plan
        else:
            plan.ids[...], plan.past[...], plan.new[...] = ids, past, new
            plan.run()
        return plan.logits

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


def _limits(built: Limits, rows: int | None, context: int | None) -> Limits:
    for name, asked, most in (("rows", rows, built.max_rows), ("context", context, built.context)):
        if asked is not None and not 1 <= asked <= most:
            raise BundleError(
                f"{name} = {asked} is not between 1 and {most}, the limit this bundle was built with",
                remedy=f"lower it, or build again with a larger limit for {name}",
            )
    limit = context or built.context
    return Limits(
        context=limit, max_rows=rows or built.max_rows, prefill_chunk=min(built.prefill_chunk, limit)
    )


def _checked(bundle: Path, manifest: Manifest, name: str) -> Lowering:
    """The lowering, with every file of it present in its full size and the same collectives on every rank."""
    where = str(bundle / "manifest.json")
    if manifest.engine != "onnxruntime" or name not in manifest.lowerings:
        has = ", ".join(sorted(manifest.lowerings)) or "none"
        raise BundleError(
            f"the bundle is for {manifest.engine} and has no lowering '{name}' (it has: {has})",
            where=where,
            remedy="build with `--engine onnxruntime`",
        )
    lowering = manifest.lowerings[name]
    for rank in lowering.ranks:
        if rank.collectives != lowering.ranks[0].collectives:
            raise BundleError(
                f"rank {rank.rank}: other collectives than rank 0", where=where, remedy=_REBUILD
            )
        for file in [rank.weights, *(segment.file for segment in rank.segments)]:
            path, entry = bundle / file, manifest.files.get(file)
            if not path.is_file():
                raise BundleError("a file of the bundle is missing", where=str(path), remedy=_REBUILD)
            if entry is not None and path.stat().st_size != entry.bytes:
                raise BundleError(
                    f"a file of the bundle has {path.stat().st_size} bytes instead of {entry.bytes}",
                    where=str(path),
                    remedy=_REBUILD,
                )
    return lowering
