"""What one rendering of a template may cost: steps, text, and processor time."""

from __future__ import annotations

import threading
import time
from typing import Any

from jinja2.exceptions import SecurityError

MAX_STEPS = 500_000  # loop turns and macro calls in one rendering
MAX_TEXT = 250_000_000  # characters that one rendering makes
MAX_SECONDS = 10.0  # of this thread's processor time; a conversation of a whole context takes less than one
NODE = 64  # characters that a member of a list or an object counts for, besides its text
SMALL = 100_000  # characters that may be made before the clock is looked at
OFTEN = 32  # how many times the budget may be taken from before that


class Budget(threading.local):
    """Of this thread's rendering. Everything that takes from it raises SecurityError once it is spent."""

    _steps = _text = _unseen = 0
    _end = 0.0

    def start(self) -> None:
        """Fills it for the next rendering."""
        self._steps, self._text, self._end = MAX_STEPS, MAX_TEXT, time.thread_time() + MAX_SECONDS

    def step(self, fixed_text: int) -> None:
        """One turn of a loop or call of a macro, whose body has so many characters of the template's own."""
        self._steps -= 1
        if self._steps < 0:
            raise SecurityError(f"the chat template takes more than {MAX_STEPS} steps")
        self.take(fixed_text)

    def take(self, characters: int) -> None:
        """Before that many are made."""
        self._text -= max(characters, 0)
        if self._text < 0:
            raise SecurityError(f"the chat template makes more than {MAX_TEXT} characters")
        self._unseen += 1
        if self._unseen < OFTEN and characters < SMALL:
            return
        self._unseen = 0
        if time.thread_time() > self._end:
            raise SecurityError(f"the chat template takes more than {MAX_SECONDS:g} s")

    def shallow(self, value: Any) -> Any:
        """Takes for ``value`` as it is passed on: its own length, not that of its members."""
        if isinstance(value, (str, bytes, list, tuple, dict)):
            self.take(len(value))
        return value

    def bound(self, value: Any) -> Any:
        """Takes for ``value``, members and all, as a name is bound to it."""
        return self.written(value) if isinstance(value, (list, tuple, dict)) else self.shallow(value)

    def written(self, value: Any) -> Any:
        """Takes for ``value`` as text, members and all: one list may hold another many times over."""
        if isinstance(value, str):
            self.take(len(value))
            return value
        left: list[Any] = [[value]]
        owed = 0
        while left:
            one = left.pop()
            members = (*one.keys(), *one.values()) if isinstance(one, dict) else one
            owed += NODE * len(members)
            for member in members:
                if isinstance(member, (str, bytes)):
                    owed += len(member)
                elif isinstance(member, (dict, list, tuple)):
                    left.append(member)
            if owed > SMALL:
                self.take(owed)
                owed = 0
        self.take(owed)
        return value
