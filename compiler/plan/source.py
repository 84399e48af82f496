"""Of which model a plan is: a checkpoint's folder, a config.json, a hub id, or a family member's name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mm2c.checkpoint import Checkpoint, assumed_formats, locate_config, read_config
from mm2c.checkpoint.convert import converted_formats
from mm2c.checkpoint.family import with_family_note
from mm2c.config import ModelConfig, WeightFormats, WeightTarget
from mm2c.progress import Progress


@dataclass(frozen=True)
class Source:
    """``given``: as the user named it, CHECKPOINT where there are no weights to build of; ``formats``: of the
    weights as they will be served; ``stored``: as the checkpoint has them, or would."""

    given: str
    title: str
    config: ModelConfig
    formats: WeightFormats
    stored: WeightFormats
    notes: tuple[str, ...]


def read_source(
    source: str | None,
    *,
    revision: str | None = None,
    target: WeightTarget = "stored",
    progress: Progress | None = None,
) -> Source:
    """Formats are read off the tensors where the shards are there, else taken as config.json says.

    Raises UserError where nothing is there, or it is no model that mm2c compiles.
    """
    found = locate_config(source, revision=revision, progress=progress)
    weights = found.config.name == "config.json" and any(found.folder.glob("*.safetensors"))
    if weights:
        with Checkpoint.open(found.folder) as checkpoint:
            config, stored, notes = checkpoint.config, checkpoint.formats, checkpoint.notes
    else:
        parsed = read_config(found.config)
        config, notes = parsed.model, parsed.notes
        stored = assumed_formats(config, parsed.quant)
        notes = (*notes, "formats of the weights as config.json says: no weights are there")
    notes = with_family_note(notes, config, found.folder)
    title = found.source if found.revision or not Path(found.source).exists() else str(found.config.resolve())
    return Source(
        (source or ".") if weights else "CHECKPOINT",
        title,
        config,
        converted_formats(config, stored, target),
        stored,
        notes,
    )
