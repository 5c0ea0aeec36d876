"""The console script `attnops`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from . import env
from ._console import command
from ._version import __version__

# Commands whose options belong to a module: (module with main(arguments) -> exit status, the extra
# that it needs, what it does).
DELEGATED = {
    "check": ("training.commands.check", "train", "what a data set holds, and its faults"),
    "eval": ("training.commands.evaluate", "train", "how well a network labels a data set"),
    "export": ("training.commands.export", "train", "a network as an ONNX file or a program"),
    "predict": ("training.commands.predict", "train", "labels of images, folders and videos"),
    "bench": ("benchmarks.__main__", "bench", "tables, op microbenchmarks, reports"),
    "train": ("training.engine.command", "train", "train a network on a data set"),
}
# Modules of the extras, and what pip calls those that it calls otherwise.
OPTIONAL = ("jsonargparse", "lightning", "matplotlib", "PIL", "rich", "timm")
OPTIONAL += ("tensorboard", "torchmetrics", "torchvision")
DISTRIBUTIONS = {"PIL": "pillow"}


def _delegate(name: str, arguments: Sequence[str]) -> int:
    module_name, extra, _ = DELEGATED[name]
    try:
        return importlib.import_module(f".{module_name}", __package__).main(arguments)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if f"attnops.{module_name}".startswith(missing):
            reason = f"this installation has no {missing}; install the whole distribution"
        elif missing.partition(".")[0] in OPTIONAL:
            needed = missing.partition(".")[0]
            reason = f"needs {DISTRIBUTIONS.get(needed, needed)}, which is not installed"
        else:
            raise
        print(f'attnops {name}: {reason}: pip install "attnops[{extra}]"', file=sys.stderr)
        return 1


def _models(pattern: str) -> int:
    import torch

    from . import models

    names = models.list_models(pattern)
    if not names:
        print(f"attnops models: no network fits {pattern!r}", file=sys.stderr)
        return 1
    width = max(map(len, names))
    missing = ""
    for name in names:
        try:
            with torch.device("meta"):
                network = models.create_model(name)
        except ImportError as error:
            print(f"{name:{width}}  -")
            missing = str(error)
            continue
        sizes = {key: p.numel() for key, p in network.named_parameters()}
        count = sum(size for key, size in sizes.items() if not key.startswith("aux")) / 1e6
        classes = network.config["num_classes"]
        print(f"{name:{width}}  {count:6.2f} M parameters, {classes} classes")
    if missing:
        print(missing, file=sys.stderr)
    return 0


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the console script with `arguments` (default: the process's); returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(
        "attnops", description="Fused attention heads for semantic segmentation."
    )
    parser.add_argument("--version", action="version", version=f"attnops {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    env.add_arguments(commands.add_parser("env", help="what is compiled, found and chosen"))
    listing = commands.add_parser("models", help="the networks and their sizes")
    listing.add_argument("filter", nargs="?", default="*", help="a pattern such as 'segnext_*'")
    for name, (_, _, about) in DELEGATED.items():
        commands.add_parser(name, help=about, add_help=False)
    if arguments and arguments[0] in DELEGATED:
        return _delegate(arguments[0], arguments[1:])
    chosen = parser.parse_args(arguments)
    return _models(chosen.filter) if chosen.command == "models" else env.run(chosen)


if __name__ == "__main__":
    raise SystemExit(main())
