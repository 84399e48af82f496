"""`mm2c verify`: prove that a bundle computes the model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mm2c.cli.console import Bars, err, print_json, user_errors
from mm2c.config import TENSORRT


def verify(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder, as `mm2c build` wrote it.")],
    against: Annotated[
        str | None,
        typer.Option(
            help="Checkpoint the bundle was built from: folder or hub id. Default: $MM2C_CHECKPOINT_FOLDER, else "
            "the one recorded.",
            show_default=False,
        ),
    ] = None,
    lowering: Annotated[
        str, typer.Option(help="fast (what serves), portable (function bodies, the oracle), or all.")
    ] = "all",
    steps: Annotated[int, typer.Option(min=1, help="Decode steps of the ragged batch.")] = 32,
    rows: Annotated[int, typer.Option(min=1, help="Rows of the ragged batch.")] = 6,
    streamed: Annotated[
        bool,
        typer.Option("--streamed", help="One layer at a time, in bounded memory: for models of any size."),
    ] = False,
    tokens: Annotated[int, typer.Option(min=1, help="--streamed: tokens of all rows together.")] = 24,
    layers: Annotated[
        str | None, typer.Option(help="--streamed: these layers alone, such as 0,5-7. Default: all.")
    ] = None,
    golden: Annotated[
        bool,
        typer.Option(
            "--golden", help="Compare the engine with the bundle's golden vectors; no checkpoint needed."
        ),
    ] = False,
    engine: Annotated[
        str | None,
        typer.Option(
            help="The bundle's engine, where it must be this one: onnxruntime, cuda, tensorrt-rtx or tensorrt.",
            show_default=False,
        ),
    ] = None,
    provider: Annotated[
        str | None,
        typer.Option(
            help="What ONNX Runtime runs on, for bundles of that engine and not with --streamed: cpu, or cuda with a "
            "GPU for each rank. Default: $MM2C_PROVIDER, else cpu.",
            show_default=False,
        ),
    ] = None,
    shards: Annotated[
        bool,
        typer.Option("--shards", help="Re-assemble the ranks' tensors and compare them with the checkpoint."),
    ] = False,
    write: Annotated[
        bool, typer.Option("--write/--no-write", help="Keep golden vectors in the bundle where it passes.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Compare a bundle's logits with the UNMODIFIED transformers module, in fp32.

    Same dequantised weights on both sides; prefill, chunked prefill and a ragged batch of decode steps.
    Passes where max |Δlogits| ≤ 1e-5 · max |logits| and every greedy token is the same. Exits 1 where it fails,
    2 where there is nothing to compare.

    Bundles of TensorRT plans are compared without a GPU: TensorRT-RTX's parser reads every plan's graph, and the
    network that it makes is evaluated layer by layer on the CPU, all ranks in lockstep, against ONNX Runtime and
    transformers: in f32 within 1e-4, and rounded as the network declares within a few steps of bf16. With --streamed
    the reference is then computed one layer at a time.

    --streamed compares layer by layer with the unmodified decoder layers, loading only the experts that the tokens
    choose; bundles for the cuda engine are always compared so, on the CPU, in fp32 and as stored. What passes leaves
    golden vectors in the bundle, with which a GPU checks itself on its first start, and `--golden` any engine.
    """
    with user_errors():
        if sum((streamed, golden, shards)) > 1:
            raise typer.BadParameter("--streamed, --golden and --shards are different comparisons: give one")
        built = _engine(bundle, engine)
        if provider is not None and (streamed or shards or layers is not None):
            raise typer.BadParameter("--provider is for whole models and --golden")
        if golden:
            passed = _golden(bundle, lowering, provider, as_json)
        elif shards:
            passed = _shards(bundle, against, as_json)
        elif built in TENSORRT:
            if layers is not None:
                raise typer.BadParameter("--layers is for the engines onnxruntime and cuda")
            passed = _network(bundle, against, steps, rows, tokens if streamed else None, write, as_json)
        elif streamed or layers is not None or built == "cuda":
            passed = _streamed(bundle, against, lowering, tokens, layers, write, as_json)
        else:
            passed = _whole(bundle, against, lowering, steps, rows, write, provider, as_json)
        if not passed:
            raise typer.Exit(1)


def _engine(bundle: Path, asked: str | None) -> str:
    from mm2c.errors import UserError
    from mm2c_runtime.manifest_file import read_manifest

    built = read_manifest(bundle).engine
    if asked not in (None, built):
        raise UserError(
            f"the bundle is for the {built} engine",
            where=str(bundle),
            remedy=f"--engine {built}, or leave --engine out",
        )
    return built


def _whole(
    bundle: Path,
    against: str | None,
    lowering: str,
    steps: int,
    rows: int,
    write: bool,
    provider: str | None,
    as_json: bool,
) -> bool:
    from mm2c.cli.verify_tables import print_cases
    from mm2c.verify.run import verify_checkpoint

    outcome = verify_checkpoint(
        bundle, against, lowering, steps, rows, Bars(), write=write, provider=provider
    )
    if as_json:
        print_json(outcome.as_json())
    else:
        print_cases(outcome)
    if not outcome.passed:
        err.print("[bold red]the bundle does not compute the model within tolerance[/]")
    return outcome.passed


def _streamed(
    bundle: Path,
    against: str | None,
    lowering: str,
    tokens: int,
    layers: str | None,
    write: bool,
    as_json: bool,
) -> bool:
    from mm2c.cli.verify_tables import print_faults, print_layers
    from mm2c.verify.run_streamed import verify_layers

    outcome = verify_layers(bundle, against, lowering, Bars(), tokens=tokens, layers=layers, write=write)
    if as_json:
        print_json(outcome.as_json())
    else:
        print_layers(outcome)
    if not outcome.passed:
        print_faults(outcome)
    return outcome.passed


def _network(
    bundle: Path,
    against: str | None,
    steps: int,
    rows: int,
    streamed_tokens: int | None,
    write: bool,
    as_json: bool,
) -> bool:
    from mm2c.cli.verify_network_tables import print_network_faults, print_networks
    from mm2c.verify.run_network import verify_network

    outcome = verify_network(
        bundle, against, Bars(), steps=steps, rows=rows, streamed_tokens=streamed_tokens, write=write
    )
    if as_json:
        print_json(outcome.as_json())
    else:
        print_networks(outcome)
    if not outcome.passed:
        print_network_faults(outcome)
    return outcome.passed


def _golden(bundle: Path, lowering: str, provider: str | None, as_json: bool) -> bool:
    from mm2c.cli.verify_tables import print_golden
    from mm2c.verify.run_streamed import compare_golden

    outcomes = compare_golden(bundle, lowering, Bars(), provider=provider)
    if as_json:
        print_json([outcome.as_json() for outcome in outcomes])
    else:
        print_golden(outcomes)
    passed = all(outcome.passed for outcome in outcomes)
    if not passed:
        err.print("[bold red]the engine does not compute what the reference computed[/]")
    return passed


def _shards(bundle: Path, against: str | None, as_json: bool) -> bool:
    from mm2c.cli.verify_tables import print_shards
    from mm2c.verify.run_shards import verify_bundle_shards

    report = verify_bundle_shards(bundle, against, Bars())
    return print_shards(report, as_json)
