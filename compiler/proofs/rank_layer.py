"""One layer of one rank: every tensor of it against what the rank must hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mm2c.proofs.boxes import FILL, Boxes, decompose
from mm2c.proofs.failure import ProofError
from mm2c.proofs.ownership import (
    ATTENTION,
    EMBED,
    EXPERTS,
    HEAD,
    OUTSIDE,
    TABLES,
    Ownership,
    key_of,
    names_of,
    part_of,
)
from mm2c.proofs.pieces import Box, Piece, Run
from mm2c.proofs.placement import Placed, check_coverage, check_placement
from mm2c.proofs.scale_blocks import SCALE_SUFFIX, check_scales
from mm2c.proofs.tiles import fault, shown
from mm2c_runtime.weights.recipe import ITEMSIZE, Computed, Recipe

TURNED = ".t"  # how the name of a tensor ends that a lowering stores transposed


@dataclass
class Held:
    """What the tensors of a layer were found to hold: of each role, whose box (experts first, where it has any)."""

    boxes: dict[str, Box] = field(default_factory=dict)
    tensors: int = 0
    moved: int = 0  # pieces whose bytes are copied
    converted: int = 0  # pieces that are converted on the way, and tables that are computed
    bytes: int = 0  # of the rank's tensors
    sides: dict[str, tuple[int, int]] = field(default_factory=dict)  # of scale blocks, by role of the weight


@dataclass(frozen=True)
class LayerProof:
    """Proves one layer of one rank; ``tables``: the rope tables of the whole model."""

    own: Ownership
    layer: int
    keys: Mapping[str, Sequence[str]]  # of each role of the experts, every expert's key
    tables: Mapping[str, Computed]

    def prove(self, tensors: Mapping[str, Recipe]) -> Held:
        """``tensors``: those of the layer, by their names in the rank's file.

        Raises:
            ProofError: with the tensor and the rank.
        """
        held = Held()
        found: dict[str, tuple[str, Boxes, list[Placed]]] = {}
        for tensor, recipe in tensors.items():
            try:
                self._prove_tensor(tensor, recipe, held, found)
            except ProofError as error:
                raise ProofError(f"{tensor}: {error.what}", where=self._where()) from None
        self._check_all_there(found, held)
        return held

    def _where(self) -> str:
        return f"rank {self.own.mapping.rank}"

    def _prove_tensor(
        self, tensor: str, recipe: Recipe, held: Held, found: dict[str, tuple[str, Boxes, list[Placed]]]
    ) -> None:
        boxes = decompose(recipe)
        placed, fills = [], []
        size = ITEMSIZE[boxes.dtype]
        for extent in boxes.shape:
            size *= extent
        held.tensors, held.bytes = held.tensors + 1, held.bytes + size
        for run in boxes.runs:
            for piece in run.pieces:
                if run.key(piece).startswith(FILL):
                    fills.append(run.stretched(piece))
                    continue
                placed.append(self._placed(tensor, run, piece))
                if piece.how or run.key(piece) in TABLES:
                    held.converted += len(run.keys)
                else:
                    held.moved += len(run.keys)
        for table in boxes.tables:
            if self.tables.get(table.kind) != table:
                raise ProofError(f"{table.kind} is computed otherwise than for the whole model")
        if not placed:
            raise ProofError("is made of no tensor of the checkpoint")
        check_coverage(boxes.shape, placed, fills)
        for name in sorted({p.name for p in placed}):
            if name in found:
                raise ProofError(f"{key_of(self.layer, name)} is in {found[name][0]} already")
            some = [p for p in placed if p.name == name]
            held.boxes[name] = self._exact(name, some)
            found[name] = tensor, boxes, some
        check_placement(boxes.shape, placed, self.own)
        for p in placed:
            sides = [p.piece.target_of(n) for n in range(len(p.piece.shape))]
            if (sides != sorted(sides)) != tensor.endswith(TURNED):
                raise ProofError(f"{p.key} is turned, or is not where the name says so")

    def _placed(self, tensor: str, run: Run, piece: Piece) -> Placed:
        key = run.key(piece)
        part = part_of(key)
        if part.layer != self.layer or part.weight not in names_of(self.layer):
            raise ProofError(f"is made of {key}, which belongs elsewhere")
        name = HEAD if part.name == EMBED and tensor.startswith("lm_head.") else part.name  # a tied head
        self._check_name(tensor, name)
        if piece.shape != self.own.shape(name):
            raise ProofError(f"{key} is {piece.shape} and not {self.own.shape(name)}")
        axes = run.stretched(piece)
        if part.expert < 0:
            if len(run.keys) > 1:
                raise ProofError(f"{key} is stacked with others")
            return Placed(name, key, piece, axes)
        lead = run.lead if run.lead >= 0 else next((n for n, a in enumerate(axes) if a.source < 0), -1)
        if lead < 0:
            raise ProofError(f"{key} has no place among the experts")
        end = part.expert + len(run.keys)
        wanted = self.keys[part.name.removesuffix(piece.suffix) if piece.suffix else part.name][
            part.expert : end
        ]
        given = [row[piece.slot] for row in run.keys]
        if given != list(wanted):
            wrong = next((g for g, w in zip(given, wanted, strict=False) if g != w), given[-1])
            raise ProofError(f"{wrong} is not the expert whose turn it is behind {key}")
        return Placed(name, key, piece, axes, lead, (part.expert, end))

    def _check_name(self, tensor: str, name: str) -> None:
        """A tensor named after one of the model is made of that one."""
        for role, title in TITLES.items():
            full = title if self.layer == OUTSIDE else f"model.layers.{self.layer}.{title}"
            if (tensor == full or tensor.startswith(f"{full}.")) and name not in ROLES[role]:
                raise ProofError(f"is made of {key_of(self.layer, name)}")

    def _exact(self, name: str, placed: Sequence[Placed]) -> Box:
        """The box that the pieces are together, which must be the rank's own."""
        key = placed[0].key
        if placed[0].lead < 0:
            boxes, whole = [p.piece.source_box() for p in placed], self.own.box(name)
        else:
            boxes = [(p.experts, *p.piece.source_box()) for p in placed]
            whole = (self.own.experts, *self.own.box(name))
        if not placed[0].is_scale:
            wrong = fault(boxes, whole)
        else:  # the scale of a divided block may be held twice; the weight's rows tell how often
            spans = tuple(
                (min(s), max(e)) for s, e in (zip(*axis, strict=True) for axis in zip(*boxes, strict=True))
            )
            wrong = None if spans == whole else f"{shown(spans)} is held"
        if wrong:
            count = f"experts {shown((whole[0],))}, " if placed[0].lead >= 0 else ""
            box = whole[1:] if placed[0].lead >= 0 else whole
            raise ProofError(f"of {key} the rank must hold {count}{shown(box)}: {wrong}")
        return whole

    def _check_all_there(self, found: Mapping[str, tuple[str, Boxes, list[Placed]]], held: Held) -> None:
        for name in names_of(self.layer):
            if name not in found:
                key = key_of(self.layer, name, self.own.experts[0] if name in EXPERTS else -1)
                raise ProofError(f"{key} is in no tensor of the rank", where=self._where())
        for name, (tensor, boxes, placed) in found.items():
            scaled = name in (*ATTENTION, *EXPERTS) and boxes.dtype == "e4m3"
            try:
                if scaled:
                    held.sides[name] = self._sides(name, placed, found)
                elif (
                    placed[0].piece.dtype == "e4m3"
                    and not placed[0].is_scale
                    and not any(how == "dequantize" for how in placed[0].piece.how)
                ):
                    raise ProofError(f"{placed[0].key} is e4m3 and its scales are not used")
            except ProofError as error:
                raise ProofError(f"{tensor}: {error.what}", where=self._where()) from None

    def _sides(
        self, name: str, placed: Sequence[Placed], found: Mapping[str, tuple[str, Boxes, list[Placed]]]
    ) -> tuple[int, int]:
        """Sides of the weight's scale blocks; ProofError where a number meets another block's scale."""
        tensor, _, scales = found.get(name + SCALE_SUFFIX, ("", None, []))
        if not scales:
            raise ProofError(f"the scales of {placed[0].key} are in no tensor of the rank")
        sides = self.own.side(name, 0), self.own.side(name, 1)
        try:
            for source, side in enumerate(sides):
                blocks = sorted({p.along(source) for p in scales})
                for axis in {p.along(source) for p in placed}:
                    check_scales(placed[0].key, axis, blocks, side)
                # projections joined into one weight have their scales joined at the same place, in blocks
                if name in ATTENTION and placed[0].along(source).start != blocks[0].start * side:
                    raise ProofError(
                        f"{placed[0].key} begins at {placed[0].along(source).start}, its scales elsewhere"
                    )
        except ProofError as error:
            raise ProofError(f"{tensor}: {error.what}") from None
        return sides


TITLES = {role: role for role in (*names_of(OUTSIDE)[:3], *names_of(0)[:4], *ATTENTION)} | {
    "rope_cos": "rope.cos",
    "rope_sin": "rope.sin",
    "gate": "mlp.gate.weight",
    "bias": "mlp.e_score_correction_bias",
    "up": "mlp.experts.gate_up_proj",
    "down": "mlp.experts.down_proj",
}
TITLES |= {role + SCALE_SUFFIX: title + SCALE_SUFFIX for role, title in TITLES.items() if "proj" in title}
_MADE_OF = {
    "gate": ("block_sparse_moe.gate.weight",),
    "bias": ("block_sparse_moe.e_score_correction_bias",),
    "up": EXPERTS[:2],
    "down": EXPERTS[2:],
}
ROLES = {
    role: tuple(
        name + (SCALE_SUFFIX if role.endswith(SCALE_SUFFIX) else "")
        for name in _MADE_OF.get(role.removesuffix(SCALE_SUFFIX), (role.removesuffix(SCALE_SUFFIX),))
    )
    for role in TITLES
}
assert set(TABLES) <= set(TITLES)
