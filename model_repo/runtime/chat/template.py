"""The checkpoint's chat template: a conversation in, the prompt out, exactly as transformers renders it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError, TemplateSyntaxError

from mm2c_runtime.chat.history import (
    clean_messages,
    clean_tools,
    instructions_first,
    name_reasoning,
)
from mm2c_runtime.chat.plain import plain
from mm2c_runtime.chat.sandbox import TemplateEnvironment
from mm2c_runtime.errors import BundleError, RequestError
from mm2c_runtime.parsing.markers import END_THINK, THINK

_NAMED_TOKENS = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


def will_reason(prompt: str) -> bool:
    """Whether a completion of ``prompt`` begins in reasoning: the last of its think markers opens it."""
    return prompt.rfind(THINK) > prompt.rfind(END_THINK)


class ChatTemplate:
    """A compiled chat template. ``variables`` are set in every rendering (the tokenizer's named tokens)."""

    def __init__(self, source: str, variables: dict[str, str] | None = None, *, where: str = "") -> None:
        self._environment = TemplateEnvironment()
        self._variables = dict(variables or {})
        self._knows_developer = '"developer"' in source or "'developer'" in source
        try:
            self._template = self._environment.from_string(source)
        except TemplateSyntaxError as error:
            raise BundleError(
                f"the chat template has a syntax error in line {error.lineno}: {error.message}",
                where=where,
                remedy="take chat_template.jinja from the checkpoint again",
            ) from None

    @classmethod
    def from_bundle(cls, folder: str | Path) -> ChatTemplate:
        """Reads ``chat_template.jinja`` and, if it is there, ``tokenizer_config.json`` of a bundle or
        checkpoint.

        Raises BundleError if the template is missing or does not compile.
        """
        path = Path(folder) / "chat_template.jinja"
        try:
            source = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(
                f"the chat template cannot be read: {error}",
                where=str(path),
                remedy="build the bundle again from a checkpoint that has a chat_template.jinja",
            ) from None
        return cls(source, _named_tokens(Path(folder) / "tokenizer_config.json"), where=str(path))

    def render(
        self,
        messages: Any,
        tools: Any = None,
        add_generation_prompt: bool = True,
        *,
        clean: bool = True,
        **kwargs: Any,
    ) -> str:
        """The prompt for ``messages`` (OpenAI chat messages) and ``tools`` (OpenAI tool definitions).

        ``clean`` first puts the history into the form that templates expect (see ``history``); without it the
        template gets the messages as they are. ``kwargs`` are variables of the template. Raises RequestError
        INVALID_ARGUMENT for messages that cannot be cleaned or that the template refuses, with its reason.
        """
        if clean:
            conversation, definitions = clean_messages(messages), clean_tools(tools)
            if not self._knows_developer:
                conversation = instructions_first(conversation)
        else:
            conversation, definitions = plain(messages, "messages"), plain(tools, "tools")
            if not isinstance(conversation, list) or not all(isinstance(one, dict) for one in conversation):
                raise RequestError("INVALID_ARGUMENT", "messages must be a list of objects")
            conversation = [name_reasoning(message) for message in conversation]
        variables = {"documents": None, **self._variables, **plain(kwargs, "template variables")}
        self._environment.start()
        try:
            return self._template.render(
                variables,
                messages=conversation,
                tools=definitions,
                add_generation_prompt=add_generation_prompt,
            )
        except TemplateError as error:
            raise RequestError("INVALID_ARGUMENT", f"the chat template refuses: {error}") from error
        except Exception as error:
            # a template is a program that runs on the request's data: whatever it trips over is in that data
            reason = f"the chat template fails on these messages: {type(error).__name__}: {error}"
            raise RequestError("INVALID_ARGUMENT", reason) from error


def _named_tokens(path: Path) -> dict[str, str]:
    """The tokenizer's ``bos_token`` and so on, as transformers passes them to templates."""
    if not path.exists():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(
            f"tokenizer_config.json cannot be read: {error}",
            where=str(path),
            remedy="take the file from the checkpoint again",
        ) from None
    tokens = {}
    for name in _NAMED_TOKENS:
        token = config.get(name) if isinstance(config, dict) else None
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str):
            tokens[name] = content
    return tokens
