"""A lowering of a bundle as the executor finds it: whole, and within the limits that it was built with."""

from __future__ import annotations

from pathlib import Path

from mm2c_runtime.errors import BundleError
from mm2c_runtime.manifest import Limits, Lowering, Manifest

_REBUILD = "build the bundle again with `mm2c build … --force`"


def lowered_limits(built: Limits, rows: int | None, context: int | None) -> Limits:
    """The limits of the build, or lower ones where they are asked for. Raises BundleError where these are higher."""
    for name, asked, most in (("rows", rows, built.max_rows), ("context", context, built.context)):
        if asked is not None and not 1 <= asked <= most:
            raise BundleError(
                f"{name} = {asked} is not between 1 and {most}, the limit this bundle was built with",
                remedy=f"lower it, or build again with a larger limit for {name}",
            )
    limit = context or built.context
    return Limits(
        context=limit, max_rows=rows or built.max_rows, prefill_chunk=min(built.prefill_chunk, limit)
    )


def checked_lowering(bundle: Path, manifest: Manifest, name: str) -> Lowering:
    """The lowering, with every file of it present in its full size and the same collectives on every rank.

    Raises BundleError.
    """
    where = str(bundle / "manifest.json")
    if manifest.engine != "onnxruntime" or name not in manifest.lowerings:
        has = ", ".join(sorted(manifest.lowerings)) or "none"
        raise BundleError(
            f"the bundle is for {manifest.engine} and has no lowering '{name}' (it has: {has})",
            where=where,
            remedy="build with `--engine onnxruntime`",
        )
    lowering = manifest.lowerings[name]
    for rank in lowering.ranks:
        if rank.collectives != lowering.ranks[0].collectives:
            raise BundleError(
                f"rank {rank.rank}: other collectives than rank 0", where=where, remedy=_REBUILD
            )
        weights = [rank.weights] if manifest.weights == "copy" else []
        for file in [*weights, *(segment.file for segment in rank.segments)]:
            path, entry = bundle / file, manifest.files.get(file)
            if not path.is_file():
                raise BundleError("a file of the bundle is missing", where=str(path), remedy=_REBUILD)
            if entry is not None and path.stat().st_size != entry.bytes:
                raise BundleError(
                    f"a file of the bundle has {path.stat().st_size} bytes instead of {entry.bytes}",
                    where=str(path),
                    remedy=_REBUILD,
                )
    return lowering
