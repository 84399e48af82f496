"""Reasoning at the level of token ids: which tokens of a chunk are reasoning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mm2c_runtime.errors import BundleError
from mm2c_runtime.parsing.markers import BLOCK, END_THINK, THINK


@dataclass(frozen=True)
class ReasoningSpan:
    """Half-open index ranges into a chunk: the reasoning alone, and with its ``<think>`` and ``</think>``."""

    reasoning: tuple[int, int]
    reasoning_with_delimiters: tuple[int, int]

    def extract_reasoning(self, ids: Sequence[int]) -> list[int]:
        """The chunk's reasoning tokens."""
        return list(ids[slice(*self.reasoning)])

    def extract_content(self, ids: Sequence[int]) -> list[int]:
        """The chunk's tokens that are neither reasoning nor its delimiters."""
        start, stop = self.reasoning_with_delimiters
        return [*ids[:start], *ids[stop:]]


@dataclass(frozen=True)
class ParsedReasoning:
    """A chunk's span, and whether the chunk after it begins in reasoning."""

    span: ReasoningSpan
    is_still_reasoning: bool


@dataclass(frozen=True)
class ReasoningParser:
    """Finds reasoning in token ids; the caller carries ``is_still_reasoning`` from chunk to chunk."""

    reasoning_start_token_id: int
    reasoning_end_token_id: int
    tool_call_start_token_id: int | None = None

    @classmethod
    def from_tokenizer(cls, tokenizer: Any) -> ReasoningParser:
        """Looks the ids up in a ``tokenizers.Tokenizer`` or anything with ``get_vocab()``.

        Raises BundleError if ``<think>`` or ``</think>`` is not a single token there.
        """
        look_up = getattr(tokenizer, "token_to_id", None) or tokenizer.get_vocab().get
        start, end = look_up(THINK), look_up(END_THINK)
        if start is None or end is None:
            raise BundleError(
                f"the tokenizer has no token {THINK if start is None else END_THINK}",
                remedy="use the tokenizer.json of a MiniMax-M2 checkpoint",
            )
        return cls(start, end, look_up(BLOCK))

    def stream(self, delta_ids: Sequence[int], is_currently_reasoning: bool = True) -> ParsedReasoning:
        """The span of reasoning in a chunk; empty when not reasoning and nothing in the chunk opens it.

        Reasoning ends at ``</think>``, which is neither reasoning nor content, or at ``<minimax:tool_call>``,
        which is content.
        """
        start = 0
        if not is_currently_reasoning:
            start = _index(delta_ids, {self.reasoning_start_token_id}, 0)
            if start == len(delta_ids):
                return ParsedReasoning(ReasoningSpan((0, 0), (0, 0)), False)
        opened = start < len(delta_ids) and delta_ids[start] == self.reasoning_start_token_id
        begin = start + opened
        end = _index(delta_ids, {self.reasoning_end_token_id, self.tool_call_start_token_id}, begin)
        closed = end < len(delta_ids)
        stop = end + (closed and delta_ids[end] == self.reasoning_end_token_id)
        return ParsedReasoning(ReasoningSpan((begin, end), (start, stop)), not closed)

    def will_reason_after_prompt(self, ids: Sequence[int]) -> bool:
        """Whether a completion of this prompt begins in reasoning: the prompt's last think marker opens it.

        ``<minimax:tool_call>`` does not count: the template's description of the format holds one.
        """
        for token in reversed(ids):
            if token in (self.reasoning_start_token_id, self.reasoning_end_token_id):
                return token == self.reasoning_start_token_id
        return False

    def is_reasoning_end(self, ids: Sequence[int]) -> bool:
        """Whether reasoning has ended in ``ids``: an end or a tool call comes after the last ``<think>``."""
        for token in reversed(ids):
            if token == self.reasoning_start_token_id:
                return False
            if token in (self.reasoning_end_token_id, self.tool_call_start_token_id):
                return True
        return False


def _index(ids: Sequence[int], wanted: set[int | None], start: int) -> int:
    """The first position from ``start`` of a wanted id, the length if there is none."""
    return next((at for at in range(start, len(ids)) if ids[at] in wanted), len(ids))
