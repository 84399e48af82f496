"""A conversation with a model, wherever it runs: messages, tools, and answers gathered from their parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from mm2c_runtime.tool_calls import whole


class AnswerPart(Protocol):
    """What a stream yields: a Triton client's Part, or mm2c_runtime's CompletionDelta."""

    @property
    def reasoning(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def tool_calls(self) -> list[dict[str, Any]]: ...
    @property
    def finish_reason(self) -> str | None: ...
    @property
    def num_input_tokens(self) -> int | None: ...
    @property
    def num_output_tokens(self) -> int | None: ...


Ask = Callable[[list[dict[str, Any]], "list[dict[str, Any]] | None"], Iterator[AnswerPart]]


@dataclass
class Answer:
    """One whole answer. ``tool_calls``: id, type, function(name, arguments as JSON text)."""

    reasoning: str = ""
    content: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str = ""
    num_input_tokens: int = 0
    num_output_tokens: int = 0


@dataclass
class Conversation:
    """``ask`` streams the answer to ``messages`` and ``tools``, both in OpenAI's shape."""

    ask: Ask
    tools: list[dict[str, Any]] | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.messages.append({"role": "user", "content": text})

    def give_result(self, call: dict[str, Any], text: str) -> None:
        """What the tool of ``call`` returned."""
        name = call["function"]["name"]
        self.messages.append({"role": "tool", "tool_call_id": call["id"], "name": name, "content": text})

    def answer(self, on_part: Callable[[AnswerPart], None] = lambda part: None) -> Answer:
        """Ask, hand every part to ``on_part`` as it comes, and remember the answer as a message.

        An answer that fails or is interrupted leaves the conversation as it was.
        """
        given = Answer()
        deltas: list[dict[str, Any]] = []
        for part in self.ask(self.messages, self.tools):
            on_part(part)
            given.reasoning += part.reasoning
            given.content += part.text
            deltas += part.tool_calls
            if part.finish_reason is not None:
                given.finish_reason = part.finish_reason
                given.num_input_tokens = part.num_input_tokens or 0
                given.num_output_tokens = part.num_output_tokens or 0
        given.tool_calls = whole(deltas)
        message: dict[str, Any] = {"role": "assistant", "content": given.content}
        if given.reasoning:
            message["reasoning_content"] = given.reasoning
        if given.tool_calls:
            message["tool_calls"] = given.tool_calls
        self.messages.append(message)
        return given
