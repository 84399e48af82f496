"""The reference at any size: the unmodified transformers decoder layers in fp32, one at a time, the chosen experts
alone."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mm2c.checkpoint.convert import converted
from mm2c.verify.expert_stacks import ExpertCache, LazyStack
from mm2c.verify.reference import dense, official_config
from mm2c_runtime.weights.evaluate import evaluate, whole

if TYPE_CHECKING:
    from torch import Tensor

    from mm2c.checkpoint import Checkpoint
    from mm2c.config import WeightTarget
    from mm2c.verify.script import Piece, Script
    from mm2c_runtime.weights.recipe import Recipe

HEAD_BYTES = 128 << 20  # of the head in fp32 that are in memory at a time
STACKS = ("gate_up_proj", "down_proj")


@dataclass
class LayerRun:
    """One layer over a whole script. ``hidden``: by row, f32[tokens, H] behind the layer; ``attention``: the
    attention's part of it; ``margin``: by row f32[tokens], how far the router's last chosen expert lies above
    the first that was not (infinite where all are chosen)."""

    hidden: list[Tensor]
    attention: list[Tensor]
    margin: list[Tensor]
    experts: set[int] = field(default_factory=set)


class StreamedReference:
    """What ``MiniMaxM2ForCausalLM`` computes, from the classes that it is made of. ``weight_format`` as for
    ``Reference``.

    Memory: the attention and router weights of one layer, ``cache`` for experts, and a script's hidden states.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        weight_format: WeightTarget = "stored",
        cache: ExpertCache | None = None,
    ) -> None:
        from transformers.models.minimax_m2.modeling_minimax_m2 import MiniMaxM2RotaryEmbedding

        logging.getLogger("transformers").setLevel(logging.ERROR)
        self.config = official_config(checkpoint)
        self.experts = cache or ExpertCache()
        self._checkpoint = checkpoint
        self._recipes, _ = converted(
            checkpoint.recipes(), checkpoint.formats, weight_format, checkpoint.config
        )
        self._rotary = MiniMaxM2RotaryEmbedding(self.config)

    def embed(self, script: Script) -> list[Tensor]:
        """By row, f32[tokens, H]."""
        import torch

        name = "model.embed_tokens.weight"
        vectors = {
            token: self._rows(name, token, token + 1)
            for token in sorted({t for r in script.rows for t in r.ids})
        }
        return [torch.cat([vectors[token] for token in row.ids]) for row in script.rows]

    def run_layer(self, number: int, script: Script, hidden: list[Tensor]) -> LayerRun:
        """Layer ``number`` over the script's steps, each row with a cache of its own."""
        import torch
        from transformers import DynamicCache

        layer, seen = self._layer(number), _Observer()
        seen.attach(layer)
        caches = [DynamicCache(config=self.config) for _ in script.rows]
        found = LayerRun(
            [torch.empty_like(h) for h in hidden],
            [torch.empty_like(h) for h in hidden],
            [torch.empty(len(h)) for h in hidden],
        )
        with torch.inference_mode():
            for step in script.steps:
                for piece in step.pieces:
                    part = slice(piece.start, piece.stop)
                    out = self._apply(layer, caches[piece.row], piece, hidden[piece.row][None, part])
                    found.hidden[piece.row][part] = out[0]
                    found.attention[piece.row][part] = seen.attention
                    found.margin[piece.row][part] = seen.margin
                    found.experts |= seen.experts
        self.experts.clear()
        return found

    def logits(self, script: Script, hidden: list[Tensor]) -> dict[Piece, Tensor]:
        """f32[V] of every piece's last token: the official norm and the head in blocks of rows."""
        import torch
        from transformers.models.minimax_m2.modeling_minimax_m2 import MiniMaxM2RMSNorm

        norm = MiniMaxM2RMSNorm(self.config.hidden_size, eps=self.config.rms_norm_eps)
        norm.load_state_dict({"weight": self._tensor("model.norm.weight")})
        pieces = [piece for step in script.steps for piece in step.pieces]
        vocab = self.config.vocab_size
        block = max(1, HEAD_BYTES // (4 * self.config.hidden_size))
        with torch.inference_mode():
            last = norm(torch.stack([hidden[piece.row][piece.stop - 1] for piece in pieces]))
            logits = torch.empty(len(pieces), vocab)
            for start in range(0, vocab, block):
                weight = self._rows("lm_head.weight", start, min(start + block, vocab))
                for index in range(len(pieces)):  # one row at a time, as the whole model computes it
                    logits[index, start : start + block] = torch.nn.functional.linear(
                        last[None, index : index + 1], weight
                    )[0, 0]
        return dict(zip(pieces, logits, strict=True))

    def _apply(self, layer: Any, cache: Any, piece: Piece, x: Tensor) -> Tensor:
        """As ``MiniMaxM2Model.forward`` calls a layer."""
        import torch
        from transformers.masking_utils import create_causal_mask

        positions = torch.arange(piece.start, piece.stop)[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=x,
            attention_mask=None,
            past_key_values=cache,
            position_ids=positions,
        )
        found: Tensor = layer(
            x,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            position_embeddings=self._rotary(x, position_ids=positions),
        )
        return found

    def _layer(self, number: int) -> Any:
        """The official layer with the checkpoint's weights. It is layer 0 of its caches, which hold no other."""
        import torch
        from transformers.models.minimax_m2.modeling_minimax_m2 import MiniMaxM2DecoderLayer

        with torch.device("meta"):
            layer = MiniMaxM2DecoderLayer(self.config, 0)
        prefix = f"model.layers.{number}."
        experts = layer.mlp.experts
        for stack in STACKS:
            del experts._parameters[stack]
            setattr(experts, stack, self._stack(f"{prefix}mlp.experts.{stack}"))
        state = {name: self._tensor(prefix + name) for name in layer.state_dict()}
        layer.load_state_dict(state, assign=True, strict=True)
        return layer.eval()

    def _stack(self, name: str) -> LazyStack:
        recipe = dense(name, self._recipes)
        return LazyStack(
            name, recipe.shape, self.experts, lambda expert: self._read(recipe, expert, expert + 1)[0]
        )

    def _tensor(self, name: str) -> Tensor:
        recipe = dense(name, self._recipes)
        return self._read(recipe, 0, recipe.shape[0])

    def _rows(self, name: str, start: int, stop: int) -> Tensor:
        return self._read(dense(name, self._recipes), start, stop)

    def _read(self, recipe: Recipe, start: int, stop: int) -> Tensor:
        import torch

        region = ((start, stop), *whole(recipe.shape)[1:])
        values = evaluate(recipe, self._checkpoint, region)
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


class _Observer:
    """What passes inside a layer, by hooks of torch's own: its code stays as it is."""

    def __init__(self) -> None:
        self.attention: Any = None
        self.margin: Any = None
        self.experts: set[int] = set()

    def attach(self, layer: Any) -> None:
        bias = layer.mlp.e_score_correction_bias

        def attended(module: Any, given: Any, made: Any) -> None:
            self.attention = made[0][0]

        def routed(module: Any, given: Any, made: Any) -> None:
            import torch

            logits, _, chosen = made
            scores = (torch.sigmoid(logits.float()) + bias).sort(-1, descending=True).values
            count = chosen.shape[-1]
            self.margin = torch.full((len(scores),), torch.inf)
            if count < scores.shape[-1]:
                self.margin = scores[:, count - 1] - scores[:, count]
            self.experts = set(chosen.flatten().tolist())

        layer.self_attn.register_forward_hook(attended)
        layer.mlp.gate.register_forward_hook(routed)
