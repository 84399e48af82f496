"""Which cuts a model allows. Checked before any work, so that an illegal --tp costs a second, not an hour."""

from __future__ import annotations

from mm2c.config import BLOCK, Mapping, ModelConfig, WeightFormats
from mm2c.errors import UserError
from mm2c.weights.rank_graph import RankGraph

_WIDEST = 64  # the largest --tp and --ep that are suggested


def check_mapping(config: ModelConfig, formats: WeightFormats, mapping: Mapping) -> None:
    """Refuse a cut that is not exact for this model.

    Raises:
        UserError: ``tp`` does not divide query or KV heads, or cuts an FP8 scale block of an attention
            projection; ``ep`` does not divide ``tp`` or the experts; or a rank's slice of the expert
            intermediate is not whole scale blocks. The remedy lists the legal values.
    """
    if mapping.tp < 1 or mapping.ep < 1:
        raise UserError(
            f"--tp {mapping.tp} --ep {mapping.ep}: both must be at least 1",
            where="--tp, --ep",
            remedy="--tp 1 --ep 1",
        )
    if not 0 <= mapping.rank < mapping.tp:
        raise UserError(f"rank {mapping.rank} is outside the {mapping.tp} ranks of --tp {mapping.tp}")
    fault = _head_fault(config, formats, mapping.tp)
    if fault:
        raise UserError(f"--tp {mapping.tp}: {fault}", where="--tp", remedy=_legal_tps(config, formats))
    fault = _expert_fault(config, formats, mapping.tp, mapping.ep)
    if fault:
        eps = _eps(config, formats, mapping.tp)
        if eps:
            remedy = f"legal values of --ep with --tp {mapping.tp}: {_listed(eps)}"
        else:
            remedy = _legal_tps(config, formats)
        raise UserError(f"--tp {mapping.tp} --ep {mapping.ep}: {fault}", where="--tp, --ep", remedy=remedy)


def stored_formats(graph: RankGraph) -> WeightFormats:
    """The FP8 modules of a graph, read from its recipes."""
    fp8 = frozenset(
        name.removesuffix(".weight").removesuffix(".gate_up_proj").removesuffix(".down_proj")
        for name, recipe in graph.recipes.items()
        if recipe.dtype == "e4m3"
    )
    return WeightFormats(fp8=fp8)


def _head_fault(config: ModelConfig, formats: WeightFormats, tp: int) -> str:
    if config.heads % tp:
        return f"it does not divide the model's {config.heads} query heads"
    if config.kv_heads % tp:
        return f"it does not divide the model's {config.kv_heads} KV heads"
    if (tp - 1) * -(-config.vocab // tp) >= config.vocab:
        return f"the last rank would hold nothing of a vocabulary of {config.vocab}"
    fp8 = any(".self_attn." in module for module in formats.fp8)
    for heads, kind in ((config.heads, "query"), (config.kv_heads, "KV")):
        width = heads // tp * config.head_dim
        if tp > 1 and fp8 and width % BLOCK:
            return f"a rank's {kind} width {width} is not a multiple of the FP8 scale block {BLOCK}"
    return ""


def _expert_fault(config: ModelConfig, formats: WeightFormats, tp: int, ep: int) -> str:
    if tp % ep:
        return f"--ep must divide --tp {tp}"
    if config.experts % ep:
        return f"--ep does not divide the model's {config.experts} experts"
    cut = tp // ep
    if config.intermediate % cut:
        return f"{cut} ranks a group do not divide the expert intermediate {config.intermediate}"
    width = config.intermediate // cut
    fp8 = any(module.endswith(".experts") for module in formats.fp8)
    if cut > 1 and fp8 and width % BLOCK:
        return f"a rank's slice {width} of the expert intermediate cuts an FP8 scale block of {BLOCK}"
    return ""


def _eps(config: ModelConfig, formats: WeightFormats, tp: int) -> list[int]:
    return [ep for ep in range(1, tp + 1) if not _expert_fault(config, formats, tp, ep)]


def _legal_tps(config: ModelConfig, formats: WeightFormats) -> str:
    """``legal values of --tp: 1, 2, 4, 8 (8 only with --ep 2, 4 or 8)``."""
    legal = {
        tp: _eps(config, formats, tp) for tp in range(1, _WIDEST + 1) if not _head_fault(config, formats, tp)
    }
    legal = {tp: eps for tp, eps in legal.items() if eps}
    bound = [f"{tp} only with --ep {_listed(eps, 'or')}" for tp, eps in legal.items() if 1 not in eps]
    return f"legal values of --tp: {_listed(list(legal))}" + (f" ({'; '.join(bound)})" if bound else "")


def _listed(values: list[int], last: str = "") -> str:
    words = [str(value) for value in values]
    if last and len(words) > 1:
        words[-2:] = [f"{words[-2]} {last} {words[-1]}"]
    return ", ".join(words)
