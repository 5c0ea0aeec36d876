"""CamVid: every family trained on real images, with fast and with reference heads.

    python -m attnops.benchmarks camvid --root DATA --runs DIR [--pretrained FILE] [--out DIR]

Trains what is not yet in --runs (hours on a small CPU; a run that was cut off goes on), evaluates
on the test split, measures a training step of both kinds of heads in turn (a quiet machine matters
only for that), then counts the labels that deployment for a CPU changes. --out receives
camvid.json, camvid.md and camvid.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from attnops._console import positive_integer

from ..report.grid import markdown, show
from ..report.records import Document, write_whole
from . import train
from .grids import PART, grids
from .plan import NETWORKS

PARTS = ("train", "cost", "deployed", "report")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("attnops bench camvid", description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="CamVid in SegNet's layout")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--pretrained", type=Path, help="timm's weights of tf_efficientnet_lite0")
    parser.add_argument("--only", choices=PARTS, help="one part of it")
    names = [network.stem for network in NETWORKS]
    parser.add_argument("--cost-of", choices=names, nargs="+", help="these alone, beside others'")
    parser.add_argument("--workers", type=positive_integer, default=2, help="that load images")
    parser.add_argument("--threads", type=positive_integer, help="CPU threads")
    parser.add_argument("--seconds", type=float, default=10.0, help="of steps, for each row")
    parser.add_argument("--out", type=Path, help="folder of the result files")
    chosen = parser.parse_args(arguments)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    if chosen.only in (None, "train"):
        train.train_missing(chosen.root, chosen.runs, chosen.pretrained, chosen.workers)
    document = Document()
    kept = chosen.out / "camvid.json" if chosen.out else None
    costs, labels = [], []
    if kept is not None and kept.is_file():  # those of the last run, with its environment
        last = Document.load(kept)
        costs, labels = last.parts[PART]["costs"], last.parts[PART].get("deployed", [])
        if chosen.only != "cost" or chosen.cost_of:
            document = last
    if chosen.only in (None, "cost"):
        from . import cost

        networks = [n for n in NETWORKS if n.stem in (chosen.cost_of or names)]
        costs = _renewed(
            costs, cost.measure(chosen.root, chosen.pretrained, chosen.seconds, networks)
        )
    if chosen.only in (None, "deployed"):
        from . import deployed

        labels = deployed.measure(chosen.root, chosen.runs)
    runs = train.collect(chosen.runs)
    document.parts[PART] = {"runs": runs, "costs": costs, "deployed": labels}
    for table in grids(document.parts[PART]):
        show(table)
    if chosen.out:
        _write(document, chosen.out)
    return 0


def _renewed(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The new rows and, of networks that have none, the old ones, in the order of the plan."""
    titles = [network.title for network in NETWORKS]
    measured = {row["network"] for row in new}
    kept = [row for row in old if row["network"] not in measured]
    return sorted([*kept, *new], key=lambda row: titles.index(row["network"]))


def _write(document: Document, out: Path) -> None:
    from .curves import draw

    part = document.parts[PART]
    document.save(out / "camvid.json")
    cpu, versions = document.environment["cpu"], document.environment["versions"]
    where = f"{cpu['model']}, {cpu['threads']} threads, torch {versions['torch']}, {document.date}"
    text = [f"# CamVid: {where}", "", "![curves](camvid.png)", ""]
    write_whole(out / "camvid.md", "\n".join([*text, *map(markdown, grids(part))]))
    draw(part["runs"], out / "camvid.png")
