"""``manifest.json`` as a file, and the bundle around it: is it one, is it whole, is it what the manifest says."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from mm2c_runtime.checksums import check_contents, check_sizes
from mm2c_runtime.errors import BundleError
from mm2c_runtime.manifest import FORMAT, Manifest

_REBUILD = "build the bundle again with `mm2c build … --force`"


def read_manifest(folder: Path) -> Manifest:
    """The bundle's manifest. Raises BundleError where it is missing, damaged, or of another format."""
    path = folder / "manifest.json"
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise BundleError(
            f"no bundle here: manifest.json cannot be read ({error.strerror})",
            where=str(folder),
            remedy="give the folder that `mm2c build -o` wrote",
        ) from None
    except ValueError as error:
        raise BundleError(
            f"manifest.json is not valid JSON: {error}", where=str(path), remedy=_REBUILD
        ) from None
    if isinstance(content, dict) and content.get("format") != FORMAT:
        raise BundleError(
            f"the bundle has format {content.get('format')}, this runtime reads format {FORMAT}",
            where=str(path),
            remedy="build it again with the mm2c that serves it",
        )
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise BundleError(
            f"manifest.json: {place}: {first['msg']}", where=str(path), remedy=_REBUILD
        ) from None
    if not manifest.is_intact():
        raise BundleError("manifest.json was altered after the build", where=str(path), remedy=_REBUILD)
    return manifest


def read_bundle(folder: Path, *, checksums: bool = True) -> Manifest:
    """The manifest, after every file was compared with it: its size, and where ``checksums`` its sha256.

    Raises BundleError naming the first file that is missing or was altered.
    """
    manifest = read_manifest(folder)
    (check_contents if checksums else check_sizes)(folder, manifest.files)
    return manifest
