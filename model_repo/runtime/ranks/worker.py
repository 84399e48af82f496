"""A rank process: ``python -m mm2c_runtime.ranks.worker``; started by ``RankedExecutor`` alone."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mm2c_runtime.errors import BundleError, RequestError
from mm2c_runtime.executors.base import RankExecutor
from mm2c_runtime.ranks.messages import (
    Done,
    Failed,
    LateMask,
    Mask,
    Ready,
    Refused,
    Step,
    encode,
    receive,
)
from mm2c_runtime.server.process import die_with_parent
from mm2c_runtime.step import StepBatch

log = logging.getLogger("mm2c.rank")


def serve(executor: RankExecutor, connection: Connection) -> None:
    """Carries out steps until the connection ends or the device is lost."""
    while True:
        try:
            step = receive(connection)
        except (EOFError, OSError):
            return
        if not isinstance(step, Step):
            raise TypeError(f"a rank was sent {type(step).__name__}")
        answer = run(executor, step, connection)
        connection.send_bytes(encode(answer))
        if isinstance(answer, Failed) and answer.lost:
            return


def run(executor: RankExecutor, step: Step, connection: Connection) -> Done | Failed:
    """One step. Late masks that nobody asked for, because the step failed first, are read all the same."""
    late = [LateMask(place, lambda: _mask(connection)) for place in step.late]
    batch = step.batch
    if batch is not None and late:
        rows = list(batch.rows)
        for place, mask in zip(step.late, late, strict=True):
            rows[place] = replace(rows[place], bitmask=mask)
        batch = replace(batch, rows=rows)
    result: Any = None
    failure: Failed | None = None
    try:
        result = _result(executor, batch, step)
    except ConnectionError as error:
        failure = Failed(step.id, "other", "INTERNAL", str(error), lost=True)
    except RequestError as error:
        failure = Failed(step.id, "request", error.code, error.message)
    except ValueError as error:
        failure = Failed(step.id, "value", "INTERNAL", str(error))
    except Exception as error:  # the engine process shall hear of it, whatever it is
        log.exception("step %d failed", step.id)
        failure = Failed(step.id, "other", "INTERNAL", f"{type(error).__name__}: {error}")
    for mask in late:
        if not mask.done():
            _drain(mask)
    return failure or Done(step.id, result if step.answers else None, executor.forward_seconds)


def _result(executor: RankExecutor, batch: StepBatch | None, step: Step) -> Any:
    if step.agreed is not None:
        run = executor.joint_forward if step.logits else executor.joint_step
        return run(batch, step.agreed)
    if batch is None:
        raise ValueError("a step without a batch")
    return executor.forward(batch) if step.logits else executor.step(batch)


def _mask(connection: Connection) -> Mask:
    message = receive(connection)
    if not isinstance(message, Mask):
        raise ConnectionError(f"{type(message).__name__} came where a mask was due")
    return message


def _drain(mask: LateMask) -> None:
    with suppress(RequestError):
        mask.result()


def load(options: argparse.Namespace) -> RankExecutor:
    """Joins the process group, then loads the rank. Raises BundleError."""
    from mm2c_runtime.executors.cuda.collectives import join_group
    from mm2c_runtime.executors.load import rank_executor
    from mm2c_runtime.manifest_file import read_manifest

    bundle = Path(options.bundle)
    manifest = read_manifest(bundle)
    if options.device == "cpu":
        import torch

        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // options.ranks))
    collectives = join_group(
        backend=options.backend,
        store=options.store,
        rank=options.rank,
        ranks=options.ranks,
        device=options.device,
    )
    return rank_executor(
        bundle,
        manifest,
        ops=options.ops,
        rank=options.rank,
        collectives=collectives,
        device=options.device,
        kv_tokens=options.kv_tokens,
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mm2c-rank", description="One rank of a bundle's engine on GPUs.")
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--device", required=True, help="cuda:N, or cpu with --ops")
    parser.add_argument("--backend", required=True, choices=["nccl", "gloo"])
    parser.add_argument("--store", required=True, help="file through which the ranks find each other")
    parser.add_argument("--descriptor", type=int, required=True, help="this rank's end of the socket pair")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--kv-tokens", type=int, default=None)
    parser.add_argument("--ops", default="", help=argparse.SUPPRESS)  # module:class, in tests
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    die_with_parent(options.parent)
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format=f"%(asctime)s %(levelname).1s rank{options.rank} %(name)s: %(message)s",
    )
    return work(options, load)


def work(options: argparse.Namespace, load: Callable[[argparse.Namespace], RankExecutor]) -> int:
    """Load the rank, say that it is ready or why not, and serve it. Returns the exit status."""
    with Connection(options.descriptor) as connection:
        try:
            executor = load(options)
        except BundleError as error:
            connection.send_bytes(encode(Refused(error.what, error.where, error.remedy)))
            return 1
        connection.send_bytes(encode(Ready(executor.limits, executor.kv, executor.kv_tokens)))
        try:
            serve(executor, connection)
        finally:
            executor.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
