"""A toy engine whose model wants to say a text, for tests of answers that a grammar binds."""

from __future__ import annotations

import json
from typing import Any

from toy_engine import ToyExecutor, ToyTemplate, toy_engine, toy_tokenizer

from mm2c_runtime.completion import Completion, Stream
from mm2c_runtime.requests import parse_request

MESSAGES = [{"role": "user", "content": "hi"}]


def tool(name: str, properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


ADD = tool("add", {"n": {"type": "integer", "minimum": 0, "maximum": 99}})
PAINT = tool("paint", {"colour": {"enum": ["red", "blue"]}, "note": {"type": "string", "maxLength": 5}})
CALL = '<minimax:tool_call>\n<invoke name="{}">\n{}</invoke>\n</minimax:tool_call>'
PARAMETER = '<parameter name="{}">{}</parameter>\n'
THOUGHT = "so I think\n</think>\n\n"


def ids(text: str) -> list[int]:
    return list(toy_tokenizer().encode(text, add_special_tokens=False).ids)


class Asked:
    """A toy engine whose model wants to say ``said``, and what it answered."""

    def __init__(self, said: str, prompt: str | None = None, **executor: Any) -> None:
        self.prompt = ToyTemplate().render(MESSAGES) if prompt is None else prompt
        scripts = {tuple(ids(self.prompt)): ids(said)}
        self.executor = ToyExecutor(context=600, scripts=scripts, **executor)
        self.engine = toy_engine(self.executor)

    def __call__(self, *, stream: bool = False, **fields: Any) -> Completion:
        fields = {"messages": MESSAGES, "stream": stream, "max_tokens": 300, **fields}
        answer = Stream(lambda: None)
        self.engine.submit("a", parse_request(fields), answer.put)
        return answer.completion()


def ask(engines: list[Asked], said: str, **fields: Any) -> Completion:
    engines.append(Asked(said))
    return engines[-1](**fields)


def calls_of(completion: Completion) -> list[tuple[str, Any]]:
    return [
        (call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in completion.tool_calls
    ]
