"""What all networks have in common: resizing, losses, prediction, saving."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ._checks import check_images, check_outputs, check_target
from ._hub import HubMixin
from ._inference import follows_compilation, predict_labels
from ._losses import mean_cross_entropy, mined_cross_entropy
from ._outputs import SMALL, Outputs, outputs_of


class SegmentationModel(nn.Module, HubMixin):
    """A network from images to one score map a class.

    A subclass gives `logits(images)`: the maps at the network's own resolution, "out" and those
    that its loss needs besides (in training at least); and `published_loss` where it is not the
    mean cross-entropy.

    Attributes:
        align_corners: how the network's maps are resized.
        smallest_side: of an image that the network can take.
        in_channels: of an image.
        ignore_index: label of pixels that have no class.
        config: name and options, set by `create_model`.
        classifiers: templates of the state dict's keys whose shapes depend on the number of
            classes; `*` stands for one part between dots, `**` for several.
    """

    align_corners: bool = False
    smallest_side: int = 1
    in_channels: int = 3
    ignore_index: int = 255
    classifiers: tuple[str, ...] = ()

    def logits(self, images: Tensor) -> dict[str, Tensor]:
        """Maps `[B, K, h, w]` of images `[B, in_channels, H, W]`, before any resizing.

        The main one is "out"; others ("aux", ...) may exist in training only.
        """
        raise NotImplementedError

    def forward(self, images: Tensor, resize: bool = True) -> dict[str, Tensor]:
        """Logits of images `[B, in_channels, H, W]`, normalised as the network's authors did.

        Args:
            images: any float dtype.
            resize: False leaves "out" out of the result.

        Returns:
            A dict of "out", `[B, num_classes, H, W]`, which is made when it is first read, so that
            `loss`, which does not need it, does not pay for it. In training, and without `resize`,
            also the maps at their own resolution: "out_small", and "aux_small" and the like.
            Where the function is exported or traced, and in a compiled evaluation, "out" is made at
            once.

        Raises:
            TypeError: not a float tensor.
            ValueError: another shape, or a side that is too short for the network.
        """
        check_images(type(self).__name__, images, self.smallest_side, self.in_channels)
        return outputs_of(
            self.logits(images),
            images.shape[2:],
            resize,
            show_small=self.training or not resize,
            align_corners=self.align_corners,
            training=self.training,
        )

    def loss(
        self,
        outputs: Mapping[str, Tensor],
        target: Tensor,
        avg_non_ignore: bool = True,
        label_smoothing: float = 0.0,
        class_weight: Tensor | None = None,
    ) -> Tensor:
        """The loss that the network was published with, a scalar.

        Of outputs in evaluation it is the validation loss: the same terms, but for those of
        auxiliary heads, which run in training only. No pixel with a class in the whole batch: 0,
        with zero gradients, whatever the terms are.

        Args:
            outputs: what the network returned for a batch of images, with or without `resize`.
            target: classes `[B, H, W]` at the images' size, any integer dtype, `ignore_index` for
                pixels without one.
            avg_non_ignore: mean cross-entropies are over the pixels that have a class. False: over
                all pixels, those without a class count as 0, which is how mmsegmentation averages
                unless told otherwise; for comparing curves with it. Hard example mining is a mean
                over the kept pixels either way.
            label_smoothing: share, 0 to 1, of every pixel's target that goes to all classes in
                equal parts, in every cross-entropy.
            class_weight: of the classes, `[num_classes]`, in every cross-entropy of pixels. Their
                means are weighted then, but for hard example mining, which divides the weighted
                losses by the number of kept pixels, as ANN was released.

        Raises:
            TypeError: `outputs` is no dict, or `target` no tensor of integers.
            ValueError: `outputs` lack a map, or `target` has not the size of the images, the batch
                or the device of the outputs; on the CPU also a label that is no class.
        """
        name = f"{type(self).__name__}.loss"
        check_outputs(name, outputs)
        check_target(name, outputs, target)
        options = {
            "avg_non_ignore": avg_non_ignore,
            "label_smoothing": label_smoothing,
            "class_weight": class_weight,
        }
        return self.published_loss(outputs, target.long(), **options)

    def published_loss(
        self, outputs: Mapping[str, Tensor], target: Tensor, **options: Any
    ) -> Tensor:
        """`loss` of outputs and an int64 target that fit each other; `options` as there."""
        return self.cross_entropy(outputs, target, **options)

    def cross_entropy(
        self, outputs: Mapping[str, Tensor], target: Tensor, key: str = "out", **options: Any
    ) -> Tensor:
        """Mean cross-entropy of the map `key`, resized to `target` on the fly."""
        small = self.small_map(outputs, key, or_resized=True)
        return mean_cross_entropy(small, target, self.ignore_index, self.align_corners, **options)

    def mined_cross_entropy(
        self, outputs: Mapping[str, Tensor], target: Tensor, key: str = "out", **options: Any
    ) -> Tensor:
        """`cross_entropy` of the hard examples, as ANN and GALD choose them."""
        options.pop("avg_non_ignore", None)
        small = self.small_map(outputs, key, or_resized=True)
        return mined_cross_entropy(small, target, self.ignore_index, self.align_corners, **options)

    def has_map(self, outputs: Mapping[str, Tensor], key: str) -> bool:
        """Whether the map `key` is there; in training it has to be, or `small_map` says so."""
        found = key + SMALL in outputs or (isinstance(outputs, Outputs) and key in outputs.maps)
        return found or self.training

    def small_map(
        self, outputs: Mapping[str, Tensor], key: str, or_resized: bool = False
    ) -> Tensor:
        """The map `key` at the network's resolution from what `forward` returned.

        Args:
            outputs: what `forward` returned.
            key: "out", "aux" or the like.
            or_resized: the resized map serves as well if it is all there is.

        Raises:
            ValueError: it is not there.
        """
        if key + SMALL in outputs:
            return outputs[key + SMALL]
        if isinstance(outputs, Outputs) and key in outputs.maps:
            return outputs.maps[key]
        if or_resized and key in outputs:
            return outputs[key]
        raise ValueError(
            f"{type(self).__name__}.loss: outputs lack {key + SMALL!r}, which the network returns "
            f"in training mode or with resize=False; got {', '.join(outputs) or 'nothing'}"
        )

    @follows_compilation
    def predict(
        self,
        images: Tensor,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        window: int | tuple[int, int] | None = None,
        stride: int | tuple[int, int] | None = None,
    ) -> Tensor:
        """Labels `[B, H, W]`, int64, of images `[B, in_channels, H, W]`.

        The network is evaluated, whatever mode it is in, and its modules are left as they are: it
        may train or predict in other threads meanwhile (`attnops.nn.evaluation` says how). On a
        compiled network, `torch.compile(model).predict(images)` or after `model.compile()`, the
        compiled forward runs. Probabilities (softmax) are averaged over scales and flips; logits
        over the windows that cover a pixel.

        Args:
            images: float, converted to the dtype of the network's parameters outside autocast.
            scales: factors by which the images are resized, bilinearly.
            flip: also take the mirrored images.
            window: (height, width) of sliding windows, or one number; None: whole images. A window
                larger than the image is cut to it.
            stride: distance of windows; None: 3/4 of the window. The last window of a row ends at
                the image's border.

        Raises:
            TypeError: options of another type, or images that are no float tensor.
            ValueError: options out of range, images of another shape or on another device than the
                network, or a scale or window that makes them too small for it.
        """
        return predict_labels(self, images, scales, flip, window, stride)
