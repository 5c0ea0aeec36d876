"""The networks whose cost is counted, and the figures that are published for them.

Sources: Guo et al., SegNeXt (NeurIPS 2022), tables 5, 7, 8, 9 and table 2 of the appendix; Zhu et
al., ANN (ICCV 2019), table 3; Li et al., GALD (TIP 2021), table VI; Zhong et al., SANet (CVPR
2020), table 6. The SegNeXt paper counts norms and resizes too, the logits' last one included.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from attnops.models import list_models

IMAGE, STREET, OLD = (512, 512), (1024, 2048), (321, 321)
ONE_BRANCH = "MSCA 5, 21"  # not an option of the network: the attention is replaced


@dataclass(frozen=True)
class Printed:
    """Figures of a paper: millions of parameters, 10^9 multiply-adds."""

    million: float | None = None
    gmac: float | None = None


@dataclass(frozen=True)
class Case:
    """A network with its options at an image size, and what the paper prints for it.

    Args:
        where: table of the paper.
        one_branch: every MSCA of the encoder has one pair of strips, of 21.
        auxiliary: count the multiply-adds of the auxiliary head too.
    """

    network: str
    size: tuple[int, int] = IMAGE
    options: dict[str, Any] = field(default_factory=dict)
    printed: Printed = Printed()
    where: str = ""
    one_branch: bool = False
    auxiliary: bool = False

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


def _segnext() -> Iterator[Case]:
    whole = {"t": (4.3, 6.6), "s": (13.9, 15.9), "b": (27.6, 34.9), "l": (48.9, 70.0)}
    for variant, figures in whole.items():
        yield Case(
            f"segnext_{variant}", IMAGE, {"num_classes": 150}, Printed(*figures), "9, 5, 7, 8"
        )
    street = {"t": 50.5, "s": 124.6, "b": None, "l": 577.5}
    for variant, gmac in street.items():
        yield Case(
            f"segnext_{variant}", STREET, {"num_classes": 19}, Printed(None, gmac), "9" * bool(gmac)
        )
    attention = {"cc": (27.8, 35.7), "ema": (27.4, 32.3), "nl": (27.6, 40.9)}
    for decoder, figures in attention.items():
        options = {"num_classes": 150, "decoder": decoder}
        yield Case("segnext_b", IMAGE, options, Printed(*figures), "5")
    options = {"num_classes": 150, "decoder": "mlp"}
    yield Case("segnext_t", IMAGE, options, Printed(4.4, 10.0), "7 (a)")
    for variant, figures in {"t": (4.2, 6.5), "s": (13.8, 15.8)}.items():
        printed = Printed(*figures)
        yield Case(f"segnext_{variant}", IMAGE, {"num_classes": 150}, printed, "8", one_branch=True)
    appendix = {
        ("t", "msca"): (4.4, 6.7),
        ("s", "msca"): (14.0, 15.9),
        ("b", "msca"): (28.0, 33.6),
        ("l", "msca"): (50.1, 69.8),
    }
    for (variant, decoder), figures in appendix.items():
        options = {"num_classes": 150, "decoder": decoder}  # meets them, 171 does not
        yield Case(f"segnext_{variant}", IMAGE, options, Printed(*figures), "appendix 2")
    for variant in "bl":  # as mmsegmentation has them
        yield Case(f"segnext_{variant}", IMAGE, {"num_classes": 150, "rank": 16})


def _others() -> Iterator[Case]:
    streets = {"num_classes": 19}
    yield Case("ann_r50", STREET, streets, auxiliary=True)
    yield Case("ann_r101", STREET, streets, Printed(63.17, None), "3", auxiliary=True)
    yield Case("ann_r50", STREET, streets | {"form": "mmseg"}, auxiliary=True)
    yield Case("ann_r101", STREET, streets | {"form": "mmseg"}, auxiliary=True)
    yield Case("galdv1_r50", IMAGE, streets)
    yield Case("galdv1_r101", IMAGE, streets, Printed(65.3, None), "VI")
    for aggregation in ("aspp", "psp", "nl", "cgnl"):
        printed = Printed(66.8, None) if aggregation == "aspp" else Printed()
        yield Case("galdv2_r50", IMAGE, streets | {"ga": aggregation})
        options = streets | {"ga": aggregation}
        yield Case("galdv2_r101", IMAGE, options, printed, "VI" if printed.million else "")
    voc = {"num_classes": 21}
    yield Case("sanet_r50", IMAGE, voc)
    yield Case("sanet_r101", IMAGE, voc, Printed(55.5, 204.7), "6")
    yield Case("sanet_effnetb7", IMAGE, voc)
    yield Case("deeplab_attention", OLD, voc)
    for scale in (1.0, 0.75, 0.5):
        yield Case("deeplab_attention", OLD, voc | {"scales": (scale,), "reduce": "mean"})


def cases() -> list[Case]:
    """Every network of `list_models()`, one without figures where nothing is published for it."""
    known = [*_segnext(), *_others()]
    named = {case.network for case in known}
    return known + [Case(name) for name in list_models() if name not in named]
