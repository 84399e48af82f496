"""`mm2c inspect`: what a bundle holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from mm2c.cli.console import out, print_json, user_errors


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def inspect(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder, as `mm2c build` wrote it.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    checksums: Annotated[bool, typer.Option(help="Compare every file's sha256 with the manifest.")] = True,
) -> None:
    """Show model, ranks, graphs, collectives and memory of a bundle, and check that it is whole."""
    with user_errors():
        from mm2c.bundle.describe import describe

        facts = describe(bundle, checksums=checksums)
        if as_json:
            print_json(facts)
            return
        model, limits = facts["model"], facts["limits"]
        out.print(f"[bold]{bundle}[/]  {facts['engine']} engine, mm2c {facts['mm2c_version']}")
        out.print(
            f"model     {model['name']}: {model['layers']} layers, hidden {model['hidden']}, {model['heads']} heads / "
            f"{model['kv_heads']} KV × {model['head_dim']}, {model['experts']} experts top-{model['top_k']}, "
            f"vocabulary {model['vocab']}"
        )
        source = facts["checkpoint"]
        out.print(
            f"built of  {source['source']} ({source['format']})" if source else "built of  config.json alone"
        )
        out.print(f"layout    tp {facts['mapping']['tp']}, ep {facts['mapping']['ep']}")
        out.print(
            f"limits    {limits['context']} tokens a row, {limits['max_rows']} rows, "
            f"prefill steps of {limits['prefill_chunk']} tokens; "
            f"KV cache {_size(facts['kv_bytes_per_token'])} a token over all ranks"
        )
        table = Table(title="rank graphs", title_justify="left")
        for column in (
            "lowering",
            "rank",
            "segments",
            "nodes",
            "all-reduces",
            "all-gathers",
            "weights",
            "KV heads",
        ):
            table.add_column(column, justify="left" if column == "lowering" else "right")
        for r in facts["ranks"]:
            table.add_row(
                r["lowering"],
                str(r["rank"]),
                str(r["segments"]),
                str(r["nodes"]),
                str(r["all_reduces"]),
                str(r["all_gathers"]),
                _size(r["weight_bytes"]),
                str(r["kv_heads"]),
            )
        out.print(table)
        out.print(
            f"files     {facts['files']}, {_size(facts['bytes'])}"
            + (", every sha256 matches" if checksums else "")
        )
