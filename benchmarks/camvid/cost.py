"""Time and memory of a training step of one recipe, with fast and with reference heads.

python -m attnops.benchmarks.camvid.cost NETWORK --root DATA [--pretrained FILE]: prints JSON
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml

import attnops
from attnops.training.data import SegmentationData
from attnops.training.engine.module import Segmentation
from attnops.training.engine.optimization import OptimizerOptions, make_optimizer
from attnops.training.recipes import recipe_path

from ..measure.glibc import SETTINGS, environment
from ..measure.memory import MIB, Case, MemoryUnknown, measure_cpu
from ..measure.timing import time_cpu
from .plan import HEADS, NETWORKS, SEED, Network

BATCHES = 4  # that the timed steps go round
PROCESSES = 3  # that peaks are measured in; the least counts, as chance only adds to it
WARM_UP_SIDE = 128  # GALD takes no less than 111


def measure(
    root: Path, pretrained: Path | None, seconds: float, networks: Sequence[Network] = NETWORKS
) -> list[dict[str, Any]]:
    """A row for every network, heads and setting of glibc, each setting in a process of its own."""
    found = []
    for network in networks:
        for setting in SETTINGS:
            line = [sys.executable, "-m", __name__, network.recipe, "--root", str(root)]
            line += ["--seconds", str(seconds)]
            if pretrained is not None:
                line += ["--pretrained", str(pretrained)]
            if setting == "default":
                line.append("--memory")
            process = subprocess.run(
                line, check=True, env=environment(setting), capture_output=True, text=True
            )
            rows = json.loads(process.stdout.splitlines()[-1])
            found += [{"network": network.title, "malloc": setting, **row} for row in rows]
    return found


def step_of(
    network: Network, heads: str, root: str, pretrained: str | None
) -> tuple[Callable[[torch.Tensor, torch.Tensor], None], SegmentationData]:
    """A training step of the recipe (forward, loss, backward, optimiser), and its data."""
    recipe = yaml.safe_load(recipe_path(network.recipe).read_text(encoding="utf-8"))
    model, data = recipe["model"], SegmentationData(**recipe["data"] | {"root": root}, seed=SEED)
    options = dict(model.get("options") or {})
    if pretrained is not None and network.pretrained:
        options["pretrained"] = pretrained
    torch.manual_seed(SEED)
    optimizer_options = OptimizerOptions(**model["optimizer"])
    module = Segmentation(
        model["network"], options, optimizer=optimizer_options, info=data.info, seed=SEED
    )
    module.network.train()
    optimizer = make_optimizer(module.network, optimizer_options, fused=True)

    def step(images: torch.Tensor, target: torch.Tensor) -> None:
        with attnops.use_backend(HEADS[heads]):
            loss = module.network.loss(module.network(module.prepared(images)), target)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, data


def memory_case(recipe: str, heads: str, root: str, pretrained: str | None) -> Case:
    """Two steps on a batch of the recipe's size."""
    network = next(n for n in NETWORKS if n.recipe == recipe)
    step, data = step_of(network, heads, root, pretrained)
    data.num_workers = 0
    images, target = next(iter(data.train_dataloader()))
    small = slice(0, WARM_UP_SIDE)

    def twice() -> None:
        for _ in range(2):
            step(images, target)

    return Case(twice, lambda: step(images[:2, :, small, small], target[:2, small, small]))


def _time(network: Network, root: str, pretrained: str | None, seconds: float) -> dict[str, Any]:
    steps = {heads: step_of(network, heads, root, pretrained) for heads in HEADS}
    data = steps["fast"][1]
    data.num_workers = 0
    loader = iter(data.train_dataloader())
    batches = [next(loader) for _ in range(BATCHES)]
    turns = dict.fromkeys(HEADS, 0)

    def call(heads: str) -> None:
        step, _ = steps[heads]
        step(*batches[turns[heads] % BATCHES])
        turns[heads] += 1

    calls = {heads: (lambda heads=heads: call(heads)) for heads in HEADS}
    for run in calls.values():
        run()
    return time_cpu(calls, seconds, least=5)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("--root", required=True)
    parser.add_argument("--pretrained")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--memory", action="store_true")
    chosen = parser.parse_args(arguments)
    network = next(n for n in NETWORKS if n.recipe == chosen.recipe)
    given = (chosen.root, chosen.pretrained)
    rows = []
    for heads, timing in _time(network, *given, chosen.seconds).items():
        row = {"heads": heads, **asdict(timing)}
        if chosen.memory:
            try:
                arguments = dict(zip(("root", "pretrained"), given, strict=True))
                arguments |= {"recipe": chosen.recipe, "heads": heads}
                uses = [measure_cpu(memory_case, 300, **arguments) for _ in range(PROCESSES)]
                least = min(use.above_inputs for use in uses)
                row |= {"peak_mib": least / MIB, "memory_method": uses[0].method}
            except MemoryUnknown as error:
                row["note"] = f"memory: {error}"
        rows.append(row)
    print(json.dumps(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
