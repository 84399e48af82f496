"""Small cases of every kernel: for compute-sanitizer, which runs them a hundred times slower, and to try the proof
itself where there is no GPU."""

from __future__ import annotations

import references as ref
from check_sampling import check_sampling
from checks import check_attention
from made import Experts, Rows, linear, moe
from operator_runner import Operator
from report import Report
from sizes import M2, Slice, activations

from mm2c_plugins.host import Library

SIZE = Slice(
    layers=1,
    hidden=192,
    heads=4,
    kv_heads=2,
    experts=12,
    top_k=3,
    intermediate=64,
    vocab=300,
    block=64,
    inner_block=64,
)
LIMIT = 8e-3
ROWS = {
    "decode": Rows([0, 15, 16, 70], [1, 1, 1, 1]),
    "decode with an empty row": Rows([3, 40], [0, 1]),
    "prefill": Rows([5, 0], [20, 33]),
}


def check_small(report: Report, library: Library) -> None:
    call = linear(5, 96, 128)
    (found,) = Operator(library, call.name, call.attributes, call.inputs).poisoned()
    report.check(
        "kernels", "small: fp8_linear", ref.error(found, ref.fp8_linear(*call.inputs, M2.block)), LIMIT
    )
    x, residual, weight = activations(3, 192), activations(3, 192), activations(192)
    found, _ = Operator(library, "M2AddRmsNorm", {"eps": 1e-6}, [x, residual, weight]).poisoned()
    report.check(
        "kernels", "small: norm", ref.error(found, ref.add_rms_norm(x, residual, weight, 1e-6)[0]), LIMIT
    )
    gate = activations(12, 192)
    (found,) = Operator(library, "M2RouterLinear", {}, [x, gate]).poisoned()
    report.check("kernels", "small: router", ref.error(found, x.double() @ gate.double().T), 1e-3)
    experts = Experts.random(SIZE)
    for tokens in (2, 10, 70):  # the three paths
        call = moe(experts, tokens, SIZE)
        x, logits, bias, *weights = call.inputs
        mix, ids = ref.routing(logits, bias, SIZE.top_k)
        (found,) = Operator(library, call.name, call.attributes, call.inputs).poisoned()
        expected = ref.experts(x, mix, ids, *weights, SIZE.sides)
        report.check("kernels", f"small: moe T={tokens}", ref.error(found, expected), LIMIT)
    check_attention(report, library, ROWS, SIZE)
    check_sampling(report, library, vocab=5000, counts=(6,))
