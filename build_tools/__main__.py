"""`python -m build_tools`: builds into the checkout without setuptools or an install."""

from __future__ import annotations

import argparse
import sys
import time

from .native import build
from .packages import ROOT, link_checkout
from .plan import make_plan
from .settings import BuildError


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m build_tools", description=__doc__)
    parser.add_argument(
        "--link",
        action="store_true",
        help="also link kernels/, benchmarks/, ... into attnops/, so that the checkout can be "
        "imported (from its root, or with it on PYTHONPATH) without being installed",
    )
    if parser.parse_args().link:
        link_checkout()
    start = time.monotonic()
    try:
        build(make_plan(introspection=True), ROOT / "attnops")
    except BuildError as error:
        sys.exit(f"error: {error}")
    print(f"built in {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
