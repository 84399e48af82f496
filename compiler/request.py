"""What a build is asked for and what it reports: the two values at the ends of the pipeline."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from mm2c.config import BuildOptions, Engine, KvDtype, Mapping, ModelConfig, WeightPlace, WeightTarget
from mm2c.errors import UserError

LINEAR_CONTEXT = (
    32768  # tokens of a linear row: one of M2's whole context would take 46 GiB of KV cache in fp32
)
PREFILL_CHUNK = 512
PAGED = ("cuda", "tensorrt")  # engines whose cache is paged
KV_DTYPES: dict[str, tuple[KvDtype, ...]] = {
    "onnxruntime": ("f32",),
    "cuda": ("bf16", "fp8"),
    "tensorrt": ("bf16", "fp8"),
    "tensorrt-rtx": ("bf16",),
}  # first: the default


@dataclass(frozen=True)
class BuildRequest:
    """`mm2c build` as asked, before defaults. ``source`` None: found as the checkpoint reader documents."""

    source: str | None = None
    output: Path | None = None
    revision: str | None = None
    tp: int = 1
    ep: int = 1
    dp: int = 1
    fp8: bool = False
    bf16: bool = False
    weights: str = "copy"
    check_shards: bool = True
    engine: str = "auto"
    context: int = 0
    max_rows: int = 8
    prefill_chunk: int = 0  # tokens; 0: PREFILL_CHUNK, or the context where that is shorter
    all_logits: bool = False
    kv_dtype: str | None = None
    config_only: bool = False
    target: str | None = None  # compute capability that plans are built for; None: the engine's default
    defer_plan: bool = False  # leave the plans to the machine that serves them
    layers_per_plan: int = 8
    gpu: str | None = None  # kind or memory of the GPUs that it is for: says whether it fits, changes nothing
    force: bool = False
    cache: bool = True

    def options(self, config: ModelConfig, engine: Engine) -> BuildOptions:
        """The options with the defaults of ``config`` filled in. In a paged KV cache a long context costs only what is
        used of it, so that the default is the model's.

        Raises:
            UserError: a context longer than the model's, a prefill chunk longer than the context, or a cache dtype that
                the engine does not have.
        """
        if self.context > config.context:
            raise UserError(
                f"--context {self.context} is longer than the model's context of {config.context} tokens",
                where="--context",
                remedy=f"at most {config.context}",
            )
        most = config.context if engine in PAGED else min(config.context, LINEAR_CONTEXT)
        context = self.context or most
        if self.prefill_chunk > context:
            raise UserError(
                f"--prefill-chunk {self.prefill_chunk} is longer than a row's {context} tokens",
                where="--prefill-chunk",
                remedy=f"at most {context}, or a longer --context",
            )
        return BuildOptions(
            mapping=Mapping(tp=self.tp, ep=self.ep, dp=self.dp),
            engine=engine,
            context=context,
            max_rows=self.max_rows,
            prefill_chunk=self.prefill_chunk or min(PREFILL_CHUNK, context),
            all_logits=self.all_logits,
            kv_dtype=self._kv_dtype(engine),
            format=self._format(),
            weights=self.weights_place(),
            layers_per_plan=self.layers_per_plan,
        )

    def _format(self) -> WeightTarget:
        if self.fp8 and self.bf16:
            raise UserError(
                "--fp8 and --bf16 exclude each other",
                where="--fp8, --bf16",
                remedy="give one of them, or none",
            )
        return "bf16" if self.bf16 else "fp8" if self.fp8 else "stored"

    def weights_place(self) -> WeightPlace:
        """``weights``, checked. Raises UserError."""
        for place in get_args(WeightPlace):
            if self.weights == place:
                found: WeightPlace = place
                return found
        raise UserError(
            f"--weights {self.weights} is neither copy nor checkpoint",
            where="--weights",
            remedy="--weights copy (the default) or --weights checkpoint",
        )

    def _kv_dtype(self, engine: Engine) -> KvDtype:
        known = KV_DTYPES[engine]
        for dtype in known:
            if self.kv_dtype in (dtype, None):
                return dtype
        raise UserError(
            f"--kv-dtype {self.kv_dtype}: the {engine} engine keeps its KV cache in {' or '.join(known)}",
            where="--kv-dtype",
            remedy=f"one of: {', '.join(known)}"
            + ("" if engine == "cuda" else "; or --engine cuda (bf16, fp8)"),
        )

    def place(self, checkpoint: Path) -> Path:
        """Where the bundle goes: ``output``, else ``./NAME-tpN[-epN][-dpN]``, NAME the model's or the folder's."""
        layout = f"tp{self.tp}" + "".join(
            f"-{name}{size}" for name, size in (("ep", self.ep), ("dp", self.dp)) if size > 1
        )
        return (self.output or Path.cwd() / f"{_name(checkpoint)}-{layout}").absolute()


def _name(checkpoint: Path) -> str:
    """The checkpoint folder's name; the model's of a hub snapshot (``models--ORG--NAME/snapshots/COMMIT``)."""
    parts = checkpoint.resolve().parts
    if len(parts) > 2 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        return parts[-3].rpartition("--")[2]
    return parts[-1]


@dataclass(frozen=True)
class BuildReport:
    """What a build did. ``made`` and ``reused`` name stages; ``seconds`` is wall time."""

    output: Path
    engine: str
    reason: str
    up_to_date: bool
    made: tuple[str, ...] = ()
    reused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    bytes: int = 0
    seconds: float = 0.0
    memory: dict[str, Any] = field(default_factory=dict)
    quantization: str = ""  # what --fp8 did to a dense checkpoint, in one line

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "output": str(self.output)}

    def lines(self) -> list[str]:
        """The report for a terminal."""
        lines = [f"engine    {self.engine}: {self.reason}", *(f"note      {note}" for note in self.notes)]
        if self.up_to_date:
            return [*lines, f"up to date {self.output} ({self.seconds:.1f} s; nothing was built)"]
        if self.reused:
            lines.append(f"reused    {', '.join(self.reused)} (from the cache)")
        if self.made:
            lines.append(f"built     {', '.join(self.made)}")
        if self.quantization:
            lines.append(f"quantised {self.quantization}")
        if self.memory:
            lines.append("memory    " + self.memory["summary"])
        return [*lines, f"bundle    {self.output} ({self.bytes / 2**20:.1f} MiB, {self.seconds:.1f} s)"]
