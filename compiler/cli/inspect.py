"""`mm2c inspect`: what a bundle holds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from mm2c.cli.console import out, print_json, print_table, user_errors
from mm2c.errors import UserError


def inspect(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder, as `mm2c build` wrote it.")],
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE.svg]", help="Where --picture draws. Default: ./BUNDLE-rankR.svg; -: stdout."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    picture: Annotated[
        bool, typer.Option("--picture", help="Draw one decoder layer of a rank as an SVG file instead.")
    ] = False,
    rank: Annotated[int, typer.Option(min=0, help="Whose layer --picture draws.")] = 0,
    engine: Annotated[
        bool,
        typer.Option(
            "--engine",
            help="What the engine runs instead: plans, profiles, layers, precision, device memory.",
        ),
    ] = False,
    checksums: Annotated[bool, typer.Option(help="Compare every file's sha256 with the manifest.")] = True,
) -> None:
    """Show model, shards, graphs, collectives, memory and reports of a bundle, and check that it is whole.

    Exits 2 where it is not, naming the file.

      mm2c inspect m2

      mm2c inspect m2 --picture layer.svg --rank 1

      mm2c inspect m2 --engine
    """
    with user_errors():
        if engine:
            if picture or file is not None:
                raise UserError(
                    "--engine draws nothing",
                    where="--engine, --picture",
                    remedy="leave one of them away, and the file",
                )
            _engine(bundle, as_json=as_json, checksums=checksums)
            return
        if picture:
            _draw(bundle, file, rank, as_json=as_json, checksums=checksums)
            return
        if file is not None:
            raise UserError(
                f"{file}: one bundle is inspected at a time",
                where=str(file),
                remedy="add --picture to draw into it",
            )
        from mm2c.bundle.describe import describe

        facts = describe(bundle, checksums=checksums)
        if as_json:
            print_json(facts)
            return
        _print(facts, "every sha256 matches" if checksums else "every size matches")


def _print(facts: dict[str, Any], whole: str) -> None:
    from mm2c.cli import inspect_tables as tables

    _lines(tables.head(facts))
    print_table(tables.graphs(facts["graphs"]))
    _lines(tables.signature(facts["graphs"][0]))
    _tables(*tables.shards(facts["shards"]))
    messages, lines = tables.collectives(facts["collectives"])
    programs = tables.programs(facts["ranks"]) if facts["ranks"] else None
    _tables(messages)
    _lines(lines)
    _tables(tables.memory(facts["reports"].get("memory")), programs)
    _lines(tables.reports(facts["reports"]))
    _lines(tables.verified(facts))
    _lines([f"files     {facts['files']}, {tables.size_of(facts['bytes'])}, {whole}"])


def _engine(bundle: Path, *, as_json: bool, checksums: bool) -> None:
    from mm2c.bundle.describe_engine import describe_engine
    from mm2c.cli import inspect_engine as tables

    facts = describe_engine(bundle, checksums=checksums)
    if as_json:
        print_json(facts)
        return
    _lines(tables.head(facts))
    program = facts["tensorrt"]
    if program:
        print_table(tables.plans(program))
        _lines(tables.layers(program))
        _lines(tables.stages(program))
    if facts["programs"]:
        print_table(tables.programs(facts["programs"]))


def _tables(*found: Table | None) -> None:
    for table in found:
        if table is not None:
            print_table(table)


def _lines(lines: list[str]) -> None:
    for line in lines:
        out.print(escape(line), soft_wrap=True)


def _draw(bundle: Path, file: Path | None, rank: int, *, as_json: bool, checksums: bool) -> None:
    from mm2c.bundle.rank_graph_file import load_graph
    from mm2c.draw.layer_picture import layer_picture
    from mm2c_runtime.manifest_file import read_bundle

    manifest = read_bundle(bundle, checksums=checksums)
    if rank >= manifest.mapping.ranks:
        raise UserError(
            f"--rank {rank}: the bundle has {manifest.mapping.ranks} ranks",
            where="--rank",
            remedy=f"0 to {manifest.mapping.ranks - 1}",
        )
    svg = layer_picture(load_graph(bundle, rank), ranks=manifest.mapping.ranks)
    if str(file) == "-":
        sys.stdout.write(svg)
        return
    place = file or Path.cwd() / f"{bundle.resolve().name}-rank{rank}.svg"
    try:
        place.write_text(svg, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"the picture cannot be written: {error.strerror}", where=str(place), remedy="name another file"
        ) from error
    if as_json:
        print_json({"picture": str(place), "rank": rank, "bytes": place.stat().st_size})
    else:
        out.print(escape(f"picture   {place}"), soft_wrap=True)
