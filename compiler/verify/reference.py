"""The reference: the unmodified transformers module with the checkpoint's dequantised weights in fp32."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mm2c.checkpoint.convert import converted
from mm2c.errors import UserError
from mm2c_runtime.memory import available_bytes

if TYPE_CHECKING:
    from mm2c.checkpoint import Checkpoint
    from mm2c.config import WeightTarget
    from mm2c_runtime.weights.recipe import Recipe


def fp32_bytes(recipes: dict[str, Recipe]) -> int:
    """Bytes of all tensors in fp32, scales not counted (they are folded in)."""
    return sum(
        4 * int(np.prod(r.shape))
        for name, r in recipes.items()
        if not name.endswith("_scale_inv") and name[:4] != "rope"
    )


def dense(name: str, recipes: dict[str, Recipe]) -> Recipe:
    """Recipe of a tensor in fp32: block-dequantised where it has scales."""
    from mm2c.config import BLOCK
    from mm2c_runtime.weights.recipe import Cast, dequantize

    recipe = recipes[name]
    scale = recipes.get(f"{name}_scale_inv")
    return dequantize(recipe, scale, BLOCK, BLOCK) if scale is not None else Cast(recipe, "f32")


def official_config(checkpoint: Checkpoint) -> Any:
    """The checkpoint's configuration as transformers reads it, for dequantised weights in fp32."""
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False)
    config.quantization_config = None
    config._attn_implementation = "sdpa"
    config._experts_implementation = "eager"  # expert after expert
    config.dtype = torch.float32
    return config


class Reference:
    """Greedy decoding by the official module, one row at a time, with the logits of every step.

    ``weight_format``: what the bundle's linears were converted to; the reference then has the same weights.

    Raises UserError where the fp32 weights do not fit into memory.
    """

    def __init__(self, checkpoint: Checkpoint, weight_format: WeightTarget = "stored") -> None:
        recipes, _ = converted(checkpoint.recipes(), checkpoint.formats, weight_format, checkpoint.config)
        need, have = fp32_bytes(recipes), available_bytes()
        if have is not None and need * 1.1 > have:
            raise UserError(
                f"the reference needs {need / 1e9:.0f} GB of memory in fp32, {have / 1e9:.0f} GB are free",
                where=str(checkpoint.folder),
                remedy="verify on a machine with more memory, or with a checkpoint of the same shape and fewer layers",
            )
        self.folder = checkpoint.folder
        self.model = self._load(checkpoint, recipes)

    @staticmethod
    def _load(checkpoint: Checkpoint, recipes: dict[str, Recipe]) -> Any:
        import torch
        from transformers import MiniMaxM2ForCausalLM

        from mm2c_runtime.weights.evaluate import evaluate

        logging.getLogger("transformers").setLevel(logging.ERROR)
        config = official_config(checkpoint)
        with torch.device("meta"):
            model = MiniMaxM2ForCausalLM(config)
        state = {
            name: torch.from_numpy(
                np.ascontiguousarray(evaluate(dense(name, recipes), checkpoint), dtype=np.float32)
            )
            for name in model.state_dict()
        }
        model.load_state_dict(state, assign=True, strict=True)
        # rotary tables are no part of the state: made anew on the CPU by the module's own class
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
        return model.eval()

    def run(self, prompt: list[int], steps: int) -> tuple[list[int], NDArray[np.float32]]:
        """Greedy continuation of one row.

        Returns the ``steps + 1`` tokens chosen and their logits f32[steps + 1, vocab]; row 0 belongs to the
        last prompt token.
        """
        import torch
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        ids, tokens, rows = torch.tensor([prompt]), [], []
        with torch.inference_mode():
            for _ in range(steps + 1):
                logits = self.model(
                    input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1
                ).logits[0, -1]
                rows.append(logits.numpy().copy())
                tokens.append(int(logits.argmax()))
                ids = torch.tensor([[tokens[-1]]])
        return tokens, np.stack(rows)

    def hidden_states(self, ids: list[int]) -> list[Any]:
        """Of every token, the embedding and each layer's output: layers + 1 times f32[tokens, H] (torch)."""
        import torch

        found: list[Any] = []
        model = self.model.model
        watched = [model.embed_tokens, *model.layers]
        hooks = [m.register_forward_hook(lambda _, given, made: found.append(made[0])) for m in watched]
        try:
            with torch.inference_mode():
                model(input_ids=torch.tensor([ids]))
        finally:
            for hook in hooks:
                hook.remove()
        return found
