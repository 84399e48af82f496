"""Triton requests in, engine events out: what the streaming and the unary model share."""

from __future__ import annotations

import itertools
import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mm2c_runtime.errors import RequestError
from mm2c_runtime.stub.link import EngineLink
from mm2c_runtime.stub.links import EngineLinks
from mm2c_runtime.stub.live import Live, LiveRequests, Watch
from mm2c_runtime.stub.load import Load
from mm2c_runtime.stub.outbox import Event, Mailbox, Outbox, Pending
from mm2c_runtime.stub.request import Answer, decode
from mm2c_runtime.stub.respond import response, triton_error


class Service:
    """Answers generation requests from the engine behind ``socket``, or from the engines of several replicas:
    ``others`` are the sockets of those behind the first, each with what to call when it is lost, and ``load`` what all
    stubs know of them. ``links``: to each of them.

    Threads: Triton's calls ``execute``; the client's reader delivers events and only appends to the outbox;
    the sender talks to Triton; the watch polls for cancellation. ``pb`` is triton_python_backend_utils.
    """

    def __init__(
        self,
        pb: Any,
        socket: Path,
        on_lost: Callable[[], None],
        *,
        unary: bool,
        others: Sequence[tuple[Path, Callable[[], None]]] = (),
        load: Load | None = None,
    ) -> None:
        self._pb = pb
        self._unary = unary
        self._live = LiveRequests()
        self._ids = (f"{os.getpid()}-{n}" for n in itertools.count())
        self._outbox = Outbox(self._deliver, self._undelivered)
        self._watch = Watch(self._live, self._cancel)
        self.link: EngineLink | EngineLinks
        if not others:
            self.link = EngineLink(socket, self.on_event, self._engine_ended, on_lost)
            self.links = [self.link]
            return
        assert load is not None
        sockets, downs = zip((socket, on_lost), *others, strict=True)
        self.link = EngineLinks(sockets, self.on_event, self._engine_ended, downs, load)
        self.links = self.link.all

    def execute(self, requests: list[Any]) -> None:
        """Hand every request to the engine and return at once; answers come through the response senders.

        Raises nothing: whatever goes wrong with one request is that request's answer.
        """
        for request in requests:
            try:
                sender = request.get_response_sender()
            except Exception as error:
                self._pb.Logger.log_error(f"mm2c: a request has no way to be answered: {error!r}")
                continue
            try:
                self._begin(request, sender)
            except RequestError as error:
                self._refuse(sender, error)
            except Exception as error:
                self._refuse(sender, self._unexpected(error))

    def on_event(self, event: Event) -> None:
        """From the client's reader, which must outlive any event."""
        try:
            ended = event["type"] in ("finish", "error")
            live = self._live.take(event["id"]) if ended else self._live.get(event["id"])
            if live is not None:
                self._outbox.post(live.mailbox, event)
        except Exception as error:
            internal = self._unexpected(error)
            live = self._live.take(str(event.get("id")))
            if live is not None:
                self.link.cancel(live.id)
                self._fail(live, internal.code, internal.message)

    def close(self) -> None:
        for live in self._live.take_all():
            self._fail(live, "UNAVAILABLE", "the model is being unloaded; send it again")
        self._watch.close()
        self._outbox.close(2)
        self.link.close()

    def _engine_ended(self, ids: list[str]) -> None:
        """Every request that was in flight ends now, with the reason."""
        for id in ids:
            live = self._live.take(id)
            if live is not None:
                reason = "the engine process ended while this request ran; send it again"
                self._fail(live, "UNAVAILABLE", reason)

    def _begin(self, request: Any, sender: Any) -> None:
        call = decode(self._pb, request)
        if self._unary and call.answer.stream:
            raise RequestError(
                "INVALID_ARGUMENT",
                "stream=true needs the model minimax_m2; this one answers in a single response",
            )
        live = Live(next(self._ids), Mailbox(sender, call.answer))
        self._live.add(live)
        try:
            self.link.submit(live.id, call.fields)
        except Exception as error:
            if self._live.take(live.id) is None:
                return  # answered already: the engine was lost, or the client cancelled
            if isinstance(error, OSError):
                error = RequestError("UNAVAILABLE", f"the engine cannot be reached: {error}")
            elif not isinstance(error, RequestError):
                error = self._unexpected(error)
            self._fail(live, error.code, error.message)
        else:
            if self._live.get(live.id) is None:  # ended meanwhile: a cancel may have overtaken the request
                self.link.cancel(live.id)

    def _unexpected(self, error: Exception) -> RequestError:
        """A defect of ours: told to the client in a line, to the log with its traceback."""
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        self._pb.Logger.log_error(f"mm2c: a request failed unexpectedly\n{trace}")
        return RequestError("INTERNAL", f"{type(error).__name__}: {error}")

    def _refuse(self, sender: Any, error: RequestError) -> None:
        mailbox = Mailbox(sender, Answer(stream=False, outputs=frozenset()))
        self._outbox.post(mailbox, {"type": "error", "code": error.code, "message": error.message})

    def _fail(self, live: Live, code: str, message: str) -> None:
        self._outbox.post(live.mailbox, {"type": "error", "code": code, "message": message})

    def _cancel(self, live: Live) -> None:
        """Free the engine's slot, and answer without waiting for it to notice."""
        if self._live.take(live.id) is not None:
            self.link.cancel(live.id)
            self._fail(live, "CANCELLED", "the client cancelled the request")

    def _deliver(self, mailbox: Mailbox, pending: Pending) -> None:
        end = pending.end
        if mailbox.answer.stream and end is not None and end["type"] == "error":
            said = replace(pending, end=None)  # an error has no tensors beside it
            if not said.empty:
                mailbox.reply.send(response(self._pb, mailbox.answer, said))
        made = response(self._pb, mailbox.answer, pending)
        if end is None:
            mailbox.reply.send(made)
        else:
            mailbox.reply.send_last(made, self._pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _undelivered(self, mailbox: Mailbox, error: Exception) -> None:
        """A response could not be made or sent. End the request here and in the engine."""
        self._pb.Logger.log_error(f"mm2c: a response was not delivered: {error!r}")
        self._outbox.end(mailbox)
        live = self._live.of(mailbox)
        if live is not None and self._live.take(live.id) is not None:
            self.link.cancel(live.id)
        try:
            failed = self._pb.InferenceResponse(error=triton_error(self._pb, "INTERNAL", repr(error)))
            mailbox.reply.send_last(failed, self._pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        except Exception as again:
            self._pb.Logger.log_error(f"mm2c: nor could the error: {again!r}")
