"""Logits that stay on their ranks: what is left of the head's graph, and what the programs say of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest
from hand_graph import hand_graph, model_config

from mm2c.config import BuildOptions, Mapping, ModelConfig
from mm2c.engine import cuda as engine
from mm2c.engine.plugin_library import PluginLibrary
from mm2c.lower.cuda import lower_cuda
from mm2c.lower.local_head import GATHER, lower_to_local_head
from mm2c.lower.program import LoweredRank
from mm2c.passes.edit import PassError
from mm2c.passes.shard import shard
from mm2c.weights.rank_graph import RankGraph
from mm2c_runtime.executors.cuda.program import Head, read_program

# Two ranks have 261 tokens each of the even vocabulary, 262 and 261 of the odd one; candidates are cheaper for both.
EVEN, ODD = model_config(vocab=522), model_config(vocab=523)
F32 = ir.DataType.FLOAT
LIBRARY = PluginLibrary(Path("nowhere"), "0.0.0+none", "none", (90,))


@pytest.fixture(scope="module")
def traced() -> Callable[[ModelConfig], RankGraph]:
    known: dict[int, RankGraph] = {}

    def make(config: ModelConfig) -> RankGraph:
        return known.setdefault(config.vocab, hand_graph(config))

    return make


def lowered(graph: RankGraph, config: ModelConfig, mapping: Mapping) -> LoweredRank:
    return lower_cuda(shard(graph, config, mapping))


def nodes(rank: LoweredRank) -> list[tuple[str, str]]:
    return [(node.op_type, str(node.name)) for node in rank.model.graph]


@pytest.mark.parametrize(
    ("config", "kept"),
    [(EVEN, ["M2DenseLinear"]), (ODD, ["M2DenseLinear", "Slice", "CastLike", "Pad"])],
    ids=["even", "odd"],
)
@pytest.mark.parametrize("place", [0, 1])
def test_logits_are_what_the_gather_was_given(
    traced: Callable[[ModelConfig], RankGraph], config: ModelConfig, kept: list[str], place: int
) -> None:
    rank = lowered(traced(config), config, Mapping(2, rank=place))
    before, outputs = nodes(rank), [value.name for value in rank.model.graph.outputs]
    recipes = dict(rank.recipes)
    lower_to_local_head(rank)
    graph = rank.model.graph
    assert [value.name for value in graph.outputs] == outputs
    logits = graph.outputs[0]
    assert (logits.name, logits.dtype) == ("logits", F32)
    assert logits.shape is not None
    assert not logits.shape.is_static(-1)  # no longer the vocabulary
    assert [node.op_type for node in graph if str(node.name).startswith("lm_head")] == kept
    last = logits.producer()
    assert last is not None
    assert last.op_type == kept[-1]
    gone = [node for node in before if node not in nodes(rank)]
    assert gone == [("DistCollective", GATHER), ("Slice", "lm_head.vocabulary")]
    assert rank.recipes == recipes
    assert all(value.uses() for value in graph.initializers.values())
    made = [value.name for node in graph for value in node.outputs]
    assert made.count("logits") == 1
    assert len(made) == len(set(made))


def test_ranks_keep_the_same_nodes(traced: Callable[[ModelConfig], RankGraph]) -> None:
    ranks = [lowered(traced(ODD), ODD, Mapping(2, rank=place)) for place in (0, 1)]
    for rank in ranks:
        lower_to_local_head(rank)
    assert nodes(ranks[0]) == nodes(ranks[1])


def test_a_vocabulary_that_is_not_cut_is_a_defect(traced: Callable[[ModelConfig], RankGraph]) -> None:
    with pytest.raises(PassError, match=r"no lm_head\.all_gather"):
        lower_to_local_head(lowered(traced(EVEN), EVEN, Mapping(1)))


@pytest.mark.parametrize("where", ["between", "beside", "behind"])
def test_what_else_reads_the_logits_is_a_defect(
    traced: Callable[[ModelConfig], RankGraph], where: str
) -> None:
    """A scaling of the gathered logits between gather and cut, beside the cut, or behind it."""
    rank = lowered(traced(EVEN), EVEN, Mapping(2))
    graph = rank.model.graph
    gather = next(node for node in graph if node.name == GATHER)
    (cut,) = gather.outputs[0].consumers()
    source = cut.outputs[0] if where == "behind" else gather.outputs[0]
    more = ir.node("Identity", [source], name="surprise")
    more.outputs[0].name, more.outputs[0].type = "surprised", ir.TensorType(F32)
    graph.insert_after(cut if where == "behind" else gather, more)
    if where == "between":
        cut.replace_input_with(0, more.outputs[0])
    elif where == "beside":
        graph.outputs.append(more.outputs[0])
    else:
        graph.outputs[0] = more.outputs[0]
    with pytest.raises(PassError, match="followed by something else than the cut"):
        lower_to_local_head(rank)


@pytest.mark.parametrize(
    ("config", "mapping", "parts"),
    [
        (EVEN, Mapping(2), [Head(0, 261, 261), Head(261, 261, 261)]),
        (ODD, Mapping(2), [Head(0, 262, 262), Head(262, 261, 262)]),
        (ODD, Mapping(4), [Head(131 * place, 131 - place // 3, 131) for place in range(4)]),
        (ODD, Mapping(2, 4, 4), [Head(0, 262, 262), Head(262, 261, 262)] * 2),
        (EVEN, Mapping(1), [None]),
        (model_config(vocab=260), Mapping(2), [None] * 2),  # 130 logits are no more than 65 keys
    ],
    ids=["even", "odd", "four", "attention-dp", "single", "small"],
)
def test_programs_say_which_part_they_have(
    traced: Callable[[ModelConfig], RankGraph],
    config: ModelConfig,
    mapping: Mapping,
    parts: list[Head | None],
    tmp_path: Path,
) -> None:
    options = BuildOptions(mapping=mapping, context=64, kv_dtype="bf16")
    for number, part in enumerate(parts):
        rank = lowered(traced(config), config, mapping.at(number))
        if engine.head_of(config, options) == "candidates":
            lower_to_local_head(rank)
        record = engine.build(rank, tmp_path, rank=number, config=config, options=options, library=LIBRARY)
        program = read_program(tmp_path / record.program)
        assert program.head == part
        assert program.columns == (config.vocab if part is None else part.width)
        assert ("lm_head.all_gather" in [n.name for n in program.nodes]) == (part is None and mapping.tp > 1)


def test_logits_of_every_token_are_gathered() -> None:
    options = BuildOptions(mapping=Mapping(2))
    assert engine.head_of(ODD, options) == "candidates"
    assert engine.head_of(ODD, replace(options, all_logits=True)) == "gather"
