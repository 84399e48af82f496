"""Every kernel against float32 or float64 references at a rank's true sizes."""

from __future__ import annotations

from collections.abc import Mapping

import references as ref
import torch
from made import Experts, Rows, linear, moe, narrow
from operator_runner import Operator, tactics
from report import Report
from sizes import DEVICE, M2, Slice, activations

from mm2c_plugins.host import Library

BF16 = 8e-3  # ‖error‖ / ‖expected‖ of bf16 results
F32 = 1e-5
TOKENS = (1, 2, 5, 8, 9, 16, 33, 64, 65, 256, 2048)


def check_linears(report: Report, library: Library) -> None:
    for rows, columns in ((M2.q_width + 2 * M2.kv_width, M2.hidden), (M2.hidden, M2.q_width)):
        for tokens in TOKENS:
            call = linear(tokens, rows, columns)
            expected = ref.fp8_linear(*call.inputs, M2.block)
            for tactic in (0, *tactics(library, call.name, call.attributes, call.inputs)):
                (found,) = Operator(library, call.name, call.attributes, call.inputs, tactic).poisoned()
                report.check("kernels", f"fp8_linear {rows}x{columns} T={tokens} tactic {tactic}",
                             ref.error(found, expected), BF16)  # fmt: skip


def check_norms(report: Report, library: Library) -> None:
    for tokens in (1, 7, 64, 2048):
        x, residual = activations(tokens, M2.hidden), activations(tokens, M2.hidden)
        weight = activations(M2.hidden).abs() + 0.5
        found, total = Operator(library, "M2AddRmsNorm", {"eps": M2.eps}, [x, residual, weight]).poisoned()
        expected, sums = ref.add_rms_norm(x, residual, weight, M2.eps)
        report.check("kernels", f"add_rms_norm T={tokens}", ref.error(found, expected), BF16)
        report.check("kernels", f"add_rms_norm T={tokens}: the sum", ref.error(total, sums), 0.0)


def check_router(report: Report, library: Library) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        weight = (torch.randn(M2.experts, M2.hidden, device=DEVICE) / M2.hidden**0.5).to(dtype)
        for tokens in (1, 16, 64, 256, 2048):
            x = activations(tokens, M2.hidden)
            (found,) = Operator(library, "M2RouterLinear", {}, [x, weight]).poisoned()
            name = f"router_linear {str(dtype)[6:]} T={tokens}"
            report.check("kernels", name, ref.error(found, x.double() @ weight.double().T), 1e-3)
    for tokens in (1, 64, 300):
        logits = torch.randn(tokens, M2.experts, device=DEVICE).round(decimals=1)  # many ties
        bias = torch.zeros(M2.experts, device=DEVICE)
        weights, ids = Operator(library, "M2MoeRouting", {"top_k": M2.top_k}, [logits, bias]).poisoned()
        expected, chosen = ref.routing(logits, bias, M2.top_k)
        report.check("kernels", f"routing T={tokens}: ids", float((ids != chosen).sum()), 0.0)
        report.check("kernels", f"routing T={tokens}: weights", ref.error(weights, expected), F32)


def check_moe(report: Report, library: Library) -> None:
    for size in (M2, narrow()):
        experts = Experts.random(size)
        for tokens in TOKENS:
            call = moe(experts, tokens, size)
            x, logits, bias, *weights = call.inputs
            mix, ids = ref.routing(logits, bias, size.top_k)
            expected = ref.experts(x, mix, ids, *weights, size.sides)
            for tactic in (0, *tactics(library, call.name, call.attributes, call.inputs)):
                (found,) = Operator(library, call.name, call.attributes, call.inputs, tactic).poisoned()
                name = f"moe I={size.intermediate} blocks={size.sides} T={tokens} tactic {tactic}"
                report.check("kernels", name, ref.error(found, expected), BF16)
    _check_one_expert(report, library)


def _check_one_expert(report: Report, library: Library) -> None:
    """All tokens choose the same experts: one long segment, the others empty; and a rank of expert
    parallelism that holds none of them."""
    experts = Experts.random()
    for tokens in (64, 700):
        call = moe(experts, tokens)
        call.inputs[1][:, : M2.top_k] += 50
        x, logits, bias, *weights = call.inputs
        mix, ids = ref.routing(logits, bias, M2.top_k)
        (found,) = Operator(library, call.name, call.attributes, call.inputs).poisoned()
        expected = ref.experts(x, mix, ids, *weights, M2.sides)
        report.check("kernels", f"moe, all tokens on 8 experts, T={tokens}", ref.error(found, expected), BF16)
        attributes = {name: value for name, value in call.attributes.items() if name != "top_k"}
        for first in (0, 4, 128):
            part = [weight[:128].contiguous() for weight in weights]
            inputs = [x, mix.float(), ids.int(), *part]
            name, attributes = "M2MoeExpertsFp8", {**attributes, "first_expert": first}
            (found,) = Operator(library, name, attributes, inputs).poisoned()
            own = torch.where((ids >= first) & (ids < first + 128), ids - first, -1)
            if bool((own < 0).all()):
                report.check("kernels", f"experts from {first} on, T={tokens}", float(found.abs().max()), 0.0)
                continue
            mixed = torch.where(own >= 0, mix, 0.0)
            expected = ref.experts(x, mixed, own.clamp_min(0), *part, M2.sides)
            report.check("kernels", f"experts from {first} on, T={tokens}", ref.error(found, expected), BF16)


ROWS = {
    "decode B=1": Rows([4095], [1]),
    "decode B=5, ragged": Rows([0, 62, 63, 64, 5000], [1, 1, 1, 1, 1]),
    "decode B=64": Rows([1000 + 7 * i for i in range(64)], [1] * 64),
    "decode 32 k": Rows([32767], [1]),
    "decode with an empty row": Rows([100, 200, 300], [1, 0, 1]),
    "decode fp8 cache": Rows([4095, 63, 64], [1] * 3, fp8=True),
    "prefill 512": Rows([0], [512]),
    "prefill 300 after 700": Rows([700], [300]),
    "prefill of ragged rows": Rows([0, 64, 65, 100], [1, 63, 130, 0]),
    "prefill fp8 cache": Rows([100], [129], fp8=True),
}


def check_attention(
    report: Report, library: Library, cases: Mapping[str, Rows] = ROWS, size: Slice = M2
) -> None:
    for name, rows in cases.items():
        call = rows.call(size)
        q, k, v, sums, q_weight, k_weight, cos, sin, past, new, table, k_cache, v_cache = call.inputs
        before = [cache.clone() for cache in (k_cache, v_cache)]
        out, *_ = Operator(library, call.name, call.attributes, call.inputs).poisoned()
        q = ref.normed(q, sums[..., 0], size.q_total, size.eps, q_weight)
        k = ref.normed(k, sums[..., 1], size.k_total, size.eps, k_weight)
        wrong_cache, errors = 0, []
        for row, (first, count) in enumerate(zip(past.tolist(), new.tolist(), strict=True)):
            position = torch.arange(first, first + count, device=DEVICE)
            pages, place = table[row].long()[position // rows.page], position % rows.page
            heads = [x[row, :count].unflatten(-1, (-1, size.head_dim)) for x in (q, k, v)]
            turned = [ref.rotated(x, cos, sin, position) for x in heads[:2]]
            for cache, fresh in zip(before, (turned[1], heads[2]), strict=True):
                cache[pages, place] = fresh.to(cache.dtype)
            errors.append(float(out[row, count:].abs().nan_to_num(1.0).sum()))  # padding is zero
            if not count:
                continue
            keys, values = (ref.paged(c, table[row], first + count) for c in (k_cache, v_cache))
            expected = ref.attention(turned[0], keys, values, first, size.head_dim**-0.5)
            errors.append(ref.error(out[row, :count].flatten(), expected.flatten()))
        for found, expected in zip((k_cache, v_cache), before, strict=True):
            wrong_cache += int(_off(found, expected))
        worst = float(torch.tensor(errors).max())  # NaN where there is one, unlike Python's max
        report.check("kernels", f"attention, {name}", worst, BF16)
        report.check("kernels", f"attention, {name}: cache entries off", float(wrong_cache), 0.0)
    _check_sums(report, library, size)


def _off(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Entries that differ by more than a rounding of the norm's factor; NaN equals NaN."""
    a, b = found.float(), expected.float()
    step = 2.0**-3 if found.dtype == torch.float8_e4m3fn else 2.0**-7
    same = (a == b) | (a.isnan() & b.isnan()) | ((a - b).abs() <= 2 * step * b.abs() + 1e-6)
    return (~same).sum()


def _check_sums(report: Report, library: Library, size: Slice) -> None:
    widths = (size.q_width, size.kv_width, size.kv_width)
    for tokens in (1, 64, 512):
        q, k, _ = activations(tokens, 1, sum(widths)).split(widths, -1)
        strides = {"q_stride": sum(widths), "k_stride": sum(widths)}
        (found,) = Operator(library, "M2QkSumSquares", strides, [q, k]).poisoned()
        report.check("kernels", f"qk_sum_squares T={tokens}", ref.error(found, ref.square_sums(q, k)), F32)
