"""A network as a program of torch.export, with all that is drawn or chosen at random fixed."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from attnops import upsample_argmax
from attnops._checks import check_choice, check_integer, check_pair
from attnops._op.transforms import portable

from .._model import SegmentationModel
from ..deploy.deployment import evaluation_copy

OUTPUTS = ("labels", "logits")
BATCH, SIZE = 2, (481, 577)  # traced where any will do: not 1, not even, no two sides alike


class Exported(nn.Module):
    """What an exported network computes of images `[B, C, H, W]`: labels or logits."""

    def __init__(self, network: SegmentationModel, output: str) -> None:
        super().__init__()
        self.network, self.output = network, output

    def forward(self, images: Tensor) -> Tensor:
        if self.output == "logits":
            return self.network(images)["out"]
        small = self.network(images, resize=False)["out_small"]
        return upsample_argmax(small, images.shape[2:], self.network.align_corners)


def exported_module(model: SegmentationModel, output: str, seed: int) -> Exported:
    """A copy of `model` for export: evaluated, on the CPU, in float32, with constant bases.

    Raises:
        TypeError: `model` is no `SegmentationModel`, or the seed no integer.
        ValueError: an unknown output.
    """
    network = getattr(model, "_orig_mod", model)
    if not isinstance(network, SegmentationModel):
        raise TypeError(
            f"export: model must be a network of attnops.models, got {type(model).__name__}"
        )
    check_choice("export", "output", output, OUTPUTS)
    seed = check_integer("export", "seed", seed, least=0)
    return Exported(evaluation_copy(network, seed), output)


def checked_size(network: SegmentationModel, size: object) -> tuple[int, int] | None:
    """(height, width) as integers, or None.

    Raises:
        TypeError: not a pair of integers.
        ValueError: a side that is too short for the network.
    """
    if size is None:
        return None
    height, width = check_pair("export", "size", size, "a pair (height, width)")
    least = network.smallest_side
    if min(height, width) < least:
        raise ValueError(
            f"export: {type(network).__name__} takes images of at least {least}x{least}, got "
            f"size={height}x{width}"
        )
    return height, width


def smallest_side(network: SegmentationModel, size: tuple[int, int] | None) -> int:
    """Of images that the program takes. Below it some maps would have one row, which a program for
    any size would have to treat apart.
    """
    return network.smallest_side if size else max(64, 2 * network.smallest_side)


def trace(module: Exported, size: tuple[int, int] | None, plain: bool = False) -> ExportedProgram:
    """The program of `module` for any batch, of images of one size or of any (None).

    Args:
        module: of `exported_module`.
        size: of the images.
        plain: without attnops' ops, in PyTorch's alone.

    Raises:
        ValueError: the network cannot be written down for images of any size.
    """
    network = module.network
    shapes = {0: Dim("batch", min=1)}
    if size is None:
        least = smallest_side(network, size)
        shapes |= {2: Dim("height", min=least), 3: Dim("width", min=least)}
    images = torch.zeros(BATCH, network.in_channels, *(size or SIZE))
    try:
        with torch.no_grad(), portable() if plain else nullcontext():
            program = torch.export.export(
                module,
                (images,),
                dynamic_shapes={"images": shapes},
                strict=False,
                # What cannot be proven of symbolic sizes becomes a check in the program.
                prefer_deferred_runtime_asserts_over_guards=True,
            )
    except Exception as error:  # torch.export has no exception of its own
        if size is not None:
            raise
        reason = str(error).strip().splitlines()
        raise ValueError(
            f"export: this {type(network).__name__} cannot be exported for images of any size "
            f"({reason[0] if reason else type(error).__name__}); give one, for example "
            "size=(512, 512), or --size 512x512"
        ) from error
    _drop_checks(program)
    return program


def _drop_checks(program: ExportedProgram) -> None:
    """Take out the checks of what tracing assumed of strides and of sizes being unequal.

    The networks' own steps ask nothing else of a size, and operators find the strides themselves.
    The smallest sides are not among these checks, they stay.
    """
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
