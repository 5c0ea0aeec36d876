"""What is trained: runs with the same budget for every family, and longer ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HEADS = {"fast": "auto", "reference": "reference"}  # name -> attnops.use_backend
SAME_BUDGET, SHORT = "same budget", 60  # steps of every family
LONGER = "longer"
SEED = 1
# More and larger scales, a rate that stays up, and weights averaged over the last steps.
STEADY = (
    *("--data.scale_range", "[0.75,2.25]"),
    *("--model.optimizer.lr", "4e-4", "--model.optimizer.weight_decay", "0.05"),
    *("--model.schedule.min_factor", "0.2", "--model.ema_decay", "0.999"),
)


@dataclass(frozen=True)
class Network:
    """A network of the table: its title, and the recipe that trains it.

    Attributes:
        pretrained: whether its backbone takes ImageNet weights, where they are given.
    """

    title: str
    recipe: str
    pretrained: bool = True

    @property
    def stem(self) -> str:
        return self.recipe.removeprefix("camvid_")


NETWORKS = (
    Network("ANN, EfficientNet-Lite0", "camvid_ann_lite0"),
    Network("GALDv1, EfficientNet-Lite0", "camvid_galdv1_lite0"),
    Network("GALDv2, EfficientNet-Lite0", "camvid_galdv2_lite0"),
    Network("SANet, EfficientNet-Lite0", "camvid_sanet_lite0"),
    Network("SegNeXt's decoder, EfficientNet-Lite0", "camvid_segnext_lite0"),
    Network("DeepLab, attention over scales", "camvid_deeplab_small", pretrained=False),
    Network("SegNeXt-T", "camvid_segnext_t", pretrained=False),
)
SEGNEXT, LITE0, SANET = NETWORKS[-1], NETWORKS[4], NETWORKS[3]


@dataclass(frozen=True)
class Run:
    """One training: a network, its heads and its length.

    Attributes:
        name: of the run's folder, without its number.
        begins: name of the run whose weights it starts from (a schedule that starts again).
        options: of `attnops train`, after all others.
    """

    name: str
    network: Network
    heads: str
    steps: int
    part: str
    begins: str | None = None
    options: tuple[str, ...] = ()


def _same_budget() -> list[Run]:
    return [
        Run(f"{network.stem}_{heads}", network, heads, SHORT, SAME_BUDGET)
        for heads in HEADS
        for network in NETWORKS
    ]


RUNS = (
    *_same_budget(),
    Run("segnext_t_1500", SEGNEXT, "fast", 1500, LONGER),
    Run("segnext_lite0_12min", LITE0, "fast", 1370, LONGER),
    Run("segnext_t_long", SEGNEXT, "fast", 2500, LONGER, begins="segnext_t_1500"),
    Run("segnext_lite0_long", LITE0, "fast", 2500, LONGER, begins="segnext_lite0_12min"),
    Run("segnext_lite0_longer", LITE0, "fast", 2600, LONGER, "segnext_lite0_long", STEADY),
    Run("sanet_lite0_longer", SANET, "fast", 300, LONGER),
)


def options_of(run: Run, pretrained: Path | None, runs: Path) -> list[str]:
    """Options of `attnops train` behind the recipe."""
    every = str(min(run.steps, 500))
    options = ["--trainer.max_steps", str(run.steps), "--trainer.val_check_interval", every]
    if run.begins is not None:
        options += ["--model.weights", str(checkpoint_of(runs, run.begins))]
        options += ["--model.normalization", "imagenet"]
        options += ["--model.optimizer.lr", "3e-4" if run.network.pretrained else "7e-4"]
        options += ["--model.optimizer.head_lr", "3" if run.network.pretrained else "1"]
    else:
        options += backbone_options(run.network, pretrained)
    return [*options, *run.options]


def backbone_options(network: Network, pretrained: Path | None) -> list[str]:
    """Weights of the backbone, which then learns at a third of the head's rate."""
    if pretrained is None or not network.pretrained:
        return []
    return [
        "--model.options.pretrained",
        str(pretrained),
        "--model.optimizer.lr",
        "4e-4",
        "--model.optimizer.head_lr",
        "3",
    ]


def folder_of(runs: Path, name: str) -> Path:
    return runs / f"{name}-0001"


def checkpoint_of(runs: Path, name: str) -> Path:
    return folder_of(runs, name) / "last.ckpt"
