"""The sections of the report: each makes Markdown, and pictures in the report's folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import networks, paper_networks, papers
from ..apnb import figure2
from ..apnb.run import TABLE as APNB
from ..camvid import curves as camvid_curves
from ..camvid import grids as camvid
from ..curves import picture as curves_picture
from ..curves import table as curves
from ..gpu import calibration
from ..ops import microbench
from ..ops.definitions import DEFINITIONS
from ..pages import costs as op_costs
from ..pages import readme
from ..serving import grids as serving
from . import camvid_musts, goals, gpu_musts, musts, paper_rows, plots, serving_musts
from .grid import Grid, markdown, number
from .load import Results
from .records import Document, Row

BENEATH = 3  # level of a table's title within a section


def hardware(results: Results, out: Path) -> str:
    """Where the rows come from."""
    rows = [row for row in results.rows if row.p50]
    lines = []
    for device in dict.fromkeys(row.hardware for row in rows):
        same = [row for row in rows if row.hardware == device]
        dates = sorted(row.date[:10] for row in same)
        lines.append(f"- {device}: {len(same)} rows, {dates[0]} to {dates[-1]}")
    lines += [
        f"- {document['arch']}: {len(document['rows'])} rows, {document['kind']}"
        for document in results.static.values()
    ]
    return "\n".join([*(lines or ["- nothing is measured"]), ""])


def of_papers(results: Results, out: Path) -> str:
    """Every table of the papers, with what was found here."""
    parts = []
    for table in papers.TABLES:
        parts.append(markdown(_of_paper(results, table), BENEATH))
        if table is papers.ANN_1:
            parts += _blocks(results, out)
    return "\n".join(parts)


def _of_paper(results: Results, table: papers.Table) -> Grid:
    header = ("row", "quantity", "paper", "on", "here", "who", "on", "here / paper")
    grid = Grid(table.title, (*header, "floor", "% of floor", "note"))
    for name, figures in table.rows.items():
        for quantity, printed in figures.items():
            for line in paper_rows.found(results, table, name, quantity):
                ratio = None if line.value is None else line.value / printed
                grid.cells.append(
                    (
                        name,
                        quantity,
                        number(printed, 4),
                        table.hardware_of(quantity),
                        number(line.value, 4) or "-",
                        line.who,
                        line.where,
                        number(ratio),
                        number(line.floor),
                        number(line.percent),
                        line.note,
                    )
                )
    grid.notes = [table.note] if table.note else []
    return grid.without_empty_columns()


def _blocks(results: Results, out: Path) -> Iterator[str]:
    """Figure 2, and pictures of the blocks."""
    chosen: dict[tuple[Any, ...], dict[str, Row]] = {}  # input -> contender
    for row in results.of(APNB):
        if row.direction == "forward" and row.p50:
            same = chosen.setdefault(row.input, {})
            if row.name not in same or row.memory_method:  # of equal rows one with memory
                same[row.name] = row
    if chosen:
        rows = [row for same in chosen.values() for row in same.values()]
        plots.plot_table(rows, out / "apnb.png")
        yield "![time and memory of the blocks](apnb.png)\n"
    title = f"{'#' * BENEATH} ANN, figure 2: time by kind of operation at 256x128\n"
    found = {key: value for part in results.parts(figure2.TABLE) for key, value in part.items()}
    note = "The paper shows bars without figures; their sums are table 1's 179.4 and 30.8 ms.\n"
    if not found:
        yield f"{title}\n{note}\nNot measured here: `attnops bench figure2 --json FILE`.\n"
    for key, value in found.items():
        picture = f"figure2-{key.replace(' ', '-')}.png"
        plots.plot_kinds(value, out / picture)
        yield f"{title}\n{note}\n{markdown(figure2.grid(value), BENEATH + 1)}\n![]({picture})\n"


# Requirements that no figure shows: the files whose tests hold them.
HELD_BY_TESTS = {
    "Labels on a CPU": "Logits of a folded network, threads, other sizes, memory over 2,000 calls, "
    "and processes without a compiler: `tests/models/deploy`. Exports in onnxruntime and OpenVINO: "
    "`tests/models/test_export.py`, `tests/models/test_export_published.py`.",
    "Training on CamVid": "Losses and gradients against reference heads: "
    "`tests/training/test_training_steps.py`. Exact resuming and checkpoints that are whole: "
    "`tests/training/test_resuming.py`, `tests/training/test_checkpoint_files.py`. Several "
    "processes: `tests/training/test_processes.py`.",
}


def requirements(results: Results, out: Path) -> str:
    """What has to be reached, met or not."""
    on_gpu = [row for row in results.rows if row.on_gpu]
    reached = {
        "Ops, blocks and networks on a CPU": musts.of(results.rows),
        "Labels on a CPU": serving_musts.of(results.rows),
        "Training on CamVid": camvid_musts.of(results.parts(camvid.PART)),
        "On a GPU": goals.gpu_goals(on_gpu) if on_gpu else gpu_musts.not_measured(),
    }
    grids = {title: goals.grid(found, title) for title, found in reached.items()}
    for title, note in HELD_BY_TESTS.items():
        grids[title].notes.append(note)
    if not on_gpu:
        grids["On a GPU"].notes.append(
            "On a GPU there are also goals for the blocks of ANN's table 1 and for bandwidth of "
            "anchor_attention and pyramid_pool: needs a GPU, not measured."
        )
    return "\n".join(markdown(grid, BENEATH) for grid in grids.values())


OPS_HEADER = ("input, pass", "ms", "chain, ms", "compiled chain, ms", "x chain", "x compiled")
OPS_HEADER += ("floor, ms", "% of floor", "MiB", "MiB, chain")


def operations(results: Results, out: Path) -> str:
    """Every op on the CPU, and its kernels on a GPU."""
    parts, plotted = [], {}
    for op in DEFINITIONS:
        tables = {op, APNB} if op == readme.BLOCK else {op}
        rows = [row for row in results.rows if row.table in tables and row.threads is not None]
        entries = op_costs.entries(map(asdict, rows))
        if not entries:
            parts.append(f"{'#' * BENEATH} {op}\n\nNot measured here.\n")
            continue
        grid = Grid(f"{op}, {rows[0].dtype}: {rows[0].hardware}", OPS_HEADER)
        for what, best in entries.items():
            grid.cells.append(_op_cells(str(what), best))
        parts.append(markdown(grid.without_empty_columns(), BENEATH))
        first = next(iter(entries.values()))
        plotted[op] = {
            name: first[name].ms / first[op_costs.OURS].ms
            for name in (op_costs.CHAIN, op_costs.COMPILED)
            if name in first
        }
    plotted = {op: found for op, found in plotted.items() if found}
    if plotted:
        plots.plot_ratios(plotted, out / "ops.png")
        parts.insert(0, "![times of the chains over ours](ops.png)\n")
    return "\n".join([*parts, _on_gpu(results)])


def _op_cells(what: str, best: dict[str, op_costs.Timed]) -> tuple[str, ...]:
    ours = best[op_costs.OURS]
    times = (str(best.get(who, "")) for who in (op_costs.OURS, op_costs.CHAIN, op_costs.COMPILED))
    ratios = (op_costs.ratio(best, who) for who in (op_costs.CHAIN, op_costs.COMPILED))
    percent = 100 * ours.floor_ms / ours.ms if ours.floor_ms else None
    chain = best.get(op_costs.CHAIN)
    memory = (number(ours.mib), number(chain.mib) if chain else "")
    return (what, *times, *ratios, number(ours.floor_ms), number(percent), *memory)


def _on_gpu(results: Results) -> str:
    rows = [row for row in results.rows if row.on_gpu and row.table in DEFINITIONS]
    if rows:
        found = results.calibrations.values()
        summaries = (markdown(calibration.summary(one), BENEATH) for one in found)
        return "\n".join([microbench.as_markdown(rows), *summaries])
    title = "Ops on a GPU: needs a GPU, not measured; static estimate, us"
    grid = Grid(title, readme.GPU_HEADER, readme.gpu_lines(list(DEFINITIONS), results.static_rows))
    grid.notes = ["bfloat16, the faster of Triton and CUDA C++: static estimate, not measured."]
    if not grid.cells:
        grid.notes.append("There is no static report among the results.")
    return markdown(grid, BENEATH)


def whole_networks(results: Results, out: Path) -> str:
    """Whole networks, theirs and the papers' sizes."""
    parts = []
    for module in (networks, paper_networks):
        document = Document(rows=results.of(module.TABLE))
        if document.rows:
            parts.append(markdown(module.grid(document), BENEATH))
        else:
            parts.append(f"{module.TABLE}: not measured here.\n")
    return "\n".join(parts)


def labels(results: Results, out: Path) -> str:
    """Serving on a CPU."""
    tables = [markdown(grid, BENEATH) for grid in serving.grids(results.rows)]
    return "\n".join(tables or ["Not measured here: `attnops bench serving --json FILE`.\n"])


def training(results: Results, out: Path) -> str:
    """The runs on CamVid."""
    parts = []
    for part in results.parts(camvid.PART):
        parts += [markdown(grid, BENEATH) for grid in camvid.grids(part)]
        if part["runs"]:
            camvid_curves.draw(part["runs"], out / "camvid.png")
            parts.append("![losses and mIoU](camvid.png)\n")
    return "\n".join(parts or ["Not measured here: `attnops bench camvid --help`.\n"])


def scaling(results: Results, out: Path) -> str:
    """Curves against size, with their exponents."""
    rows = results.of(curves.TABLE)
    if not rows:
        return "Not measured here: `attnops bench curves --json FILE`.\n"
    curves_picture.draw(rows, out / "curves.png")
    tables = [markdown(grid, BENEATH) for grid in curves.grids(rows)]
    return "\n".join(["![time and memory](curves.png)\n", *tables])


SECTIONS = {
    "Hardware": hardware,
    "The papers' figures": of_papers,
    "Requirements": requirements,
    "Ops": operations,
    "Whole networks": whole_networks,
    "Labels on a CPU": labels,
    "Training on CamVid": training,
    "Curves": scaling,
}


def as_markdown(results: Results, out: Path, notes: Sequence[str] = ()) -> str:
    """The whole report; pictures go to `out`.

    Args:
        notes: what is missing, and whatever else belongs to its end.
    """
    parts = ["# What attnops costs, beside the papers\n"]
    parts.append(
        "`here / paper` compares different hardware and says so in the columns before it; ratios "
        "of the other tables are of one run. Both sides of a ratio stand in their better memory "
        "format. Floor: the least time that this machine's measured rates allow.\n"
    )
    for title, section in SECTIONS.items():
        parts += [f"## {title}\n", section(results, out)]
    parts += ["## What is missing\n", *(f"- {note}" for note in notes or ["nothing"])]
    return "\n".join(parts).rstrip() + "\n"
