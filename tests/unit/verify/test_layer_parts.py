"""Where a program's layers begin, how tensors are read in part, and what counts as wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mm2c.checkpoint import Checkpoint
from mm2c.verify.expert_stacks import ExpertCache, LazyStack
from mm2c.verify.layer_engine import Computed, HeadOutput
from mm2c.verify.layer_error import TIE, compare_hidden, compare_logits
from mm2c.verify.layer_slices import find_slices
from mm2c.verify.script import Piece
from mm2c.verify.tensor_source import FileSource, RecipeSource, read_whole, size_of
from mm2c_runtime.errors import BundleError


@dataclass(frozen=True)
class Node:
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def program() -> list[Node]:
    nodes = [Node("Gather", ("embed", "ids"), ("h",))]
    total: tuple[str, ...] = ("h",)
    for layer in range(2):
        name = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            op = "M2AddRmsNorm" if len(total) == 2 else "RMSNormalization"
            weight = f"{name}.{norm}.weight"
            nodes.append(Node("Cast", (weight,), (f"{weight}.wide",)))
            made = (f"{name}.{norm}", f"{name}.{norm}.total")
            nodes.append(Node(op, (*total, f"{weight}.wide"), made))
            nodes.append(Node("Block", (made[0],), (f"{name}.{norm}.out",)))
            total = (f"{name}.{norm}.out", made[1])
    nodes.append(Node("SkipSimplifiedLayerNormalization", (*total, "model.norm.weight"), ("n",)))
    return nodes


def test_layers_begin_at_their_norms() -> None:
    nodes = program()
    slices = find_slices(nodes, 2, "here")
    assert [nodes[b.at].op for b in slices.inputs] == ["RMSNormalization", "M2AddRmsNorm"]
    assert slices.inputs[0].hidden == ("h",)
    assert slices.inputs[1].hidden == (
        "model.layers.0.post_attention_layernorm.out",
        "model.layers.0.post_attention_layernorm.total",
    )
    assert slices.entry(2) is slices.end
    assert slices.end.at == len(nodes) - 1
    assert slices.span(0) == (slices.inputs[0].at, slices.inputs[1].at)
    assert slices.span(1)[1] == slices.end.at


def test_a_program_without_a_layers_norm_is_refused() -> None:
    with pytest.raises(BundleError, match=r"model\.layers\.2\.input_layernorm"):
        find_slices(program(), 3, "here")


def test_a_lazy_stack_makes_one_expert_at_a_time() -> None:
    made: list[int] = []

    def make(expert: int) -> torch.Tensor:
        made.append(expert)
        return torch.full((4, 2), float(expert))

    cache = ExpertCache(2 * 32)
    stack = LazyStack("w", (5, 4, 2), cache, make)
    assert stack[torch.tensor(3)][0, 0] == 3
    assert stack[3].shape == (4, 2)
    assert made == [3]
    stack[1], stack[3], stack[4], stack[3], stack[1]
    assert made == [3, 1, 4, 1]  # the one that was used longest ago went
    assert cache.peak == 64
    assert len(stack) == 5
    with pytest.raises(IndexError):
        stack[5]


def test_rows_from_a_file_and_from_recipes(random_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    with Checkpoint.open(random_checkpoint(layers=1, experts=4, seed=3)) as checkpoint:
        recipes = checkpoint.recipes(context=8)
        source = RecipeSource(recipes, checkpoint)
        name = "model.layers.0.mlp.experts.gate_up_proj_scale_inv"
        whole = read_whole(source, name)
        save_file({name: whole}, tmp_path / "w.safetensors")
        file = FileSource(tmp_path / "w.safetensors")
        assert file.shape(name) == source.shape(name) == whole.shape
        assert size_of(file, name) == whole.nbytes
        for start, stop in ((0, 1), (1, 4), (2, 2)):
            np.testing.assert_array_equal(file.rows(name, start, stop), whole[start:stop])
            np.testing.assert_array_equal(source.rows(name, start, stop), whole[start:stop])
        with pytest.raises(BundleError, match="no tensor x"):
            file.rows("x", 0, 1)
        file.close()
        (tmp_path / "w.safetensors").unlink()


def compared(values: Any, margin: float = 1.0, dtype: str = "f32") -> Any:
    """Two tokens of two ranks; ``values`` are rank 1's errors by token."""
    before = [torch.zeros(2, 4)]
    wanted = [torch.ones(2, 4)]
    ours = np.ones((2, 4), np.float32)
    theirs = ours + np.array(values, np.float32)[:, None]
    found = [Computed(Piece(0, 0, 2), ((0, ours), (1, theirs)))]
    return compare_hidden(found, wanted, before, [torch.tensor([margin, 1.0])], dtype)


def test_the_rank_that_is_off_is_named() -> None:
    assert compared([0, 0]).ranks == ()
    assert compared([0, 1e-4]).ranks == (1,)
    assert compared([0, float("nan")]).ranks == (1,)
    assert compared([0, 1e-6]).error < compared([0, 1e-6]).allowed


def test_a_token_whose_routing_hangs_on_rounding_is_left_out_where_it_differs() -> None:
    near = TIE["f32"] / 2
    assert compared([0.5, 0], near).ties == 1
    assert compared([0.5, 0], near).ranks == ()
    assert compared([1e-6, 0], near).ties == 0  # it agrees, so it counts
    assert compared([0.5, 0.5], near).ranks == (1,)
    only = [Computed(Piece(0, 0, 1), ((0, np.full((1, 4), 1.5, np.float32)),))]
    wanted = [torch.ones(2, 4)]
    found = compare_hidden(only, wanted, [torch.zeros(2, 4)], [torch.tensor([near, 1.0])], "f32")
    assert found.ranks == (0,)  # there is no other token to judge by


def test_logits_fail_by_value_and_by_token() -> None:
    piece = Piece(0, 0, 1)
    wanted = {piece: np.array([0.0, 1.0, 4.0], np.float32)}

    def result(logits: list[float], chain: list[float], ties: int = 0) -> Any:
        output = HeadOutput({piece: np.array(logits, np.float32)}, {piece: np.array(chain, np.float32)})
        return compare_logits(output, wanted, "f32", "e", chain_ties=ties)

    right = [0.0, 1.0, 4.0]
    assert result(right, right).passed
    assert not result([0.0, 1.0, 4.1], right).passed
    assert not result(right, [0.0, 5.0, 4.0]).passed
    assert result(right, [0.0, 5.0, 4.0], ties=1).passed
    assert result([0.0, 9.0, 4.0], right).flips == 1
    assert result(right, [float("nan")] * 3).as_json()["error"] is None
