"""What the papers print about cost: their tables of time, memory, parameters and multiply-adds.

Every figure is copied from the paper's text; names of rows and quantities are the keys by which a
report finds what was measured here. A "GFLOP" of these papers is a multiply-add counted once.
"""

from __future__ import annotations

from dataclasses import dataclass

MS, SECONDS, MEGABYTES, GMAC = "ms", "s", "MB", "GMAC"
MILLION, ADDED = "M parameters", "M parameters more"
FRAMES, TIMES = "frames a second", "times"
COUNTED = "counted"  # in place of hardware
NEEDS_HARDWARE = (MS, SECONDS, MEGABYTES, FRAMES, TIMES)


@dataclass(frozen=True, eq=False)
class Table:
    """A table of a paper.

    Attributes:
        paper: short name of the paper.
        number: of the table, as the paper has it, or the place of a claim in the text.
        about: what it compares.
        hardware: what the paper measured on; `COUNTED` where no clock is involved.
        rows: name of a row -> quantity -> figure.
        note: what one should know to read it.
    """

    paper: str
    number: str
    about: str
    hardware: str
    rows: dict[str, dict[str, float]]
    note: str = ""

    def hardware_of(self, quantity: str) -> str:
        return self.hardware if quantity in NEEDS_HARDWARE else COUNTED

    @property
    def title(self) -> str:
        return f"{self.paper}, {self.number}: {self.about}"


ANN_1 = Table(
    "ANN",
    "table 1",
    "the non-local block (NB) against APNB, C = 2048, batch 1, forward",
    "Titan Xp, CUDA 9.0",
    {
        "NB 96x96": {GMAC: 58.0, MEGABYTES: 609, MS: 19.5},
        "APNB 96x96": {GMAC: 15.5, MEGABYTES: 150, MS: 12.4},
        "NB 256x128": {GMAC: 601.4, MEGABYTES: 7797, MS: 179.4},
        "APNB 256x128": {GMAC: 43.5, MEGABYTES: 277, MS: 30.8},
    },
    "The 43.5 contradicts the paper's own formula: every term is linear in the positions, so that "
    "15.5 becomes 55.1. Memory here is what a call needs beyond its input and output, in MiB.",
)
ANN_CLAIM = Table(
    "ANN",
    "section 1",
    "APNB against the non-local block at 256x128",
    "Titan Xp, CUDA 9.0",
    {"less time": {TIMES: 6}, "less memory": {TIMES: 28}},
)
ANN_2 = Table(
    "ANN",
    "table 2",
    "the whole network on a 2048x1024 image, ResNet-101",
    "a GPU that is not named (table 1: Titan Xp)",
    {"Ours": {SECONDS: 0.611, MEGABYTES: 3375, MILLION: 63.17}},
    "Memory of the paper is the whole occupation; here it is the peak of a call above weights and "
    "image.",
)
GALD_4 = Table(
    "GALD",
    "table IV",
    "heads on a ResNet-50, a 512x512 image",
    "V100",
    {
        "FCN": {MS: 60},
        "+ ASPP": {MS: 65, MILLION: 47.5},
        "+ ASPP + LDv1": {MS: 70, ADDED: 0.4},
        "+ ASPP + LDv2": {MS: 82, ADDED: 2.3},
        "FCN (ResNet101) + ASPP": {MS: 120, MILLION: 65.4},
    },
    "The paper's times are of whole networks. Heads alone are on the backbone's map, "
    "[1, 2048, 64, 64]. No reading of the text reproduces its parameters exactly.",
)
GALD_6 = Table(
    "GALD",
    "table VI",
    "parameters of the whole networks, ResNet-101",
    COUNTED,
    {"GALDv1": {MILLION: 65.3}, "GALDv2": {MILLION: 66.8}},
)
SANET_6 = Table(
    "SANet",
    "table 6",
    "the whole network, ResNet-101",
    COUNTED,
    {"SANet": {GMAC: 204.7, MILLION: 55.5}},
    "The paper prints no size of the image; 512x512 is that of its section 3.3.",
)
SEGNEXT_2 = Table(
    "SegNeXt",
    "table 2",
    "parameters of the four sizes (ADE20K)",
    COUNTED,
    {
        "SegNeXt-T": {MILLION: 4.3},
        "SegNeXt-S": {MILLION: 13.9},
        "SegNeXt-B": {MILLION: 27.6},
        "SegNeXt-L": {MILLION: 48.9},
    },
)
SEGNEXT_5 = Table(
    "SegNeXt",
    "table 5",
    "attention in the decoder, 512x512",
    COUNTED,
    {
        "SegNeXt-B w/ CC": {MILLION: 27.8, GMAC: 35.7},
        "SegNeXt-B w/ EMA": {MILLION: 27.4, GMAC: 32.3},
        "SegNeXt-B w/ NL": {MILLION: 27.6, GMAC: 40.9},
        "SegNeXt-B w/ Ham": {MILLION: 27.6, GMAC: 34.9},
    },
)
SEGNEXT_7 = Table(
    "SegNeXt",
    "table 7",
    "structure of the decoder, 512x512",
    COUNTED,
    {
        "SegNeXt-T (a)": {MILLION: 4.4, GMAC: 10.0},
        "SegNeXt-T (b)": {MILLION: 4.2, GMAC: 4.9},
        "SegNeXt-T (c)": {MILLION: 4.3, GMAC: 6.6},
        "SegNeXt-T (c) w/ stage 1": {MILLION: 4.3, GMAC: 12.1},
    },
    "Decoder (b) and stage 1 in decoder (c) are not among the networks' options.",
)
SEGNEXT_8 = Table(
    "SegNeXt",
    "table 8",
    "with and without the branches of MSCA, 512x512",
    COUNTED,
    {
        "SegNeXt-T w/o MSCA": {MILLION: 4.2, GMAC: 6.5},
        "SegNeXt-T w/ MSCA": {MILLION: 4.3, GMAC: 6.6},
        "SegNeXt-S w/o MSCA": {MILLION: 13.8, GMAC: 15.8},
        "SegNeXt-S w/ MSCA": {MILLION: 13.9, GMAC: 15.9},
    },
)
SEGNEXT_9 = Table(
    "SegNeXt",
    "table 9",
    "the four sizes at 512x512 and, for Cityscapes, at 2048x1024",
    COUNTED,
    {
        "SegNeXt-T": {MILLION: 4.3, GMAC: 6.6},
        "SegNeXt-S": {MILLION: 13.9, GMAC: 15.9},
        "SegNeXt-B": {MILLION: 27.6, GMAC: 34.9},
        "SegNeXt-L": {MILLION: 48.9, GMAC: 70.0},
        "SegNeXt-T, Cityscapes": {GMAC: 50.5},
        "SegNeXt-S, Cityscapes": {GMAC: 124.6},
        "SegNeXt-L, Cityscapes": {GMAC: 577.5},
    },
)
SEGNEXT_11 = Table(
    "SegNeXt",
    "table 11",
    "frames a second at 768x1536, Cityscapes",
    "RTX 3090, AMD EPYC 7543",
    {"SegNeXt-T": {FRAMES: 25}},
)
SEGNEXT_APPENDIX_2 = Table(
    "SegNeXt",
    "appendix, table 2",
    "MSCA in place of the Hamburger, 512x512",
    COUNTED,
    {
        "SegNeXt-T w/ MSCA": {MILLION: 4.4, GMAC: 6.7},
        "SegNeXt-S w/ MSCA": {MILLION: 14.0, GMAC: 15.9},
        "SegNeXt-B w/ MSCA": {MILLION: 28.0, GMAC: 33.6},
        "SegNeXt-L w/ MSCA": {MILLION: 50.1, GMAC: 69.8},
    },
    "The paper says COCO-Stuff (171 classes) and counts 150.",
)
SCALES = Table(
    "Attention to scale",
    "section 4",
    "three scales against DeepLab-LargeFOV alone, 321x321",
    "Tesla K40",
    {
        "training, three scales against one": {TIMES: 2},
        "inference of an image": {MS: 350},
    },
)
TABLES = (
    ANN_1,
    ANN_CLAIM,
    ANN_2,
    GALD_4,
    GALD_6,
    SANET_6,
    SEGNEXT_2,
    SEGNEXT_5,
    SEGNEXT_7,
    SEGNEXT_8,
    SEGNEXT_9,
    SEGNEXT_APPENDIX_2,
    SEGNEXT_11,
    SCALES,
)
