"""What `mm2c plan` prints: tables that stay readable at 100 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from mm2c.cli.console import err, out, print_table
from mm2c.plan.advice import remedies, shortage
from mm2c.plan.ask import Ask, default_context
from mm2c.plan.choice import Considered, Plan
from mm2c.plan.compare import Base, base_of
from mm2c.plan.engines import engine_notes, gpu_note
from mm2c.plan.fit import Fit
from mm2c.plan.gpus import Gpu
from mm2c.plan.layouts import flags, name, words
from mm2c.plan.report import contexts
from mm2c.plan.room import decode_buckets
from mm2c.plan.sizes import gb, gib, tokens
from mm2c.plan.source import Source

SHOWN = 6  # layouts that are printed without --all
WHY = 46  # columns of a reason
STYLES = {"chosen": "bold", "closest": "bold red", "given": "bold", "no room": "red", "not possible": "dim"}


def line(label: str, text: str) -> None:
    out.print(f"{label:<10}{escape(text)}", soft_wrap=True)


def print_head(ask: Ask, source: Source) -> Base:
    base = base_of(ask)
    config = ask.config
    line("model", source.title)
    line(
        "",
        f"{config.layers} layers, hidden {config.hidden}, {config.heads} heads / {config.kv_heads} KV × "
        f"{config.head_dim}, {config.experts} experts top-{config.top_k}, vocabulary {config.vocab}",
    )
    line("weights", f"{gb(base.weights.total)} = {gib(base.weights.total)}: {_formats(ask)}")
    line(
        "KV cache",
        f"{base.kv_per_token:,} bytes a token in {ask.kv_dtype}: {gb(base.kv_per_token * 1e6)} = "
        f"{gib(base.kv_per_token * 1e6)} a million tokens",
    )
    for note in source.notes:
        line("note", note)
    return base


def _formats(ask: Ask) -> str:
    fp8, layers = ask.formats.fp8, ask.config.layers
    if not fp8:
        return "all in bf16"
    experts = sum(module.endswith(".experts") for module in fp8)
    attention = "attention and experts" if len(fp8) > experts else "experts"
    where = "" if experts == layers else f" of {experts} of {layers} layers"
    return f"{attention}{where} in FP8 with a scale a block, embedding and head in bf16"


def card_words(gpu: Gpu) -> str:
    size = f"{gpu.memory >> 20:,} MiB = {gib(gpu.memory)} = {gb(gpu.memory)} each"
    speeds = f"{gpu.bandwidth / 1e12:.2f} TB/s, {gpu.link / 1e9:.0f} GB/s between GPUs"
    return f"{size}; {speeds}{'' if gpu.known else ' (assumed)'}"


def print_plan(plan: Plan, source: Source, *, every: bool) -> None:
    own, ask = plan.best, plan.ask
    print_head(ask, source)
    line("GPUs", f"{own.mapping.gpus} × {plan.gpu.title}: {card_words(plan.gpu)}")
    for note in (gpu_note(plan.gpu, ask.engine, ask.formats), *engine_notes(ask)):
        if note:
            line("note", note)
    if own.mapping.gpus > plan.gpu.machine:
        line(
            "note",
            f"more than the {plan.gpu.machine} of a machine: messages between machines take longer than stated",
        )
    how = " (given)" if plan.given else "" if plan.fits else " (the closest: none fits)"
    line("layout", f"{name(own.mapping)}{how}: {words(own.mapping)}")
    line("why" if not plan.given else "step", plan.why)
    out.print()
    print_table(_memory(own))
    line("capacity", _capacity(plan))
    out.print()
    if own.kv_capacity_tokens:
        print_table(_requests(plan))
    if not plan.given:
        print_table(_considered(plan, every))
    if plan.fits:
        if ask.engine == "cuda" or not gpu_note(plan.gpu, ask.engine, ask.formats):
            line("build", _build(plan, source))
        return
    err.print(f"[bold red]does not fit:[/] {escape(shortage(plan))}", soft_wrap=True)
    for remedy in remedies(plan):
        err.print(f"  fits with {escape(remedy)}", soft_wrap=True)


def _memory(own: Fit) -> Table:
    room = own.tightest
    table = Table(title="each GPU", title_justify="left")
    table.add_column("part")
    table.add_column("GiB", justify="right")
    table.add_column("share", justify="right")
    table.add_column("what", max_width=62)
    rank = room.rank
    weights = rank.weights
    parts = [
        ("experts", weights.experts, "to the byte"),
        ("attention", weights.attention, "q, k, v and o projections, to the byte"),
        ("embedding, head", weights.embedding + weights.head, "to the byte"),
        ("router, norms, rope", weights.router + weights.norms + weights.rope, "to the byte"),
        *_step_parts(own),
        ("reserve", room.reserve, f"{len(decode_buckets(own.rows))} CUDA graphs and 2 %, as the engine keeps it"),
        ("system", room.system + room.collectives, "driver, context and NCCL, an estimate"),
    ]  # fmt: skip
    if room.tokens:
        short = "" if own.fits else f", {gib(own.short)} short of the {own.required:,} asked for"
        parts.append(
            ("KV cache", room.free, f"{rank.kv_per_token:,} bytes a token: {room.tokens:,} tokens{short}")
        )
    for part, size, what in parts:
        table.add_row(part, f"{size / 2**30:,.2f}", f"{size / room.memory:.1%}", what)
    if not room.tokens:
        table.add_row(
            "KV cache",
            "no room",
            "",
            f"{gib(own.short)} short of {own.required:,} tokens of cache",
            style="red",
        )
    table.add_section()
    table.add_row("memory", f"{room.memory / 2**30:,.2f}", "", "as the driver reports it")
    return table


def _step_parts(own: Fit) -> list[tuple[str, int, str]]:
    rank = own.tightest.rank
    if own.ask.engine == "tensorrt-rtx":
        return [
            (
                "scratch",
                rank.workspace,
                "experts in bf16 and copies of caches, of the largest step; estimated",
            ),
            ("buffers", rank.buffers, "inputs, states between stages and logits"),
        ]
    return [
        ("activations", rank.activations, "tensors of the largest step, a bound"),
        ("workspace", rank.workspace, "what its kernels write besides, a bound"),
        ("buffers", rank.buffers, "inputs, block tables and logits between steps"),
    ]


def _capacity(plan: Plan) -> str:
    own = plan.best
    if not own.kv_capacity_tokens:
        return "none: there is no room for a KV cache"
    text = f"{own.kv_capacity_tokens:,} tokens of KV cache in all"
    if own.mapping.dp > 1:
        text += f": {own.group_tokens:,} in each of {own.mapping.dp} groups of {own.mapping.tp} GPUs"
        if own.memory.replicas > 1:
            text += f", {own.replica_tokens:,} a replica"
    return text


def _requests(plan: Plan) -> Table:
    table = Table(title="what fits: requests at once, over all GPUs", title_justify="left")
    table.add_column("tokens each", justify="right")
    lengths = contexts(plan.ask)
    for length in lengths:
        table.add_column(f"{length:,}", justify="right")
    table.add_row("requests", *(f"{plan.best.requests_of(length):,}" for length in lengths))
    return table


def _considered(plan: Plan, every: bool) -> Table:
    shown: Sequence[Considered] = plan.considered if every else plan.considered[:SHOWN]
    left = len(plan.considered) - len(shown)
    title = "layouts that were considered" + (f" ({left} more with --all)" if left else "")
    table = Table(title=title, title_justify="left")
    table.add_column("layout")
    table.add_column("verdict")
    table.add_column("tokens", justify="right")
    table.add_column("step ≥", justify="right")
    table.add_column("why", max_width=WHY)
    for one in shown:
        held = tokens(one.fit.kv_capacity_tokens) if one.fit else ""
        step = f"{one.step.seconds * 1e3:.2f} ms" if one.step else ""
        style = STYLES.get(one.verdict, "")
        table.add_row(name(one.mapping), one.verdict, held, step, escape(one.why), style=style)
    return table


def _build(plan: Plan, source: Source) -> str:
    own, ask = plan.best, plan.ask
    words = ["mm2c build", source.given, flags(own.mapping), f"--engine {ask.engine}"]
    if ask.engine == "tensorrt-rtx" and plan.gpu.sm:
        words.append(f"--target sm{plan.gpu.sm}")
    if ask.context != default_context(ask.config, ask.engine):
        words.append(f"--context {ask.context}")
    if own.rows != 8:
        words.append(f"--max-rows {own.rows}")
    if ask.kv_dtype != "bf16":
        words.append(f"--kv-dtype {ask.kv_dtype}")
    if ask.formats.fp8 != source.stored.fp8:
        words.append("--fp8" if ask.formats.fp8 else "--bf16")
    return " ".join(words)


def print_overview(plans: Sequence[Plan], source: Source) -> None:
    print_head(plans[0].ask, source)
    for note in engine_notes(plans[0].ask):
        line("note", note)
    out.print()
    table = Table(title="GPUs", title_justify="left")
    table.add_column("GPU")
    for column in ("GPUs", "layout", "weights each", "KV tokens in all", "decode step ≥"):
        table.add_column(column, justify="left" if column == "layout" else "right")
    table.add_column("")
    for plan in plans:
        own = plan.best
        table.add_row(
            plan.gpu.name,
            str(own.mapping.gpus),
            name(own.mapping),
            gib(own.tightest.rank.weights.total),
            tokens(own.kv_capacity_tokens),
            f"{plan.step.seconds * 1e3:.2f} ms",
            ("no engine" if gpu_note(plan.gpu, plan.ask.engine, plan.ask.formats) else "")
            if plan.fits
            else f"short of {gib(own.short)}",
            style="" if plan.fits else "red",
        )
    print_table(table)
    step = plans[0].step
    line(
        "step",
        f"{step.rows * plans[0].best.mapping.dp} requests with {step.tokens_a_row:,} tokens each; --gpu NAME says more",
    )
