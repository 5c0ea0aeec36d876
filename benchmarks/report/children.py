"""A benchmark command in processes of its own, one for each setting of glibc."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..measure.glibc import SETTINGS, environment
from .records import Document


def malloc_settings(text: str) -> list[str]:
    """ "default,kept" -> ["default", "kept"]; a type of command line arguments."""
    settings = text.split(",")
    unknown = [name for name in settings if name not in SETTINGS]
    if unknown:
        expected = ", ".join(SETTINGS)
        raise argparse.ArgumentTypeError(f"no setting {unknown[0]!r}; expected some of {expected}")
    return settings


def add_malloc_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--malloc",
        type=malloc_settings,
        metavar="default,kept",
        help="settings of glibc, each in a process of its own: freed memory returned, or kept "
        "(default: this process, as it is)",
    )


def without(arguments: Sequence[str], names: Sequence[str]) -> list[str]:
    """Command line arguments but for options `names` and their values."""
    kept, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in names:
            skip = True
        elif argument.partition("=")[0] not in names:
            kept.append(argument)
    return kept


def measured(
    command: Sequence[str], settings: Sequence[str], once: Sequence[str] = ()
) -> tuple[Document, int]:
    """What `attnops bench COMMAND` finds under every setting, and the worst exit status.

    Its rows say their setting in `malloc`. The command must take `--json`.

    Args:
        once: flags that only the process of the first setting gets.
    """
    document, status = Document(), 0
    line = without(command, ("--malloc", "--json", "--markdown"))
    for index, setting in enumerate(settings):
        if index:
            line = [argument for argument in line if argument not in once]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "rows.json"
            done = subprocess.run(
                [sys.executable, "-m", "attnops.benchmarks", *line, "--json", str(file)],
                env=environment(setting),
            )
            status = max(status, abs(done.returncode))
            if not file.is_file():
                continue
            found = Document.load(file)
        for row in found.rows:
            row.malloc = setting
        document.absorb(found)
    return document, status
