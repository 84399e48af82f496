"""Which cuts a model allows. Checked before any work, so that an illegal --tp costs a second, not an hour."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from mm2c.config import Mapping, ModelConfig
from mm2c.errors import UserError

_WIDEST = 512  # GPUs of the largest layout that is suggested
_NAMED = 4  # layouts that a refusal names


def check_mapping(config: ModelConfig, mapping: Mapping) -> None:
    """Refuse a cut that is not exact for this model.

    Raises:
        UserError: saying which size it does not divide; the remedy names the nearest layouts that it allows.
    """
    asked = layout(mapping)
    if mapping.tp < 1 or mapping.ep < 1 or mapping.dp < 1:
        raise UserError(
            f"{asked}: all of them must be at least 1",
            where="--tp, --ep, --dp",
            remedy="--tp 1 --ep 1 --dp 1",
        )
    fault = mapping_fault(config, mapping)
    if fault:
        where, what = fault
        near = ", or ".join(layout(other) for other in nearest(config, mapping))
        raise UserError(f"{asked}: {what}", where=where, remedy=f"the nearest layouts that can: {near}")
    if not 0 <= mapping.rank < mapping.ranks:
        raise UserError(f"rank {mapping.rank} is outside the {mapping.ranks} ranks of {asked}")


def mapping_fault(config: ModelConfig, mapping: Mapping) -> tuple[str, str] | None:
    """(the flags at fault, why) of a layout that this model does not allow, None for one that it does."""
    tp, ep, dp = mapping.tp, mapping.ep, mapping.dp
    if config.heads % tp:
        return "--tp", f"tp {tp} does not divide the model's {config.heads} query heads"
    if config.kv_heads % tp and tp % config.kv_heads:
        return (
            "--tp",
            f"tp {tp} neither divides the model's {config.kv_heads} KV heads nor is a multiple of them",
        )
    if (tp - 1) * -(-config.vocab // tp) >= config.vocab:
        return "--tp", f"the last rank would hold nothing of a vocabulary of {config.vocab}"
    if config.experts % ep:
        return "--ep", f"ep {ep} does not divide the model's {config.experts} experts"
    if ep <= tp and tp % ep:
        return "--tp, --ep", f"ep {ep} does not divide tp {tp}"
    if ep > tp and (ep % tp or (tp * dp) % ep):
        return "--tp, --ep, --dp", (
            f"ep {ep} above tp {tp} is attention-DP: it must be a multiple of tp that divides tp x dp, "
            f"which is {tp * dp}"
        )
    if config.intermediate % mapping.moe_tp:
        return "--tp, --ep", (
            f"the {mapping.moe_tp} ranks that share an expert do not divide its width of {config.intermediate}"
        )
    return None


def nearest(
    config: ModelConfig, mapping: Mapping, takes: Callable[[Mapping], bool] = lambda mapping: True
) -> list[Mapping]:
    """A few legal layouts that ``takes`` says yes to, the nearest first: alike in the number of GPUs, tp, ep and dp.
    Where tp itself is at fault, each with another tp or dp. ``takes`` is asked of near ones first, of no more than are
    needed."""
    asked = mapping.gpus
    fault = mapping_fault(config, mapping)
    apart = fault is not None and fault[0] == "--tp"

    def distance(other: Mapping) -> tuple[float, ...]:
        pairs = (other.tp, mapping.tp), (other.ep, mapping.ep), (other.dp, mapping.dp)
        unlike = sum(abs(math.log2(found / wanted)) for found, wanted in pairs)
        return (unlike + 2 * abs(other.gpus - asked) / asked, other.tp, other.ep)

    some = _layouts(config, min(_WIDEST, 2 * asked))
    legal = (m for m in some if mapping_fault(config, m) is None)
    found: dict[tuple[int, ...], Mapping] = {}
    for other in sorted(legal, key=distance):
        kind = (other.tp, other.dp) if apart else (other.tp, other.dp, other.ep)
        if kind not in found and takes(other):
            found[kind] = other
            if len(found) == _NAMED:
                break
    return list(found.values())


def layout(mapping: Mapping) -> str:
    """``--tp 4 --ep 4 --dp 2``; --dp only where there is more than one."""
    text = f"--tp {mapping.tp} --ep {mapping.ep}"
    return text + (f" --dp {mapping.dp}" if mapping.dp != 1 else "")


def _layouts(config: ModelConfig, gpus: int) -> Iterator[Mapping]:
    """Those on at most so many GPUs whose experts can be dealt out."""
    eps = [ep for ep in range(1, min(gpus, config.experts) + 1) if config.experts % ep == 0]
    for tp in range(1, min(gpus, config.heads) + 1):
        for dp in range(1, gpus // tp + 1):
            for ep in eps:
                if ep <= tp * dp:
                    yield Mapping(tp, ep, dp)
