"""Times of single plugins at a rank's true sizes, beside what the memory could do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from made import Call, Experts, Rows, linear, moe
from operator_runner import Operator, tactics
from report import Report
from sizes import DEVICE, M2, activations
from timing import Clock, Time

from mm2c_plugins.host import Library

BATCHES = (1, 8, 32, 64, 128, 256)


@dataclass(frozen=True)
class Machine:
    """``copy``: measured bytes a second of a device-to-device copy, read and written together."""

    library: Library
    clock: Clock
    copy: float


def bench_moe(report: Report, machine: Machine) -> None:
    """Targets: 70 % of the copy bandwidth from 8 tokens on, 50 % at one."""
    experts = Experts.random()
    for batch in BATCHES:
        call = moe(experts, batch)
        chosen = call.weight_bytes // M2.expert_bytes
        best = _best(machine, call)
        share = call.weight_bytes / best.table.median / machine.copy
        text = f"{_shown(best.table, call.weight_bytes, machine)}, {chosen} experts, {_how(best)}"
        report.target("times", f"moe B={batch}", share, 0.7 if batch >= 8 else 0.5, text, least=True,
                      **_figures(best, experts=chosen))  # fmt: skip


def bench_attention(report: Report, machine: Machine) -> None:
    """Target: 80 % of the copy bandwidth at a context of 32 k."""
    for fp8 in (False, True):
        for batch, context in ((1, 4096), (1, 32768), (1, 131072), (8, 4096), (8, 32768), (32, 4096), (64, 4096),
                               (256, 4096)):  # fmt: skip
            call = Rows([context - 1] * batch, [1] * batch, fp8=fp8).call()
            time = _time(machine, call, 0)
            share = call.weight_bytes / time.median / machine.copy
            name = f"decode attention{' fp8' if fp8 else ''} B={batch} {context // 1024} k"
            text, figures = _shown(time, call.weight_bytes, machine), {"seconds": time.median}
            if context >= 32768 and not fp8:
                report.target("times", name, share, 0.8, text, least=True, **figures)
            else:
                report.add("times", name, "measured", text, share=share, **figures)


def bench_linears(report: Report, machine: Machine) -> None:
    for rows, columns, name in ((2048, 3072, "qkv"), (3072, 1536, "o_proj")):
        for batch in (*BATCHES, 2048):
            call = linear(batch, rows, columns)
            best = _best(machine, call)
            text = f"{_shown(best.table, call.weight_bytes, machine)}, {_how(best)}"
            flops = 2 * batch * rows * columns / best.table.median
            report.add("times", f"{name} B={batch}", "measured", f"{text}, {flops / 1e12:.0f} TFLOP/s",
                       **_figures(best, flops=flops))  # fmt: skip


def bench_small(report: Report, machine: Machine) -> None:
    """What moves little: its time is a launch and a latency."""
    import torch

    for batch in (1, 64, 256):
        x, residual, weight = (
            activations(batch, M2.hidden),
            activations(batch, M2.hidden),
            activations(M2.hidden),
        )
        gate = activations(M2.experts, M2.hidden)
        q, k = activations(batch, 1, M2.q_width), activations(batch, 1, M2.kv_width)
        calls = {
            "add_rms_norm": Call("M2AddRmsNorm", {"eps": M2.eps}, [x, residual, weight]),
            "router_linear": Call("M2RouterLinear", {}, [x, gate]),
            "qk_sum_squares": Call("M2QkSumSquares", {}, [q, k]),
        }
        for name, call in calls.items():
            time = _time(machine, call, 0)
            report.add(
                "times", f"{name} B={batch}", "measured", f"{time.median * 1e6:.1f} us", seconds=time.median
            )
        rows = {"dtype": torch.float32, "device": DEVICE}
        logits = torch.randn(batch, 200064, **rows)  # type: ignore[arg-type]
        ones = torch.ones(batch, **rows)  # type: ignore[arg-type]
        mask = torch.full((batch, 6252), -1, dtype=torch.int32, device=DEVICE)
        inputs = [logits, mask, ones, (40 * ones).int(), 0.95 * ones, 0 * ones,
                  torch.zeros(batch, dtype=torch.int64, device=DEVICE)]  # fmt: skip
        for greedy in (1, 0):
            time = _time(machine, Call("M2Sample", {"greedy": greedy, "use_mask": 0}, inputs), 0)
            name = f"sample {'greedy' if greedy else 'top-k 40'} B={batch}"
            report.add("times", name, "measured", f"{time.median * 1e6:.1f} us", seconds=time.median)


@dataclass(frozen=True)
class Timed:
    """A call with the tile that the table takes (what every engine runs), and with the others."""

    table: Time
    tactics: dict[int, float]  # seconds

    @property
    def fastest(self) -> int:
        """The best tactic; 0, the table's, unless another is at least 3 % faster."""
        tactic = min(self.tactics, key=self.tactics.__getitem__, default=0)
        return tactic if self.tactics and self.tactics[tactic] < 0.97 * self.table.median else 0


def _best(machine: Machine, call: Call) -> Timed:
    others = tactics(machine.library, call.name, call.attributes, call.inputs)
    return Timed(_time(machine, call, 0), {tactic: _time(machine, call, tactic).median for tactic in others})


def _time(machine: Machine, call: Call, tactic: int) -> Time:
    run: Callable[[], Any] = Operator(machine.library, call.name, call.attributes, call.inputs, tactic)
    return machine.clock.graph(run)


def _shown(time: Time, size: int, machine: Machine) -> str:
    rate = size / time.median
    return f"{time.median * 1e6:.1f} us, {rate / 1e12:.2f} TB/s, {rate / machine.copy:.0%} of copy"


def _how(best: Timed) -> str:
    if best.fastest == 0:
        return "no tactic is faster"
    return f"tactic {best.fastest} is {best.table.median / best.tactics[best.fastest]:.2f}x as fast"


def _figures(best: Timed, **more: float) -> dict[str, Any]:
    figures = {"seconds": best.table.median, "spread": best.table.spread, "fastest": best.fastest}
    return {**figures, "tactics": best.tactics, **more}
