"""`mm2c inspect`: what a bundle holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from mm2c.cli.console import out, print_json, print_table, user_errors

SHOWN = 3  # inputs and outputs of a graph that are printed; the rest are its layers' caches


def inspect(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder, as `mm2c build` wrote it.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    checksums: Annotated[bool, typer.Option(help="Compare every file's sha256 with the manifest.")] = True,
) -> None:
    """Show model, ranks, graphs, collectives and memory of a bundle, and check that it is whole.

    Exits 2 where it is not, naming the file.
    """
    with user_errors():
        from mm2c.bundle.describe import describe

        facts = describe(bundle, checksums=checksums)
        if as_json:
            print_json(facts)
            return
        for line in _head(facts):
            out.print(escape(line), soft_wrap=True)
        print_table(_graphs(facts["graphs"]))
        for line in _signature(facts["graphs"][0]):
            out.print(escape(line), soft_wrap=True)
        if facts["ranks"]:
            print_table(_programs(facts["ranks"]))
        whole = ", every sha256 matches" if checksums else ", every size matches"
        out.print(f"files     {facts['files']}, {size_of(facts['bytes'])}{whole}")


def size_of(count: float) -> str:
    """Bytes in binary units, one digit behind the point."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _head(facts: dict[str, Any]) -> list[str]:
    model, limits, source, mapping = facts["model"], facts["limits"], facts["checkpoint"], facts["mapping"]
    return [
        f"bundle    {facts['bundle']}: {facts['engine']} engine, mm2c {facts['mm2c_version']}",
        f"model     {model['name']}: {model['layers']} layers, hidden {model['hidden']}, {model['heads']} heads / "
        f"{model['kv_heads']} KV × {model['head_dim']}, {model['experts']} experts top-{model['top_k']}, "
        f"vocabulary {model['vocab']}",
        f"built of  {source['source']} ({source['format']})"
        if source
        else "built of  config.json alone: no weights",
        f"layout    tp {mapping['tp']}, ep {mapping['ep']}",
        f"limits    {limits['context']} tokens a row, {limits['max_rows']} rows, prefill steps of "
        f"{limits['prefill_chunk']} tokens; KV cache {facts['kv_dtype']}, "
        f"{size_of(facts['kv_bytes_per_token'])} a token over all ranks",
        *([f"plugins   {facts['plugins']}"] if facts["plugins"] else []),
    ]


def _graphs(graphs: list[dict[str, Any]]) -> Table:
    table = Table(title="rank graphs (rank*/model.onnx)", title_justify="left")
    for column in ("rank", "nodes", "inputs", "outputs", "tensors", "weights", "file"):
        table.add_column(column, justify="right")
    for g in graphs:
        counts = (g["rank"], g["nodes"], len(g["inputs"]), len(g["outputs"]), g["tensors"])
        table.add_row(*map(str, counts), size_of(g["weight_bytes"]), size_of(g["file_bytes"]))
    return table


def _signature(graph: dict[str, Any]) -> list[str]:
    """Ops, inputs and outputs of one rank's graph; the other ranks' differ in sizes only."""
    ops = ", ".join(f"{count} {op}" for op, count in graph["ops"].items())
    return [
        f"ops       {ops}",
        f"inputs    {_values(graph['inputs'])}",
        f"outputs   {_values(graph['outputs'])}",
    ]


def _values(values: list[dict[str, Any]]) -> str:
    if len(values) <= SHOWN + 2:
        return ", ".join(map(_value, values))
    first, last = ", ".join(map(_value, values[:SHOWN])), _value(values[-1])
    return f"{first}, … {len(values) - SHOWN - 1} more …, {last}"


def _value(value: dict[str, Any]) -> str:
    sizes = (
        None if value["shape"] is None else ", ".join("?" if d is None else str(d) for d in value["shape"])
    )
    return f"{value['name']} {value['dtype']}" + ("" if sizes is None else f"[{sizes}]")


def _programs(ranks: list[dict[str, Any]]) -> Table:
    table = Table(title="programs that run", title_justify="left")
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
    for r in ranks:
        counts = (r["rank"], r["segments"], r["nodes"], r["all_reduces"], r["all_gathers"])
        table.add_row(r["lowering"], *map(str, counts), size_of(r["weight_bytes"]), str(r["kv_heads"]))
    return table
