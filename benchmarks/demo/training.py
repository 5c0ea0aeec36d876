"""SegNeXt-T trained on generated shapes, with fast and with reference heads for the same time.

Both start from the same weights, see the same images in the same order and take turns, so that a
disturbance of the machine meets both alike. What differs is how many steps fit into the time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

import attnops
from attnops.training.data import DataInfo, SegmentationData
from attnops.training.engine.module import Segmentation, hash_of
from attnops.training.engine.optimization import (
    OptimizerOptions,
    ScheduleOptions,
    factor_of,
    make_optimizer,
)
from attnops.training.metrics import SegmentationMetrics
from attnops.training.recipes import recipe_path

from ..apnb.run import say
from ..measure.backends_that_ran import in_words, recorded_backends
from ..report.grid import Grid, number, show

RECIPE = "shapes_segnext_t"
# Options of the command; small batches, so that many steps fit into the time.
OPTIONS = {"data.batch_size": 4, "data.photometric": False, "model.optimizer.lr": 2e-3}
HEADS = {"fast": "auto", "reference": "reference"}  # name -> attnops.use_backend
TURN = 5.0  # seconds of steps before it is the other's turn
LEAST = 2  # timed steps of each, however short the time
SHOWN = 3  # rows of the picture


@dataclass
class Result:
    """What one kind of heads reached.

    Attributes:
        ran_on: implementations that its ops ran on.
        steps: of training, the first one included.
        images_per_second: of all steps but the first, loading of data included.
        miou: on the validation images.
        labels: of these images, `[H, W]` each.
    """

    heads: str
    ran_on: str
    steps: int
    images_per_second: float
    miou: float
    labels: list[Tensor]


class Training:
    """A network in training with one kind of heads.

    The recipe's schedule runs over the time: its last step is the end of `seconds`.
    """

    def __init__(self, heads: str, recipe: dict[str, Any], seconds: float, seed: int = 0) -> None:
        model = recipe["model"]
        self.heads, self.allowed, self.seed = heads, seconds, seed
        self.data = SegmentationData(**recipe["data"], seed=seed)
        torch.manual_seed(seed)
        self.model = Segmentation(
            model["network"],
            optimizer=OptimizerOptions(**model["optimizer"]),
            schedule=ScheduleOptions(**model["schedule"]),
            info=self.data.info,
            seed=seed,
        )
        self.network = self.model.network.train()
        self.optimizer = make_optimizer(self.network, self.model.optimizer_options, fused=True)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.length = recipe["trainer"]["max_steps"]  # that the schedule is written for
        self.factor = factor_of(self.model.schedule_options, self.length)
        self.steps, self.seconds, self.loss = 0, 0.0, float("nan")
        self.batches = iter(self.data.train_dataloader())
        with recorded_backends() as used:
            self.step()  # loads code and starts the loader: not timed
        self.ran_on = in_words(used)
        self.seconds = 0.0

    def step(self) -> None:
        start = time.perf_counter()
        images, target = next(self.batches)
        torch.manual_seed(hash_of(self.seed, self.steps))
        share = self.seconds / self.allowed if self.allowed > 0 else 1.0
        factor = self.factor(round(self.length * min(share, 1.0)))
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        with attnops.use_backend(HEADS[self.heads]):
            loss = self.network.loss(self.network(self.model.prepared(images)), target)
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.loss = float(loss.detach())
        self.steps += 1
        self.seconds += time.perf_counter() - start

    def take_turn(self) -> bool:
        """Train for `TURN` seconds; whether there is time for another turn."""
        until = min(self.seconds + TURN, self.allowed)
        while self.seconds < until or self.steps < 1 + LEAST:
            self.step()
        return self.seconds < self.allowed

    def result(self) -> Result:
        """Evaluate the network on the validation images."""
        self.network.eval()
        self.batches = iter(())  # ends the loader
        metrics = SegmentationMetrics(self.data.info.num_classes, self.data.info.ignore_index)
        found = []
        with attnops.use_backend(HEADS[self.heads]):
            for image, mask in validation_images(self.data):
                labels = self.model.protocol.labels(self.network, image)
                metrics.update(labels[None], mask[None])
                found.append(labels)
        rate = (self.steps - 1) * self.data.batch_size / self.seconds
        miou = float(metrics.compute()["mIoU"])
        return Result(self.heads, self.ran_on, self.steps, rate, miou, found)


def validation_images(data: SegmentationData) -> list[tuple[Tensor, Tensor]]:
    split = data.split(data.val_split)
    return [tuple(x.as_subclass(Tensor) for x in split[index]) for index in range(len(split))]


def read_recipe() -> dict[str, Any]:
    """The recipe with `OPTIONS`."""
    recipe = yaml.safe_load(recipe_path(RECIPE).read_text(encoding="utf-8"))
    for name, value in OPTIONS.items():
        *path, last = name.split(".")
        part = recipe
        for key in path:
            part = part[key]
        part[last] = value
    return recipe


def command() -> str:
    """What trains the same network by the recipe's number of steps."""
    options = (f"--{name} {str(value).lower()}" for name, value in OPTIONS.items())
    return f"attnops train --config {RECIPE} {' '.join(options)}"


def train(recipe: dict[str, Any], seconds: float) -> list[Result]:
    """Train with both kinds of heads in turn, `seconds` altogether."""
    trainings = [Training(heads, recipe, seconds / len(HEADS)) for heads in HEADS]
    waiting = list(trainings)
    while waiting:
        waiting = [training for training in waiting if training.take_turn()]
        parts = (f"{t.heads} {t.steps} steps, loss {t.loss:.3f}" for t in trainings)
        say(f"  {sum(t.seconds for t in trainings):.0f} s: {'; '.join(parts)}")
    return [training.result() for training in trainings]


def grid(results: list[Result], seconds: float) -> Grid:
    found = Grid(
        f"SegNeXt-T trained on shapes, {seconds / len(HEADS):.0f} s each",
        ["heads", "ran on", "steps", "img/s", "mIoU"],
    )
    for result in results:
        rate, miou = number(result.images_per_second), f"{result.miou:.3f}"
        found.cells.append([result.heads, result.ran_on, str(result.steps), rate, miou])
    return found


def draw(data: SegmentationData, labels: list[Tensor], title: str, path: Path) -> None:
    """Image, truth and prediction of the first validation images."""
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    from ..report.plots import STYLE, save

    samples = validation_images(data)[:SHOWN]
    with pyplot.rc_context(STYLE):
        shape = (len(samples), 3)
        figure, panels = pyplot.subplots(
            *shape, figsize=(8.1, 2.75 * len(samples) + 0.6), squeeze=False, layout="constrained"
        )
        for row, (image, mask), found in zip(panels, samples, labels, strict=False):
            pictures = (image.permute(1, 2, 0), coloured(mask, data.info))
            for axes, picture in zip(row, (*pictures, coloured(found, data.info)), strict=True):
                axes.imshow(picture.numpy(), interpolation="nearest")
                axes.axis("off")
        for axes, text in zip(panels[0], ("image", "truth", title), strict=True):
            axes.set_title(text)
        names = zip(data.info.classes, data.info.palette, strict=True)
        patches = [Patch(color=[x / 255 for x in colour], label=name) for name, colour in names]
        figure.legend(
            handles=patches, loc="outside lower center", ncols=len(patches), frameon=False
        )
        save(figure, path)


def coloured(labels: Tensor, info: DataInfo) -> Tensor:
    """Labels `[H, W]` in the colours of their classes, uint8 `[H, W, 3]`; black: no class."""
    palette = torch.zeros(256, 3, dtype=torch.uint8)
    palette[: info.num_classes] = torch.tensor(info.palette, dtype=torch.uint8)
    return palette[labels.long()]


def run(out: Path, seconds: float) -> None:
    """The training part of the demonstration."""
    recipe = read_recipe()
    say(f"\nTraining SegNeXt-T on shapes with fast and with reference heads, {seconds:.0f} s:")
    results = train(recipe, seconds)
    show(grid(results, seconds))
    fast, reference = results
    path = out / "training.png"
    title = f"prediction after {fast.steps} steps"
    draw(SegmentationData(**recipe["data"]), fast.labels, title, path)
    factor = fast.images_per_second / reference.images_per_second
    print(
        f"Fast heads train {factor:.2f} times as many images a second (loading included, "
        f"{torch.get_num_threads()} CPU threads),\nfrom the same weights, on the same images, in "
        f"turns of {TURN:.0f} s. As a command:\n  {command()}\n"
        f"{path}: images, truth and prediction of the network with fast heads"
    )
