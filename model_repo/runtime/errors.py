"""What can go wrong, as values: a request that cannot be served, and a bundle that cannot be loaded."""

from __future__ import annotations

from typing import Literal

Code = Literal["INVALID_ARGUMENT", "UNAVAILABLE", "INTERNAL", "CANCELLED", "RESOURCE_EXHAUSTED"]


class RequestError(Exception):
    """Ends one request and tells its client why; other requests go on. ``str()`` begins with the code."""

    def __init__(self, code: Code, message: str) -> None:
        self.code: Code = code
        # a request's own text may be quoted, and not all text can be sent back
        self.message = message.encode("utf-8", "backslashreplace").decode("utf-8")
        super().__init__(f"{code}: {self.message}")


class BundleError(Exception):
    """A bundle that is missing, altered, or not for this machine: what, where, and the remedy."""

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        self.what, self.where, self.remedy = what, where, remedy
        lines = (
            [what] + ([f"  where:  {where}"] if where else []) + ([f"  remedy: {remedy}"] if remedy else [])
        )
        super().__init__("\n".join(lines))
