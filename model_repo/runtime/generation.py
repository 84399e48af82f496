"""From a checked request to what the engine runs: prompt ids, sampling, stops, limits."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from tokenizers import Tokenizer

from mm2c_runtime.generation_defaults import GenerationDefaults
from mm2c_runtime.grammars import Grammars
from mm2c_runtime.json_input import check_text
from mm2c_runtime.option_values import invalid
from mm2c_runtime.options import NO_END
from mm2c_runtime.parsing.markers import END_THINK, THINK
from mm2c_runtime.requests import GenerateRequest
from mm2c_runtime.scheduling.constrained import Matcher
from mm2c_runtime.step import SamplingParams

CLOSED_REASONING = f"\n{END_THINK}\n\n"  # as the template writes it behind the reasoning of earlier turns
LONG_TEXT = 4096  # characters from which tokenising lets go of Python's lock, so that steps go on meanwhile


class Template(Protocol):
    """Renders a conversation to prompt text (``mm2c_runtime.chat.ChatTemplate``)."""

    def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> str: ...


@dataclass(frozen=True, slots=True)
class Generation:
    """A request ready for the scheduler. ``bad_words`` are token sequences; ``echo`` is prompt text to
    repeat. ``calls``: whether the parser looks for tool calls; ``matcher``: at the start of the answer's grammar,
    None where it is free."""

    prompt: list[int]
    sampling: SamplingParams
    max_tokens: int
    min_tokens: int
    stop_tokens: frozenset[int]
    stop: tuple[str, ...]
    bad_words: tuple[tuple[int, ...], ...]
    logprobs: int | None
    parse: bool
    starts_in_reasoning: bool
    tools: tuple[dict[str, Any], ...] | None
    calls: bool
    matcher: Matcher | None
    echo: str
    stream: bool
    timeout: float | None
    priority: int


class Preparer:
    """Renders, tokenises and resolves defaults. Safe to call from several threads, as ``template`` must be.

    ``kv_tokens``: the KV budget that a prompt and its answer must fit into, where it is smaller than the context.
    ``tokenizer`` forgets any truncation and padding of its file, left from training: prompts are never cut.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: Template,
        defaults: GenerationDefaults,
        *,
        context: int,
        kv_tokens: int | None = None,
        vocab: int,
        will_reason: Callable[[str], bool],
    ) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer, self.template, self.defaults = tokenizer, template, defaults
        self.context, self.vocab = context, vocab
        self._grammars = Grammars(tokenizer, vocab, sorted(defaults.eos))
        self._think = tokenizer.token_to_id(THINK)
        self._room = context if kv_tokens is None else min(context, kv_tokens)
        self._will_reason = will_reason

    def prepare(self, request: GenerateRequest) -> Generation:
        """Raises RequestError INVALID_ARGUMENT where the prompt or an id does not fit this model."""
        options, defaults = request.options, self.defaults
        text = self._prompt_text(request)
        check_text("the prompt", text)
        reasons = self._will_reason(text)
        if options.skip_reasoning and reasons:
            text, reasons = text.rstrip("\n") + CLOSED_REASONING, False
        prompt = self._encode(text)
        if not prompt:
            raise invalid("the prompt has no tokens")
        if max(prompt) >= self.vocab:
            raise invalid(f"the prompt has token {max(prompt)}; the model's vocabulary has {self.vocab}")
        end = defaults.eos if options.end_id is None else frozenset([options.end_id]) - {NO_END}
        stop_tokens = frozenset(options.stop_token_ids) | (frozenset() if options.ignore_eos else end)
        for name, ids in (("stop_token_ids", options.stop_token_ids), ("end_id", end)):
            for token in ids:
                if token >= self.vocab:
                    raise invalid(f"{name}: {token} is not in the vocabulary of {self.vocab} tokens")

        def chosen(asked: Any, default: Any) -> Any:
            return default if asked is None else asked

        constraint = request.constraint
        # The whole text of a raw prompt that nobody parses is bound; of any other, what follows its reasoning.
        behind_reasoning = reasons and (request.parse or request.messages is not None)
        matcher = None
        if constraint is not None:
            matcher = self._grammars.matcher(constraint, starts_in_reasoning=behind_reasoning)
        bad_words = self._bad_words(options.bad_words)
        if options.skip_reasoning and self._think is not None:
            bad_words = (*bad_words, (self._think,))
        return Generation(
            prompt=prompt,
            sampling=SamplingParams(
                temperature=chosen(options.temperature, defaults.temperature),
                top_k=chosen(options.top_k, defaults.top_k),
                top_p=chosen(options.top_p, defaults.top_p),
                min_p=chosen(options.min_p, defaults.min_p),
                repetition_penalty=chosen(options.repetition_penalty, defaults.repetition_penalty),
                presence_penalty=options.presence_penalty,
                frequency_penalty=options.frequency_penalty,
                seed=secrets.randbits(64) if options.seed is None else options.seed,
            ),
            max_tokens=self._max_tokens(len(prompt), options.max_tokens),
            min_tokens=options.min_tokens,
            stop_tokens=stop_tokens,
            stop=options.stop,
            bad_words=bad_words,
            logprobs=options.logprobs,
            parse=request.parse,
            starts_in_reasoning=request.parse and reasons,
            tools=request.tools,
            calls=constraint is None or not constraint.verbatim,
            matcher=matcher,
            echo=text if options.echo else "",
            stream=options.stream,
            timeout=options.timeout,
            priority=options.priority,
        )

    def _prompt_text(self, request: GenerateRequest) -> str:
        if request.text_input is not None:
            return request.text_input
        assert request.messages is not None
        hidden = request.options.tool_choice == "none"  # what must not be called is not offered
        tools = list(request.tools) if request.tools and not hidden else None
        return self.template.render(
            list(request.messages), tools, add_generation_prompt=True, **request.template_options
        )

    def _encode(self, text: str) -> list[int]:
        if len(text) < LONG_TEXT:
            return list(self.tokenizer.encode(text, add_special_tokens=False).ids)
        return list(self.tokenizer.encode_batch([text], add_special_tokens=False)[0].ids)

    def _max_tokens(self, prompt: int, asked: int | None) -> int:
        what = "context" if self._room == self.context else "KV budget (kv_tokens)"
        left = self._room - prompt
        if left < 1:
            raise invalid(f"the prompt has {prompt} tokens; the {what} holds {self._room} with the answer")
        if asked is None:
            return min(left, self.defaults.max_tokens or left)
        if asked > left:
            raise invalid(
                f"max_tokens: {asked} with a prompt of {prompt} tokens is more than the {what} of "
                f"{self._room}; at most {left}"
            )
        return asked

    def _bad_words(self, words: Iterable[str]) -> tuple[tuple[int, ...], ...]:
        """Each word as it is spelled at the start of a text and after a space."""
        spelled = []
        for word in words:
            for text in {word, " " + word.lstrip()}:
                ids = tuple(self._encode(text))
                if ids and max(ids) < self.vocab:  # a token that cannot be sampled needs no ban
                    spelled.append(ids)
        return tuple(dict.fromkeys(spelled))
