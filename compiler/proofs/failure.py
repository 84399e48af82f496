"""What a proof that does not hold raises."""

from __future__ import annotations

from mm2c.errors import UserError

INTERNAL = 70  # EX_SOFTWARE: not the user's mistake


class ProofError(UserError):
    """The ranks' tensors are not the checkpoint's: a defect of the compiler, told with the tensor's name.

    ``where`` names the rank, or the file and its tensor. No bundle is written.
    """

    def __init__(self, what: str, *, where: str = "") -> None:
        remedy = "this is a defect of mm2c and no bundle was written: report it with this message"
        super().__init__(what, where=where, remedy=remedy, exit_code=INTERNAL)
