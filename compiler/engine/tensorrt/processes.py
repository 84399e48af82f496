"""Workers: started a few at a time, listened to together, and ended with whoever waits for them."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from mm2c.host_memory import host_memory

# Not -m: it would put the working directory, and whatever module lies there, before everything else.
COMMAND = "import sys; sys.path[:] = [p for p in sys.path if p]; from mm2c.engine.tensorrt.worker import main; main()"
WORKERS = 2  # at once, at most: two plans build as fast as one each on two cores, more cost memory
BASE_MEMORY, LAYER_MEMORY = 384 << 20, 40 << 20  # bytes of a worker, and of every decoder layer of its plan
GRACE = 1.0  # seconds that a worker gets to end by itself
TAIL = 12  # lines of a log that are shown
LOG_LIMIT = 1 << 16  # bytes of a log's end that are read


@dataclass(frozen=True)
class Ended:
    """``status``: exit status, negative for a signal. ``message``: the worker's last one on its result, or None.
    ``peak``: most resident memory that was seen of it, in bytes. ``phase``: the last one that it told of. ``log``: the
    end of what it printed."""

    status: int
    message: dict[str, Any] | None
    peak: int
    phase: str
    log: str


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    index: int
    buffer: bytes = b""
    message: dict[str, Any] | None = None
    phase: str = "starting"
    peak: int = 0


@dataclass
class Pool:
    """Runs tasks, each with ``memory`` bytes in mind. ``limit``: workers at once; 0: by cores and free memory."""

    limit: int = 0
    _running: dict[int, _Worker] = field(default_factory=dict, repr=False)

    def run(
        self,
        tasks: Sequence[dict[str, Any]],
        memory: int,
        advanced: Callable[[int, int], None],
        ended: Callable[[int, Ended], None],
    ) -> None:
        """Run every task. ``advanced(index, percent)`` is called as a task moves, ``ended(index, result)`` once for
        each; what it raises, and Ctrl-C, ends all the others before it goes on."""
        waiting = list(enumerate(tasks))
        limit = self.limit or workers_at_once(memory)
        with selectors.DefaultSelector() as selector, self._ending():
            while waiting or self._running:
                while waiting and len(self._running) < limit:
                    index, task = waiting.pop(0)
                    worker = _start(index, task)
                    self._running[index] = worker
                    assert worker.process.stdout is not None
                    selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
                for key, _ in selector.select(timeout=0.5):
                    worker = key.data
                    if self._read(worker, advanced):
                        continue
                    selector.unregister(key.fileobj)
                    result = _result(worker)
                    del self._running[worker.index]
                    ended(worker.index, result)
                for worker in self._running.values():
                    worker.peak = max(worker.peak, _peak(worker.process.pid))

    def _read(self, worker: _Worker, advanced: Callable[[int, int], None]) -> bool:
        """Take in what the worker told; False once it tells no more."""
        assert worker.process.stdout is not None
        data = os.read(worker.process.stdout.fileno(), 1 << 16)
        *lines, worker.buffer = (worker.buffer + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "progress" in message:
                worker.phase = message["phase"]
                advanced(worker.index, message["progress"])
            else:
                worker.message = message
        return bool(data)

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """No worker outlives the block."""
        try:
            yield
        finally:
            workers, self._running = list(self._running.values()), {}
            _end(workers)


def workers_at_once(memory: int) -> int:
    """Of ``memory`` bytes each: no more than cores, than the free memory has room for, and than WORKERS; one at
    least."""
    cores = len(os.sched_getaffinity(0))
    return max(1, min(WORKERS, cores, free_memory() // max(memory, 1)))


def worker_memory(layers: int) -> int:
    """Bytes that a worker is expected to take for a plan of ``layers`` decoder layers; rather too many."""
    return BASE_MEMORY + layers * LAYER_MEMORY


def free_memory() -> int:
    """Bytes that can be had now without swapping, in this process's control group too."""
    free = host_memory()
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            free = min(free, int(line.split()[1]) * 1024)
    with suppress(OSError, ValueError):  # no such group, or one without a limit
        group = Path("/sys/fs/cgroup")
        used = int((group / "memory.current").read_text())
        free = min(free, int((group / "memory.max").read_text()) - used)
    return max(free, 0)


def _start(index: int, task: dict[str, Any]) -> _Worker:
    log = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the worker)
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        start_new_session=True,  # Ctrl-C reaches this process alone, which then ends them in order
    )
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it ended at once: its log tells why
        process.stdin.write(json.dumps(task).encode())
        process.stdin.close()
    return _Worker(process, log, index)


def _result(worker: _Worker) -> Ended:
    assert worker.process.stdout is not None
    worker.process.stdout.close()
    status = worker.process.wait()
    with worker.log as log:
        size = log.seek(0, os.SEEK_END)
        log.seek(max(0, size - LOG_LIMIT))
        lines = log.read().decode(errors="replace").splitlines()
    return Ended(status, worker.message, worker.peak, worker.phase, "\n".join(lines[-TAIL:]))


def _end(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        with suppress(ProcessLookupError):
            worker.process.send_signal(signal.SIGTERM)
    until = time.monotonic() + GRACE
    try:
        for worker in workers:
            with suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, until - time.monotonic()))
    finally:  # also where Ctrl-C came a second time
        for worker in workers:
            worker.process.kill()
            worker.process.wait()
            worker.log.close()
            if worker.process.stdout is not None:
                worker.process.stdout.close()


def _peak(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
