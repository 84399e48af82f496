"""An engine that computes nothing: it speaks the engine's protocol at a steady pace, so that Triton's side is
tested.

A fake bundle carries this file as ``mm2c_runtime/server/process.py``; everything else in it is real. A prompt
P gives the tokens "P0 P1 P2 …", ``max_tokens`` of them (16), one each 10 ms for every request. With messages
it thinks first; with tools it then calls the first one, and says hello when it has the result. The prompt
CENSUS is answered with the number of requests running, and REFUSED is refused. A message that says "count" is
answered as a prompt "n", "show" with what the engine was sent, "fail CODE" with two words and that error.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
from typing import Any

from mm2c_runtime.errors import RequestError
from mm2c_runtime.options import Options
from mm2c_runtime.requests import parse_request
from mm2c_runtime.server.protocol import VERSION, Reader, check_hello, encode

CENSUS = "how many requests?"
REFUSED = "refuse this"
STEP_SECONDS = float(os.environ.get("MM2C_FAKE_STEP", "0.01"))

Event = dict[str, Any]


clients: list[Client] = []


class Client:
    """One connection; ``active`` holds the events still to come of each of its requests."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self.active: dict[str, list[Event]] = {}

    def send(self, event: Event) -> None:
        try:
            with self._lock:
                self._stream.sendall(encode(event))
        except OSError:
            self.active.clear()

    def serve(self) -> None:
        reader = Reader(self._stream)
        check_hello(reader.read())
        self.send({"type": "hello", "version": VERSION, "pid": os.getpid()})
        while (message := reader.read()) is not None:
            id = message.get("id", "")
            if message["type"] == "submit":
                self._submit(id, message["fields"])
            elif message["type"] == "cancel" and self.active.pop(id, None):
                self.send(_finish(id, "cancelled", 0))
        self.active.clear()

    def step(self) -> None:
        for id, left in list(self.active.items()):
            event = left.pop(0)
            if not left:
                self.active.pop(id, None)
            self.send({"id": id, **event})

    def _submit(self, id: str, fields: dict[str, Any]) -> None:
        try:
            options = parse_request(fields).options
            if REFUSED in fields.get("messages", ""):
                raise RequestError("INVALID_ARGUMENT", "this is refused")
        except RequestError as error:
            self.send({"type": "error", "id": id, "code": error.code, "message": error.message})
            return
        self.send({"type": "started", "id": id, "num_input_tokens": 3, "seed": 0})
        if fields.get("text_input") == CENSUS:
            count = sum(len(client.active) for client in clients)
            self.active[id] = [_delta(text=f"#{count}#"), _finish(id, "stop", 1)]
        else:
            self.active[id] = _with_logprobs(_events(id, fields, options), options.logprobs)


def _events(id: str, fields: dict[str, Any], options: Options) -> list[Event]:
    count = options.max_tokens or 16
    if "text_input" in fields:
        return _counted(id, fields["text_input"], count)
    last = json.loads(fields["messages"])[-1]
    said = last["content"]
    if said == "count":
        return _counted(id, "n", count)
    if said == "show":
        shown = {name: value for name, value in fields.items() if name != "messages"}
        return [_delta(text=json.dumps(shown)), _finish(id, "stop", 1)]
    if isinstance(said, str) and said.startswith("fail "):
        failure = {"type": "error", "code": said.split()[1], "message": "asked to fail"}
        return [_delta(text="so "), _delta(text="far"), failure]
    made = [_delta(reasoning="I "), _delta(reasoning="think.")]
    if not fields.get("tools") or last["role"] == "tool":
        made += [_delta(text="Hello"), _delta(text=" there")]
        return [*made, _finish(id, "stop", len(made))]
    name = json.loads(fields["tools"])[0]["function"]["name"]
    opening = {"index": 0, "id": "call_0", "type": "function", "function": {"name": name, "arguments": ""}}
    parts: list[Event] = [opening]
    parts += [{"index": 0, "function": {"arguments": part}} for part in ('{"city":', '"Oslo"}')]
    made += [_delta(tool_calls=[part]) for part in parts]
    return [*made, _finish(id, "tool_calls", len(made))]


def _counted(id: str, word: str, count: int) -> list[Event]:
    made = [_delta(text=f"{word}{n} ", token_ids=[n]) for n in range(count)]
    return [*made, _finish(id, "length", count)]


def _with_logprobs(events: list[Event], alternatives: int | None) -> list[Event]:
    """Every delta is one token, of probability 1/2."""
    if alternatives is not None:
        for number, event in enumerate(events):
            if event["type"] == "delta":
                token = {"token": number, "logprob": -0.6931, "bytes": list((event["text"]).encode())}
                others = [{"token": n, "logprob": -1.0 - n, "bytes": [97 + n]} for n in range(alternatives)]
                event["logprobs"] = [{**token, "top": others}]
    return events


def _delta(**said: Any) -> Event:
    return {
        "type": "delta",
        "text": "",
        "reasoning": "",
        "tool_calls": [],
        "token_ids": [],
        "logprobs": None,
        **said,
    }


def _finish(id: str, reason: str, count: int) -> Event:
    return {
        "type": "finish", "id": id, "finish_reason": reason,
        "num_input_tokens": 3, "num_output_tokens": count, "seed": 0,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True)
    parser.add_argument("--parent", type=int)
    options, _ = parser.parse_known_args()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != options.parent:
        sys.exit("the stub ended before its engine began")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(options.socket)
    listener.listen()

    def accept() -> None:
        while True:
            stream, _ = listener.accept()
            clients.append(Client(stream))
            threading.Thread(target=clients[-1].serve, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    while True:
        time.sleep(STEP_SECONDS)
        for client in list(clients):
            client.step()


if __name__ == "__main__":
    main()
