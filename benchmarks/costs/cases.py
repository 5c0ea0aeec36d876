"""The networks whose cost is counted, and where the papers print figures for them.

The SegNeXt paper counts norms and resizes too, the logits' last one included.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from attnops.models import list_models

from .. import papers
from ..papers import GMAC, MILLION, Table

IMAGE, STREET, OLD = (512, 512), (1024, 2048), (321, 321)
ONE_BRANCH = "MSCA 5, 21"  # not an option of the network: the attention is replaced


@dataclass(frozen=True)
class Case:
    """A network with its options at an image size.

    Args:
        printed: tables that print figures for it, each with the name of the row.
        one_branch: every MSCA of the encoder has one pair of strips, of 21.
        auxiliary: count the multiply-adds of the auxiliary head too.
    """

    network: str
    size: tuple[int, int] = IMAGE
    options: dict[str, Any] = field(default_factory=dict)
    printed: tuple[tuple[Table, str], ...] = ()
    one_branch: bool = False
    auxiliary: bool = False

    def figure(self, quantity: str) -> float | None:
        """What the papers print; their tables do not contradict each other."""
        rows = [table.rows[name] for table, name in self.printed]
        return next((row[quantity] for row in rows if quantity in row), None)

    @property
    def paper(self) -> dict[str, float]:
        """The figures as a result row has them."""
        found = {"parameters_million": self.figure(MILLION), "gmac": self.figure(GMAC)}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def where(self) -> str:
        return ", ".join(table.number.removeprefix("table ") for table, _ in self.printed)

    @property
    def surroundings(self) -> bool:
        """Whether the paper's count has norms and resizes."""
        return self.network.startswith("segnext")

    @property
    def words(self) -> str:
        words = [f"{name}={value}" for name, value in self.options.items()]
        if self.one_branch:
            words.append(ONE_BRANCH)
        if self.auxiliary:
            words.append("with aux")
        return ", ".join(words)


def _printed(name: str, *tables: Table) -> tuple[tuple[Table, str], ...]:
    """The tables with the row that begins with `name`: `_printed("SegNeXt-T", ...)`."""
    rows = [(table, row) for table in tables for row in (name, f"{name} w/ MSCA")]
    return tuple((table, row) for table, row in rows if row in table.rows)


def _segnext() -> Iterator[Case]:
    ade, streets = {"num_classes": 150}, {"num_classes": 19}
    elsewhere = {
        "t": ((papers.SEGNEXT_7, "SegNeXt-T (c)"),),
        "b": ((papers.SEGNEXT_5, "SegNeXt-B w/ Ham"),),
    }
    for variant in "tsbl":
        name = f"SegNeXt-{variant.upper()}"
        printed = _printed(name, papers.SEGNEXT_9, papers.SEGNEXT_2, papers.SEGNEXT_8)
        printed += elsewhere.get(variant, ())
        yield Case(f"segnext_{variant}", IMAGE, ade, printed)
    for variant in "tsbl":
        printed = _printed(f"SegNeXt-{variant.upper()}, Cityscapes", papers.SEGNEXT_9)
        yield Case(f"segnext_{variant}", STREET, streets, printed)
    for decoder in ("cc", "ema", "nl"):
        printed = _printed(f"SegNeXt-B w/ {decoder.upper()}", papers.SEGNEXT_5)
        yield Case("segnext_b", IMAGE, ade | {"decoder": decoder}, printed)
    printed = _printed("SegNeXt-T (a)", papers.SEGNEXT_7)
    yield Case("segnext_t", IMAGE, ade | {"decoder": "mlp"}, printed)
    for variant in "ts":
        printed = _printed(f"SegNeXt-{variant.upper()} w/o MSCA", papers.SEGNEXT_8)
        yield Case(f"segnext_{variant}", IMAGE, ade, printed, one_branch=True)
    for variant in "tsbl":
        printed = _printed(f"SegNeXt-{variant.upper()}", papers.SEGNEXT_APPENDIX_2)
        yield Case(f"segnext_{variant}", IMAGE, ade | {"decoder": "msca"}, printed)
    for variant in "bl":  # as mmsegmentation has them
        yield Case(f"segnext_{variant}", IMAGE, ade | {"rank": 16})


def _others() -> Iterator[Case]:
    streets = {"num_classes": 19}
    yield Case("ann_r50", STREET, streets, auxiliary=True)
    yield Case("ann_r101", STREET, streets, _printed("Ours", papers.ANN_2), auxiliary=True)
    yield Case("ann_r50", STREET, streets | {"form": "mmseg"}, auxiliary=True)
    yield Case("ann_r101", STREET, streets | {"form": "mmseg"}, auxiliary=True)
    yield Case("galdv1_r50", IMAGE, streets)
    yield Case("galdv1_r101", IMAGE, streets, _printed("GALDv1", papers.GALD_6))
    for aggregation in ("aspp", "psp", "nl", "cgnl"):
        options = streets | {"ga": aggregation}
        yield Case("galdv2_r50", IMAGE, options)
        printed = _printed("GALDv2", papers.GALD_6) if aggregation == "aspp" else ()
        yield Case("galdv2_r101", IMAGE, options, printed)
    voc = {"num_classes": 21}
    yield Case("sanet_r50", IMAGE, voc)
    yield Case("sanet_r101", IMAGE, voc, _printed("SANet", papers.SANET_6))
    yield Case("sanet_effnetb7", IMAGE, voc)
    yield Case("deeplab_attention", OLD, voc)
    for scale in (1.0, 0.75, 0.5):
        yield Case("deeplab_attention", OLD, voc | {"scales": (scale,), "reduce": "mean"})


def cases() -> list[Case]:
    """Every network of `list_models()`, one without figures where nothing is published for it."""
    known = [*_segnext(), *_others()]
    named = {case.network for case in known}
    return known + [Case(name) for name in list_models() if name not in named]
