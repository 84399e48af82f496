"""What there is to say of an engine before anything is built for it: the GPUs that it knows, and what suits it."""

from __future__ import annotations

from mm2c.config import Engine, WeightFormats
from mm2c.errors import UserError
from mm2c.plan.ask import Ask
from mm2c.plan.gpus import Gpu
from mm2c.plan.scratch import GATHERED_TOKENS

PLANNED: tuple[Engine, ...] = ("cuda", "tensorrt-rtx", "tensorrt")  # engines on GPUs


def gpu_note(gpu: Gpu, engine: Engine, formats: WeightFormats) -> str:
    """Why ``engine`` cannot serve on ``gpu``, and which can; nothing where it can."""
    if engine != "tensorrt-rtx" or not gpu.sm:
        return gpu.engine_note
    from mm2c.engine.tensorrt.targets import resolve_target

    try:
        resolve_target(engine, f"sm{gpu.sm}", fp8=bool(formats.fp8))
    except UserError as error:
        return (
            f"{error.what}: the sizes hold, the plans would not be built; {error.remedy.rpartition('; ')[0]}"
        )
    return ""


def engine_notes(ask: Ask) -> tuple[str, ...]:
    """What to know of the engine that was asked for, a sentence or two each."""
    if ask.engine == "tensorrt":
        return (
            "the tensorrt engine's plans are built on the machine that serves: --defer-plan prepares a bundle here, "
            "`mm2c build --finish BUNDLE` builds them there. What TensorRT itself takes of a step is known then; "
            "planned is what our plugins need",
        )
    if ask.engine != "tensorrt-rtx":
        return ()
    return (
        f"TensorRT-RTX has no plugins: a step of more than {GATHERED_TOKENS} rows, and every prefill, brings all "
        "experts of a layer into bf16 before it uses them. It suits small batches; on the same GPUs --engine cuda is "
        "the fast path",
        "every row has cache for the whole context from the start: --context and the rows decide how much",
    )
