"""What `mm2c inspect --engine` prints of what a bundle's engine runs."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from mm2c.cli.inspect_tables import make_table, many, size_of

KINDS = 8  # of layers or ops that are printed of each plan or program
FROM = {
    "inspector": "of the built plan, by TensorRT's inspector",
    "network": "of the network that the plan is built from",
    "graph": "of the ONNX graph",
}


def head(facts: dict[str, Any]) -> list[str]:
    libraries = ", ".join(f"{name} {version}" for name, version in facts["libraries"].items())
    lines = [
        f"bundle    {facts['bundle']}: {facts['engine']} engine, mm2c {facts['mm2c_version']}",
        f"libraries {libraries}",
    ]
    plugins = facts["plugins"]
    if plugins:
        lines.append(f"plugins   {plugins['library']} {plugins['version']} (ABI {plugins['abi']})")
    program = facts["tensorrt"]
    if program:
        lines += _tensorrt(program)
    elif not facts["programs"]:
        lines.append("programs  none: built from config.json alone, there are only graphs to read")
    return lines


def _tensorrt(program: dict[str, Any]) -> list[str]:
    built = "none built yet: `mm2c build --finish` does that on the machine that serves"
    if not program["deferred"]:
        built = f"built by version {program['library']}"
    target = f"compute capability {', '.join(program['target'])}" if program["target"] else ""
    kv = program["kv"]
    place = f"pages of {kv['page']} tokens" if kv["page"] else "a row of the whole context each"
    return [
        f"plans     {len(program['plans'])}, {built}",
        f"target    {target or 'that of the machine that builds them'}",
        f"KV cache  {kv['dtype']}, {kv['layers']} layers, of a rank {many(kv['kv_heads'], 'head')} × {kv['head_dim']}, "
        f"{place}",
        f"scratch   {size_of(program['scratch'])} on each GPU, of the largest plan: stages run one after another"
        if program["scratch"]
        else "scratch   not known before the plans are built",
    ]


def plans(program: dict[str, Any]) -> Table:
    rows = []
    for plan in program["plans"]:
        kinds = plan["tensors"]
        weights = kinds.get("weight", {"tensors": 0, "bytes": 0})
        inputs = sum(kind["tensors"] for name, kind in kinds.items() if not name.endswith(" out"))
        rows.append(
            (
                plan["name"],
                plan["layers"],
                plan["stages"],
                "\n".join(_profile(profile) for profile in plan["profiles"]),
                inputs,
                f"{weights['tensors']}, {size_of(weights['bytes'])}",
                size_of(plan["bytes"]) if plan["bytes"] else "deferred",
                size_of(plan["scratch"]) if plan["scratch"] else "?",
            )
        )
    columns = ("plan", "layers", "runs", "profiles", "inputs", "weights", "file", "scratch")
    return make_table(
        "plans (runs: stages of all ranks and profiles)", columns, rows, left=("plan", "profiles")
    )


def _profile(profile: dict[str, Any]) -> str:
    """``decode: 1-16 rows × 1 token``."""
    (low, _, high), (first, _, last) = profile["batch"], profile["seq"]
    rows = many(high, "row") if low == high else f"{low}-{high} rows"
    return f"{profile['name']}: {rows} × {many(last, 'token') if first == last else f'{first}-{last} tokens'}"


def layers(program: dict[str, Any]) -> list[str]:
    """What is in each plan, and who says so."""
    lines = []
    for plan in program["plans"]:
        inside = plan["inside"]
        lines.append(f"{plan['name']:<9} {many(inside['layers'], 'layer')}: {_counts(inside['kinds'])}")
        if inside["precision"]:
            lines.append(f"          writes {_counts(inside['precision'])}")
        if inside["plugins"]:
            lines.append(f"          plugin nodes: {_counts(inside['plugins'])}")
        if inside["scratch"]:
            each = ", ".join(size_of(size) for size in inside["scratch"])
            lines.append(f"          device memory by profile: {each}")
    for source, reasons in _sources(program).items():
        lines.append(f"layers    {FROM[source]}" + "".join(f": {why}" for why in reasons))
    return lines


def _sources(program: dict[str, Any]) -> dict[str, list[str]]:
    """Each once, with the reasons why nothing better was asked."""
    found: dict[str, list[str]] = {}
    for plan in program["plans"]:
        reasons = found.setdefault(plan["inside"]["source"], [])
        why = plan["inside"]["why"]
        if why and why not in reasons:
            reasons.append(why)
    return found


def stages(program: dict[str, Any]) -> list[str]:
    """What a step goes through; ranks that go through the same are told once."""
    told: dict[str, list[int]] = {}
    for rank in program["ranks"]:
        for run in rank["runs"]:
            text = f"{_profile(run['profile'])}: {_chain(run['stages'])}"
            told.setdefault(text, []).append(rank["rank"])
    count = len(program["ranks"])
    return [
        f"steps     {text}" + ("" if len(ranks) == count else f" (ranks {', '.join(map(str, ranks))})")
        for text, ranks in told.items()
    ]


def _chain(given: list[dict[str, Any]]) -> str:
    """``decode.0 → 6 × decode.1 → decode.2``."""
    parts: list[list[Any]] = []
    for stage in given:
        if parts and parts[-1][1] == stage["plan"]:
            parts[-1][0] += 1
        else:
            parts.append([1, stage["plan"]])
    return " → ".join(name if count == 1 else f"{count} × {name}" for count, name in parts)


def programs(entries: list[dict[str, Any]]) -> Table:
    rows = []
    for program in entries:
        kinds = [
            segment["collective_after"] for segment in program["segments"] if segment["collective_after"]
        ]
        rows.append(
            (
                program["lowering"],
                program["rank"],
                len(program["segments"]),
                program["nodes"],
                len(kinds),
                program["weights"],
                _counts(program["ops"]),
            )
        )
    columns = ("lowering", "rank", "segments", "nodes", "cuts", "weights", "ops")
    return make_table("programs that run", columns, rows, left=("lowering", "weights", "ops"))


def _counts(counts: dict[str, int]) -> str:
    some = [f"{count} {name}" for name, count in list(counts.items())[:KINDS]]
    rest = len(counts) - len(some)
    return ", ".join(some) + (f" and {rest} more kinds" if rest > 0 else "") or "none"
