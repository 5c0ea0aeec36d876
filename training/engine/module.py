"""The network in training: what Lightning's trainer calls."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor

import attnops
from attnops.models import create_model, load_checkpoint
from attnops.models._losses import averaged_over_processes
from attnops.models.normalization import imagenet_normalization, published_normalization

from ..data.info import DataInfo
from ..metrics import SegmentationMetrics
from ..protocol import Protocol
from .loading import KEY
from .optimization import OptimizerOptions, ScheduleOptions, make_optimizer, make_schedule
from .sync_batch_norm import synchronise, take_from_first

Batch = tuple[Tensor, Tensor]  # images uint8 `[B, C, H, W]`, masks int64 `[B, H, W]`


@dataclass
class LossOptions:
    """What the published loss leaves open.

    Args:
        class_weight: of every class in the cross-entropies of pixels; null: 1; "balanced": a
            power of how much rarer a class is than the median one in the training split.
        balance: that power: 0 weighs all classes alike, 1 is SegNet's median-frequency balancing.
        label_smoothing: share of every pixel's target that goes to all classes.
        avg_non_ignore: false averages over all pixels, as mmsegmentation does by default.
    """

    class_weight: list[float] | Literal["balanced"] | None = None
    balance: float = 0.5
    label_smoothing: float = 0.0
    avg_non_ignore: bool = True


class Segmentation(LightningModule):
    """A network of attnops.models with its loss, optimiser and schedule.

    All random numbers of a step (dropout, dropped paths, bases) come from generators that are
    seeded by (seed, process, step) before it. So a run that was cut off goes on exactly, and does
    not depend on how often it was validated.

    Args:
        network: a name of `attnops models`.
        options: of the network, as create_model takes them; the number of classes is the data's.
        weights: file to start from: a published checkpoint of the network, or of its backbone.
        optimizer: the optimiser and its groups of parameters.
        schedule: the rate over the steps.
        loss: what the published loss leaves open.
        ema_decay: also average the weights over the steps with this decay (for example 0.999);
            validation, the best checkpoint and everything after the training use the average.
        compile: compile the network with torch.compile.
        channels_last: keep maps with their channels innermost, which convolutions like best.
        sync_batch_norm: statistics over all processes where there are several.
        protocol: of the validation: scales, flip, window, stride, base_size, precision.
        normalization: of the images: "published": as the authors' weights want it; "imagenet": mean
            and standard deviation of timm's weights, which also suits fresh ones; null: published
            with `weights`, else imagenet.
        info: classes of the data, which the command fills in.
        seed: of the steps' random numbers, which the command fills in.
    """

    def __init__(
        self,
        network: str,
        options: dict[str, Any] | None = None,
        weights: str | None = None,
        optimizer: OptimizerOptions = OptimizerOptions(),  # noqa: B008
        schedule: ScheduleOptions = ScheduleOptions(),  # noqa: B008
        loss: LossOptions = LossOptions(),  # noqa: B008
        ema_decay: float | None = None,
        compile: bool = False,
        channels_last: bool = True,
        sync_batch_norm: bool = True,
        protocol: dict[str, Any] | None = None,
        normalization: Literal["published", "imagenet"] | None = None,
        info: Any = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(info, DataInfo):
            raise TypeError(f"Segmentation: info must be the data's DataInfo, got {info!r}")
        self.info, self.seed = info, int(seed)
        self.optimizer_options, self.schedule_options = optimizer, schedule
        self.loss_options = loss
        self.compiles, self.synchronises, self.ema_decay = compile, sync_batch_norm, ema_decay
        self.protocol = Protocol(**(protocol or {}))
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        options = {"num_classes": info.num_classes} | dict(options or {})
        if options["num_classes"] != info.num_classes:
            raise ValueError(
                f"model.options.num_classes={options['num_classes']}, but the data has "
                f"{info.num_classes} classes; leave num_classes away"
            )
        self.network = create_model(network, **options)
        self.network.ignore_index = info.ignore_index
        if weights is not None:
            print(load_checkpoint(self.network, weights, classes="drop"))
        self.network.to(memory_format=self.memory_format)
        published = weights is not None if normalization is None else normalization == "published"
        wanted = published_normalization if published else imagenet_normalization
        self.normalization = self.network.normalization = wanted(self.network)
        self._register_constants(loss.class_weight)
        self.metrics = SegmentationMetrics(info.num_classes, info.ignore_index)
        self.consumed = 0  # samples of all processes
        self.settings: dict[str, Any] = {}  # of the run, for its checkpoints

    def _register_constants(self, class_weight: list[float] | str | None) -> None:
        mean, std = (torch.tensor(x) for x in (self.normalization.mean, self.normalization.std))
        self.register_buffer("image_mean", mean.view(-1, 1, 1), persistent=False)
        self.register_buffer("image_scale", 1 / std.view(-1, 1, 1), persistent=False)
        if class_weight == "balanced":  # from the data, in `setup`
            class_weight = [1.0] * self.info.num_classes
        if class_weight is not None and len(class_weight) != self.info.num_classes:
            raise ValueError(
                f"model.loss.class_weight has {len(class_weight)} entries, but the data has "
                f"{self.info.num_classes} classes"
            )
        weight = None if class_weight is None else torch.tensor(class_weight)
        self.register_buffer("class_weight", weight, persistent=False)

    def configure_callbacks(self) -> list[Any]:
        if self.ema_decay is None:
            return []
        return [EMAWeightAveraging(decay=self.ema_decay)]

    def setup(self, stage: str) -> None:
        if stage != "fit":
            return
        if self.loss_options.class_weight == "balanced":
            pixels = self.trainer.datamodule.class_pixels()
            weight = balanced(pixels, self.loss_options.balance)
            self.class_weight.copy_(weight)
        if self.synchronises and self.trainer.world_size > 1:
            synchronise(self.network, self.trainer.strategy.root_device)
        if self.compiles:
            self.network.compile()

    def configure_optimizers(self) -> dict[str, Any]:
        # Under autocast Lightning clips no gradients of a fused optimiser, whose step would unscale
        # those of float16 itself.
        precision, clips = self.trainer.precision, bool(self.trainer.gradient_clip_val)
        fused = precision != "16-mixed" and not (clips and precision == "bf16-mixed")
        optimizer = make_optimizer(self.network, self.optimizer_options, fused)
        total = int(self.trainer.max_steps)
        schedule = make_schedule(optimizer, self.schedule_options, total)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def prepared(self, images: Tensor) -> Tensor:
        """Images `[B, C, H, W]`, uint8 RGB, as the network wants them."""
        x = images.to(self.image_mean.dtype)
        if self.normalization.order == "bgr":
            x = x.flip(1)
        x = (x - self.image_mean).mul_(self.image_scale)
        return x.contiguous(memory_format=self.memory_format)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        step = self.trainer.fit_loop.total_batch_idx
        mixed = (self.seed, self.global_rank, step)
        seed = hash_of(*mixed)
        random.seed(seed)
        torch.manual_seed(seed)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, target = batch
        outputs = self.network(self.prepared(images))
        options = {
            "avg_non_ignore": self.loss_options.avg_non_ignore,
            "label_smoothing": self.loss_options.label_smoothing,
            "class_weight": self.class_weight,
        }
        with averaged_over_processes():
            loss = self.network.loss(outputs, target, **options)
        self.consumed += len(images) * self.trainer.world_size
        return loss

    def on_validation_start(self) -> None:
        torch.manual_seed(hash_of(self.seed, self.global_rank, -1))

    def on_validation_epoch_start(self) -> None:
        take_from_first(self.network)
        self.metrics.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, target = batch
        labels = torch.stack([self.protocol.labels(self.network, image) for image in images])
        self.metrics.update(labels, target)
        return labels

    def on_validation_epoch_end(self) -> None:
        scores = self.metrics.compute()
        values = {f"val/{name}": scores[name] for name in ("mIoU", "accuracy", "mean_accuracy")}
        for name, value in values.items():
            self.log(name, value, logger=False)  # for callbacks
        if not self.trainer.sanity_checking:
            for logger in self.trainer.loggers:
                logger.log_metrics(
                    {name: float(value) for name, value in values.items()},
                    step=self.trainer.global_step,
                )
        self.metrics.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = {
            "format": 1,
            "version": attnops.__version__,
            "network": dict(self.network.config),
            "info": self.info.to_dict(),
            "normalization": self.normalization.to_dict(),
            "consumed": self.consumed,
            "settings": self.settings,
        }

    def check_resumable(self, entry: dict[str, Any]) -> None:
        """A run can go on from what a checkpoint says under `KEY`.

        Raises:
            ValueError: it is of another network or other classes.
        """
        mine = {"network": dict(self.network.config), "info": self.info.to_dict()}
        for name, what in (("network", "network"), ("info", "data")):
            if _plain(entry[name]) != _plain(mine[name]):
                raise ValueError(
                    f"the checkpoint is of another {what}: {_difference(entry[name], mine[name])}; "
                    "resume with the recipe and the options of that run, or start a new one"
                )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        entry = checkpoint[KEY]
        self.consumed = entry["consumed"]
        data = getattr(self.trainer, "datamodule", None)
        if data is not None:
            data.set_progress(self.consumed)


def balanced(pixels: list[int], power: float = 0.5) -> Tensor:
    """Weights of classes with so many pixels: (median / pixels)^power, 1 where there are none.

    The median is over the classes that occur. Power 1 is the median-frequency balancing of SegNet,
    in whose predictions rare classes take pixels from the common ones.
    """
    counts = torch.tensor(pixels, dtype=torch.float64)
    occurring = counts > 0
    if not occurring.any():
        return torch.ones(len(pixels))
    weight = (counts[occurring].median() / counts) ** power
    return torch.where(occurring, weight, 1.0).float()


def hash_of(*numbers: int) -> int:
    """64 well-mixed bits of some integers (splitmix64)."""
    mask, state = (1 << 64) - 1, 0
    for number in numbers:
        state = (state ^ (number & mask)) + 0x9E3779B97F4A7C15 & mask
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & mask
        state = (state ^ state >> 27) * 0x94D049BB133111EB & mask
        state ^= state >> 31
    return state


def _plain(value: Any) -> Any:
    """Tuples as lists, at any depth."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    keys = [k for k in {**theirs, **ours} if _plain(theirs.get(k)) != _plain(ours.get(k))]
    return ", ".join(f"{k} was {theirs.get(k)!r}, now {ours.get(k)!r}" for k in keys)
