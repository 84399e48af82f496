"""A running front and what tests ask it with."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import openai
from scripted_engine import ScriptedEngine


@dataclass
class RunningFront:
    port: int
    engine: ScriptedEngine
    clients: list[openai.OpenAI] = field(default_factory=list)

    def client(self, key: str = "none") -> openai.OpenAI:
        made = openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=key, max_retries=0)
        self.clients.append(made)
        return made

    def ask(
        self, path: str, body: object = None, method: str | None = None, **headers: str
    ) -> tuple[int, Any, http.client.HTTPMessage]:
        """Status, JSON (or text), headers. ``body``: bytes as they are, everything else as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        try:
            connection.request(method or ("GET" if data is None else "POST"), path, data, headers)
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        is_json = answer.headers.get_content_type() == "application/json"
        return answer.status, json.loads(text) if is_json and text else text, answer.headers

    def error(self, path: str, body: object) -> tuple[int, dict[str, Any]]:
        """Status and the members of the error."""
        status, answer, _ = self.ask(path, body)
        assert set(answer) == {"error"}
        assert set(answer["error"]) == {"message", "type", "param", "code"}
        return status, answer["error"]

    def until_idle(self) -> None:
        end = time.monotonic() + 20
        while self.engine.running:
            assert time.monotonic() < end, "the engine still works for a client that is gone"
            time.sleep(0.005)


Start = Callable[..., RunningFront]
