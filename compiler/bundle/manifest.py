"""The last file of a bundle: what it holds, with the sha256 of everything else."""

from __future__ import annotations

from pathlib import Path

from mm2c.bundle.checksums import entries
from mm2c.bundle.keys import libraries
from mm2c.config import BuildOptions, ModelConfig
from mm2c.engine.tensorrt.library import MODULES
from mm2c.graphs import Graphs
from mm2c.version import __version__
from mm2c.weights.journal import JOURNAL
from mm2c_runtime.manifest import CheckpointInfo, Limits, Manifest, MappingInfo, ModelInfo


def write_manifest(
    stage: Path,
    config: ModelConfig,
    options: BuildOptions,
    graphs: Graphs | None,
    source: CheckpointInfo | None,
    key: str,
    known: dict[str, str],
) -> Manifest:
    """Write ``stage/manifest.json``. ``graphs`` None: there are no programs, only graphs to read. ``known``: sha256
    of files that were hashed while they were written."""
    manifest = Manifest(
        mm2c_version=__version__,
        build_key=key,
        engine=options.engine,
        model=model_info(config),
        mapping=MappingInfo(tp=options.mapping.tp, ep=options.mapping.ep, dp=options.mapping.dp),
        limits=Limits(
            context=options.context, max_rows=options.max_rows, prefill_chunk=options.prefill_chunk
        ),
        logits="all" if options.all_logits else "last",
        weights=options.weights,
        weight_format=options.format,
        checkpoint=source,
        lowerings=graphs.lowerings if graphs else {},
        cuda=graphs.cuda if graphs else None,
        tensorrt=graphs.tensorrt if graphs else None,
        libraries={**libraries(), **_own_libraries(options, graphs)},
        files=entries(stage, known, without=frozenset({JOURNAL})),
    ).sealed()
    (stage / "manifest.json").write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    return manifest


def _own_libraries(options: BuildOptions, graphs: Graphs | None) -> dict[str, str]:
    """Versions of the plugin library in the bundle, and of what built its plans."""
    found = {}
    if graphs and graphs.cuda:
        found["mm2c_plugins"] = graphs.cuda.version
    if graphs and graphs.tensorrt and graphs.tensorrt.plugins:
        found["mm2c_plugins"] = graphs.tensorrt.plugins.version
    if graphs and graphs.tensorrt and graphs.tensorrt.version:
        found[MODULES[options.engine]] = graphs.tensorrt.version
    return found


def model_info(config: ModelConfig) -> ModelInfo:
    return ModelInfo(
        name=config.name,
        layers=config.layers,
        hidden=config.hidden,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        rotary_dim=config.rope.rotary_dim,
        experts=config.experts,
        top_k=config.top_k,
        intermediate=config.intermediate,
        vocab=config.vocab,
        context=config.context,
        bos=config.bos,
        eos=list(config.eos),
    )
