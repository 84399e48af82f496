"""Stop strings in a stream of text, across token borders."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Passes text on until a stop string is complete, and cuts it there.

    The first stop string to be COMPLETED ends the text (of those completed by the same character, the one
    that began first), so the result does not depend on how the text was split. Text is held back only while
    it may be the beginning of a stop string. A character costs about one comparison a stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [_Progress(stop) for stop in stops if stop]
        self._held = ""
        self.hit: str | None = None

    def feed(self, text: str) -> str:
        """Text that may be shown. After a hit everything is swallowed."""
        if not self._stops:
            return text
        if self.hit is not None:
            return ""
        before, self._held = self._held, ""
        for end, char in enumerate(text, len(before) + 1):
            found = [stop.text for stop in self._stops if stop.take(char)]
            if found:
                self.hit = max(found, key=len)
                return (before + text)[: end - len(self.hit)]
        text = before + text
        keep = max(stop.matched for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """The held-back text, which turned out not to be a stop string."""
        held, self._held = self._held, ""
        return held


class _Progress:
    """``matched``: the most characters of ``text`` that what was taken so far ends with (Knuth, Morris and
    Pratt). ``_shorter[n]``: the next smaller such number once n characters match."""

    def __init__(self, text: str) -> None:
        self.text, self.matched = text, 0
        self._shorter = [0] * (len(text) + 1)
        matched = 0
        for place in range(1, len(text)):
            matched = self._step(matched, text[place])
            self._shorter[place + 1] = matched

    def take(self, char: str) -> bool:
        """Whether ``char`` completes the text; nothing may be taken after that."""
        self.matched = self._step(self.matched, char)
        return self.matched == len(self.text)

    def _step(self, matched: int, char: str) -> int:
        while matched and self.text[matched] != char:
            matched = self._shorter[matched]
        return matched + (self.text[matched] == char)
