"""Stop strings in a stream of text, across token borders."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Passes text on until a stop string is complete, and cuts it there.

    The first stop string to be COMPLETED ends the text (of those completed by the same character, the one
    that began first), so the result does not depend on how the text was split. Text is held back only while
    it may be the beginning of a stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.hit: str | None = None

    def feed(self, text: str) -> str:
        """Text that may be shown. After a hit everything is swallowed."""
        if not self._stops:
            return text
        if self.hit is not None:
            return ""
        text = self._held + text
        found = []
        for stop in self._stops:
            start = text.find(stop)
            if start >= 0:
                found.append((start + len(stop), start, stop))
        if found:
            _, start, self.hit = min(found)
            self._held = ""
            return text[:start]
        keep = self._beginning(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """The held-back text, which turned out not to be a stop string."""
        held, self._held = self._held, ""
        return held

    def _beginning(self, text: str) -> int:
        """Length of the longest end of ``text`` with which a stop string begins."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:length]):
                    longest = length
                    break
        return longest
