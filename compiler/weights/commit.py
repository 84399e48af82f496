"""Written chunks become safe chunks: synced in the background, then told to the journal."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from mm2c.progress import Stage
from mm2c.weights.journal import Journal, Record
from mm2c.weights.outputs import Array, Assembly, Output
from mm2c.weights.shards import Shards

UNSYNCED = 512 << 20  # bytes written and not yet synced, at most: the page cache does not fill with them
_PAUSE = 0.2  # seconds between two rounds of syncing


class Commits:
    """Use as a context manager; a failure of the background thread shows in ``write`` or at the end."""

    def __init__(self, outputs: list[Output], journal: Journal | None, shards: Shards, stage: Stage) -> None:
        self._outputs, self._journal, self._shards, self._stage = outputs, journal, shards, stage
        self._records: list[Record] = []
        self._unsynced = 0
        self._ending = False
        self._error: BaseException | None = None
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="commit weights", daemon=True)

    def __enter__(self) -> Commits:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._change:
            self._ending = True
            if error is not None:
                self._error = self._error or error
            self._change.notify_all()
        self._thread.join()
        if error is None and self._error is not None:
            raise self._error

    def write(self, file: int, chunks: list[tuple[int, Array]], assembly: Assembly) -> None:
        """Hash and write whole chunks, and give their buffers back."""
        for chunk, buffer in chunks:
            with self._change:
                while self._unsynced > UNSYNCED and self._error is None:
                    self._change.wait()
                if self._error is not None:
                    raise self._error
            begin, end = self._outputs[file].bounds(chunk)
            size = end - begin
            digest = self._outputs[file].write(chunk, buffer[:size].data)
            assembly.give_back(buffer)
            with self._change:
                self._records.append((file, chunk, digest))
                self._unsynced += size
                self._stage.advance(size)
                self._change.notify_all()

    def _run(self) -> None:
        try:
            while self._round():
                pass
        except BaseException as error:
            with self._change:
                self._error = self._error or error
                self._change.notify_all()

    def _round(self) -> bool:
        """Sync what was written since the last round; False behind the last one."""
        with self._change:
            while not self._records and not self._ending:
                self._change.wait()
            if self._error is not None:
                return False
            records, self._records = self._records, []
            size, ending = self._unsynced, self._ending
        began = time.monotonic()
        for file in sorted({record[0] for record in records}):
            self._outputs[file].sync()
        self._shards.check()
        if self._journal and records:
            self._journal.append(records)
        with self._change:
            self._unsynced -= size
            self._change.notify_all()
            if not ending and self._unsynced < UNSYNCED // 2:
                self._change.wait_for(lambda: self._ending, max(0.0, _PAUSE - (time.monotonic() - began)))
            return bool(self._records) or not ending
