"""The programs of all ranks, loaded: on the CPU together, or each on a device of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mm2c_runtime.executors.cache import LinearCache
from mm2c_runtime.executors.device import Device, DeviceCache
from mm2c_runtime.executors.device_limits import device_limits
from mm2c_runtime.executors.device_plan import DevicePlanner
from mm2c_runtime.executors.plan import Planner
from mm2c_runtime.executors.program import LoadedProgram, load_program
from mm2c_runtime.executors.provider import session_providers
from mm2c_runtime.executors.rank_threads import RankThreads
from mm2c_runtime.executors.sessions import default_threads
from mm2c_runtime.manifest import Limits, Lowering, Manifest

Given = Sequence[Mapping[str, object] | None]


@dataclass(frozen=True, slots=True)
class RankPrograms:
    """``planner`` runs the ranks in lockstep on ``caches``, within ``limits``."""

    limits: Limits
    planner: Planner
    caches: list[LinearCache] | list[DeviceCache]
    devices: Sequence[Device] = ()
    threads: RankThreads | None = None

    def lost(self) -> str:
        """Which device can do nothing more, and why; empty where all can."""
        for device in self.devices:
            try:
                device.synchronize()
            except RuntimeError as error:
                return f"{device.kind}:{device.number} is lost: {error}"
        return ""

    def close(self) -> None:
        """Let go of sessions, caches and devices. Safe to call twice."""
        self.planner.close()
        self.caches.clear()
        if self.threads is not None:
            self.threads.close()
        for device in self.devices:
            device.close()


def load_on_host(
    bundle: Path,
    manifest: Manifest,
    lowering: Lowering,
    limits: Limits,
    *,
    threads: int | None,
    checkpoint: Path | None,
) -> RankPrograms:
    """All ranks on the CPU, one after another. Raises BundleError."""
    ranks = lowering.ranks
    threads = threads or default_threads()
    alone = len(ranks) == 1 and len(ranks[0].segments) == 1
    programs = [
        load_program(bundle, rank, threads, alone=alone, tensors=own)
        for rank, own in zip(ranks, _given(bundle, manifest, lowering, checkpoint), strict=True)
    ]
    # One spare row, so that two rows can be exchanged by copies.
    caches = [LinearCache(rank.kv, limits.max_rows + 1, limits.context) for rank in ranks]
    planner = Planner(
        programs, ranks[0].collectives, caches, tp=manifest.mapping.tp, in_place=lowering.in_place
    )
    return RankPrograms(limits, planner, caches)


def load_on_devices(
    bundle: Path,
    manifest: Manifest,
    lowering: Lowering,
    limits: Limits,
    devices: Sequence[Device],
    *,
    threads: int | None,
    checkpoint: Path | None,
    kv_tokens: int | None,
) -> RankPrograms:
    """A rank on each of ``devices``, at the same time. ``kv_tokens``: of an attention group's cache, None for as many
    as there is room for.

    Raises BundleError, and closes the devices, where they do not fit or a program cannot be loaded.
    """
    ranks = lowering.ranks
    workers = RankThreads(len(ranks))
    try:
        limits = device_limits(bundle, manifest, lowering, limits, devices, kv_tokens)
        given = _given(bundle, manifest, lowering, checkpoint)
        # What is left to the CPU of a program is small: the ranks share its cores.
        share = max(1, (threads or default_threads()) // len(ranks))

        def load(rank: int) -> LoadedProgram:
            return load_program(
                bundle,
                ranks[rank],
                share,
                alone=False,
                tensors=given[rank],
                providers=session_providers(devices[rank]),
            )

        programs = workers.each([partial(load, rank) for rank in range(len(ranks))])
        caches = [
            DeviceCache(rank.kv, limits.max_rows + 1, limits.context, device)
            for rank, device in zip(ranks, devices, strict=True)
        ]
        planner = DevicePlanner(
            programs,
            ranks[0].collectives,
            caches,
            tp=manifest.mapping.tp,
            in_place=lowering.in_place,
            devices=devices,
            threads=workers,
            rows=limits.max_rows,
        )
    except BaseException:
        workers.close()
        for device in devices:
            device.close()
        raise
    return RankPrograms(limits, planner, caches, devices, workers)


def _given(bundle: Path, manifest: Manifest, lowering: Lowering, checkpoint: Path | None) -> Given:
    """By rank, the tensors of a bundle without weights files."""
    if manifest.weights != "checkpoint":
        return [None] * len(lowering.ranks)
    from mm2c_runtime.executors.checkpoint_tensors import checkpoint_tensors

    return checkpoint_tensors(bundle, manifest, lowering.ranks, checkpoint)
