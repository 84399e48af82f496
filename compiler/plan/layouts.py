"""The layouts that a number of GPUs allows, and why a model does not allow one of them."""

from __future__ import annotations

from collections.abc import Iterator

from mm2c.config import BuildOptions, Engine, Mapping, ModelConfig, WeightFormats
from mm2c.errors import UserError

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


def fault_of(
    config: ModelConfig,
    mapping: Mapping,
    engine: Engine = "cuda",
    formats: WeightFormats | None = None,
) -> UserError | None:
    """Why the model or what ``engine`` has kernels for do not allow a cut; None where they do. ``formats``: of the
    weights, which TensorRT cuts by whole blocks."""
    from mm2c.engine.cuda_limits import check_cuda
    from mm2c.engine.tensorrt_limits import check_tensorrt
    from mm2c.passes.legality import check_mapping

    try:
        check_mapping(config, mapping)
        if engine == "cuda":
            check_cuda(config, mapping)
        else:
            check_tensorrt(config, formats or WeightFormats(), BuildOptions(mapping, engine))
    except UserError as error:
        return error
    return None


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
