"""Turns a conversation into the prompt that the checkpoint was trained on."""

from __future__ import annotations

from mm2c_runtime.chat.history import clean_messages, clean_tools
from mm2c_runtime.chat.template import ChatTemplate, will_reason

__all__ = ["ChatTemplate", "clean_messages", "clean_tools", "will_reason"]
