"""Constrains completions to calls and answers that are valid: grammars, and masks of the tokens they allow."""

from __future__ import annotations

from mm2c_runtime.grammar.guide import Guide
from mm2c_runtime.grammar.tool_grammar import tool_grammar

__all__ = ["Guide", "tool_grammar"]
