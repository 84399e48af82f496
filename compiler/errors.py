"""The one exception that a user sees as a message and not as a traceback."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can mend: what is wrong, where, and the remedy.

    The CLI prints the three parts and exits with ``exit_code``; anything else that escapes is a defect.
    """

    def __init__(self, what: str, *, where: str = "", remedy: str = "", exit_code: int = 2) -> None:
        self.what = what
        self.where = where
        self.remedy = remedy
        self.exit_code = exit_code
        super().__init__(str(self))

    def __str__(self) -> str:
        parts = [self.what]
        if self.where:
            parts.append(f"  where:  {self.where}")
        if self.remedy:
            parts.append(f"  remedy: {self.remedy}")
        return "\n".join(parts)
