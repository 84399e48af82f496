"""What `mm2c inspect` prints of a bundle's facts: lines and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table

from mm2c.bundle.reports import summary_of

SHOWN = 3  # inputs and outputs of a graph that are printed; the rest are its layers' caches


def size_of(count: float) -> str:
    """Bytes in binary units, one digit behind the point."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def head(facts: dict[str, Any]) -> list[str]:
    model, limits, source = facts["model"], facts["limits"], facts["checkpoint"]
    per_group = " of each attention group" if facts["mapping"]["attention_dp"] > 1 else ""
    return [
        f"bundle    {facts['bundle']}: {facts['engine']} engine, mm2c {facts['mm2c_version']}",
        f"model     {model['name']}: {model['layers']} layers, hidden {model['hidden']}, {model['heads']} heads / "
        f"{model['kv_heads']} KV × {model['head_dim']}, {model['experts']} experts top-{model['top_k']}, "
        f"vocabulary {model['vocab']}",
        *(f"family    {note}" for note in facts["notes"]),
        f"built of  {source['source']} ({source['format']})"
        if source
        else "built of  config.json alone: no weights",
        *(["weights   read from the checkpoint at every start"] if facts["weights"] == "checkpoint" else []),
        f"layout    {layout(facts['mapping'])}",
        f"limits    {limits['context']} tokens a row, {limits['max_rows']} rows{per_group}, prefill steps of "
        f"{limits['prefill_chunk']} tokens; KV cache {facts['kv_dtype']}, "
        f"{size_of(facts['kv_bytes_per_token'])} a token over the ranks that hold it",
        *([f"plugins   {facts['plugins']}"] if facts["plugins"] else []),
    ]


def layout(mapping: dict[str, int]) -> str:
    """``tp 2, ep 8, dp 8: 16 GPUs, 2 replicas of 8 ranks; attention-DP: 4 groups of 2 ranks share the experts``."""
    text = f"tp {mapping['tp']}, ep {mapping['ep']}, dp {mapping['dp']}: {many(mapping['gpus'], 'GPU')}"
    text += f", {many(mapping['replicas'], 'replica')} of {many(mapping['ranks'], 'rank')}"
    if mapping["attention_dp"] > 1:
        ranks = many(mapping["tp"], "rank")
        text += f"; attention-DP: {mapping['attention_dp']} groups of {ranks} each share the experts"
    return text


def graphs(entries: list[dict[str, Any]]) -> Table:
    rows = [
        (
            g["rank"],
            g["nodes"],
            len(g["inputs"]),
            len(g["outputs"]),
            g["tensors"],
            size_of(g["weight_bytes"]),
            size_of(g["file_bytes"]),
        )
        for g in entries
    ]
    columns = ("rank", "nodes", "inputs", "outputs", "tensors", "weights", "file")
    return make_table("rank graphs (rank*/model.onnx)", columns, rows)


def signature(graph: dict[str, Any]) -> list[str]:
    """Ops, inputs and outputs of one rank's graph; the other ranks' differ in sizes only."""
    return [
        f"ops       {_ops(graph['ops'])}",
        *(
            f"  {entry['function']:<16}: {entry['nodes']} nodes × {len(entry['layers'])} ({_layers(entry['layers'])}): "
            f"{_ops(entry['ops'])}"
            for entry in graph["layers"]
        ),
        f"  {'outside layers':<16}: {graph['outside']['nodes']} nodes: {_ops(graph['outside']['ops'])}",
        f"inputs    {_values(graph['inputs'])}",
        f"outputs   {_values(graph['outputs'])}",
    ]


def shards(entries: list[dict[str, Any]]) -> list[Table]:
    """What each rank has of the model, and its bytes by part."""
    ranges = ("query_heads", "kv_heads", "experts", "intermediate", "vocabulary")
    held = make_table(
        "shards: which of the model's … a rank holds",
        (
            "rank",
            "group",
            "query heads",
            "KV heads",
            "experts",
            "of each expert",
            "vocabulary rows",
            "tensors",
        ),
        [(s["rank"], s["attention_group"], *(_range(s[n]) for n in ranges), s["tensors"]) for s in entries],
    )
    parts = list(dict.fromkeys(part for s in entries for part in s["bytes_by_part"]))
    sizes = make_table(
        "bytes of a rank's tensors",
        ("rank", *parts, "all"),
        [
            (s["rank"], *(size_of(s["bytes_by_part"].get(part, 0)) for part in parts), size_of(s["bytes"]))
            for s in entries
        ],
    )
    return [held, sizes]


def collectives(facts: dict[str, Any]) -> tuple[Table | None, list[str]]:
    """The messages of a step, those of layers once each; and what the comparison with the plan says."""
    if not facts["planned"] and not facts["in_graph"]:
        return None, ["collectives  none: a replica is one rank"]
    kinds: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for message in facts["messages"]:
        name = message["name"].removesuffix(f".{message['kind']}")
        if message["layer"] is not None:
            name = "layer: " + name.removeprefix(f"model.layers.{message['layer']}.")
        kinds.setdefault((name, message["kind"]), []).append(message)
    rows = [
        (
            name,
            kind,
            f"{group[0]['group_size']} ranks",
            len(group),
            *(_span(m["bytes_in"][step] for m in group) for step in ("decode", "prefill")),
        )
        for (name, kind), group in kinds.items()
    ]
    steps = facts["per_step"]
    columns = (
        "where", "kind", "over", "a step",
        f"decode step of {steps['decode']['tokens']}", f"prefill step of {steps['prefill']['tokens']}",
    )  # fmt: skip
    sent = ", ".join(f"{step} {size_of(values['bytes_sent'])}" for step, values in steps.items())
    lines = [
        f"messages  {facts['in_graph']} a step ({_kinds(facts['per_layer'])} a layer, "
        f"{_kinds(facts['outside_layers'])} outside); a rank sends in a ring: {sent}",
        "plan      the graphs have exactly the planned messages"
        if facts["matches"]
        else f"plan      DIFFERS: missing {_some(facts['missing'])}; unexpected {_some(facts['unexpected'])}",
    ]
    return make_table("collectives: bytes that a rank gives to each", columns, rows), lines


def programs(ranks: list[dict[str, Any]]) -> Table:
    columns = (
        "lowering", "rank", "segments", "nodes", "all-reduces", "all-gathers", "reduce-scatters", "weights",
        "KV heads",
    )  # fmt: skip
    counts = ("rank", "segments", "nodes", "all_reduces", "all_gathers", "reduce_scatters")
    rows = [
        (r["lowering"], *(r[name] for name in counts), size_of(r["weight_bytes"]), r["kv_heads"])
        for r in ranks
    ]
    return make_table("programs that run", columns, rows)


def memory(report: dict[str, Any] | None) -> Table | None:
    """Bytes of a GPU by part, as ``report/memory.json`` plans them."""
    ranks = ((report or {}).get("gpu") or {}).get("ranks") or []
    parts = [name for name, value in (ranks[0] if ranks else {}).items() if _is_size(name, value)]
    if not parts:
        return None
    titles = [name.removesuffix("_bytes").replace("_", " ") for name in parts]
    rows = [(r["rank"], *(size_of(r[name]) for name in parts)) for r in ranks]
    return make_table("memory of a GPU as planned (report/memory.json)", ("rank", *titles), rows)


def reports(found: dict[str, Any]) -> list[str]:
    shown = {name: report for name, report in found.items() if name not in ("memory", "verify")}
    return [f"{name:<9} {summary_of(report)}" for name, report in shown.items()]


def verified(facts: dict[str, Any]) -> list[str]:
    """What `mm2c verify` compared and how far off the worst was; and the golden vectors."""
    if facts["checkpoint"] is None:
        return []  # nothing can be verified
    return [*_verified(facts), *_golden(facts["golden"])]


def _verified(facts: dict[str, Any]) -> list[str]:
    found = facts["verified"]
    if found is None:
        report = facts["reports"].get("verify")
        text = summary_of(report) if report else "no report: `mm2c verify` compares with the reference"
        return [f"verify    {text}"]
    worst, reference = found["worst"], found["reference"]
    outcome = "passed" if found["passed"] else f"{found['failed']} FAILED"
    text = f"verify    {outcome}: {found['kind']}, {many(found['comparisons'], 'comparison')}"
    if worst:
        off = (
            "not a number"
            if worst["relative"] is None
            else f"{worst['relative']:.2g} of the largest value off"
        )
        share = "" if worst["share"] is None else f", {worst['share']:.0%} of what is allowed"
        text += f"; worst: {worst['where']}, {off}{share}"
    versions = ", ".join(
        f"{name} {reference[name]}" for name in ("transformers", "torch") if name in reference
    )
    against = f"against {reference.get('reference', 'the reference')}" + (
        f" ({versions})" if versions else ""
    )
    return [text, f"          {against}; written {_minute(found['written'])}"]


def _golden(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return ["golden    no vectors: `mm2c verify` writes them where it passes"]
    return [
        f"golden    vectors of {many(found['rows'], 'row')}, {found['tokens']} tokens, logits of {found['logits']} "
        f"({size_of(found['bytes'])}): for `mm2c serve --self-check` and `mm2c verify --golden`"
    ]


def _minute(written: str) -> str:
    """``2026-11-22 02:34 UTC`` of an ISO time in UTC."""
    return f"{written[:16].replace('T', ' ')} UTC"


def _is_size(name: str, value: Any) -> bool:
    return name.endswith("_bytes") and isinstance(value, (int, float))


def make_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    left: Sequence[str] = ("lowering", "where", "kind"),
) -> Table:
    """``left``: columns of words; the others hold figures."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right")
    for row in rows:
        table.add_row(*map(str, row))
    return table


def many(count: int, noun: str) -> str:
    """``2 rows``."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _ops(ops: dict[str, int]) -> str:
    return ", ".join(f"{count} {op}" for op, count in ops.items())


def _kinds(counts: dict[str, int]) -> str:
    return ", ".join(many(count, kind.replace("_", "-")) for kind, count in counts.items()) or "none"


def _layers(layers: list[int]) -> str:
    """``layer 0``, ``layers 1-60`` or ``layers 0, 2, …``."""
    if len(layers) < 2:
        return "layer " + ", ".join(map(str, layers))
    whole = layers == list(range(layers[0], layers[-1] + 1))
    return "layers " + (f"{layers[0]}-{layers[-1]}" if whole else ", ".join(map(str, layers)))


def _range(bounds: Sequence[int]) -> str:
    """``0-11`` of [0, 12)."""
    start, stop = bounds
    return "none" if start >= stop else str(start) if stop == start + 1 else f"{start}-{stop - 1}"


def _span(sizes: Iterable[int]) -> str:
    known = sorted(set(sizes))
    return " … ".join(size_of(size) for size in dict.fromkeys((known[0], known[-1])))


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "none"


def _values(values: list[dict[str, Any]]) -> str:
    if len(values) <= SHOWN + 2:
        return ", ".join(map(_value, values))
    first, last = ", ".join(map(_value, values[:SHOWN])), _value(values[-1])
    return f"{first}, … {len(values) - SHOWN - 1} more …, {last}"


def _value(value: dict[str, Any]) -> str:
    sizes = (
        None if value["shape"] is None else ", ".join("?" if d is None else str(d) for d in value["shape"])
    )
    return f"{value['name']} {value['dtype']}" + ("" if sizes is None else f"[{sizes}]")
