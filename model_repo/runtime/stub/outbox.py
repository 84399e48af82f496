"""Responses leave through one thread; whatever piles up for a request meanwhile goes out as one response.

Triton's ``send()`` costs 140–400 µs, so the thread that hears the engine never calls it. Four senders are no
faster than one. Under load a response carries several tokens: that is what keeps up with the engine.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mm2c_runtime.stub.reply import Reply
from mm2c_runtime.stub.request import Answer

Event = dict[str, Any]


@dataclass
class Pending:
    """What waits to be sent for one request: text so far, and how it ended (a finish or error event)."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    end: Event | None = None

    def add(self, event: Event) -> None:
        if event["type"] in ("finish", "error"):
            self.end = event
        if event.get("text"):
            self.text.append(event["text"])
        if event.get("reasoning"):
            self.reasoning.append(event["reasoning"])
        self.tool_calls += event.get("tool_calls") or []
        self.token_ids += event.get("token_ids") or []
        self.logprobs += event.get("logprobs") or []

    @property
    def empty(self) -> bool:
        return not (self.text or self.reasoning or self.tool_calls or self.token_ids or self.end)


class Mailbox:
    """Pending output of one request: parts leave as they come while streaming, else with the end."""

    def __init__(self, sender: Any, answer: Answer) -> None:
        self.reply = Reply(sender)
        self.answer = answer
        self.ended = False  # an end has been posted; later events are dropped
        self._pending = Pending()
        self._queued = False

    def take(self) -> Pending:
        taken, self._pending, self._queued = self._pending, Pending(), False
        return taken

    def put(self, event: Event) -> bool:
        """Add an event; True when the mailbox has to be queued for the sender."""
        self._pending.add(event)
        self.ended = self._pending.end is not None
        if self._queued or self._pending.empty or not (self.answer.stream or self.ended):
            return False
        self._queued = True
        return True


class Outbox:
    """``deliver(mailbox, pending)`` runs on the sender thread; what it raises goes to ``on_failure``."""

    def __init__(
        self, deliver: Callable[[Mailbox, Pending], None], on_failure: Callable[[Mailbox, Exception], None]
    ) -> None:
        self._deliver = deliver
        self._on_failure = on_failure
        self._queue: deque[Mailbox] = deque()
        self._ready = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="mm2c-sender", daemon=True)
        self._thread.start()

    def post(self, mailbox: Mailbox, event: Event) -> bool:
        """Add an event of the engine. Never blocks on Triton. False when the request has ended before."""
        with self._ready:
            if mailbox.ended:
                return False
            if mailbox.put(event):
                self._queue.append(mailbox)
                self._ready.notify()
            return True

    def end(self, mailbox: Mailbox) -> None:
        """Send nothing more of it."""
        with self._ready:
            mailbox.ended = True
            mailbox.take()
            if mailbox in self._queue:
                self._queue.remove(mailbox)

    def close(self, timeout: float) -> None:
        """Send what is queued, then stop the thread."""
        with self._ready:
            self._closed = True
            self._ready.notify()
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._ready:
                while not self._queue and not self._closed:
                    self._ready.wait()
                if not self._queue:
                    return
                mailbox = self._queue.popleft()
                pending = mailbox.take()
            try:
                self._deliver(mailbox, pending)
            except Exception as error:  # the sender must outlive any one client
                self._on_failure(mailbox, error)
