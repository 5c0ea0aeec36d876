"""Multiply-adds and bytes of the blocks, and what the ANN paper prints for them.

Source: Zhu et al., Asymmetric Non-local Neural Networks for Semantic Segmentation (ICCV 2019),
table 1. The rule that reproduces its "GFLOPs": 1 per multiply-add of 1x1 convolutions and matrix
products; the projection that query and key share counts once.
"""

from __future__ import annotations

from dataclasses import dataclass

from attnops.pyramid_pool import anchor_count

from ..papers import ANN_1, GMAC, MEGABYTES, MS

FORMS = ("linear", "released")


@dataclass(frozen=True)
class Block:
    """Sizes of a block's input and projections."""

    height: int
    width: int
    batch: int = 1
    channels: int = 2048
    hidden: int = 256
    sizes: tuple[int, ...] = (1, 3, 6, 8)

    @property
    def shape(self) -> list[int]:
        return [self.batch, self.channels, self.height, self.width]

    @property
    def positions(self) -> int:
        return self.height * self.width

    @property
    def anchors(self) -> int:
        return anchor_count(self.sizes)

    @property
    def map_elements(self) -> int:
        return self.batch * self.channels * self.positions

    def bytes_moved(self, itemsize: int) -> int:
        """Input read once, output written once."""
        return 2 * self.map_elements * itemsize

    def score_bytes(self, itemsize: int) -> int:
        """One explicit N x N matrix."""
        return self.batch * self.positions**2 * itemsize


def _convolutions(block: Block) -> int:
    """Query/key, value and output projections of the whole map."""
    return 3 * block.batch * block.positions * block.channels * block.hidden


def non_local_macs(block: Block) -> int:
    """The non-local block by the paper's rule."""
    return _convolutions(block) + 2 * block.batch * block.positions**2 * block.hidden


def apnb_macs(block: Block) -> int:
    """APNB by the paper's rule, both forms."""
    return _convolutions(block) + 2 * block.batch * block.positions * block.anchors * block.hidden


def folded_apnb_macs(block: Block, form: str) -> int:
    """APNB with its convolutions moved to the anchors wherever the function allows it.

    linear: per position C·S for the scores and S·C for the output; three projections of anchors.
    released: BatchNorm and ReLU keep the query's projection on the map, so C·Ĉ + Ĉ·S + S·C; two
    projections of anchors.
    """
    on_anchors = block.channels * block.hidden * block.anchors
    output = block.anchors * block.channels
    if form == "linear":
        scores, projections = block.channels * block.anchors, 3 * on_anchors
    else:
        scores = block.channels * block.hidden + block.hidden * block.anchors
        projections = 2 * on_anchors
    folded = block.batch * (projections + block.positions * (scores + output))
    return min(folded, apnb_macs(block))


NAMES = {"non-local": "NB", "apnb": "APNB"}  # of the rows of the paper's table 1

NOTES = (
    "GMAC: multiply-adds by the rule that reproduces the paper's column (1x1 convolutions and "
    "matrix products, 1 each, shared projection once). The paper's 43.5 for APNB at 256x128 "
    "contradicts its own formula: every term of APNB is linear in the number of positions, so "
    "from 96x96 to 256x128 it is a factor of 3.556 (15.5 -> 55.1), not 2.81.",
    "done: multiply-adds that are executed, after moving convolutions to the anchors (attnops) or "
    "with the shared projection run twice (released code).",
)


def printed(function: str, block: Block) -> dict[str, float]:
    """The paper's figures for this block: "gflops", "mb" and "ms", where it prints some."""
    if block != Block(block.height, block.width):
        return {}
    row = ANN_1.rows.get(f"{NAMES[function]} {block.height}x{block.width}")
    return {} if row is None else {"gflops": row[GMAC], "mb": row[MEGABYTES], "ms": row[MS]}
