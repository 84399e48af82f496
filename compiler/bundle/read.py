"""A bundle from the outside: is it one, is it whole, is it what the manifest says."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from mm2c.bundle.checksums import sha256_of
from mm2c.errors import UserError
from mm2c_runtime.manifest import FORMAT, Manifest

REMEDY = "build it again with `mm2c build … --force`"


def read_manifest(bundle: Path) -> Manifest:
    """Raises UserError where ``bundle`` is no bundle, or one of another format."""
    path = bundle / "manifest.json"
    if not path.is_file():
        raise UserError(
            "this is no mm2c bundle: it has no manifest.json",
            where=str(bundle),
            remedy="pass the folder that `mm2c build` wrote (its -o)",
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw.get("format") != FORMAT:
            raise UserError(
                f"the bundle has format {raw.get('format')}, this mm2c reads {FORMAT}", where=str(path), remedy=REMEDY
            )
        return Manifest.model_validate(raw)
    except (ValueError, ValidationError, AttributeError) as error:
        raise UserError("the manifest cannot be read", where=f"{path}: {error}", remedy=REMEDY) from error


def read_bundle(bundle: Path, *, checksums: bool = True) -> Manifest:
    """The manifest, after every file was compared with it: size always, sha256 where ``checksums``."""
    manifest = read_manifest(bundle)
    for name, entry in manifest.files.items():
        path = bundle / name
        if not path.is_file():
            raise UserError("a file of the bundle is missing", where=str(path), remedy=REMEDY)
        size = path.stat().st_size
        if size != entry.bytes:
            raise UserError(
                f"a file of the bundle was altered: {size} bytes, the manifest says {entry.bytes}",
                where=str(path),
                remedy=REMEDY,
            )
        if checksums and sha256_of(path) != entry.sha256:
            raise UserError("a file of the bundle was altered: its sha256 differs", where=str(path), remedy=REMEDY)
    return manifest
