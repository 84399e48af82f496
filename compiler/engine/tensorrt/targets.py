"""``--target``: the GPUs that TensorRT-RTX builds plans for, and what to use for the others."""

from __future__ import annotations

import re

from mm2c.engine.select import Gpu, find_gpu
from mm2c.errors import UserError

# Compute capabilities that the library takes for graphs in bf16; those of FP8_TARGETS for graphs with FP8 weights too.
# (It also has 7.5, which has no bf16.) A plan without a capability would be for GPUs from 8.0 on and be accepted for
# FP8 all the same; with all of them named a plan says what it is for, and other GPUs are refused when it is loaded.
TARGETS = ("8.0", "8.6", "8.9", "12.0", "12.1")
FP8_TARGETS = ("8.9", "12.0", "12.1")
PORTABLE = "portable"
ELSEWHERE = {
    "7.5": "Turing has no bf16",
    "8.7": "TensorRT-RTX does not build for Orin",
    "9.0": "TensorRT-RTX does not build for Hopper (H100, H200)",
    "10.0": "TensorRT-RTX does not build for datacenter Blackwell (B200)",
    "10.3": "TensorRT-RTX does not build for datacenter Blackwell (B300)",
    "11.0": "TensorRT-RTX does not build for Thor",
}
_NAME = re.compile(r"^(?:sm_?)?(\d+)\.?(\d)$", re.IGNORECASE)


def resolve_target(engine: str, asked: str | None, *, fp8: bool, gpu: Gpu | None = None) -> tuple[str, ...]:
    """The compute capabilities to build for, as ("12.0",).

    ``asked``: "sm120", "12.0", several with commas, or "portable": every one that has the model's data types; None:
    that of this machine's GPU, else portable. ``fp8``: whether there are FP8 weights. ``gpu``: this machine's; looked
    for where it is needed. Empty for the tensorrt engine: it builds for the GPU that it measures on.

    Raises:
        UserError: no target is called so, or the library does not build for it.
    """
    if engine == "tensorrt":
        if asked is not None:
            raise UserError(
                "the tensorrt engine builds for the GPU that it runs on, no other",
                where=f"--target {asked}",
                remedy="leave --target out; --defer-plan prepares a bundle here whose plans --finish builds there",
            )
        return ()
    known = FP8_TARGETS if fp8 else TARGETS
    if asked is None:
        gpu = gpu or find_gpu()
        if gpu is None or not gpu.capability:
            return known
        if gpu.capability not in known:
            raise _refused(gpu.capability, known, f"{gpu.name}, the GPU of this machine")
        return (gpu.capability,)
    if asked.strip().lower() == PORTABLE:
        return known
    return tuple(sorted({_capability(part, known, asked) for part in asked.split(",")}, key=_order))


def target_name(target: tuple[str, ...]) -> str:
    """For people: "sm120", "sm89, sm120"."""
    return ", ".join(f"sm{one.replace('.', '')}" for one in target) or "this machine's GPU"


def _capability(text: str, known: tuple[str, ...], asked: str) -> str:
    found = _NAME.match(text.strip())
    if found is None:
        raise UserError(
            f"no target is called '{text.strip()}'",
            where=f"--target {asked}",
            remedy=f"one of: {', '.join(map(_short, known))}, {PORTABLE}; or several with commas",
        )
    capability = f"{found[1]}.{found[2]}"
    if capability not in known:
        raise _refused(capability, known, f"--target {asked}")
    return capability


def _refused(capability: str, known: tuple[str, ...], where: str) -> UserError:
    if capability in TARGETS:
        why = f"compute capability {capability} has no FP8, which the model's weights are in"
        other = "--bf16 stores them in bf16; "
    else:
        why = ELSEWHERE.get(capability, f"TensorRT-RTX does not build for compute capability {capability}")
        other = "" if capability == "7.5" else _other(capability)
    return UserError(
        f"no plan for {_short(capability)}: {why}",
        where=where,
        remedy=f"{other}--target {', '.join(map(_short, known))} or {PORTABLE}",
    )


def _other(capability: str) -> str:
    """The engines that have kernels for what TensorRT-RTX lacks."""
    if int(capability.partition(".")[0]) < 8:
        return "--engine onnxruntime; "
    return "--engine tensorrt builds for it on its own machine, --engine cuda runs there too; "


def _short(capability: str) -> str:
    return f"sm{capability.replace('.', '')}"


def _order(capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in capability.split("."))
