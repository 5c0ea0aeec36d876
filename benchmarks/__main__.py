"""`python -m attnops.benchmarks TABLE|OP|report ...`, also `attnops bench ...`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from attnops._console import command

from .report.running import running

OPS = (
    "pyramid_pool",
    "anchor_attention",
    "local_attention",
    "upsample_gate",
    "group_attention",
    "strip_conv",
    "depthwise_gelu",
    "feed_forward",
    "nmf",
    "merge_scales",
    "upsample_cross_entropy",
    "upsample_argmax",
)
# name -> (module with main(arguments) -> exit status, what it does)
COMMANDS = {
    "apnb-table": ("apnb.table", "table 1 of the ANN paper: time, memory, operations"),
    "figure2": ("apnb.figure2", "figure 2 of the ANN paper: time by kind of operation"),
    "gald-table": ("gald_table", "table IV of the GALD paper: time and parameters of its heads"),
    "networks": ("networks", "whole networks: predict and a training step"),
    "paper-networks": ("paper_networks", "the networks that the papers time, at their sizes"),
    "curves": ("curves.command", "time and memory against size, with fitted exponents"),
    "serving": ("serving.table", "labels on a CPU: against OpenVINO, onnxruntime, torch.compile"),
    "camvid": ("camvid.table", "every family trained on CamVid, fast against reference heads"),
    "costs": ("costs.table", "parameters and multiply-adds of every network beside the papers'"),
    "ops": ("ops.several", "microbenchmarks of several ops, a file for each"),
    **dict.fromkeys(OPS, ("ops.microbench", "microbenchmarks of the op (pytest-benchmark)")),
    "static": (
        "static.table",
        "what the compiled Triton kernels say of their speed, without a GPU",
    ),
    "demo": ("demo.run", "attention on a photograph, the table and figure 2, in demo/"),
    "gpu": ("gpu.run", "tests and all benchmarks on the CUDA device, into one report"),
    "evidence": ("report.evidence", "where CUDA C++ is faster than Triton, by the results"),
    "report": ("report.command", "everything measured beside the papers' figures; --compare"),
    "pages": ("pages.command", "the documentation's tables of what runs where and what it costs"),
}
EXTRA = ("rich", "matplotlib", "pytest", "pytest_benchmark", "skimage", "timm")
TRAINING = ("lightning", "torchmetrics", "jsonargparse", "torchvision")
DISTRIBUTIONS = {"pytest_benchmark": "pytest-benchmark", "skimage": "scikit-image"}


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {about}" for name, (_, about) in COMMANDS.items()]
    return "\n".join(
        ["usage: attnops bench COMMAND [options]   (COMMAND --help lists them)", *lines]
    )


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run a benchmark command; returns the exit status, 2 for wrong usage."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in COMMANDS:
        expected = ", ".join(COMMANDS)
        print(
            f"attnops bench: no table, op or command {name!r}; expected one of {expected}",
            file=sys.stderr,
        )
        return 2
    module_name = COMMANDS[name][0]
    if module_name == "ops.microbench":
        rest = [name, *rest]
    # torch.compile would start processes for Triton's kernels that import torch while others are
    # timed; where there are such kernels it starts them at the first one.
    os.environ.setdefault("TORCH_WARM_POOL", "0")
    try:
        module = importlib.import_module(f".{module_name}", __package__)
        with running(arguments):
            return module.main(rest)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in (*EXTRA, *TRAINING):
            raise
        extra = "bench" if missing in EXTRA else "bench,train"
        print(
            f"attnops bench {name}: needs {DISTRIBUTIONS.get(missing, missing)}, which is not "
            f'installed: pip install "attnops[{extra}]"',
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
