"""All committed result files as one Markdown text.

python -m attnops.benchmarks report [DIR] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ..static import table as static
from .document_markdown import as_markdown
from .records import RESULTS, Document, write_whole


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("attnops bench report", description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--out", metavar="FILE", help="default: standard output")
    chosen = parser.parse_args(arguments)
    texts = []
    for path in sorted(chosen.folder.rglob("*.json")):
        if path.name == static.FILE:
            texts.append(static.as_markdown(json.loads(path.read_text())))
            continue
        try:
            document = Document.load(path)
        except (ValueError, KeyError, TypeError) as error:
            print(f"attnops bench report: {path} left out: {error}", file=sys.stderr)
            continue
        texts.append(as_markdown(document))
    if not texts:
        print(f"attnops bench report: no result files under {chosen.folder}", file=sys.stderr)
        return 1
    text = "\n".join(texts)
    if chosen.out:
        write_whole(chosen.out, text)
    else:
        print(text)
    return 0
