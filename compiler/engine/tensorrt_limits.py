"""What the TensorRT engines cannot build, said before any work."""

from __future__ import annotations

from mm2c.config import BuildOptions, ModelConfig, WeightFormats
from mm2c.engine.cuda_limits import check_cuda
from mm2c.errors import UserError
from mm2c.passes.edit import whole_block

BLOCK = 128  # side of a released scale block


def check_tensorrt(config: ModelConfig, formats: WeightFormats, options: BuildOptions) -> None:
    """Refuse a model, layout or option that the engine of ``options`` has no graph for.

    Raises:
        UserError: saying what else can be done.
    """
    check_request(options)
    if options.engine == "tensorrt":
        check_cuda(config, options.mapping)
    else:
        _check_blocks(config, formats, options)


def check_request(options: BuildOptions) -> None:
    """The same of what is asked for alone, whatever the model is."""
    engine, mapping = options.engine, options.mapping
    if mapping.attention_dp > 1:
        raise UserError(
            f"the {engine} engine has no attention-DP (--ep {mapping.ep} above --tp {mapping.tp})",
            where="--ep",
            remedy="--engine cuda has it; or an --ep that divides --tp",
        )
    if options.weights == "checkpoint":
        raise UserError(
            f"the {engine} engine reads its weights from the bundle",
            where="--weights checkpoint",
            remedy="--weights copy (the default); the engines cuda and onnxruntime read the checkpoint",
        )
    if options.layers_per_plan < 0:
        raise UserError(
            f"a plan of {options.layers_per_plan} decoder layers cannot be",
            where="--layers-per-plan",
            remedy="a number of layers, or 0 for all of them in one plan",
        )


def _check_blocks(config: ModelConfig, formats: WeightFormats, options: BuildOptions) -> None:
    """TensorRT dequantises whole blocks: every width of an FP8 weight must be a multiple of its blocks' side."""
    mapping = options.mapping
    inner = config.intermediate // mapping.moe_tp
    widths = {
        "hidden size": (config.hidden, BLOCK, ("experts", "q_proj", "k_proj", "v_proj", "o_proj")),
        "a rank's query width": (
            config.q_width // mapping.tp,
            _side(config.q_width, mapping.tp),
            ("q_proj", "o_proj"),
        ),
        "a rank's key and value width": (
            mapping.kv_heads_of_rank(config.kv_heads) * config.head_dim,
            _side(config.kv_width, min(mapping.tp, config.kv_heads)),
            ("k_proj", "v_proj"),
        ),
        "a rank's expert intermediate": (inner, _side(config.intermediate, mapping.moe_tp), ("experts",)),
    }
    quantised = {name.rpartition(".")[2] for name in formats.fp8}
    for what, (width, side, modules) in widths.items():
        if quantised.intersection(modules) and width % side:
            raise UserError(
                f"{what} of {width} is no multiple of the {side} elements of a scale block: TensorRT dequantises whole "
                "blocks alone",
                where="config.json, --tp and --ep",
                remedy="another --tp, --bf16, or --engine onnxruntime",
            )


def _side(size: int, parts: int) -> int:
    return whole_block(BLOCK, size // parts, size)
