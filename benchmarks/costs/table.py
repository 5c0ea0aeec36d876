"""Parameters and multiply-adds of every network, beside the figures of the papers.

    python -m attnops.benchmarks costs [FILTER] [--json FILE] [--markdown FILE]

Everything is counted on the meta device, so the machine does not matter and nothing is computed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from attnops.models import create_model
from attnops.nn import MSCA, MSCABlock

from ..report.deliver import add_output_arguments, deliver
from ..report.grid import Grid, number
from ..report.records import META, Document, Row
from .cases import ONE_BRANCH, Case, cases
from .multiply_adds import count, parameters

TABLE = "costs"
NOTES = (
    "GMAC: 10^9 multiply-adds of one image, in evaluation. For segnext_* as its paper counts, with "
    "norms (2 an element) and bilinear resizes (4 an element, that of the logits to the image's "
    "size included); for the others convolutions and matrix products alone.",
    "published: the chains of the released code. executed: attnops' form of them. ANN: value, "
    "output and fusing convolution move to the 110 anchors, and the projection that query and key "
    "share runs once. SegNeXt: the Hamburger's last convolution moves to its bases. GALDv2 with "
    "aspp: the image's share of the last convolution runs once, not at every position.",
    "M: without auxiliary heads, which exist in training only; of ANN the multiply-adds have it, "
    "because its released code always computes it. M, all: with it.",
    "The paper's figures are rounded: 0.05 in 4.3 is 1.2 %. Those of segnext_b with cc, segnext_t "
    "with mlp (parameters), of segnext_l at 1024x2048 and of GALD are met by no reading of the "
    "papers' text known here. Appendix 2 of SegNeXt says COCO-Stuff (171 classes) and counts 150.",
    f"{ONE_BRANCH}: table 8's encoder without multiple branches, one pair of strip convolutions. "
    "Decoder (b) and stage 1 in decoder (c) of table 7 are not among the options.",
)


def build(case: Case) -> nn.Module:
    """The network of a case, on the meta device."""
    with torch.device("meta"):
        model = create_model(case.network, **case.options)
        if case.one_branch:
            for block in [m for m in model.backbone.modules() if isinstance(m, MSCABlock)]:
                block.attention.gate = MSCA(block.channels, strips=(21,))
    return model


def add_row(document: Document, case: Case) -> Row:
    """Count a case into a new row."""
    model = build(case)
    total, without = parameters(model)
    row = document.new_row(TABLE, case.network, "cpu", shape=[1, 3, *case.size], dtype="")
    row.device, row.threads = META, None
    row.options = [["words", case.words], ["parameters", without], ["with_auxiliary", total]]
    row.options.append(["table", case.where])
    published, executed = (
        count(model, case.size, form, case.auxiliary).total(case.surroundings) / 1e9
        for form in (True, False)
    )
    row.gmac, row.gmac_done = published, executed
    row.paper = case.paper
    return row


def percent(value: float, printed: float | None) -> str:
    """How much `value` is above what is printed."""
    return (
        "" if printed is None else f"{100 * (value / printed - 1):+.1f} %".replace("-0.0", "+0.0")
    )


def _cells(row: Row) -> tuple[str, ...]:
    options = dict(row.options)
    million = options["parameters"] / 1e6
    paper_million, paper_gmac = row.paper.get("parameters_million"), row.paper.get("gmac")
    return (
        row.name,
        options["words"],
        "x".join(map(str, row.shape[2:])),
        f"{million:.3f}",
        f"{options['with_auxiliary'] / 1e6:.3f}",
        number(paper_million, 4),
        percent(million, paper_million),
        f"{row.gmac:.2f}",
        f"{row.gmac_done:.2f}",
        percent(row.gmac_done, row.gmac) if row.gmac_done != row.gmac else "",
        number(paper_gmac, 4),
        percent(row.gmac, paper_gmac),
        options["table"],
    )


def grid(document: Document) -> Grid:
    header = (
        "network",
        "options",
        "input",
        "M",
        "M, all",
        "paper: M",
        "difference",
        "GMAC, published",
        "GMAC, executed",
        "saved",
        "paper: GMAC",
        "difference",
        "table",
    )
    cells = [_cells(row) for row in document.rows if row.table == TABLE]
    return Grid("Parameters and multiply-adds of the networks", header, cells, list(NOTES))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("attnops bench costs", description=__doc__.splitlines()[0])
    parser.add_argument("filter", nargs="?", default="*", help='such as "segnext_*"')
    add_output_arguments(parser)
    chosen = parser.parse_args(arguments)
    wanted = [case for case in cases() if fnmatchcase(case.network, chosen.filter)]
    if not wanted:
        parser.error(f"no network matches {chosen.filter!r}; attnops models lists them")
    document = Document()
    for case in wanted:
        add_row(document, case)
    deliver(document, grid(document), chosen)
    return 0
