"""`mm2c build`: checkpoint in, bundle out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from mm2c.cli.console import Bars, out, print_json, user_errors

# headings of the help
LAYOUT, WEIGHTS, ENGINE, PLANS = "Layout", "Weights", "Engine and its limits", "TensorRT plans"


def build(
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            help="Folder or hub id (MiniMaxAI/MiniMax-M2.7). Default: this folder if it is an M2 checkpoint, else "
            "$MM2C_CHECKPOINT, else the only M2 in the hub cache."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Bundle folder. Default: ./NAME-tpN, NAME the checkpoint's."),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Replace the bundle that stands at the output (never anything else), an altered one too.",
        ),
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Revision of a hub id.")] = None,
    tp: Annotated[
        int, typer.Option(min=1, rich_help_panel=LAYOUT, help="Tensor-parallel ranks, one GPU each.")
    ] = 1,
    ep: Annotated[
        int,
        typer.Option(
            min=1,
            rich_help_panel=LAYOUT,
            help="Expert-parallel groups: divides --tp; or, above it, the groups of --tp ranks that --dp makes share "
            "the experts (attention-DP).",
        ),
    ] = 1,
    dp: Annotated[
        int,
        typer.Option(
            min=1,
            rich_help_panel=LAYOUT,
            help="Data-parallel groups of --tp ranks, each with requests of its own.",
        ),
    ] = 1,
    gpu: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=LAYOUT,
            help="GPUs that it is for (h200, 96GiB): says whether it fits them. `mm2c plan` says more.",
        ),
    ] = None,
    fp8: Annotated[
        bool,
        typer.Option(
            "--fp8",
            rich_help_panel=WEIGHTS,
            help="FP8 linears: kept where the checkpoint has them, quantised by blocks of 128 × 128 where not.",
        ),
    ] = False,
    bf16: Annotated[
        bool,
        typer.Option(
            "--bf16",
            rich_help_panel=WEIGHTS,
            help="bf16 linears: FP8 weights are dequantised, at twice the bytes.",
        ),
    ] = False,
    weights: Annotated[
        str,
        typer.Option(
            rich_help_panel=WEIGHTS,
            help="copy: each rank's weights as a file in the bundle; checkpoint: no copy, every start reads them from "
            "the checkpoint, which must stay where it is.",
        ),
    ] = "copy",
    check_shards: Annotated[
        bool,
        typer.Option(
            rich_help_panel=WEIGHTS,
            help="Read the written weights back and compare every byte with the checkpoint: as long again as writing "
            "them.",
        ),
    ] = True,
    config_only: Annotated[
        bool,
        typer.Option(
            "--config-only",
            rich_help_panel=WEIGHTS,
            help="Graphs of all ranks from config.json alone: no weights are read.",
        ),
    ] = False,
    engine: Annotated[
        str,
        typer.Option(
            rich_help_panel=ENGINE,
            help="auto (the best this machine can run), onnxruntime, cuda, tensorrt-rtx, tensorrt.",
        ),
    ] = "auto",
    kv_dtype: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=ENGINE,
            help="KV cache on GPUs: bf16 (default); with cuda and tensorrt also fp8, which holds twice the tokens and "
            "rounds them.",
        ),
    ] = None,
    context: Annotated[
        int,
        typer.Option(
            min=0,
            rich_help_panel=ENGINE,
            help="Tokens a row can hold. Default: the model's; onnxruntime and tensorrt-rtx: at most 32768.",
            show_default=False,
        ),
    ] = 0,
    max_rows: Annotated[int, typer.Option(min=1, rich_help_panel=ENGINE, help="Rows decoded together.")] = 8,
    prefill_chunk: Annotated[
        int,
        typer.Option(
            min=0,
            rich_help_panel=ENGINE,
            help="Tokens of one prefill step. Default: 512, or the context where that is shorter.",
            show_default=False,
        ),
    ] = 0,
    all_logits: Annotated[
        bool,
        typer.Option(
            "--all-logits",
            rich_help_panel=ENGINE,
            help="Rank graphs that give the logits of every token, batch × seq × vocab, to score prompts with; "
            "default: of each row's last token, all that generation needs.",
        ),
    ] = False,
    target: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=PLANS,
            help="GPU that tensorrt-rtx builds for: sm120 (RTX PRO 6000), sm121, sm89, for bf16 weights "
            "also sm86 and sm80; portable: all of these. Default: the GPU of this machine, else portable.",
            show_default=False,
        ),
    ] = None,
    defer_plan: Annotated[
        bool,
        typer.Option(
            "--defer-plan",
            rich_help_panel=PLANS,
            help="Prepare all but the plans, here without a GPU; --finish builds them on the machine that serves.",
        ),
    ] = False,
    finish: Annotated[
        Path | None,
        typer.Option(
            metavar="BUNDLE",
            rich_help_panel=PLANS,
            help="Build the plans of a bundle made with --defer-plan. Takes no checkpoint.",
            show_default=False,
        ),
    ] = None,
    layers_per_plan: Annotated[
        int,
        typer.Option(
            min=0,
            rich_help_panel=PLANS,
            help="Decoder layers in a plan, which is run for every such part of the model; 0: one plan of all layers, "
            "which takes minutes to build.",
        ),
    ] = 8,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Redo every stage.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Compile a MiniMax-M2 checkpoint into a bundle that Triton Inference Server serves.

    The output appears whole or not at all. The same inputs with the same output are "up to date".

      mm2c build MiniMaxAI/MiniMax-M2.7 --tp 4 --fp8 -o m2

      mm2c build --tp 4 --fp8          (in the checkpoint's folder)

      mm2c build config.json --tp 4 --config-only -o graphs

      mm2c build --tp 4 --engine tensorrt --defer-plan -o m2   (then, on the GPUs: mm2c build --finish m2)
    """
    with user_errors(interrupted="nothing was left half-written"):
        if finish is not None:
            _finish(finish, checkpoint, cache=not no_cache, as_json=as_json)
            return
        from mm2c.pipeline import BuildRequest, build_bundle

        report = build_bundle(
            BuildRequest(
                source=checkpoint,
                revision=revision,
                output=output,
                tp=tp,
                ep=ep,
                dp=dp,
                fp8=fp8,
                bf16=bf16,
                weights=weights,
                check_shards=check_shards,
                engine=engine,
                context=context,
                max_rows=max_rows,
                prefill_chunk=prefill_chunk,
                all_logits=all_logits,
                kv_dtype=kv_dtype,
                config_only=config_only,
                target=target,
                defer_plan=defer_plan,
                layers_per_plan=layers_per_plan,
                gpu=gpu,
                force=force,
                cache=not no_cache,
            ),
            Bars(),
        )
        if as_json:
            print_json(report.as_json())
            return
        for line in report.lines():
            out.print(escape(line), soft_wrap=True)


def _finish(bundle: Path, checkpoint: str | None, *, cache: bool, as_json: bool) -> None:
    from mm2c.bundle.cache import StageCache, cache_root
    from mm2c.engine.tensorrt.finish import finish_bundle
    from mm2c.errors import UserError

    if checkpoint is not None:
        raise UserError(
            "--finish builds the plans of a bundle that is there, and takes no checkpoint",
            where=f"mm2c build {checkpoint} --finish {bundle}",
            remedy=f"mm2c build --finish {bundle}",
        )
    report = finish_bundle(bundle, Bars(), cache=StageCache(cache_root(), cache))
    if as_json:
        print_json(report.as_json())
        return
    for line in report.lines():
        out.print(escape(line), soft_wrap=True)
