"""What all networks have in common: resizing, losses, prediction, saving."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import interpolate

from attnops import upsample_cross_entropy
from attnops._checks import check_shape, check_tensors

from ._hub import HubMixin
from ._inference import predict_labels

SMALL = "_small"


class SegmentationModel(nn.Module, HubMixin):
    """A network from images to one score map a class.

    A subclass gives `logits(images)`: the maps at the network's own resolution, "out" and, in
    training, those that its loss needs besides; and `loss` where it is not the default one.

    Attributes:
        align_corners: how the network's maps are resized.
        smallest_side: of an image that the network can take.
        ignore_index: label of pixels that have no class.
        config: name and options, set by `create_model`.
    """

    align_corners: bool = False
    smallest_side: int = 1
    ignore_index: int = 255

    def logits(self, images: Tensor) -> dict[str, Tensor]:
        """Maps `[B, K, h, w]` of images `[B, 3, H, W]`, before any resizing; the main one is "out".

        Others ("aux", ...) exist in training only.
        """
        raise NotImplementedError

    def forward(self, images: Tensor, resize: bool = True) -> dict[str, Tensor]:
        """Logits of images `[B, 3, H, W]`, normalised as the network's authors did.

        Args:
            images: any float dtype.
            resize: False leaves "out" out, which saves a map of all classes at the size of the
                images; `loss` does not need it.

        Returns:
            "out", `[B, num_classes, H, W]`. In training, and without `resize`, also the maps at
            their own resolution, which `loss` takes: "out_small", and "aux_small" and the like.

        Raises:
            TypeError: not a float tensor.
            ValueError: another shape, or a side that is too short for the network.
        """
        name = type(self).__name__
        check_tensors(name, images=images)
        check_shape(name, "images", images, ("B", 3, "H", "W"))
        size = images.shape[2:]
        if any(side < self.smallest_side for side in size):
            raise ValueError(
                f"{name}: images must be at least {self.smallest_side}x{self.smallest_side}, got "
                f"{size[0]}x{size[1]}"
            )
        maps = self.logits(images)
        outputs: dict[str, Tensor] = {}
        if resize:
            outputs["out"] = interpolate(
                maps["out"], size, mode="bilinear", align_corners=self.align_corners
            )
        if self.training or not resize:
            outputs |= {key + SMALL: value for key, value in maps.items()}
        return outputs

    def loss(self, outputs: dict[str, Tensor], target: Tensor) -> Tensor:
        """The loss that the network was published with, a scalar.

        Args:
            outputs: what the network returned in training mode.
            target: classes `[B, H, W]` at the images' size, `ignore_index` for pixels without one.

        Raises:
            ValueError: `outputs` lack a map, or do not fit `target`.
        """
        return self.cross_entropy(outputs, target)

    def cross_entropy(self, outputs: dict[str, Tensor], target: Tensor, key: str = "out") -> Tensor:
        """Mean cross-entropy of the map `key`, resized to `target` on the fly."""
        return upsample_cross_entropy(
            self.small_map(outputs, key),
            target,
            ignore_index=self.ignore_index,
            align_corners=self.align_corners,
        )

    def small_map(self, outputs: dict[str, Tensor], key: str) -> Tensor:
        """The map `key` at the network's resolution from what `forward` returned.

        Raises:
            ValueError: it is not there.
        """
        if key + SMALL not in outputs:
            raise ValueError(
                f"{type(self).__name__}.loss: outputs lack {key + SMALL!r}, which the network "
                f"returns in training mode; got {', '.join(outputs)}"
            )
        return outputs[key + SMALL]

    def predict(
        self,
        images: Tensor,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        window: int | tuple[int, int] | None = None,
        stride: int | tuple[int, int] | None = None,
    ) -> Tensor:
        """Labels `[B, H, W]`, int64, of images `[B, 3, H, W]`.

        The network runs in evaluation mode, whatever mode it is in. Probabilities (softmax) are
        averaged over scales and flips; logits over the windows that cover a pixel.

        Args:
            scales: factors by which the images are resized, bilinearly.
            flip: also take the mirrored images.
            window: (height, width) of sliding windows, or one number; None: whole images. A window
                larger than the image is cut to it.
            stride: distance of windows; None: 3/4 of the window. The last window of a row ends at
                the image's border.

        Raises:
            TypeError, ValueError: options or images out of range, as in `forward`.
        """
        return predict_labels(self, images, scales, flip, window, stride)
