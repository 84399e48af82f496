"""``make test-gpu``: every kernel against references, the demo end to end, times beside the memory's roofline.

    python3 tests/gpu/run.py [--out FOLDER] [--seconds 450] [--only PART ...]

Needs an NVIDIA GPU with a driver for CUDA 13, torch >= 2.11 and what `make plugins gpu-files` left in plugins/build;
no network. transformers and compute-sanitizer are used where they are. Prints a table and writes gpu.json and
gpu.md; skips with a reason on other machines. Exit status: 0 passed or skipped, 1 something failed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import environment
from report import Report, Skip

PARTS = ("kernels", "tiny", "sanitizer", "ranks", "times", "slice", "peers")
SMALL = ["kernels-small"]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=environment.BUILD / "gpu-report", help="where the report goes"
    )
    parser.add_argument(
        "--seconds", type=float, default=450, help="of the whole run; late parts are left out"
    )
    parser.add_argument(
        "--only", nargs="*", choices=[*PARTS, *SMALL], default=list(PARTS), help="parts to run"
    )
    options = parser.parse_args(arguments)
    gpu = environment.find_gpu()
    if isinstance(gpu, str):
        return _skip(gpu)
    library = environment.find_library()
    if isinstance(library, str):
        return _skip(library)
    environment.add_packages()
    report = Report({"gpu": gpu.as_json(), "before": environment.smi()}, options.seconds)
    run(report, gpu, library, options.only)
    report.facts["after"] = environment.smi()
    report.write(options.out)
    print()
    print(report.table())
    failed = sum(line.outcome == "FAILED" for line in report.lines)
    print(f"{gpu.name}: {len(report.lines)} lines, {failed} failed; {options.out / 'gpu.json'}")
    return 1 if report.failed else 0


def _skip(reason: str) -> int:
    print(f"skipped: {reason}")
    return 0


def run(report: Report, gpu: environment.Gpu, path: Path, only: list[str]) -> None:
    import bench_kernels as bench
    import bench_slice
    import checks
    import references
    from check_sampling import check_sampling
    from check_small import check_small
    from gpu_ranks import check_ranks
    from timing import Clock, copy_bandwidth, read_bandwidth
    from tiny import check_tiny

    from mm2c_plugins.host import Library

    references.exact()
    library = Library(path)
    report.facts["library"] = library.version
    if "kernels-small" in only:
        report.run("kernels", lambda r: check_small(r, library))
        return
    if "kernels" in only:
        for check in (checks.check_linears, checks.check_norms, checks.check_router, checks.check_moe,
                      checks.check_attention, check_sampling):  # fmt: skip
            report.run("kernels", lambda r, check=check: check(r, library))  # type: ignore[misc]
    if "tiny" in only:
        report.run("tiny", check_tiny)
    if "ranks" in only:
        report.run("ranks", check_ranks)
    if "sanitizer" in only:
        report.run("sanitizer", _sanitize, needs=120)
    if not {"times", "slice", "peers"} & set(only):
        return
    clock = Clock(gpu.l2)
    machine = bench.Machine(library, clock, copy_bandwidth(clock))
    report.add(
        "times", "copy", "measured", f"{machine.copy / 1e12:.2f} TB/s read and written", bytes=machine.copy
    )
    reading = read_bandwidth(clock)
    report.add("times", "read", "measured", f"{reading / 1e12:.2f} TB/s", bytes=reading)
    if "times" in only:
        for act in (bench.bench_moe, bench.bench_attention, bench.bench_linears, bench.bench_small):
            report.run("times", lambda r, act=act: act(r, machine), needs=30)  # type: ignore[misc]
    step: list[float | None] = [None]
    if "slice" in only:
        program = environment.BUILD / "gpu" / "m2-tp4" / "cuda.json"

        def slice_(r: Report) -> None:
            step[0] = bench_slice.bench_slice(r, machine, program)

        report.run("slice", slice_, needs=60)
    if "peers" in only:
        report.run("peers", lambda r: bench_slice.bench_peers(r, machine, step[0]), needs=40)


def _sanitize(report: Report) -> None:
    """Small cases of every kernel in processes of their own under compute-sanitizer."""
    tool = environment.sanitizer()
    if tool is None:
        raise Skip("compute-sanitizer is not here")
    for check in ("memcheck", "racecheck"):
        command = [tool, "--tool", check, "--error-exitcode", "9", "--print-limit", "5", sys.executable, __file__,
                   "--only", "kernels-small", "--out", str(environment.BUILD / "gpu-report" / check)]  # fmt: skip
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=report.left / 2
            )
        except subprocess.TimeoutExpired:
            report.add("sanitizer", check, "skipped", "it did not end in the time that is left")
            continue
        tail = " | ".join((done.stdout + done.stderr).strip().splitlines()[-3:])
        if "Device not supported" in tail or "Unable to" in tail:
            report.add("sanitizer", check, "skipped", tail[:160])
            continue
        report.add("sanitizer", check, "passed" if done.returncode == 0 else "FAILED", tail[:160])


if __name__ == "__main__":
    sys.exit(main())
