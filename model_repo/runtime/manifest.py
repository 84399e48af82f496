"""``manifest.json``: what a bundle holds and how its rank programs are run. Written by the compiler, read here.

For ONNX Runtime a rank program is a chain of segments cut at the collectives: segment 0, collective 0, segment 1, …
The values that travel between segments are named; a collective reads one value of every rank and writes another.
For the cuda engine it is one list of nodes in a file of its own, collectives among them.
"""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import BaseModel, ConfigDict

from mm2c_runtime.manifest_tensorrt import TensorRTProgram

FORMAT = 4


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ModelInfo(_Frozen):
    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int
    experts: int
    top_k: int
    intermediate: int
    vocab: int
    context: int
    bos: int | None
    eos: list[int]


class MappingInfo(_Frozen):
    """As the compiler's ``Mapping``: ``ep`` above ``tp`` is attention-DP."""

    tp: int
    ep: int
    dp: int = 1

    @property
    def attention_dp(self) -> int:
        """Attention groups of a replica, each with requests of its own."""
        return max(self.ep // self.tp, 1)

    @property
    def ranks(self) -> int:
        """Ranks of a replica; rank r is rank r % tp of attention group r // tp."""
        return self.tp * self.attention_dp

    @property
    def replicas(self) -> int:
        return self.dp // self.attention_dp

    @property
    def tp_groups(self) -> list[tuple[int, ...]]:
        """The ranks of each attention group."""
        return [tuple(range(first, first + self.tp)) for first in range(0, self.ranks, self.tp)]


class Limits(_Frozen):
    """Sizes fixed at build. ``context``: tokens a row can hold; ``max_rows``: rows decoded together, of each
    attention group; ``prefill_chunk``: tokens of one prefill step of a group."""

    context: int
    max_rows: int
    prefill_chunk: int


class Collective(_Frozen):
    """``all_reduce`` sums ``input`` over the ranks of each group; ``all_gather`` concatenates along ``axis``;
    ``reduce_scatter`` sums and leaves the i-th of equal parts along ``axis`` to the group's i-th rank."""

    kind: Literal["all_reduce", "all_gather", "reduce_scatter"]
    input: str
    output: str
    axis: int = -1
    groups: list[list[int]]


class Segment(_Frozen):
    """One ONNX file. ``inputs``/``outputs`` are graph value names in order; weights are external data.

    ``tensors`` names them where the bundle has no weights files: they are then given to the session."""

    file: str
    inputs: list[str]
    outputs: list[str]
    tensors: list[str] = []


class KvSpec(_Frozen):
    """Cache of one rank: per layer ``k_cache.{l}`` and ``v_cache.{l}`` of [rows, kv_heads, context, head_dim]."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: Literal["f32", "bf16", "fp8"]


class RankProgram(_Frozen):
    rank: int
    segments: list[Segment]
    collectives: list[Collective]  # one fewer than segments
    weights: str
    kv: KvSpec


class Lowering(_Frozen):
    """``in_place``: the cache outputs may be bound to the cache inputs. ``padded``: rows shorter than the
    step's width are allowed (new_len < S); otherwise a step is S = 1, or B = 1 with new_len = S."""

    ranks: list[RankProgram]
    in_place: bool
    padded: bool


class PagedKvSpec(_Frozen):
    """Cache of one rank: per layer ``k_cache.{l}`` and ``v_cache.{l}`` of [pages, page, kv_heads, head_dim];
    ``fp8`` is float8_e4m3fn without a scale."""

    layers: int
    kv_heads: int
    head_dim: int
    page: int  # tokens
    dtype: Literal["bf16", "fp8"]


class CudaRank(_Frozen):
    """``program``: the rank's nodes as JSON; ``weights``: the tensors that they read. Paths in the bundle."""

    rank: int
    program: str
    weights: str
    kv: PagedKvSpec


class CudaProgram(_Frozen):
    """Rank programs that the plugin library runs. ``library`` and ``host`` are paths in the bundle; ``version``
    and ``abi`` are the library's own. ``head``: whether the programs gather their logits, or leave each rank its
    own part of the vocabulary, of which the runtime gathers the best tokens."""

    ranks: list[CudaRank]
    library: str
    host: str
    version: str
    abi: int
    head: Literal["gather", "candidates"] = "gather"


class CheckpointInfo(_Frozen):
    source: str  # folder or hub id, as given
    revision: str | None
    identity: str  # sha256 over config.json, the index and every tensor's header
    format: Literal["fp8", "bf16", "mixed"]
    content: str = ""  # key of the data itself, samples of it where it is large: a fine-tune has another
    folder: str = ""  # where it lay at the build; a hub id says only what it is


class FileEntry(_Frozen):
    """``chunk`` 0: ``sha256`` is of the file's bytes. Otherwise it is of the concatenated sha256 digests (32 bytes
    each) of its pieces of ``chunk`` bytes, the last one shorter: large files are hashed on many cores, and while
    they are written in any order."""

    sha256: str
    bytes: int
    chunk: int = 0


class Manifest(_Frozen):
    format: int = FORMAT
    mm2c_version: str
    build_key: str  # sha256 of everything that decided the content; equal keys, equal bundles
    engine: Literal["onnxruntime", "cuda", "tensorrt-rtx", "tensorrt"]
    model: ModelInfo
    mapping: MappingInfo
    limits: Limits
    logits: Literal["last", "all"]
    weights: Literal["copy", "checkpoint"] = (
        "copy"  # "checkpoint": every start reads the ranks' tensors from there
    )
    weight_format: Literal["stored", "fp8", "bf16"] = (
        "stored"  # of the linears: as the checkpoint has them, block-quantised, or dequantised
    )
    checkpoint: CheckpointInfo | None  # None: built from config.json alone, cannot be served
    lowerings: dict[str, Lowering]  # of ONNX Runtime: "fast" and "portable"; empty for other engines
    cuda: CudaProgram | None = None  # of the cuda engine
    tensorrt: TensorRTProgram | None = None  # of the engines tensorrt and tensorrt-rtx
    libraries: dict[str, str]  # name -> version at build
    files: dict[str, FileEntry]  # every other file of the bundle, by path relative to it
    seal: str = ""  # ``sealed``'s digest of all of the above; empty: not checked

    def sealed(self) -> Manifest:
        """The same with its seal: a manifest that is edited afterwards is found out."""
        return self.model_copy(update={"seal": self._digest()})

    def is_intact(self) -> bool:
        """Whether the seal, if there is one, is of this content."""
        return not self.seal or self.seal == self._digest()

    def _digest(self) -> str:
        content = self.model_dump(mode="json", exclude={"seal"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
