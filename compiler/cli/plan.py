"""`mm2c plan`: what a model takes of given GPUs, and the layout that suits them, before anything is built."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from mm2c.cli.console import Bars, err, out, print_json, user_errors
from mm2c.errors import UserError

if TYPE_CHECKING:
    from mm2c.config import KvDtype, WeightTarget
    from mm2c.plan.ask import Ask
    from mm2c.plan.gpus import Gpu
    from mm2c.plan.source import Source

NO_ROOM = 1  # exit status of a plan that does not fit


def plan(
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            help="Checkpoint folder, config.json, hub id, or a member of the family by name (m2.7). Default: found as "
            "by `mm2c build`."
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            help="Kind of GPU: rtx-pro-6000, h100, h200, h20, a100, b200, mi300x, … Default: usual ones."
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Memory of a GPU that --gpu does not know, or has less of: 96GiB, 96GB, 80G (decimal)."
        ),
    ] = None,
    gpus: Annotated[
        int, typer.Option(min=0, help="GPUs. Default: the layout's, else the fewest that suffice.")
    ] = 0,
    tp: Annotated[
        int, typer.Option(min=0, help="Tensor-parallel ranks, as in `mm2c build`. Default: the best layout.")
    ] = 0,
    ep: Annotated[int, typer.Option(min=0, help="Expert-parallel groups; above --tp: attention-DP.")] = 0,
    dp: Annotated[int, typer.Option(min=0, help="Groups of --tp ranks with requests of their own.")] = 0,
    context: Annotated[
        int, typer.Option(min=0, help="Tokens that each request may hold. Default: the model's context.")
    ] = 0,
    batch: Annotated[
        int,
        typer.Option(
            min=0,
            help="Requests that must fit at their whole context, over all GPUs together. Default: one must fit, "
            "steps are planned for 8.",
        ),
    ] = 0,
    prefill_chunk: Annotated[int, typer.Option(min=1, help="Tokens of one prefill step.")] = 512,
    kv_dtype: Annotated[
        str, typer.Option(help="KV cache: bf16, or fp8, which holds twice the tokens.")
    ] = "bf16",
    fp8: Annotated[bool, typer.Option("--fp8", help="Weights in FP8, whatever the checkpoint has.")] = False,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="Weights in bf16, whatever the checkpoint has.")
    ] = False,
    engine: Annotated[
        str,
        typer.Option(
            help="cuda, tensorrt-rtx or tensorrt; or onnxruntime: all ranks in fp32 in this machine's memory, or "
            "--memory."
        ),
    ] = "cuda",
    guide: Annotated[
        bool, typer.Option("--guide", help="The configurations of vLLM's guide beside our figures.")
    ] = False,
    every: Annotated[
        bool,
        typer.Option("--all", help="Every layout that was considered; without --gpu, every kind of GPU."),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for plan.json, memory.svg and memory.html; needs a GPU."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a hub id.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Plan the memory of each GPU, the tokens of KV cache that fit, and the layout: from the configuration alone.

    Without --tp the layouts of so many GPUs are compared and the best is taken, with reasons. Weights are exact; what
    a step takes is a bound; what the driver takes is an estimate. Exits 1 where the plan does not fit.

      mm2c plan m2.7                                        on which GPUs, and on how many?

      mm2c plan m2.7 --gpu h200 --gpus 8                    the best layout of eight

      mm2c plan /data/M2.7 --gpu h100 --tp 8 --ep 8 --context 65536 --batch 32

      mm2c plan config.json --memory 96GiB --gpus 4 --kv-dtype fp8 -o report

      mm2c plan m2.7 --gpu rtx-pro-6000 --engine tensorrt-rtx --batch 8

      mm2c plan m2.7 --guide                                vLLM's guide, recomputed
    """
    with user_errors():
        from mm2c.plan.source import read_source

        card = _card(gpu, memory, engine)
        source = read_source(checkpoint, revision=revision, target=_target(fp8, bf16), progress=Bars())
        if engine == "onnxruntime":
            _host(source, memory, tp, ep, dp, context, batch, prefill_chunk, as_json)
            return
        ask = _ask(source, context, batch, prefill_chunk, kv_dtype, engine)
        if guide:
            if engine != "cuda":
                raise UserError(
                    "--guide is about the cuda engine",
                    where="--guide, --engine",
                    remedy="leave one of them away",
                )
            if card or output:
                raise UserError(
                    "--guide has GPUs of its own",
                    where="--guide",
                    remedy="leave --gpu, --memory and -o away, or --guide",
                )
            _guide(ask, source, as_json)
        elif card is None:
            _overview(ask, source, (gpus, tp, ep, dp), every, output, as_json)
        else:
            _one(ask, source, card, (gpus, tp, ep, dp), every, output, as_json)


def _card(gpu: str | None, memory: str | None, engine: str) -> Gpu | None:
    from mm2c.plan.engines import PLANNED
    from mm2c.plan.gpus import find_gpu, gpu_of_size, with_memory
    from mm2c.plan.sizes import parse_size

    if engine not in (*PLANNED, "onnxruntime"):
        raise UserError(
            f"--engine {engine} cannot be planned for",
            where="--engine",
            remedy=f"{PLANNED[0]} (the default), {', '.join(PLANNED[1:])} or onnxruntime",
        )
    if engine == "onnxruntime" and gpu:
        raise UserError(
            "the onnxruntime engine runs on the CPU: --gpu means nothing to it",
            where="--engine, --gpu",
            remedy="leave one of them away",
        )
    size = parse_size(memory) if memory else 0
    if gpu:
        return with_memory(find_gpu(gpu), size) if size else find_gpu(gpu)
    return gpu_of_size(size, str(memory)) if size and engine != "onnxruntime" else None


def _target(fp8: bool, bf16: bool) -> WeightTarget:
    if fp8 and bf16:
        raise UserError(
            "--fp8 and --bf16 exclude each other", where="--fp8, --bf16", remedy="give one of them"
        )
    return "fp8" if fp8 else "bf16" if bf16 else "stored"


def _ask(source: Source, context: int, batch: int, chunk: int, kv_dtype: str, engine: str) -> Ask:
    from mm2c.plan.ask import Ask, default_context
    from mm2c.plan.engines import PLANNED

    most = source.config.context
    if context > most:
        raise UserError(
            f"--context {context} is longer than the model's context of {most} tokens",
            where="--context",
            remedy=f"at most {most}",
        )
    kinds: dict[str, KvDtype] = {"bf16": "bf16", "fp8": "fp8"}
    if kv_dtype not in kinds:
        raise UserError(
            f"--kv-dtype {kv_dtype} is none", where="--kv-dtype", remedy="bf16 (the default) or fp8"
        )
    (kind,) = (known for known in PLANNED if known == engine)
    if kind == "tensorrt-rtx" and kv_dtype != "bf16":
        raise UserError(
            f"--kv-dtype {kv_dtype}: the {engine} engine keeps its KV cache in bf16",
            where="--kv-dtype",
            remedy="leave it away, or --engine cuda",
        )
    length = context or default_context(source.config, kind)
    return Ask(source.config, source.formats, length, batch, min(chunk, length), kinds[kv_dtype], kind)


def _one(
    ask: Ask,
    source: Source,
    card: Gpu,
    sizes: tuple[int, int, int, int],
    every: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    from mm2c.cli.plan_tables import print_plan
    from mm2c.plan.choice import make_plan
    from mm2c.plan.page import write_report
    from mm2c.plan.report import plan_json

    gpus, tp, ep, dp = sizes
    found = make_plan(ask, card, gpus=gpus, tp=tp, ep=ep, dp=dp)
    if as_json:
        print_json(plan_json(found, source.title))
    else:
        print_plan(found, source, every=every)
    if output is not None:
        for path in write_report(output, found, source.title):
            err.print(f"wrote {escape(str(path))}", soft_wrap=True)
    if not found.fits:
        raise typer.Exit(NO_ROOM)


def _overview(
    ask: Ask,
    source: Source,
    sizes: tuple[int, int, int, int],
    every: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    from mm2c.cli.plan_tables import print_overview
    from mm2c.plan.overview import overview, overview_json

    if output is not None:
        raise UserError(
            "a report is of one kind of GPU",
            where="--output",
            remedy="name it: --gpu h200, or --memory 96GiB",
        )
    gpus, tp, ep, dp = sizes
    plans = overview(ask, every=every, gpus=gpus, tp=tp, ep=ep, dp=dp)
    if as_json:
        print_json(overview_json(plans, source.title))
    else:
        print_overview(plans, source)


def _guide(ask: Ask, source: Source, as_json: bool) -> None:
    from mm2c.cli.plan_guide import print_guide
    from mm2c.plan.compare import compare
    from mm2c.plan.report import guide_json

    found = compare(ask)
    if as_json:
        print_json(guide_json(ask, source.title, found))
    else:
        print_guide(ask, source, found)


def _host(
    source: Source,
    memory: str | None,
    tp: int,
    ep: int,
    dp: int,
    context: int,
    batch: int,
    chunk: int,
    as_json: bool,
) -> None:
    """The ONNX Runtime engine: one process for all ranks of a replica."""
    from mm2c.host_memory import host_memory, host_needs, host_report
    from mm2c.passes.legality import check_mapping
    from mm2c.plan.sizes import parse_size
    from mm2c.request import BuildRequest

    rows = -(-(batch or 8) // (dp or 1))
    request = BuildRequest(
        tp=tp or 1, ep=ep or 1, dp=dp or 1, context=context, max_rows=rows, prefill_chunk=chunk
    )
    options = request.options(source.config, "onnxruntime")
    check_mapping(source.config, options.mapping)
    available = parse_size(memory) if memory else host_memory()
    needs = host_needs(source.config, options)
    report = host_report(needs, available)
    if as_json:
        print_json({"engine": "onnxruntime", **report, "fits": needs.total <= available})
    else:
        out.print(f"model     {escape(source.title)}", soft_wrap=True)
        out.print(f"memory    {escape(report['summary'])}", soft_wrap=True)
        out.print(f"KV cache  {report['kv_capacity_tokens']:,} tokens fit beside weights and a step")
    if needs.total > available:
        err.print("[bold red]does not fit[/]: smaller --context or --batch, or --engine cuda on GPUs")
        raise typer.Exit(NO_ROOM)
