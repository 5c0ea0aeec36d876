"""What `models.deploy` changes of the labels of trained networks, on the images of the test split.

python -m attnops.benchmarks.camvid.deployed CHECKPOINT DTYPE --root DATA [--images N]: prints JSON
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from attnops._console import positive_integer
from attnops.models import deploy
from attnops.models.deploy.deployment import evaluation_copy
from attnops.models.normalization import normalized
from attnops.training import load_trained
from attnops.training.data import open_data

from .plan import HEADS, NETWORKS, RUNS, SEED, Run, checkpoint_of
from .train import SPLIT

DTYPES = ("float32", "bfloat16")
IMAGES = 8  # spread over the split


def measure(root: Path, runs: Path) -> list[dict[str, Any]]:
    """A row for every network that was trained and every precision, each in its own process."""
    found = []
    for run in trained(runs):
        for dtype in DTYPES:
            line = [sys.executable, "-m", __name__, str(checkpoint_of(runs, run.name)), dtype]
            line += ["--root", str(root)]
            process = subprocess.run(line, check=True, capture_output=True, text=True)
            row = json.loads(process.stdout.splitlines()[-1])
            found.append({"network": run.network.title, "run": run.name, "dtype": dtype, **row})
    return found


def trained(runs: Path) -> list[Run]:
    """Of every network the run that went on longest, of those that left a checkpoint."""
    last = {}
    for run in RUNS:
        fast = run.heads == next(iter(HEADS))
        if fast and checkpoint_of(runs, run.name).is_file():
            last[run.network.title] = run
    return [last[n.title] for n in NETWORKS if n.title in last]


def compare(checkpoint: Path, dtype: str, root: Path, count: int) -> dict[str, Any]:
    """Share of equal labels, and the largest difference of the logits over their largest value.

    Both have the same bases of the Hamburger, which would be drawn anew in every call.
    """
    network = evaluation_copy(load_trained(checkpoint)[0], SEED)
    deployed = deploy(network, dtype=dtype, compile=True, seed=SEED)
    split = open_data(root).split(SPLIT)
    count = min(count, len(split))
    equal = pixels = 0
    error = 0.0
    for index in range(count):
        image = split[index * len(split) // count][0].as_subclass(torch.Tensor)[None]
        prepared = normalized(network, image)
        with torch.no_grad():
            expected = network.predict(prepared)
            logits = network(prepared)["out"]
        equal += int((deployed(image) == expected).sum())
        pixels += expected.numel()
        error = max(
            error, float((deployed.logits(image) - logits).abs().max() / logits.abs().max())
        )
    return {"images": count, "equal": equal / pixels, "logits_error": error}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("dtype", choices=DTYPES)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--images", type=positive_integer, default=IMAGES)
    chosen = parser.parse_args(arguments)
    print(json.dumps(compare(chosen.checkpoint, chosen.dtype, chosen.root, chosen.images)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
