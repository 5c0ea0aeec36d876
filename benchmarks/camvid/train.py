"""Runs of the plan as commands, and what they left: curves, and scores on the test split."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import attnops

from .plan import HEADS, LONGER, RUNS, SEED, Run, checkpoint_of, folder_of, options_of

SPLIT = "test"
SCALES = ("--scales", "1", "1.5", "2", "--flip")  # the longer runs also with these


def train_missing(root: Path, runs: Path, pretrained: Path | None, workers: int) -> None:
    """Train and evaluate every run of the plan that is not done; one that was cut off goes on."""
    for run in RUNS:
        scores = _scores_files(runs, run)
        common = ["--data.root", str(root)]
        train = ["train", "--config", run.network.recipe, "--name", run.name, *common]
        train += ["--seed_everything", str(SEED), "--data.num_workers", str(workers)]
        train += ["--trainer.default_root_dir", str(runs), "--resume", "auto"]
        if not scores[0].is_file():
            _command(run.heads, train + options_of(run, pretrained, runs))
        checkpoint = str(checkpoint_of(runs, run.name))
        evaluate = ["eval", "--checkpoint", checkpoint, *common, "--data.split", SPLIT]
        for path, options in zip(scores, ((), SCALES), strict=False):
            if not path.is_file():
                _command(run.heads, [*evaluate, *options, "--out", str(path.parent)])


def _command(heads: str, arguments: list[str]) -> None:
    """`attnops ARGUMENTS` in a process whose ops run on the heads' backend."""
    line = [sys.executable, "-m", __name__, heads, *arguments]
    subprocess.run(line, check=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})


def _scores_files(runs: Path, run: Run) -> list[Path]:
    """Scores of whole images; of a longer run then those over the scales."""
    folders = ["", "-scales"] if run.part == LONGER else [""]
    folder = folder_of(runs, run.name)
    return [folder / f"eval-camvid-{SPLIT}{suffix}" / "scores.json" for suffix in folders]


def collect(runs: Path) -> list[dict[str, Any]]:
    """What the finished runs found, in the order of the plan."""
    found = []
    for run in RUNS:
        scores, *scales = _scores_files(runs, run)
        if not scores.is_file():
            continue
        values = json.loads(scores.read_text(encoding="utf-8"))
        over = [json.loads(p.read_text(encoding="utf-8")) for p in scales if p.is_file()]
        found.append(
            {
                "name": run.name,
                "network": run.network.title,
                "heads": run.heads,
                "part": run.part,
                "steps": run.steps,
                "begins": run.begins,
                "miou": values["mIoU"],
                "accuracy": values["accuracy"],
                "miou_over_scales": over[0]["mIoU"] if over else None,
                "iou": values["IoU"],
                "images": values["images"],
                **_curves(folder_of(runs, run.name) / "metrics.csv"),
            }
        )
    return found


def _curves(path: Path) -> dict[str, list[list[float]]]:
    """(step, loss) of training, and (step, mIoU) of the validations."""
    loss, miou = {}, {}
    with open(path, encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            step = int(row["step"])
            if row.get("train/loss"):
                loss[step] = round(float(row["train/loss"]), 4)
            if row.get("val/mIoU"):
                miou[step] = round(float(row["val/mIoU"]), 4)
    return {"loss": sorted(map(list, loss.items())), "val_miou": sorted(map(list, miou.items()))}


def _run_as(heads: str, arguments: list[str]) -> int:
    from attnops.cli import main

    with attnops.use_backend(HEADS[heads]):
        return main(arguments)


if __name__ == "__main__":
    raise SystemExit(_run_as(sys.argv[1], sys.argv[2:]))
