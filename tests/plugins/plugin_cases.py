"""Every plugin with attributes and inputs that it takes, and launches as names and values."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import mm2c_plugins
from mm2c_plugins.host import Launch, Library, Op, TensorArg, TensorSpec

KERNELS = Path(mm2c_plugins.__file__).parent / "kernels"

# compute capability → whose kernels it runs
DEVICES = {80: 80, 86: 80, 89: 89, 90: 90, 100: 100, 120: 120}
UNSUPPORTED = [75, 103, 121]

HIDDEN, WIDTH, EXPERTS, TOP_K = 256, 128, 16, 4
HEADS, KV_HEADS, PAGE, PAGES, CONTEXT = 8, 2, 64, 40, 1024
BLOCK = {"block_n": 128, "block_k": 128}


class Case(NamedTuple):
    """A plugin's attributes and, for a number of tokens, its inputs and what its outputs must be."""

    attributes: dict[str, Any]
    inputs: Callable[[Any], list[TensorSpec]]
    outputs: Callable[[Any], list[TensorSpec]]


def bf16(*shape: Any) -> TensorSpec:
    return TensorSpec("bf16", shape)


def f32(*shape: Any) -> TensorSpec:
    return TensorSpec("f32", shape)


def i32(*shape: Any) -> TensorSpec:
    return TensorSpec("i32", shape)


def e4m3(*shape: Any) -> TensorSpec:
    return TensorSpec("e4m3", shape)


FP8_EXPERTS = [
    e4m3(EXPERTS, 2 * WIDTH, HIDDEN),
    f32(EXPERTS, 2, 2),
    e4m3(EXPERTS, HIDDEN, WIDTH),
    f32(EXPERTS, 2, 1),
]
BF16_EXPERTS = [bf16(EXPERTS, 2 * WIDTH, HIDDEN), bf16(EXPERTS, HIDDEN, WIDTH)]
ATTENTION = {
    "heads": HEADS,
    "kv_heads": KV_HEADS,
    "head_dim": 128,
    "rotary_dim": 64,
    "eps": 1e-6,
    "scale": 0.088,
    "q_total": HEADS * 128,
    "k_total": KV_HEADS * 128,
}
STRIDES = {"q_stride": 0, "k_stride": 0, "v_stride": 0}


def attention_inputs(rows: Any, steps: Any, cache: TensorSpec | None = None) -> list[TensorSpec]:
    """Inputs of M2PagedAttention for ``rows`` rows of ``steps`` queries."""
    cache = cache or bf16(PAGES, PAGE, KV_HEADS, 128)
    q, k = HEADS * 128, KV_HEADS * 128
    queries = [bf16(rows, steps, q), bf16(rows, steps, k), bf16(rows, steps, k), f32(rows, steps, 2)]
    tables = [bf16(q), bf16(k), f32(CONTEXT, 32), f32(CONTEXT, 32)]
    return [*queries, *tables, i32(rows), i32(rows), i32(rows, CONTEXT // PAGE), cache, cache]


def attention_outputs(rows: Any, steps: Any, cache: TensorSpec | None = None) -> list[TensorSpec]:
    cache = cache or bf16(PAGES, PAGE, KV_HEADS, 128)
    return [bf16(rows, steps, HEADS * 128), cache, cache]


CASES: dict[str, Case] = {
    "M2Fp8Linear": Case(
        BLOCK, lambda t: [bf16(t, HIDDEN), e4m3(384, HIDDEN), f32(3, 2)], lambda t: [bf16(t, 384)]
    ),
    "M2QkSumSquares": Case(
        {"q_stride": 0, "k_stride": 0}, lambda t: [bf16(t, 1, 768), bf16(t, 1, 128)], lambda t: [f32(t, 1, 2)]
    ),
    "M2PagedAttention": Case(
        {**ATTENTION, **STRIDES}, lambda t: attention_inputs(t, 1), lambda t: attention_outputs(t, 1)
    ),
    "M2MoeRouting": Case(
        {"top_k": TOP_K},
        lambda t: [f32(t, EXPERTS), f32(EXPERTS)],
        lambda t: [f32(t, TOP_K), i32(t, TOP_K)],
    ),
    "M2MoeExpertsFp8": Case(
        {"first_expert": 0, **BLOCK},
        lambda t: [bf16(t, HIDDEN), f32(t, TOP_K), i32(t, TOP_K), *FP8_EXPERTS],
        lambda t: [bf16(t, HIDDEN)],
    ),
    "M2MoeExpertsBf16": Case(
        {"first_expert": 0},
        lambda t: [bf16(t, HIDDEN), f32(t, TOP_K), i32(t, TOP_K), *BF16_EXPERTS],
        lambda t: [bf16(t, HIDDEN)],
    ),
    "M2MoeFp8": Case(
        {"top_k": TOP_K, "first_expert": 0, **BLOCK},
        lambda t: [bf16(t, HIDDEN), f32(t, EXPERTS), f32(EXPERTS), *FP8_EXPERTS],
        lambda t: [bf16(t, HIDDEN)],
    ),
    "M2MoeBf16": Case(
        {"top_k": TOP_K, "first_expert": 0},
        lambda t: [bf16(t, HIDDEN), f32(t, EXPERTS), f32(EXPERTS), *BF16_EXPERTS],
        lambda t: [bf16(t, HIDDEN)],
    ),
    "M2AddRmsNorm": Case(
        {"eps": 1e-6},
        lambda t: [bf16(t, HIDDEN), bf16(t, HIDDEN), bf16(HIDDEN)],
        lambda t: [bf16(t, HIDDEN), bf16(t, HIDDEN)],
    ),
    "M2RouterLinear": Case({}, lambda t: [bf16(t, HIDDEN), f32(EXPERTS, HIDDEN)], lambda t: [f32(t, EXPERTS)]),
    "M2Sample": Case(
        {"greedy": 0, "use_mask": 1},
        lambda t: [
            f32(t, 1000), i32(t, 32), f32(t), i32(t), f32(t), f32(t), TensorSpec("i64", (t,))
        ],
        lambda t: [i32(t), i32(t)],
    ),
}  # fmt: skip


def at(specs: Iterable[TensorSpec], start: int = 1 << 20) -> list[TensorArg]:
    """The tensors at made-up addresses, each a page further on."""
    return [
        TensorArg(spec.dtype, tuple(map(int, spec.shape)), start + 4096 * n)  # type: ignore[arg-type]
        for n, spec in enumerate(specs)
    ]


@cache
def parameter_names(kernel: str) -> list[str]:
    """The names in a kernel file's PARAMETERS, read without importing triton."""
    for node in ast.parse((KERNELS / f"{kernel}.py").read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == "PARAMETERS" for target in targets):
            return list(ast.literal_eval(node.value))  # type: ignore[attr-defined]
    raise LookupError(f"{kernel}.py has no PARAMETERS")


class Recorder:
    """A launcher that keeps each launch and, unless told otherwise, lets it succeed."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.launches: list[Launch] = []
        self.answer = 0

    def __call__(self, launch: Launch) -> int:
        self.launches.append(launch)
        return self.answer

    @property
    def kernels(self) -> list[str]:
        return [launch.kernel for launch in self.launches]

    def values(self, number: int = 0) -> dict[str, int | float]:
        """A launch's arguments by the kernel's names for them."""
        launch = self.launches[number]
        return dict(zip(parameter_names(launch.kernel), launch.args, strict=True))

    def device(self, sm: int) -> None:
        """Pretend a device, forgetting what was launched; skip where the library has no kernels for it."""
        import pytest

        if not self.library.kernels(DEVICES[sm]):
            pytest.skip(f"the library was built without kernels for sm_{DEVICES[sm]}")
        self.library.pretend_device(sm)
        self.launches.clear()

    def op(self, name: str, **changed: Any) -> Op:
        """The plugin with the case's attributes, some changed."""
        return self.library.create(name, {**CASES[name].attributes, **changed}).attach()

    def run(self, name: str, tokens: int, **changed: Any) -> list[Launch]:
        """Enqueue a case; its launches."""
        self.launches.clear()
        case = CASES[name]
        inputs = at(case.inputs(tokens))
        outputs = at(case.outputs(tokens), 1 << 24)
        plugin = self.library.create(name, {**case.attributes, **changed})
        for output, source in plugin.aliases().items():
            outputs[output] = outputs[output]._replace(pointer=inputs[source].pointer)
        plugin.attach().enqueue(inputs, outputs, 1 << 28, 77)
        return self.launches
