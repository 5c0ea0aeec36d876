"""The figures of README.md in words: labels of a whole network, and table 1 of the ANN paper."""

from __future__ import annotations

from pathlib import Path

from ..apnb.run import TABLE as APNB
from ..report.grid import number
from ..report.load import load
from ..report.records import Row
from ..serving.grids import TABLE as SERVING

NETWORK, SIDE = "segnext_t", 512
DTYPES = ("float32", "bfloat16")
OURS = "attnops deploy"
PEERS = {  # name of a row -> what the page calls it
    "OpenVINO": "OpenVINO",
    "onnxruntime": "onnxruntime",
    "torch.compile with freezing, published chain": "`torch.compile` with freezing",
    "eager, published chain": "eager PyTorch",
}
MAP = [1, 2048, 96, 96]
BLOCKS = {  # name of a row -> what the page calls it
    "eager non-local": "non-local block, eager",
    "SDPA non-local": "non-local block through `scaled_dot_product_attention`",
    "eager APNB linear": "asymmetric block (APNB), the paper's equations, eager",
    "compiled APNB linear": "the same, `torch.compile`",
    "attnops APNB linear": "**attnops APNB, the paper's equations**",
    "eager APNB released": "APNB as released, eager",
    "compiled APNB released": "the same, `torch.compile`",
    "attnops APNB released": "**attnops APNB, as released**",
}


def tables(results: Path) -> dict[str, str]:
    found = load(results)
    return {"labels": _labels(found.of(SERVING)), "blocks": _blocks(found.of(APNB))}


def _labels(rows: list[Row]) -> str:
    """Deployed SegNeXt-T against its peers: a sentence for each processor, in which each precision
    is of a process of its own.
    """
    options = [["network", NETWORK], ["malloc", "default"]]
    chosen = [row for row in rows if row.options == options and row.p50 and row.shape[2] == SIDE]
    devices = dict.fromkeys(row.device for row in chosen if row.name == OURS)
    if not devices:
        return "Labels of whole networks are not measured."
    return "\n\n".join(_sentence([row for row in chosen if row.device == d]) for d in devices)


def _sentence(rows: list[Row]) -> str:
    parts = []
    for dtype in DTYPES:
        times = {row.name: f"{number(row.p50)} ms" for row in rows if row.dtype == dtype}
        if OURS in times:
            peers = [f"{name} {times[key]}" for key, name in PEERS.items() if key in times]
            parts.append(f"{dtype} **{times[OURS]}**, {', '.join(peers)}")
    ends = [";"] * (len(parts) - 1) + ["."]
    last = rows[-1]
    start = f"SegNeXt-T with 150 classes, deployed, labels a {SIDE}x{SIDE} image in channels_last"
    where = f"{last.threads} threads: {last.device.strip()}"
    start += f"\n({where}; torch {last.torch}; all in turn in one process, glibc as it is):"
    return "\n".join([start, *(f"{part}{end}" for part, end in zip(parts, ends, strict=True))])


def _blocks(rows: list[Row]) -> str:
    """Table 1 of the ANN paper, each block in the memory format that suits it better."""
    lines = ["| block | time | memory beyond input and output |", "| --- | ---: | ---: |"]
    for name, title in BLOCKS.items():
        same = [r for r in rows if r.name == name and r.shape == MAP and r.direction == "forward"]
        best = min((r for r in same if r.p50), key=lambda row: row.p50, default=None)
        if best is not None:
            memory = number(best.memory_above_inputs_and_output)
            cells = [title, f"{number(best.p50)} ms", f"{memory} MiB"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
