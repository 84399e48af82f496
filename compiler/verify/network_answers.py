"""What transformers answers to the prompts that a bundle's plans are verified with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mm2c.verify.golden_file import GoldenWriter
from mm2c.verify.logits import CaseResult, case_result, prompts, trajectories
from mm2c.verify.network_chain import Case, Chain
from mm2c.verify.script import Piece, make_script, whole_rows

if TYPE_CHECKING:
    from mm2c.checkpoint import Checkpoint
    from mm2c.progress import Progress
    from mm2c_runtime.manifest import Manifest

Array = np.ndarray[Any, Any]
CHUNK = 48  # tokens of a prefill step, at most: short prompts then cross its borders
LANES = {"onnxruntime": "ONNX Runtime", "wide": "TensorRT's network", "exact": "ONNX Runtime, f32 cache"}


@dataclass(frozen=True)
class Answers:
    """``wanted``: by index of the case and piece, f32[V] of the reference behind the piece."""

    cases: Sequence[Case]
    wanted: Mapping[tuple[int, Piece], Array]
    golden: GoldenWriter

    def compare(self, chain: Chain) -> list[CaseResult]:
        """Case by case what ``chain`` has to be judged by. Logits that hang on rounding are left out, unless a case has
        no others."""
        places: dict[str, list[tuple[int, Piece]]] = {}
        for number, piece in self.wanted:
            places.setdefault(self.cases[number].name_of([piece]), []).append((number, piece))
        results = []
        for lane in chain.judged:
            for case, own in places.items():
                sure = [place for place in own if place not in chain.unsure] or own
                found = [chain.logits[lane][place] for place in sure]
                results.append(case_result(LANES[lane], case, found, [self.wanted[place] for place in sure]))
        return results


def whole_answers(
    checkpoint: Checkpoint, manifest: Manifest, rows: int, steps: int, progress: Progress
) -> Answers:
    """Of the whole module in memory, as ``mm2c verify`` asks it for every engine. Every row then decodes the
    reference's own tokens."""
    from mm2c.verify.reference import Reference
    from mm2c.verify.whole_goldens import golden_of

    limits = manifest.limits
    chunk = min(limits.prefill_chunk, CHUNK)
    with progress.stage("loading the reference"):
        reference = Reference(checkpoint, manifest.weight_format)
    some = prompts(manifest.model.vocab, limits.context, chunk, rows, steps)
    answered = trajectories(reference, some, steps, progress)
    cases = [
        Case("chunked prefill", whole_rows(some, [[]] * len(some), max(1, chunk // 3))),
        Case("prefill", whole_rows(some, [row.tokens[:steps] for row in answered], chunk)),
    ]
    wanted = {
        (number, piece): answered[piece.row].logits[piece.stop - row.prompt]
        for number, case in enumerate(cases)
        for step in case.script.steps
        for piece in step.pieces
        if piece.stop >= (row := case.script.rows[piece.row]).prompt
    }
    return Answers(cases, wanted, golden_of(reference, answered, manifest))


def streamed_answers(
    checkpoint: Checkpoint, manifest: Manifest, rows: int, tokens: int, progress: Progress
) -> Answers:
    """Of the decoder layers, one in memory at a time, for models of any size. At most ``rows`` rows."""
    from mm2c.verify.streamed_reference import StreamedReference

    limits, model = manifest.limits, manifest.model
    script = make_script(model.vocab, limits.context, rows, limits.prefill_chunk, tokens)
    golden = GoldenWriter(script, manifest)
    reference = StreamedReference(checkpoint, manifest.weight_format)
    with progress.stage("reference: transformers' layers, fp32", model.layers) as stage:
        hidden = reference.embed(script)
        golden.add_hidden(hidden)
        for number in range(model.layers):
            hidden = reference.run_layer(number, script, hidden).hidden
            golden.add_hidden(hidden)
            stage.advance()
        logits = {piece: row.numpy() for piece, row in reference.logits(script, hidden).items()}
    golden.add_logits(logits)
    return Answers([Case("prefill", script)], {(0, piece): row for piece, row in logits.items()}, golden)
