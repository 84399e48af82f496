"""``report/proofs.json``: what was proved of every kind of weight file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from mm2c.config import Mapping as RankMapping
from mm2c.config import ModelConfig
from mm2c.proofs.prove import Proof, prove
from mm2c_runtime.weights.recipe import Recipe

PROOFS = "report/proofs.json"


def write_proofs(
    stage: Path,
    files: Mapping[str, Mapping[str, Recipe]],
    full: Mapping[str, Recipe],
    config: ModelConfig,
    mapping: RankMapping,
) -> dict[str, Proof]:
    """Prove the recipes of all weight files, given by their paths in the bundle (``rank3/weights.safetensors``), and
    write the report; ``full`` are those of the uncut model.

    Raises:
        ProofError: see ``prove``.
    """
    kinds: dict[str, dict[int, Mapping[str, Recipe]]] = {}
    for path, recipes in files.items():
        rank = int(Path(path).parent.name.removeprefix("rank"))
        kinds.setdefault(Path(path).name, {})[rank] = recipes
    proofs = {
        kind: prove([ranks[rank] for rank in sorted(ranks)], full, config, mapping)
        for kind, ranks in kinds.items()
    }
    written = stage / PROOFS
    written.parent.mkdir(exist_ok=True)
    report = {kind: proof.as_json() for kind, proof in proofs.items()}
    written.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return proofs
