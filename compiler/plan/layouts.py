"""The layouts that a number of GPUs allows, which of them a model allows, and those nearest to one that it does not."""

from __future__ import annotations

import math
from collections.abc import Iterator

from mm2c.config import Mapping, ModelConfig, WeightFormats
from mm2c.errors import UserError

NEAREST = 3  # layouts that are suggested
MOST_GPUS = 64  # that a layout is looked for on


def layouts(gpus: int, *, tp: int = 0, ep: int = 0, dp: int = 0) -> Iterator[Mapping]:
    """Every cut over ``gpus`` GPUs, of the given sizes where they are not 0."""
    for ranks in _divisors(gpus):
        groups = gpus // ranks
        if tp in (0, ranks) and dp in (0, groups):
            shared = [ranks * count for count in _divisors(groups) if count > 1]
            yield from (
                Mapping(ranks, size, groups) for size in [*_divisors(ranks), *shared] if ep in (0, size)
            )


def fault_of(config: ModelConfig, formats: WeightFormats, mapping: Mapping) -> UserError | None:
    """Why neither the model nor the cuda engine's kernels allow a cut; None where they do."""
    from mm2c.engine.cuda_limits import check_cuda
    from mm2c.passes.legality import check_mapping

    try:
        check_mapping(config, formats, mapping)
        check_cuda(config, mapping)
    except UserError as error:
        return error
    return None


def legal(config: ModelConfig, formats: WeightFormats, gpus: int) -> list[Mapping]:
    return [mapping for mapping in layouts(gpus) if fault_of(config, formats, mapping) is None]


def nearest(config: ModelConfig, formats: WeightFormats, wanted: Mapping) -> list[Mapping]:
    """Legal layouts like ``wanted``: on as many GPUs if there are any, else on the next numbers of them."""
    for gpus in sorted(range(1, MOST_GPUS + 1), key=lambda count: (abs(count - wanted.gpus), count)):
        if found := legal(config, formats, gpus):
            return sorted(found, key=lambda mapping: _distance(mapping, wanted))[:NEAREST]
    return []


def name(mapping: Mapping) -> str:
    """``tp 4, ep 4, dp 2``, sizes of 1 left out; one GPU is ``tp 1``."""
    parts = [f"tp {mapping.tp}"]
    parts += [f"{kind} {size}" for kind, size in (("ep", mapping.ep), ("dp", mapping.dp)) if size > 1]
    return ", ".join(parts)


def flags(mapping: Mapping) -> str:
    """``--tp 4 --ep 4 --dp 2``."""
    return " ".join(f"--{part}" for part in name(mapping).split(", "))


def words(mapping: Mapping) -> str:
    """What the layout does, in a phrase."""
    if mapping.attention_dp > 1:
        whole = "whole attention weights" if mapping.tp == 1 else f"attention cut over {mapping.tp}"
        kind = (
            f"attention-DP: {mapping.attention_dp} groups with requests of their own, {whole}, experts shared"
        )
    elif mapping.tp == 1:
        kind = "one GPU holds everything"
    else:
        experts = (
            "each expert cut over all"
            if mapping.ep == 1
            else "whole experts spread"
            if mapping.moe_tp == 1
            else f"experts spread over {mapping.ep} groups, each cut over {mapping.moe_tp}"
        )
        kind = f"attention cut over {mapping.tp}, {experts}"
    return f"{mapping.replicas} replicas of: {kind}" if mapping.replicas > 1 else kind


def _divisors(count: int) -> list[int]:
    return [size for size in range(1, count + 1) if count % size == 0]


def _distance(mapping: Mapping, wanted: Mapping) -> float:
    """Octaves between the sizes; the number of ranks that cut the attention counts most."""
    weights = (2.0, 1.0, 1.0)
    pairs = ((mapping.tp, wanted.tp), (mapping.ep, wanted.ep), (mapping.dp, wanted.dp))
    return sum(w * abs(math.log2(a / max(b, 1))) for w, (a, b) in zip(weights, pairs, strict=True))
