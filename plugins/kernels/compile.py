"""Compiles every variant of every kernel to a cubin, ahead of time and without a GPU.

    python -m mm2c_plugins.kernels.compile --out plugins/build [--sm 90] [--kernel moe_gate_up] [--jobs 2] [--debug]

Writes ``cubins/sm_XX/<variant>.cubin`` and ``kernels.json``, which tells all that is known of each. What is already
there and was made from the same sources, constants and tools stays.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from mm2c_plugins.kernels import catalogue, disassemble, toolchain
from mm2c_plugins.kernels.cubin import FORMAT, Record, Task, compile_variant, plan
from mm2c_plugins.kernels.progress import Progress

SAVE_SECONDS = 20.0


class CompileFailed(Exception):
    """Some variants did not compile; the message lists them with their reasons."""


def read_records(out: Path) -> list[Record]:
    """The kernels of an earlier build in ``out``; none where there was none or it is of another format."""
    try:
        content = json.loads((out / "kernels.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return []
    return list(content["kernels"]) if content.get("format") == FORMAT else []


def compile_all(
    out: Path,
    sms: tuple[int, ...] = catalogue.SMS,
    kernels: list[str] | None = None,
    jobs: int | None = None,
    debug: bool = False,
) -> list[Record]:
    """Builds what is missing or stale and returns all records. Raises CompileFailed after trying every variant."""
    toolchain.versions()
    os.environ.pop("TRITON_INTERPRET", None)  # the workers compile, whatever this process does
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        old = {(record["sm"], record["name"]): record for record in read_records(out)}
        records = {place: r for place, r in old.items() if not _asked_for(r, sms, kernels)}
        stale = []
        for task in (task for sm in sms for task in plan(sm, kernels, debug)):
            place = (task.sm, task.variant.name)
            if place in old and _is_current(out, task, old[place]):
                records[place] = old[place]
            else:
                stale.append(task)
        # the long ones first, so that no worker is left with one at the end
        stale.sort(key=lambda t: -_expected_seconds(t, old.get((t.sm, t.variant.name))))
        jobs = jobs or len(os.sched_getaffinity(0))
        try:
            _run(out, stale, jobs, records)
        finally:
            uncounted = [record for record in records.values() if "instructions" not in record]
            _count_instructions(out, uncounted, jobs)
            ordered = sorted(records.values(), key=lambda r: (r["sm"], r["kernel"], r["name"]))
            if stale or uncounted or records.keys() != old.keys():
                _write(out, ordered)
                _remove_others(out, ordered)
    return ordered


def _asked_for(record: Record, sms: tuple[int, ...], kernels: list[str] | None) -> bool:
    return record["sm"] in sms and (kernels is None or record["kernel"] in kernels)


def _is_current(out: Path, task: Task, record: Record) -> bool:
    path = out / task.place
    return bool(record["key"] == task.key and path.exists() and path.stat().st_size == record["bytes"])


def _expected_seconds(task: Task, old: Record | None) -> float:
    return float(old["seconds"]) if old else float(task.variant.num_stages)


def _start_worker(cache: str) -> None:
    os.environ.update(TRITON_CACHE_DIR=cache, TRITON_DISABLE_LINE_INFO="1", TRITON_ALWAYS_COMPILE="1")


def _run(out: Path, tasks: list[Task], jobs: int, records: dict[tuple[int, str], Record]) -> None:
    """Compiles ``tasks`` in worker processes into ``records``, written now and then so that a killed build goes on."""
    if not tasks:
        return
    progress, saved = Progress(len(tasks)), time.monotonic()
    failures: dict[str, list[str]] = {}  # variants by reason
    cache = tempfile.mkdtemp(prefix="mm2c-triton-")
    pool = ProcessPoolExecutor(
        min(jobs, len(tasks)),
        multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(cache,),
    )
    try:
        running = {pool.submit(compile_variant, task): task for task in tasks}
        for done in as_completed(running):
            task = running[done]
            try:
                cubin, record = done.result()
            except BrokenProcessPool:
                raise CompileFailed("a compile process died (out of memory?): try --jobs 1") from None
            except Exception as error:
                failures.setdefault(_reason(error), []).append(f"{task.variant.name} on sm_{task.sm}")
            else:
                path = out / task.place
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(cubin)
                records[task.sm, task.variant.name] = record
            progress.step(f"sm_{task.sm} {task.variant.name}")
            if time.monotonic() - saved > SAVE_SECONDS:
                _write(out, list(records.values()))
                saved = time.monotonic()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        shutil.rmtree(cache, ignore_errors=True)
    progress.end(sum(len(names) for names in failures.values()))
    if failures:
        raise CompileFailed("\n".join(f"{_some(names)}: {reason}" for reason, names in failures.items()))


def _count_instructions(out: Path, records: list[Record], jobs: int) -> None:
    """Adds ``instructions`` to new records, all of an architecture in one go."""
    with ThreadPoolExecutor(jobs) as pool:
        counted = []
        for sm in sorted({record["sm"] for record in records}):
            group = [record for record in records if record["sm"] == sm]
            cubins = [(out / record["cubin"]).read_bytes() for record in group]
            counted.append((group, pool.submit(disassemble.count_instructions, sm, cubins)))
        for group, counts in counted:
            for record, instructions in zip(group, counts.result(), strict=True):
                record["instructions"] = instructions


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(sorted(names)[:3]) + more


def _reason(error: BaseException) -> str:
    """Type and message; the cause of an error from a worker is its traceback, the reason its last line."""
    lines = [f"{type(error).__name__}: {error}".strip()]
    cause = str(error.__cause__ or "").rstrip().rstrip('"').rstrip()
    if cause and not str(error).strip():
        lines.append(cause.splitlines()[-1])
    return "\n  ".join(lines)


def _write(out: Path, records: list[Record]) -> None:
    """kernels.json, whole or not at all."""
    text = json.dumps({"format": FORMAT, "toolchain": toolchain.versions(), "kernels": records}, indent=1)
    fresh = out / "kernels.json.new"
    fresh.write_text(text + "\n", encoding="utf-8")
    fresh.replace(out / "kernels.json")


def _remove_others(out: Path, records: list[Record]) -> None:
    """Nothing else stays in the cubin folders than what is recorded."""
    listed = {record["cubin"] for record in records}
    for path in (out / "cubins").glob("*/*.cubin"):
        if path.relative_to(out).as_posix() not in listed:
            path.unlink()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m mm2c_plugins.kernels.compile", description="Compiles the kernels."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the build")
    parser.add_argument("--sm", type=int, action="append", choices=catalogue.SMS, help="default: all")
    parser.add_argument("--kernel", action="append", help="only this kernel (may be repeated)")
    parser.add_argument("--jobs", type=int, help="processes; default: one a core")
    parser.add_argument("--debug", action="store_true", help="with device assertions")
    given = parser.parse_args(arguments)
    try:
        records = compile_all(
            given.out, tuple(given.sm or catalogue.SMS), given.kernel, given.jobs, given.debug
        )
    except (CompileFailed, catalogue.CatalogueError, toolchain.ToolMissing) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    size = sum(record["bytes"] for record in records)
    print(f"kernels: {len(records)} in {given.out}, {size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
