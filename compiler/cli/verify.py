"""`mm2c verify`: prove that a bundle computes the model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from mm2c.cli.console import Bars, err, print_json, print_table, user_errors


def verify(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder, as `mm2c build` wrote it.")],
    against: Annotated[
        str | None,
        typer.Option(
            help="Checkpoint the bundle was built from: folder or hub id. Default: the one recorded."
        ),
    ] = None,
    lowering: Annotated[
        str, typer.Option(help="fast (what serves), portable (function bodies, the oracle), or all.")
    ] = "all",
    steps: Annotated[int, typer.Option(min=1, help="Decode steps of the ragged batch.")] = 32,
    rows: Annotated[int, typer.Option(min=1, help="Rows of the ragged batch.")] = 6,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Compare a bundle's logits with the UNMODIFIED transformers module, in fp32.

    Same dequantised weights on both sides; prefill, chunked prefill and a ragged batch of decode steps.
    Passes where max |Δlogits| ≤ 1e-5 · max |logits| and every greedy token is the same. Exits 1 where it fails,
    2 where there is nothing to compare.
    """
    with user_errors():
        from mm2c.verify.run import verify_checkpoint

        outcome = verify_checkpoint(bundle, against, lowering, steps, rows, Bars())
        if as_json:
            print_json(outcome.as_json())
        else:
            table = Table(title=escape(f"{bundle} against {outcome.checkpoint}"), title_justify="left")
            for column in (
                "lowering",
                "case",
                "logits rows",
                "max |Δ|",
                "max |logits|",
                "relative",
                "greedy flips",
                "",
            ):
                table.add_column(column, justify="left" if column in ("lowering", "case", "") else "right")
            for r in outcome.results:
                table.add_row(
                    r.lowering,
                    r.case,
                    str(r.positions),
                    f"{r.error:.2e}",
                    f"{r.scale:.2f}",
                    f"{r.relative:.1e}",
                    str(r.flips),
                    "[green]pass[/]" if r.passed else "[red]FAIL[/]",
                )
            print_table(table)
        if not outcome.passed:
            err.print("[bold red]the bundle does not compute the model within tolerance[/]")
            raise typer.Exit(1)
