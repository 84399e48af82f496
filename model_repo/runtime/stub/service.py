"""Triton requests in, engine events out: what the streaming and the unary model share."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mm2c_runtime.errors import RequestError
from mm2c_runtime.stub.link import EngineLink
from mm2c_runtime.stub.live import Live, LiveRequests, Watch
from mm2c_runtime.stub.outbox import Event, Mailbox, Outbox, Pending
from mm2c_runtime.stub.request import Answer, decode
from mm2c_runtime.stub.respond import response, triton_error


class Service:
    """Answers generation requests from the engine behind ``socket``.

    Threads: Triton's calls ``execute``; the client's reader delivers events and only appends to the outbox;
    the sender talks to Triton; the watch polls for cancellation. ``pb`` is triton_python_backend_utils.
    """

    def __init__(self, pb: Any, socket: Path, on_lost: Callable[[], None], *, unary: bool) -> None:
        self._pb = pb
        self._on_lost = on_lost
        self._unary = unary
        self._live = LiveRequests()
        self._ids = (f"{os.getpid()}-{n}" for n in itertools.count())
        self._outbox = Outbox(self._deliver, self._undelivered)
        self._watch = Watch(self._live, self._cancel)
        self.link = EngineLink(socket, self.on_event, self._lost)

    def execute(self, requests: list[Any]) -> None:
        """Hand every request to the engine and return at once; answers come through the response senders."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._begin(request, sender)
            except RequestError as error:
                self._refuse(sender, error)

    def on_event(self, event: Event) -> None:
        live = self._live.get(event["id"])
        if live is None:
            return
        if event["type"] in ("finish", "error"):
            self._live.remove(live.id)
        self._outbox.post(live.mailbox, event)

    def fail_all(self) -> None:
        """The engine is gone: every request in flight ends now, with the reason."""
        for live in self._live.take_all():
            self._fail(live, "UNAVAILABLE", "the engine process ended while this request ran; send it again")

    def _lost(self) -> None:
        self.fail_all()
        self._on_lost()

    def close(self) -> None:
        self.fail_all()
        self._watch.close()
        self._outbox.close(2)
        self.link.close()

    def _begin(self, request: Any, sender: Any) -> None:
        call = decode(self._pb, request)
        if self._unary and call.answer.stream:
            raise RequestError(
                "INVALID_ARGUMENT",
                "stream=true needs the model minimax_m2; this one answers in a single response",
            )
        mailbox = Mailbox(sender, call.answer)
        live = Live(next(self._ids), mailbox)
        self._live.add(live)
        try:
            self.link.submit(live.id, call.fields)
        except (OSError, RequestError) as error:
            self._live.remove(live.id)
            if not isinstance(error, RequestError):
                error = RequestError("UNAVAILABLE", f"the engine cannot be reached: {error}")
            self._fail(live, error.code, error.message)

    def _refuse(self, sender: Any, error: RequestError) -> None:
        mailbox = Mailbox(sender, Answer(stream=False, outputs=frozenset()))
        self._outbox.post(mailbox, {"type": "error", "code": error.code, "message": error.message})

    def _fail(self, live: Live, code: str, message: str) -> None:
        self._outbox.post(live.mailbox, {"type": "error", "code": code, "message": message})

    def _cancel(self, live: Live) -> None:
        """Free the engine's slot, and answer without waiting for it to notice."""
        self._live.remove(live.id)
        self.link.cancel(live.id)
        self._fail(live, "CANCELLED", "the client cancelled the request")

    def _deliver(self, mailbox: Mailbox, pending: Pending) -> None:
        made = response(self._pb, mailbox.answer, pending)
        final = self._pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL if pending.end is not None else 0
        mailbox.sender.send(made, flags=final)

    def _undelivered(self, mailbox: Mailbox, error: Exception) -> None:
        """A response could not be made or sent. Try to end the request; its client may be gone already."""
        self._pb.Logger.log_error(f"mm2c: a response was not delivered: {error!r}")
        final = self._pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        try:
            failed = self._pb.InferenceResponse(error=triton_error(self._pb, "INTERNAL", repr(error)))
            mailbox.sender.send(failed, flags=final)
        except Exception as again:
            self._pb.Logger.log_error(f"mm2c: nor could the error: {again!r}")
