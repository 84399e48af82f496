"""The plain values that every stage takes: the model, its cut over ranks, and the options of a build."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

Format = Literal["fp8", "dense"]
KvDtype = Literal["f32", "bf16", "fp8"]
Engine = Literal["onnxruntime", "cuda", "tensorrt-rtx", "tensorrt"]
WeightTarget = Literal["stored", "fp8", "bf16"]  # as the checkpoint has them; block-quantised; dequantised
WeightPlace = Literal[
    "copy", "checkpoint"
]  # rank files in the bundle; or read from the checkpoint at every start
TENSORRT = ("tensorrt-rtx", "tensorrt")  # the engines that run plans
BLOCK = 128  # side of a released FP8 scale block, in elements
PAGE = 64  # tokens of a page of a paged KV cache: 16 KiB of one head in bf16, and little of a row's last is empty


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: base, rotated width of a head, and the scaling (``rope_scaling`` of config.json)."""

    theta: float
    rotary_dim: int
    scaling: tuple[tuple[str, object], ...] = ()  # sorted items, so that the value stays hashable


@dataclass(frozen=True)
class ModelConfig:
    """What of config.json is compiled. Field names are the field's standard terms, not config.json's keys."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int  # width of one expert
    experts: int
    top_k: int
    vocab: int
    eps: float
    context: int  # max_position_embeddings
    rope: Rope
    bos: int | None
    eos: tuple[int, ...]
    name: str = "minimax_m2"

    @property
    def q_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim


@dataclass(frozen=True)
class WeightFormats:
    """How each linear of the checkpoint is stored.

    ``fp8`` holds module names: ``model.layers.3.self_attn.q_proj`` or ``model.layers.3.mlp.experts``.
    ``dtypes`` gives the stored dtype of every other tensor by its graph name (see checkpoint/names.py):
    "bf16", "f32" or "f16"; absent means bf16.
    """

    fp8: frozenset[str] = frozenset()
    dtypes: tuple[tuple[str, str], ...] = ()

    def of(self, module: str) -> Format:
        return "fp8" if module in self.fp8 else "dense"

    def dtype(self, tensor: str) -> str:
        return dict(self.dtypes).get(tensor, "bf16")


@dataclass(frozen=True)
class Mapping:
    """The cut over ``tp * dp`` GPUs. ``tp`` cuts attention and vocabulary, ``ep`` the experts, ``dp`` the requests.

    ``ep`` divides ``tp``: rank r holds expert group r // (tp // ep), and inside it slice r % (tp // ep) of every
    expert's intermediate width; the ``dp`` replicas know nothing of each other.

    ``ep`` above ``tp`` (a multiple of it that divides tp * dp) is attention-DP: ep // tp attention groups of tp
    ranks, each with requests of its own, share the experts, every rank holding experts / ep of them whole. Rank r
    is rank r % tp of group r // tp. There are dp // (ep // tp) replicas of that.

    ``rank`` counts the ranks of one replica.
    """

    tp: int = 1
    ep: int = 1
    dp: int = 1
    rank: int = 0

    @property
    def attention_dp(self) -> int:
        """Attention groups that share the experts; 1 where every replica has experts of its own."""
        return max(self.ep // self.tp, 1)

    @property
    def ranks(self) -> int:
        """Ranks of one replica: those that exchange messages."""
        return self.tp * self.attention_dp

    @property
    def replicas(self) -> int:
        return self.dp // self.attention_dp

    @property
    def gpus(self) -> int:
        return self.tp * self.dp

    @property
    def moe_tp(self) -> int:
        """Ranks over which each expert's intermediate width is cut."""
        return max(self.tp // self.ep, 1)

    def kv_heads_of_rank(self, kv_heads: int) -> int:
        """KV heads that a rank holds: where there are fewer than ``tp`` of them, tp // kv_heads ranks hold each."""
        return max(kv_heads // self.tp, 1)

    @property
    def ep_rank(self) -> int:
        return self.rank // self.moe_tp

    @property
    def moe_tp_rank(self) -> int:
        return self.rank % self.moe_tp

    @property
    def tp_rank(self) -> int:
        return self.rank % self.tp

    @property
    def attention_group(self) -> int:
        return self.rank // self.tp

    @property
    def tp_groups(self) -> tuple[tuple[int, ...], ...]:
        """The ranks of each attention group."""
        return tuple(
            tuple(range(group * self.tp, (group + 1) * self.tp)) for group in range(self.attention_dp)
        )

    @property
    def token_groups(self) -> tuple[tuple[int, ...], ...]:
        """Ranks that exchange the groups' tokens before and after the experts: those of equal ``tp_rank``."""
        return tuple(tuple(range(first, self.ranks, self.tp)) for first in range(self.tp))

    def at(self, rank: int) -> Mapping:
        return replace(self, rank=rank)


@dataclass(frozen=True)
class BuildOptions:
    """What `mm2c build` was asked for, after defaults were resolved."""

    mapping: Mapping = field(default_factory=Mapping)
    engine: Engine = "onnxruntime"
    context: int = 0  # 0: the model's own
    max_rows: int = 8
    prefill_chunk: int = 512
    all_logits: bool = False
    kv_dtype: KvDtype = "f32"  # of the KV cache
    format: WeightTarget = "stored"  # of the linears
    weights: WeightPlace = "copy"
    layers_per_plan: int = 8  # decoder layers of a TensorRT plan; 0: all in one
