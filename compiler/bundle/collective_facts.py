"""The collectives of the ranks' graphs, counted, and compared with the plan message by message."""

from __future__ import annotations

from collections import Counter
from typing import Any

from mm2c.bundle.rank_graph_file import RankGraphFile, attributes_of
from mm2c.collectives import CANDIDATES, Head, Message, plan_collectives
from mm2c.config import Mapping, ModelConfig

COLLECTIVE = "DistCollective"


def collective_facts(
    graphs: list[RankGraphFile],
    config: ModelConfig,
    mapping: Mapping,
    *,
    max_rows: int,
    prefill_chunk: int,
    all_logits: bool,
    itemsize: int,
    head: Head = "gather",
) -> dict[str, Any]:
    """``matches``: every rank's graph has exactly the planned messages, of the planned kinds, over groups of the
    planned size; else ``missing`` and ``unexpected`` name them (``rank 1: …`` where not all ranks agree).

    ``messages`` has each of a step with its groups, and the bytes that a rank gives (``in``) and sends in a ring,
    for a decode step of ``max_rows`` tokens and a prefill step of one row's ``prefill_chunk``; ``itemsize``: bytes
    of an activation. ``head`` "candidates": the last message is the runtime's, and in no graph.
    """
    tokens = {"decode": max_rows, "prefill": prefill_chunk}
    plans = {
        step: plan_collectives(
            config,
            mapping,
            tokens=count,
            rows=count if step == "decode" or all_logits else 1,
            itemsize=itemsize,
            head=head,
        )
        for step, count in tokens.items()
    }
    planned = plans["decode"]
    found = [_found(graph) for graph in graphs]
    in_graph = [message for message in planned if message.name != f"{CANDIDATES}.all_gather"]
    missing, unexpected = _difference(in_graph, found)
    groups = {entry["name"]: entry["groups"] for entry in found[0]}
    messages = [
        {
            "name": message.name,
            "layer": message.layer,
            "kind": message.kind,
            "group_size": message.group_size,
            "groups": groups.get(message.name),
            "bytes_in": {step: plan[i].bytes_in for step, plan in plans.items()},
            "bytes_sent": {step: plan[i].sent for step, plan in plans.items()},
        }
        for i, message in enumerate(planned)
    ]
    layers = Counter(message.kind for message in planned if message.layer == 0)
    outside = Counter(message.kind for message in planned if message.layer is None)
    return {
        "planned": len(planned),
        "in_graph": len(found[0]),
        "matches": not missing and not unexpected,
        "missing": missing,
        "unexpected": unexpected,
        "per_layer": dict(layers),
        "outside_layers": dict(outside),
        "per_step": {
            step: {
                "tokens": tokens[step],
                "messages": len(plan),
                "bytes_in": sum(message.bytes_in for message in plan),
                "bytes_sent": sum(message.sent for message in plan),
            }
            for step, plan in plans.items()
        },
        "messages": messages,
    }


def _found(graph: RankGraphFile) -> list[dict[str, Any]]:
    """The graph's collectives in its order: name, kind, group size and groups."""
    found = []
    for node in graph.nodes():
        if node.proto.op_type == COLLECTIVE:
            values = attributes_of(node.proto)
            flat, size = list(values["groups"]), values["group_size"]
            found.append(
                {
                    "name": node.name,
                    "kind": values["collective_operation"],
                    "group_size": size,
                    "groups": [flat[i : i + size] for i in range(0, len(flat), size)],
                }
            )
    return found


def _difference(planned: list[Message], found: list[list[dict[str, Any]]]) -> tuple[list[str], list[str]]:
    wanted = Counter((m.name, m.kind, m.group_size) for m in planned)
    missing, unexpected = [], []
    for rank, collectives in enumerate(found):
        there = Counter((c["name"], c["kind"], c["group_size"]) for c in collectives)
        where = f"rank {rank}: " if len(found) > 1 else ""
        missing += [f"{where}{name} over {size}" for name, _, size in sorted((wanted - there).elements())]
        unexpected += [f"{where}{name} over {size}" for name, _, size in sorted((there - wanted).elements())]
    return missing, unexpected
