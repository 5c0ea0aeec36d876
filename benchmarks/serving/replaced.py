"""mmsegmentation's own SegNeXt-T against itself with attnops' parts, in turn in one process.

    python -m attnops.benchmarks.serving.replaced [--size 512x512] [--threads N] [--seconds S]
        [--malloc default|kept] [--json FILE]

float32, channels_last, 150 classes: logits at stride 8 and labels of one image, and a training step
(loss and gradients) of two of half the sides. Needs mmsegmentation, mmengine, mmcv or mmcv-lite.
"""

from __future__ import annotations

import argparse
import copy
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import torch
from torch import nn

import attnops
from attnops.models.deploy.memory import keep_freed_memory

from ..arguments import positive_integer, size
from ..measure.timing import Timing, time_cpu
from ..report.records import Document, put_ratios

TABLE = "replaced"
THEIRS, REPLACED = "mmsegmentation", "mmsegmentation, replaced"
CLASSES, STEP = 150, "training step"
ENCODER = {"type": "MSCAN", "embed_dims": [32, 64, 160, 256], "mlp_ratios": [8, 8, 4, 4]}
ENCODER |= {"depths": [3, 3, 5, 2], "drop_path_rate": 0.1, "norm_cfg": {"type": "BN"}}
HEAD = {"type": "LightHamHead", "in_channels": [64, 160, 256], "in_index": [1, 2, 3]}
HEAD |= {"channels": 256, "ham_channels": 256, "ham_kwargs": {"MD_R": 16}}
HEAD |= {"num_classes": CLASSES, "norm_cfg": {"type": "GN", "num_groups": 32}}


class _Anything(types.ModuleType):
    """In place of mmcv's compiled operators, which mmcv-lite leaves out: every name is a class."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def build() -> nn.Module:
    """mmsegmentation's EncoderDecoder; ImportError without it."""
    sys.modules.setdefault("mmcv.ops", _Anything("mmcv.ops"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about losses and missing options
        import mmseg.models  # noqa: F401
        from mmengine.config import ConfigDict
        from mmseg.models.segmentors import EncoderDecoder

        return EncoderDecoder(ENCODER, HEAD, test_cfg=ConfigDict(mode="whole"))


def tasks(model: nn.Module, sides: tuple[int, int], fast: bool) -> dict[str, Callable]:
    """name -> call of what is timed."""
    half = [side // 2 for side in sides]
    image = torch.randn(1, 3, *sides).contiguous(memory_format=torch.channels_last)
    images = torch.randn(2, 3, *half).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (2, 1, *half))
    labels[:, :, : half[0] // 8] = 255
    samples = [SimpleNamespace(gt_sem_seg=SimpleNamespace(data=label)) for label in labels]
    metas = [{"img_shape": sides, "ori_shape": sides}]

    def step() -> None:
        loss = model.train().loss(images, samples)["decode.loss_ce"]
        torch.autograd.grad(loss, list(model.parameters()))

    @torch.no_grad()
    def logits() -> None:
        model.eval()._forward(image)

    @torch.no_grad()
    def argmax() -> None:
        model.eval().encode_decode(image, metas).argmax(1)

    def predict() -> None:
        attnops.predict_labels(model.eval(), image)

    return {"logits": logits, "labels": predict if fast else argmax, STEP: step}


def add_rows(
    document: Document, task: str, sides: tuple[int, int], malloc: str, found: dict[str, Timing]
) -> None:
    """Rows of one task, a contender each."""
    shape = [2, 3, *(side // 2 for side in sides)] if task == STEP else [1, 3, *sides]
    facts = {"dtype": "float32", "layout": "channels_last", "direction": task, "malloc": malloc}
    options = [["network", "segnext_t"]]
    rows = []
    for name, timing in found.items():
        row = document.new_row(TABLE, name, "cpu", shape=shape, options=options, **facts)
        row.threads = torch.get_num_threads()
        row.put_timing(timing)
        rows.append(row)
    put_ratios(rows, (THEIRS,))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=size, default=(512, 512), help="of the image")
    parser.add_argument("--threads", type=positive_integer, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=10.0, help="on every call")
    parser.add_argument("--malloc", choices=("default", "kept"), default="kept")
    parser.add_argument("--json", metavar="FILE")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    if chosen.malloc == "kept":
        keep_freed_memory()
    try:
        model = build().to(memory_format=torch.channels_last)
    except ImportError as error:
        parser.error(f"mmsegmentation is not here: {error}")
    document = Document()
    replaced = copy.deepcopy(model)
    print(str(attnops.replace_modules(replaced)).partition("\n")[0])
    versions = [tasks(m, chosen.size, m is replaced) for m in (model, replaced)]
    for name in versions[0]:
        calls = {THEIRS: versions[0][name], REPLACED: versions[1][name]}
        for call in calls.values():
            call()
        found = time_cpu(calls, chosen.seconds)
        add_rows(document, name, chosen.size, chosen.malloc, found)
        theirs, ours = (timing.p50 for timing in found.values())
        print(f"{name}: {theirs:.1f} ms, replaced {ours:.1f} ms: {theirs / ours:.2f}x")
    if chosen.json:
        document.save(chosen.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
