"""An engine that computes nothing: it speaks the engine's events at a steady pace, so that Triton's side can be tested.

A prompt P gives the tokens "P0 P1 P2 …", ``max_tokens`` of them (16), one each step of 10 ms for every request.
With messages it thinks first; with tools it then calls the first one.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from typing import Any

STEP_SECONDS = 0.01
KNOWN = {
    "text_input", "messages", "tools", "max_tokens", "temperature", "stop_words", "stop", "seed", "random_seed",
    "ignore_eos", "top_k", "top_p", "sampling_parameters", "parse",
}  # fmt: skip


class Connection:
    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def send(self, event: dict[str, Any]) -> None:
        try:
            with self._lock:
                self._stream.sendall(json.dumps(event).encode() + b"\n")
        except OSError:
            return


def refusal(fields: dict[str, Any]) -> str | None:
    unknown = sorted(set(fields) - KNOWN)
    if unknown:
        return f"unknown option {unknown[0]!r}"
    if ("text_input" in fields) == ("messages" in fields):
        return "give either text_input or messages"
    if fields.get("max_tokens", 16) <= 0:
        return "max_tokens must be positive"
    if "messages" in fields:
        try:
            json.loads(fields["messages"])
        except json.JSONDecodeError as error:
            return f"messages is not JSON: {error}"
    return None


def events(fields: dict[str, Any]) -> list[dict[str, Any]]:
    if "text_input" in fields:
        count = fields.get("max_tokens", 16)
        made = [{"text": f"{fields['text_input']}{n} ", "token_ids": [n]} for n in range(count)]
        return [*made, {"finish_reason": "length", "num_input_tokens": 3, "num_output_tokens": count}]
    made = [{"reasoning": "I "}, {"reasoning": "think."}]
    if fields.get("tools"):
        name = json.loads(fields["tools"])[0]["function"]["name"]
        head = {"index": 0, "id": "call_0", "type": "function", "function": {"name": name, "arguments": ""}}
        made += [{"tool_calls": [head]}]
        made += [{"tool_calls": [{"index": 0, "function": {"arguments": part}}]} for part in ('{"city":', '"Oslo"}')]
    else:
        made += [{"text": "Hello"}, {"text": " there"}]
    return [*made, {"finish_reason": "stop", "num_input_tokens": 5, "num_output_tokens": len(made)}]


def main() -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[1])
    listener.listen()
    active: dict[str, tuple[Connection, list[dict[str, Any]]]] = {}

    def serve(stream: socket.socket) -> None:
        connection = Connection(stream)
        mine: set[str] = set()
        for line in stream.makefile("rb"):
            message = json.loads(line)
            id = message["id"]
            if message["op"] == "cancel":
                if active.pop(id, None):
                    connection.send({"type": "error", "id": id, "code": "CANCELLED", "message": "cancelled"})
                continue
            why = refusal(message["fields"])
            if why:
                connection.send({"type": "error", "id": id, "code": "INVALID_ARGUMENT", "message": why})
                continue
            mine.add(id)
            active[id] = (connection, events(message["fields"]))
            connection.send({"type": "started", "id": id})
        for id in mine:
            active.pop(id, None)

    def accept() -> None:
        while True:
            stream, _ = listener.accept()
            threading.Thread(target=serve, args=(stream,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    while True:
        time.sleep(STEP_SECONDS)
        for id, (connection, left) in list(active.items()):
            event = left.pop(0)
            if not left:
                active.pop(id, None)
            connection.send({"type": "delta" if left else "finish", "id": id, "text": "", **event})


if __name__ == "__main__":
    main()
