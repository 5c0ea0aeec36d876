"""The console script `attnops`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import env
from ._console import command
from ._version import __version__


def _bench(arguments: Sequence[str]) -> int:
    try:
        from .benchmarks.__main__ import main as bench
    except ModuleNotFoundError as error:
        if error.name not in ("attnops.benchmarks", "attnops.benchmarks.__main__"):
            raise
        print(
            "attnops bench: this installation has no attnops.benchmarks; install the whole "
            'distribution: pip install "attnops[bench]"',
            file=sys.stderr,
        )
        return 1
    return bench(arguments)


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
    commands.add_parser("bench", help="tables, op microbenchmarks, reports", add_help=False)
    if arguments[:1] == ["bench"]:  # its options belong to attnops.benchmarks
        return _bench(arguments[1:])
    chosen = parser.parse_args(arguments)
    return _models(chosen.filter) if chosen.command == "models" else env.run(chosen)


if __name__ == "__main__":
    raise SystemExit(main())
