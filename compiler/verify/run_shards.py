"""`mm2c verify --shards` as a function: the ranks' tensors put together again are the checkpoint's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mm2c.progress import Progress
from mm2c.verify.run import located, refuse_bare
from mm2c_runtime.manifest_file import read_bundle

if TYPE_CHECKING:
    from mm2c.proofs.reassemble import ShardReport


def verify_bundle_shards(bundle: Path, against: str | None, progress: Progress) -> ShardReport:
    """The report of ``mm2c.proofs.reassemble``, which reads every byte itself: the manifest's hashes would tell
    the file of an altered one, this tells the tensor. Raises as ``verify_checkpoint`` does."""
    from mm2c.checkpoint import Checkpoint
    from mm2c.proofs.reassemble import verify_shards
    from mm2c.verify.same import check_same

    manifest = read_bundle(bundle, checksums=False)
    source = refuse_bare(manifest, bundle)
    found = located(against, source, progress)
    with Checkpoint.open(found.folder) as checkpoint:
        if checkpoint.identity() != source.identity:
            check_same(manifest, bundle, checkpoint)
        return verify_shards(bundle, checkpoint, progress)
