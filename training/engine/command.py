"""`attnops train`."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from attnops._console import command

from ..data import SegmentationData
from ..recipes import about, list_recipes, recipe_path
from .checkpoints import Checkpoints, Diverged, Interrupted
from .loading import KEY
from .logs import CsvLogger, Curves
from .module import Segmentation
from .pictures import Pictures
from .progress import DataTimer, Display, Throughput
from .runs import environment, new_run, to_resume

USAGE = "attnops train --config NAME|FILE [--data.root DIR] [--OPTION VALUE ...]"
HELP = """usage: {usage}

Train a segmentation network.

  --config NAME|FILE             a recipe below, or a file of one's own; later options override it
  --data.root DIR                folder of the data set ("shapes" is generated and needs none)
  --data.batch_size N            images a step, of each process
  --data.num_workers N           processes that load images
  --model.network NAME           one of `attnops models`
  --model.options.KEY VALUE      its options, such as backbone
  --model.weights FILE           published weights to start from
  --model.optimizer.lr X         likewise weight_decay, head_lr, ...
  --model.ema_decay X            average the weights, for example 0.999
  --model.compile true           torch.compile
  --trainer.max_steps N          length of the training
  --trainer.val_check_interval N batches between validations
  --trainer.precision P          32-true, bf16-mixed or 16-mixed
  --trainer.devices N            GPUs, or processes on CPUs; torchrun works too
  --trainer.accumulate_grad_batches N
  --trainer.gradient_clip_val X
  --trainer.deterministic true   bit-equal runs, where the operators allow it
  --trainer.default_root_dir DIR folder of the runs (default: runs)
  --checkpoint.every_n_steps N   distance of checkpoints
  --seed_everything N            of weights, data order, augmentation and every step
  --resume auto|PATH             go on exactly: from the latest run of this name, or a checkpoint
  --print_config                 show the resolved configuration and stop
  --help-all                     every option

A run writes to a folder of its own, DIR/NAME-0001, DIR/NAME-0002, ...: last.ckpt, previous.ckpt,
best.ckpt, metrics.csv, tensorboard/, config.yaml, environment.txt. Ctrl-C ends the step, saves, and
stops.

recipes:
{recipes}

examples:
  attnops train --config shapes_segnext_t --trainer.max_steps 200
  attnops train --config camvid_segnext_t --data.root ~/data/camvid --resume auto
  torchrun --nproc-per-node 8 -m attnops train --config cityscapes_ann_r101 --data.root ~/cityscapes
"""
DEFAULTS = {
    "max_epochs": None,
    "val_check_interval": 500,
    "check_val_every_n_epoch": None,
    "num_sanity_val_steps": 1,
    "log_every_n_steps": 10,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
    "default_root_dir": "runs",
}
# What configurations raise that cannot be: their messages are all that is shown.
_MISTAKES = (ValueError, TypeError, FileNotFoundError, ImportError, MisconfigurationException)


class _CLI(LightningCLI):
    """Lightning's command line with our data, checkpoints, loggers and displays."""

    def __init__(self, arguments: list[str]) -> None:
        super().__init__(
            Segmentation,
            SegmentationData,
            save_config_callback=None,
            trainer_defaults=DEFAULTS,
            seed_everything_default=0,
            parser_kwargs={"prog": "attnops train", "usage": USAGE},
            args=arguments,
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--resume",
            type=str | None,
            default=None,
            help="auto: go on with the latest run of this name; or a checkpoint or a run's folder",
        )
        parser.add_argument(
            "--name",
            type=str | None,
            default=None,
            help="of the run's folder (default: the name of the configuration)",
        )
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        for target in ("data.seed", "model.seed"):
            parser.link_arguments("seed_everything", target, compute_fn=int)
        parser.link_arguments("data.info", "model.info", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)

    def instantiate_trainer(self, **options: Any) -> Trainer:
        given = self.config_init["trainer"]
        timer = DataTimer()
        self.throughput = Throughput(timer)
        callbacks = [*(given["callbacks"] or []), self.throughput]
        if given["enable_progress_bar"] is not False:
            callbacks.append(Display(self.throughput))
        self.loggers = []
        if given["logger"] in (None, True):
            self.loggers = [CsvLogger()]
            callbacks.append(Pictures())
        if given["logger"] in (None, True, False):
            options["logger"] = self.loggers or False
        processes, of_them = _processes(given)
        options |= _length(given, self.datamodule, processes) | of_them
        options |= {"callbacks": callbacks, "enable_progress_bar": False}
        options["profiler"] = given["profiler"] or timer
        return super().instantiate_trainer(**options)


def _length(given: Any, data: SegmentationData, processes: int) -> dict[str, Any]:
    """Steps to train, and validations that fit into them."""
    steps, accumulated = given["max_steps"], given["accumulate_grad_batches"]
    batches = max(data.steps_per_epoch // processes, 1)  # in a pass over the data
    if given["fast_dev_run"]:
        steps = int(given["fast_dev_run"])
    if (given["max_epochs"] or -1) >= 0:  # whichever is reached first
        by_epochs = given["max_epochs"] * max(batches // accumulated, 1)
        steps = by_epochs if steps < 0 else min(steps, by_epochs)
    if steps < 0:
        raise ValueError("how long? Give --trainer.max_steps N or --trainer.max_epochs N")
    interval = given["val_check_interval"]
    if isinstance(interval, float):
        interval = round(interval * batches)
    interval = max(1, min(int(interval), steps * accumulated))
    return {"max_steps": steps, "max_epochs": -1, "val_check_interval": interval}


def _processes(given: Any) -> tuple[int, dict[str, Any]]:
    """How many there are, whoever starts them, and what several need."""
    options: dict[str, Any] = {}
    devices, nodes = given["devices"], given["num_nodes"]
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun has decided
        if devices == "auto":
            options["devices"] = devices = int(os.environ["LOCAL_WORLD_SIZE"])
        options["num_nodes"] = nodes = int(os.environ["GROUP_WORLD_SIZE"])
    if isinstance(devices, (list, tuple)):
        count = len(devices)
    elif str(devices) in ("auto", "-1"):
        count = 1 if given["accelerator"] == "cpu" else max(torch.cuda.device_count(), 1)
    else:
        count = len(devices.split(",")) if "," in str(devices) else int(devices)
    if given["strategy"] == "auto" and count * nodes > 1:
        # Running statistics are summed over the processes, or taken from the first in validation.
        options["strategy"] = DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
    return count * nodes, options


def _begin(cli: _CLI, name: str) -> Path | None:
    """Choose the folder of the run and write down what it is; a checkpoint to go on from."""
    trainer = cli.trainer
    _check_crop(cli)
    if trainer.is_global_zero:
        cli.datamodule.check()
    root = Path(trainer.default_root_dir)
    wanted = cli.config["resume"]
    checkpoint = to_resume(wanted, root, name) if wanted else None
    saving = next(c for c in trainer.callbacks if isinstance(c, Checkpoints))
    saving.resumed = str(checkpoint) if checkpoint else None
    cli.model.settings, step = _settings(cli), 0
    if checkpoint:
        content = torch.load(checkpoint, map_location="meta", weights_only=True, mmap=True)
        if KEY not in content:
            raise ValueError(f"{checkpoint} is no checkpoint of attnops train")
        cli.model.check_resumable(content[KEY])
        _warn_of_changes(content[KEY], cli)
        step = int(content["global_step"])
    if not trainer.is_global_zero:
        return checkpoint
    cli.datamodule.check()
    folder = checkpoint.parent if checkpoint else new_run(root, name)
    saving.folder = folder
    for logger in cli.loggers:
        logger.begin(folder, step)
    if cli.loggers:
        trainer.loggers = [*cli.loggers, Curves(folder, step)]
    _write_new(folder, "config", ".yaml", cli.parser.dump(cli.config))
    _write_new(folder, "environment", ".txt", environment())
    print(f"{folder}: {_summary(cli)}" + (f", from step {step}" if checkpoint else ""), flush=True)
    return checkpoint


def _check_crop(cli: _CLI) -> None:
    """The network can take what it is trained on; before there is a folder of the run."""
    height, width = cli.config["data"]["crop_size"]
    network = cli.model.network
    if min(height, width) < network.smallest_side:
        raise ValueError(
            f"data.crop_size is {height}x{width}, but {network.config['name']} takes images from "
            f"{network.smallest_side}x{network.smallest_side} on"
        )


def _write_new(folder: Path, stem: str, suffix: str, text: str) -> None:
    """Under a name that nothing has: config.yaml, config-2.yaml, ... where a run goes on."""
    number = 1
    while True:
        path = folder / (f"{stem}{suffix}" if number == 1 else f"{stem}-{number}{suffix}")
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(text)
            return
        except FileExistsError:
            number += 1


def _warn_of_changes(entry: dict[str, Any], cli: _CLI) -> None:
    """A run that goes on with other settings is not the run that would have been."""
    now, before = cli.model.settings, entry.get("settings", {})
    changes = [f"{k} was {before[k]!r}, now {now[k]!r}" for k in now if before.get(k) != now[k]]
    if changes and cli.trainer.is_global_zero:
        print(f"attnops train: going on with changes: {'; '.join(changes)}", file=sys.stderr)


def _settings(cli: _CLI) -> dict[str, Any]:
    """What the course of a training depends on, besides network and classes, as plain values."""
    optimizer, schedule = cli.model.optimizer_options, cli.model.schedule_options
    data, trainer = cli.config["data"], cli.trainer
    values = {
        "seed": cli.model.seed,
        "max_steps": trainer.max_steps,
        "images a step": _images_a_step(cli),
        "precision": str(trainer.precision),
        "gradient_clip_val": trainer.gradient_clip_val,
        "ema_decay": cli.model.ema_decay,
        "optimizer": str(optimizer),
        "schedule": str(schedule),
    }
    augmentation = ("crop_size", "scale_range", "cat_max_ratio", "flip", "photometric", "limit")
    return values | {name: str(data[name]) for name in augmentation}


def _images_a_step(cli: _CLI) -> int:
    trainer = cli.trainer
    return cli.datamodule.batch_size * trainer.accumulate_grad_batches * trainer.world_size


def _summary(cli: _CLI) -> str:
    network = cli.model.network
    parameters = sum(p.numel() for p in network.parameters()) / 1e6
    return (
        f"{network.config['name']}, {parameters:.2f} M parameters, {cli.model.info.num_classes} "
        f"classes of {cli.model.info.name}; {cli.trainer.max_steps} steps of "
        f"{_images_a_step(cli)} images"
    )


def _with_recipes(arguments: Sequence[str]) -> tuple[list[str], str]:
    """The arguments with files in place of recipes, and the name of the last one."""
    found, name, arguments = [], "run", list(arguments)
    while arguments:
        argument = arguments.pop(0)
        option, equals, value = argument.partition("=")
        if option in ("--config", "-c"):
            if not equals and not arguments:
                raise ValueError(f"{option} needs the name of a recipe or a file")
            path = recipe_path(value if equals else arguments.pop(0))
            name = path.stem
            found += ["--config", str(path)]
        else:
            found.append(argument)
    return found, name


def _quieten() -> None:
    """Lightning's hints are about other people's loops."""
    for logger in (
        "lightning.pytorch",
        "lightning.fabric",
        "lightning.pytorch.utilities.rank_zero",
    ):
        logging.getLogger(logger).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*Found .* in eval mode.*",
        ".*is not resumable.*",
        ".*Checkpoint directory.*",
        ".*`isinstance.treespec, LeafSpec.` is deprecated.*",
        ".*sync_dist=True.*",
        "(?s).*was deprecated in v4.*",  # what Lightning calls of jsonargparse
        "(?s).*one JsonargparseDeprecationWarning per type.*",
    ):
        warnings.filterwarnings("ignore", message)


@command
def main(arguments: Sequence[str]) -> int:
    """Run `attnops train` with `arguments`; returns the exit status."""
    arguments = list(arguments)
    if not arguments or "-h" in arguments or "--help" in arguments:
        width = max(map(len, list_recipes()), default=0)
        recipes = "\n".join(f"  {name:{width}}  {about(name)}" for name in list_recipes())
        print(HELP.format(usage=USAGE, recipes=recipes))
        return 0 if arguments else 2
    arguments = ["--help" if argument == "--help-all" else argument for argument in arguments]
    _quieten()
    try:
        arguments, name = _with_recipes(arguments)
        cli = _CLI(arguments)
        checkpoint = _begin(cli, cli.config["name"] or name)
    except _MISTAKES as error:
        if os.environ.get("ATTNOPS_TRACEBACK"):
            raise
        print(f"attnops train: {error}", file=sys.stderr)
        return 2
    return _fit(cli, checkpoint)


def _fit(cli: _CLI, checkpoint: Path | None) -> int:
    saving = next(c for c in cli.trainer.callbacks if isinstance(c, Checkpoints))
    try:
        cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=checkpoint, weights_only=True)
    except Interrupted as stop:
        if cli.trainer.is_global_zero:
            print(f"attnops train: {stop}", file=sys.stderr)
        return 128 + stop.signal
    except Diverged as error:
        print(f"attnops train: {error}", file=sys.stderr)
        return 1
    except SystemExit:  # Lightning's, of a second Ctrl-C
        return 128 + signal.SIGINT
    if cli.trainer.is_global_zero:
        best = "" if saving.best is None else f"; best mIoU {saving.best:.4f} in best.ckpt"
        print(f"{saving.folder / 'last.ckpt'}: step {cli.trainer.global_step}{best}")
    return 0
