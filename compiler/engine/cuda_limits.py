"""Which models the cuda engine's kernels compute. Checked before any work, with what was found and what is known."""

from __future__ import annotations

from mm2c.config import Mapping, ModelConfig
from mm2c.errors import UserError
from mm2c.passes.legality import layout, nearest

HEAD_DIM, ROTARY_DIM = 128, 64
WIDTH = 64  # hidden and intermediate widths are multiples of it
GROUP = 16  # query heads that share a KV head, at most
EXPERTS, TOP_K = 256, 16


def check_cuda(config: ModelConfig, mapping: Mapping) -> None:
    """Refuse a model, or a cut of it, that the kernels do not compute.

    Raises:
        UserError: naming every such size.
    """
    if min(mapping.tp, mapping.ep) < 1 or mapping.tp > config.heads:
        return  # no cut at all: ``check_mapping`` says so
    inner = config.intermediate // mapping.moe_tp
    group = config.heads // mapping.tp // mapping.kv_heads_of_rank(config.kv_heads)
    faults = [
        text
        for wrong, text in (
            (config.head_dim != HEAD_DIM, f"head_dim {config.head_dim} (the kernels have {HEAD_DIM})"),
            (
                config.rope.rotary_dim != ROTARY_DIM,
                f"rotary_dim {config.rope.rotary_dim} (the kernels have {ROTARY_DIM})",
            ),
            (config.hidden % WIDTH, f"hidden size {config.hidden} (multiples of {WIDTH})"),
            (inner % WIDTH, f"a rank's expert intermediate of {inner} (multiples of {WIDTH})"),
            (
                group > GROUP,
                f"{config.heads} query heads on {config.kv_heads} KV heads (at most {GROUP} share one)",
            ),
            (config.experts > EXPERTS, f"{config.experts} experts (at most {EXPERTS})"),
            (config.top_k > TOP_K, f"{config.top_k} experts a token (at most {TOP_K})"),
        )
        if wrong
    ]
    if faults:
        remedy = "--engine onnxruntime computes it on the CPU"
        if len(faults) == 1 and inner % WIDTH:
            near = nearest(config, mapping, lambda other: not config.intermediate // other.moe_tp % WIDTH)
            remedy += f"; layouts that the kernels compute: {', or '.join(map(layout, near))}" if near else ""
        raise UserError(
            f"the cuda engine has no kernels for {'; '.join(faults)}",
            where="config.json, --tp and --ep" if inner % WIDTH else "config.json",
            remedy=remedy,
        )
