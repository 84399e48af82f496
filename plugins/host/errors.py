"""What the host raises."""

from __future__ import annotations


class PluginError(Exception):
    """A plugin library, or one of its plugins, refused or failed; the text says which, what and what it takes."""


def explained(layer: str, plugin: str, reason: str) -> str:
    """The text of a PluginError: the layer, its plugin where the layer is called otherwise, and the reason."""
    reason = (reason or "failed without giving a reason").removeprefix(f"{plugin}: ")
    return f"{plugin}: {reason}" if layer == plugin else f"{layer} ({plugin}): {reason}"
