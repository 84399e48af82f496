"""What `mm2c verify` prints of TensorRT's networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape

from mm2c.cli.console import err, out, print_table
from mm2c.cli.verify_tables import SHOWN, VERDICT, new_table, print_cases

if TYPE_CHECKING:
    from mm2c.verify.network_compare import StageResult
    from mm2c.verify.polygraphy_run import PolygraphyOutcome
    from mm2c.verify.run_network import NetworkOutcome


def print_networks(outcome: NetworkOutcome) -> None:
    """Stages against ONNX Runtime, logits against transformers."""
    table = new_table(
        f"{outcome.bundle}: networks of {outcome.library}, evaluated on the CPU, against ONNX Runtime",
        ("precision", "case", "layers", "worst in"),
        ("max |Δ|", "allowed", "max |x|", "bf16 steps", "tokens", "left out"),
    )
    for r in _shown(outcome.stages):
        table.add_row(
            r.precision,
            r.case,
            r.layers,
            r.output,
            f"{r.error:.2e}",
            f"{r.allowed:.2e}",
            f"{r.scale:.3g}",
            f"{r.steps:.2f}",
            str(r.tokens),
            str(r.left_out),
            VERDICT[r.passed],
        )
    if len(outcome.stages) > len(_shown(outcome.stages)):
        table.add_row(f"… {len(outcome.stages) - len(_shown(outcome.stages))} more, all nearer", *[""] * 10)
    print_table(table)
    print_cases(outcome, computes="computed by")
    out.print(f"{outcome.networks} networks of {outcome.layers} layers together, every one evaluated")
    if outcome.plans is None:
        out.print(escape(f"the plans themselves were not run: {outcome.not_run}"), soft_wrap=True)
    else:
        _print_plans(outcome.plans)


def _print_plans(outcome: PolygraphyOutcome) -> None:
    table = new_table(
        f"the plans on {outcome.library} against ONNX Runtime, through Polygraphy",
        ("plan", "profile"),
        ("rank", "from layer", "rows", "tokens", "least SNR, dB"),
    )
    for r in outcome.results:
        numbers = (r.rank, r.first_layer, r.rows, r.tokens)
        table.add_row(r.plan, r.profile, *map(str, numbers), f"{r.worst:.1f}", VERDICT[r.passed])
    print_table(table)


def print_network_faults(outcome: NetworkOutcome) -> None:
    """Where it fails, as near to the cause as can be told."""
    for r in [r for r in outcome.stages if not r.passed][:8]:
        line = (
            f"layers {r.layers}, {r.case}: TensorRT's network ({', '.join(r.plans)}) is not what its ONNX graph says: "
            f"{r.output} off by {r.error:.2e} where {r.allowed:.2e} is allowed, {r.precision} precision"
        )
        line += f", {r.flips} greedy tokens differ" if r.flips else ""
        line += f", {r.left_out} tokens hang on rounding" if r.left_out else ""
        err.print(f"[bold red]{escape(line)}[/]", soft_wrap=True)
    if wrong := [r for r in outcome.results if not r.passed]:
        line = f"logits of {wrong[0].lowering} are not transformers': relative error {wrong[0].relative:.1e}"
        err.print(f"[bold red]{escape(line)}[/]", soft_wrap=True)
        for tensor in outcome.tensors:
            err.print(escape(f"  not what the checkpoint makes it: {tensor}"), soft_wrap=True)
        if not outcome.tensors:
            err.print(
                "  the stored tensors are what their recipes make of the checkpoint: a recipe or the graph is wrong",
                soft_wrap=True,
            )


def _shown(results: list[StageResult]) -> list[StageResult]:
    """All of few; of many the failed and the worst, in order."""
    if len(results) <= SHOWN:
        return results
    worst = sorted(results, key=lambda r: (r.passed, -r.error / r.allowed if r.allowed else 0.0))[:SHOWN]
    return [r for r in results if r in worst]
