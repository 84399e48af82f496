"""What `mm2c verify` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from mm2c.cli.console import err, out, print_json, print_table

if TYPE_CHECKING:
    from mm2c.proofs.reassemble import ShardReport
    from mm2c.verify.layer_error import LayerResult
    from mm2c.verify.run import Outcome
    from mm2c.verify.run_network import NetworkOutcome
    from mm2c.verify.run_streamed import GoldenOutcome, StreamedOutcome

SHOWN = 24  # layers of an engine of which every one gets a line; of more, the worst
VERDICT = {True: "[green]pass[/]", False: "[red]FAIL[/]"}


def new_table(title: str, words: tuple[str, ...], numbers: tuple[str, ...]) -> Table:
    table = Table(title=escape(title), title_justify="left")
    for column in words:
        table.add_column(column)
    for column in numbers:
        table.add_column(column, justify="right")
    table.add_column("")
    return table


def print_cases(outcome: Outcome | NetworkOutcome, computes: str = "lowering") -> None:
    """``computes``: what the first column is called."""
    table = new_table(
        f"{outcome.bundle} against {outcome.checkpoint}",
        (computes, "case"),
        ("logits rows", "max |Δ|", "max |logits|", "relative", "greedy flips"),
    )
    for r in outcome.results:
        table.add_row(
            r.lowering,
            r.case,
            str(r.positions),
            f"{r.error:.2e}",
            f"{r.scale:.2f}",
            f"{r.relative:.1e}",
            str(r.flips),
            VERDICT[r.passed],
        )
    print_table(table)


def print_layers(outcome: StreamedOutcome) -> None:
    found = outcome.streamed
    table = new_table(
        f"{outcome.bundle} against the layers of {outcome.checkpoint}",
        ("engine", "layer"),
        ("max |Δ|", "allowed", "max |x|", "relative", "own chain", "tokens", "left out"),
    )
    for engine in dict.fromkeys(r.engine for r in found.results):
        own = [r for r in found.results if r.engine == engine]
        for r in _shown(own):
            table.add_row(
                engine,
                r.layer,
                f"{r.error:.2e}",
                f"{r.allowed:.2e}",
                f"{r.scale:.3g}",
                f"{r.relative:.1e}",
                f"{r.chain:.2e}",
                str(r.compared),
                str(r.ties),
                VERDICT[r.passed],
            )
        if len(own) > len(_shown(own)):
            table.add_row(engine, f"… {len(own) - len(_shown(own))} more, all nearer", *[""] * 8)
    print_table(table)
    out.print(
        f"{found.tokens} tokens, up to {max(found.experts, default=0)} experts a layer, {found.seconds:.1f} s, "
        f"peak memory {found.peak_rss / 2**30:.2f} GiB"
        + ("; golden vectors are in the bundle" if outcome.golden else "")
    )


def _shown(results: list[LayerResult]) -> list[LayerResult]:
    """All of few layers; of many the failed, the ends and the worst, in order."""
    if len(results) <= SHOWN:
        return results
    worst = sorted(results, key=lambda r: -r.error / r.allowed if r.allowed else 0.0)[:8]
    kept = [r for r in results if not r.passed or r in worst or not r.layer.isdigit()]
    return kept[:SHOWN]


def print_faults(outcome: StreamedOutcome) -> None:
    """Where it fails, as near to the cause as can be told."""
    for r in [r for r in outcome.streamed.results if not r.passed][:8]:
        part = f", in its {r.part}" if r.part else ""
        ranks = f", on rank {', '.join(map(str, r.ranks))}" if r.ranks else ""
        line = f"{r.engine}: {r.place} is off by {r.error:.2e} where {r.allowed:.2e} is allowed{part}{ranks}"
        line += f", {r.flips} greedy tokens differ" if r.flips else ""
        err.print(f"[bold red]{escape(line)}[/]", soft_wrap=True)
        for tensor in r.tensors:
            err.print(escape(f"  not what the checkpoint makes it: {tensor}"), soft_wrap=True)
        if not r.tensors:
            err.print(
                "  its stored tensors are what their recipes make of the checkpoint: a recipe or the program is wrong",
                soft_wrap=True,
            )


def print_golden(outcomes: list[GoldenOutcome]) -> None:
    table = new_table(
        f"{outcomes[0].bundle} against its golden vectors",
        ("engine", "row", "step"),
        ("token", "max |Δ| / max |logits|", "allowed"),
    )
    for outcome in outcomes:
        for f in outcome.figures:
            verdict = VERDICT[f.passed] if f.judged else "not judged"
            table.add_row(
                outcome.runs, str(f.row), f.kind, str(f.token), f"{f.error:.2e}", f"{f.allowed:.2e}", verdict
            )
    print_table(table)


def print_shards(report: ShardReport, as_json: bool) -> bool:
    """Whether the shards are whole."""
    if as_json:
        print_json({**report.as_json(), "passed": not report.mismatches})
    elif not report.bytes:
        out.print("the bundle has no weight files: its ranks are made of the checkpoint at every start")
    elif not report.mismatches:
        out.print(
            f"{report.bytes / 1e9:.2f} GB of the ranks' tensors are the checkpoint's: {report.reassembled} tensors put "
            f"together again byte by byte, {report.converted} computed anew; sha256 {report.sha256}",
            soft_wrap=True,
        )
    for mismatch in report.mismatches[:SHOWN]:
        err.print(f"[bold red]{escape(str(mismatch))}[/]", soft_wrap=True)
    if len(report.mismatches) > SHOWN:
        err.print(f"… and {len(report.mismatches) - SHOWN} more")
    return not report.mismatches
