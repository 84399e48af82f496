"""Proofs, made at every build, that the ranks' tensors are the checkpoint: nothing lost, doubled or misplaced."""

from mm2c.proofs.failure import ProofError

__all__ = ["ProofError"]
