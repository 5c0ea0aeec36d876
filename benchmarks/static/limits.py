"""What the gate asks of every op, and the exceptions: one table, with a reason for each line.

A line that nothing needs any more is a fault (`attnops bench static OP` and the tests name it):
whoever rebuilds a kernel removes its lines here.
"""

from __future__ import annotations

from dataclasses import dataclass

# Launches of attnops kernels in one call.
LAUNCHES: dict[str, dict[str, int]] = {
    "local_attention": {"forward": 1, "backward": 2},
    "anchor_attention": {"forward": 1, "backward": 4},
    "pyramid_pool": {"forward": 2, "backward": 1},
    "strip_conv": {"forward": 1, "backward": 3},
    "nmf": {"forward": 3, "backward": 3},
    "upsample_gate": {"forward": 1, "backward": 2},
    "group_attention": {"forward": 2, "backward": 2},
    "depthwise_gelu": {"forward": 1, "backward": 3},
    "feed_forward": {"forward": 2, "backward": 4},
    "merge_scales": {"forward": 1, "backward": 3},
    "upsample_cross_entropy": {"forward": 1, "backward": 1},
    "upsample_argmax": {"forward": 1},
}

# Kernels of PyTorch's own that an op may launch besides. None, where nothing is said.
ATEN: dict[str, dict[str, int]] = {
    # the gradient of the mean over what the losses were divided by
    "upsample_cross_entropy": {"backward": 1},
    # products and sums of float32; in half precision copies of contiguous maps, channels last
    "feed_forward": {"backward": 15},
}


@dataclass(frozen=True)
class Exempt:
    """What an op may break, and why.

    Attributes:
        rule: "launches" or "aten" (kernels of PyTorch's own) of a pass; "programs" (fewer than the
            132 multiprocessors), "loads" or "stores" (less than nine tenths of the bytes in 128
            bits, half precision on aligned rows) or "spills" of a kernel.
        where: the pass, or the kernel.
        layout: None: in any layout.
        shape: None: at the first of the representative inputs at least.
        most: how many launches at most, on the input that takes most.
    """

    rule: str
    where: str
    why: str
    layout: str | None = None
    shape: tuple[int, ...] | None = None
    most: int | None = None


_ANCHORS = "rows of 110 anchors start on 4 bytes: a packed copy would be a launch of its own"
_LANES = "a thread owns one element, so that registers hold what it needs of its neighbours"
_CORNERS = "a column reads its neighbours in rows of logits one by one"
_CELLS = "a thread owns a cell, whose corners and pixels lie apart"

_SMALL_RANK = "rows of 16 bases are shorter than what a warp copies in 128 bits"
_ROW_OF_TILE = "a tile's rows of 32 positions in half precision are 64 bytes"

_OF_A_ROW = "a thread owns a few channels of rows of positions"
_TURNED = "sums in rows of channels are turned on their way to a contiguous map"

_COPIES = "contiguous maps are copied to rows of channels and back"

EXCEPTIONS: dict[str, tuple[Exempt, ...]] = {
    "local_attention": (
        Exempt("launches", "forward", _COPIES, layout="contiguous", most=3),
        Exempt("launches", "backward", _COPIES, layout="contiguous", most=4),
    ),
    "anchor_attention": (
        Exempt("loads", "anchor_attention_forward_kernel", _ANCHORS),
        Exempt("loads", "probability_kernel", _ANCHORS),
        Exempt("loads", "score_gradient_kernel", _ANCHORS),
        Exempt("stores", "reduce_partials_kernel", "its lanes hold one anchor each"),
        Exempt(
            "programs",
            "anchor_attention_forward_kernel",
            "a map of 64x64 or 96x96 has few tiles of positions",
        ),
        Exempt(
            "programs",
            "score_gradient_kernel",
            "a map of 64x64 or 96x96 has few tiles of positions",
        ),
        Exempt(
            "programs",
            "probability_kernel",
            "a map of 64x64 or 96x96 has few tiles of positions",
        ),
        Exempt(
            "programs",
            "anchor_gradient_kernel",
            "a map of 64x64 or 96x96 has few tiles of positions",
        ),
    ),
    "pyramid_pool": (
        Exempt("stores", "combine_kernel", "a program has one bin of every line"),
        Exempt("stores", "cells_kernel", "sums of short segments", layout="contiguous"),
        Exempt("loads", "spread_means_kernel", "a value of a bin is read once and written often"),
    ),
    "strip_conv": (
        Exempt(
            "launches",
            "forward",
            "strips read what the local convolution gives for their neighbours",
            most=2,
        ),
        Exempt(
            "launches",
            "backward",
            "gradients of the strips, of the local convolution, and totals follow each other",
            most=4,
        ),
        Exempt("loads", "prepare_strips_kernel", _LANES),
        Exempt("loads", "strips_kernel", _LANES),
        Exempt("loads", "strips_backward_kernel", _LANES),
        Exempt("loads", "local_backward_kernel", _LANES),
        Exempt("loads", "strip_totals_kernel", _LANES),
        Exempt("stores", "prepare_strips_kernel", _LANES),
        Exempt("stores", "strips_kernel", _LANES),
        Exempt("stores", "strips_backward_kernel", _LANES),
        Exempt("stores", "local_backward_kernel", _LANES),
        Exempt("stores", "strip_totals_kernel", _LANES),
    ),
    "nmf": (
        Exempt("launches", "forward", "two launches a step", most=14),
        Exempt("launches", "backward", "two launches a step", most=16),
        Exempt("programs", "nmf_prepare_kernel", "a program owns channels of the bases"),
        Exempt("programs", "nmf_prepare_backward_kernel", "a program owns channels of the bases"),
        Exempt("programs", "nmf_coef_kernel", "a program owns 32 positions"),
        Exempt("programs", "nmf_coef_backward_kernel", "a program owns 32 positions"),
        Exempt("programs", "nmf_one_step_kernel", "a program owns 32 positions"),
        Exempt(
            "loads",
            "nmf_coef_kernel",
            _ROW_OF_TILE,
            layout="contiguous",
        ),
        Exempt("stores", "nmf_bases_kernel", "a program adds up 256 sums, two a thread"),
        *(
            Exempt(rule, kernel, _SMALL_RANK, layout="contiguous", shape=(1, 256, 4096))
            for rule, kernel in (
                ("loads", "nmf_prepare_kernel"),
                ("stores", "nmf_prepare_kernel"),
                ("stores", "nmf_coef_kernel"),
                ("loads", "nmf_prepare_backward_kernel"),
                ("stores", "nmf_prepare_backward_kernel"),
                ("stores", "nmf_bases_backward_kernel"),
            )
        ),
        Exempt("loads", "nmf_coef_backward_kernel", _ROW_OF_TILE, shape=(1, 256, 4096)),
        Exempt("loads", "nmf_coef_backward_kernel", _ROW_OF_TILE, shape=(8, 512, 4096)),
        Exempt("programs", "nmf_bases_kernel", "a rank of 16 has few sums"),
        Exempt("programs", "nmf_bases_backward_kernel", "a rank of 16 has few sums"),
    ),
    "upsample_gate": (
        Exempt("loads", "gate_kernel", _CORNERS, layout="contiguous"),
        Exempt("loads", "gate_cells_backward_kernel", _CORNERS, layout="contiguous"),
        Exempt(
            "loads",
            "gate_columns_backward_kernel",
            "the columns that read a logit begin anywhere",
            layout="contiguous",
        ),
        Exempt("stores", "gate_columns_backward_kernel", "one logit a program and channel"),
    ),
    "group_attention": (
        Exempt("loads", "group_scale_kernel", "a program adds up the partial sums of its group"),
        Exempt("stores", "group_dot_kernel", "one product a program"),
    ),
    "depthwise_gelu": (
        Exempt("loads", "gelu_rows_kernel", "nine taps a channel are read one by one"),
        Exempt(
            "loads",
            "gelu_gradients_kernel",
            "neighbours in a row start at odd elements",
            layout="contiguous",
        ),
        Exempt("loads", "gelu_totals_kernel", "a thread adds up a channel's partial sums"),
        Exempt("stores", "gelu_gradients_kernel", "partial sums of a channel, one a thread"),
        Exempt("stores", "gelu_totals_kernel", "one sum a tap and channel"),
    ),
    "feed_forward": (
        Exempt("loads", "feed_forward_kernel", _OF_A_ROW),
        Exempt(
            "programs", "feed_forward_sums_kernel", "sums of splits, of which small maps have few"
        ),
        Exempt("stores", "feed_forward_sums_kernel", _TURNED, layout="contiguous"),
        Exempt("launches", "backward", "sums of tiles and of splits follow each other", most=5),
        Exempt("loads", "feed_forward_dz_kernel", _OF_A_ROW),
        Exempt("loads", "feed_forward_expand_kernel", _OF_A_ROW),
        Exempt("loads", "feed_forward_input_kernel", _OF_A_ROW),
        Exempt("stores", "feed_forward_expand_kernel", "rows of sums start anywhere"),
        Exempt("loads", "feed_forward_totals_kernel", "rows of sums start anywhere"),
        Exempt("stores", "feed_forward_totals_kernel", "a thread owns one sum"),
        Exempt("programs", "feed_forward_dz_kernel", "a program owns whole tiles"),
        Exempt("programs", "feed_forward_expand_kernel", "a program owns whole tiles"),
        Exempt("programs", "tap_sums_kernel", "a program owns positions that the caches hold"),
    ),
    "upsample_cross_entropy": (
        Exempt("launches", "forward", "sums of programs meet last, in a fixed order", most=2),
        Exempt("launches", "backward", "sums of the cells around a position meet last", most=2),
        Exempt("programs", "reduce_losses_kernel", "one sum of few numbers"),
        Exempt("loads", "reduce_losses_kernel", "a thread reads one sum at a time"),
        Exempt("stores", "reduce_losses_kernel", "a program stores one number"),
        Exempt("loads", "cross_entropy_kernel", _CELLS, layout="contiguous"),
        Exempt("stores", "cross_entropy_kernel", _CELLS, layout="contiguous"),
        Exempt("loads", "cell_gradients_kernel", _CELLS, layout="contiguous"),
        Exempt("stores", "cell_gradients_kernel", _CELLS, layout="contiguous"),
        Exempt("loads", "join_cells_kernel", "rows of cells are one longer", layout="contiguous"),
        Exempt("stores", "join_cells_kernel", "rows of cells are one longer", layout="contiguous"),
    ),
    "upsample_argmax": (
        Exempt("loads", "argmax_kernel", _CELLS, layout="contiguous"),
        Exempt("stores", "argmax_kernel", _CELLS, layout="contiguous"),
    ),
}
