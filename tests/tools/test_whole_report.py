"""The report of everything measured beside the papers' figures, and comparisons of two results."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("matplotlib")

from attnops.benchmarks import papers
from attnops.benchmarks.__main__ import COMMANDS, main
from attnops.benchmarks.apnb.cases import EAGER_LINEAR, OURS_LINEAR
from attnops.benchmarks.camvid import plan as camvid_plan
from attnops.benchmarks.ops.definitions import DEFINITIONS
from attnops.benchmarks.report import (
    camvid_musts,
    children,
    gpu_musts,
    load,
    musts,
    paper_rows,
    serving_musts,
    wanted,
)
from attnops.benchmarks.report.records import RESULTS, Document, Row
from attnops.benchmarks.report.running import running
from attnops.benchmarks.report.sections import HELD_BY_TESTS, SECTIONS
from attnops.benchmarks.static.table import FILE

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    """The report of the committed results."""
    out = tmp_path_factory.mktemp("report")
    assert main(["report", "--out", str(out)]) == 0
    text = (out / "report.md").read_text()
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (out / picture).stat().st_size > 10_000
    return text


def test_every_section_and_figure_is_there(text: str) -> None:
    titles = re.findall("^## (.*)$", text, re.M)
    assert titles == [*SECTIONS, "What is missing"]
    for table in papers.TABLES:
        part = text.partition(f"### {table.title}\n")[2].partition("\n### ")[0]
        for name, figures in table.rows.items():
            for quantity, value in figures.items():
                line = f"| {name} | {quantity} | {value:g} | {table.hardware_of(quantity)} |"
                assert line in part
    for op in DEFINITIONS:
        assert f"\n### {op}, float32: " in text or f"\n### {op}\n\nNot measured" in text


def test_what_needs_a_gpu_says_so(text: str) -> None:
    results = load.load(RESULTS)
    on_gpu = any(row.on_gpu for row in results.rows)
    timed = [table for table in papers.TABLES if table.hardware != papers.COUNTED]
    for table in timed:
        for name, figures in table.rows.items():
            for quantity in figures.keys() & papers.NEEDS_HARDWARE:
                lines = paper_rows.found(results, table, name, quantity)
                places = [line.where.partition(",")[0] for line in lines]
                assert places.count("GPU") == 1 or on_gpu
                assert len(places) > 1  # one for the CPU
    if not on_gpu:
        line = next(
            x for x in text.splitlines() if x.startswith("| APNB 256x128 | ms") and "GPU" in x
        )
        assert "needs a GPU; static estimate, not measured" in line
        assert "| - |" in line and "anchor_attention" in line
        part = text.partition("## Requirements")[2].partition("\n## ")[0]
        assert part.count("| not measured | needs a GPU |") == len(gpu_musts.MUSTS)
        for note in HELD_BY_TESTS.values():
            assert note in part
            for path in re.findall("`(tests/.*?)`", note):
                assert (ROOT / path).exists()
        assert "Ops on a GPU: needs a GPU, not measured; static estimate" in text


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    document = Document()
    document.new_row("nmf", "attnops", "cpu", shape=[1, 8, 9], dtype="float32", p50=1.5)
    document.save(tmp_path / "results" / "nmf.json")
    (tmp_path / "results" / "bad.json").write_text("[1")
    out = tmp_path / "out"
    assert main(["report", "--results", str(tmp_path / "results"), "--out", str(out)]) == 0
    text = (out / "report.md").read_text()
    end = text.partition("## What is missing")[2]
    names = re.findall(r"^- ([\w-]+): ", end, re.M)
    assert names == [entry.name for entry in wanted.WANTED if entry.name != "nmf"]
    assert "attnops bench curves" in end and "needs one (`attnops bench gpu`)" in end
    assert "### strip_conv\n\nNot measured here." in text
    empty = tmp_path / "empty"
    assert main(["report", "--results", str(empty), "--out", str(out)]) == 1


def here(line: list[str], **options) -> SimpleNamespace:
    """A benchmark command of a child, in this process."""
    try:
        return SimpleNamespace(returncode=main(line[3:]))
    except SystemExit as error:
        return SimpleNamespace(returncode=error.code)


def test_missing_results_are_run(tmp_path: Path, monkeypatch) -> None:
    entry = next(entry for entry in wanted.WANTED if entry.name == "costs")
    small = replace(entry, command=("costs", "sanet_r50"))
    failing = replace(entry, name="other", command=("costs", "nothing"))
    long = replace(entry, name="long", minutes=1e3)
    monkeypatch.setattr(wanted, "WANTED", (small, failing, long))
    monkeypatch.setattr(wanted.subprocess, "run", here)
    given = ["--results", str(tmp_path), "--run-missing", "--budget", "600"]
    assert main(["report", *given, "--out", str(tmp_path / "out")]) == 0
    assert Document.load(tmp_path / "costs" / "costs.json").rows[0].name == "sanet_r50"
    assert "sanet_r50" in (tmp_path / "costs" / "costs.md").read_text()
    text = (tmp_path / "out" / "report.md").read_text()
    assert "costs nothing: exit status 2" in text and "left out, " in text
    monkeypatch.setattr(wanted, "_run", pytest.fail)  # what is there is kept
    monkeypatch.setattr(wanted, "WANTED", (small,))
    assert main(["report", *given, "--out", str(tmp_path / "out")]) == 0


def test_commands_of_wanted_results_exist() -> None:
    commands = [entry.command for entry in wanted.WANTED if entry.command]
    assert {command[0] for command in commands} >= {*DEFINITIONS, "curves", "costs", "figure2"}
    assert {command[0] for command in commands} <= COMMANDS.keys()
    assert sum(entry.minutes for entry in wanted.WANTED) <= 40


def test_wanted_results_take_as_long_as_is_said() -> None:
    """Where a file was made by the report's command and says how long that took."""
    minutes = {entry.command: entry.minutes for entry in wanted.WANTED if entry.command}
    several = {(wanted.OPS, op, *wanted.QUICK): one for op, one in wanted.MINUTES.items()}
    minutes = {line: one for line, one in minutes.items() if line[0] not in DEFINITIONS} | several
    options = ("--json", "--markdown", "--plot", "--threads")
    for file, document in load.load(RESULTS).documents.items():
        command = tuple(children.without(document.command, options))
        if command in minutes:
            assert document.seconds <= 60 * minutes[command], file


def test_files_carry_their_command_and_its_seconds(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    with running(["costs", "sanet_r50"]):
        document = Document()
    document.run = replace(document.run, began=document.run.began - 90)
    document.save(file)
    found = Document.load(file)
    assert found.command == ["costs", "sanet_r50"] and 90 <= found.seconds < 100
    found.save(file)  # read and written again, it took as long
    assert Document.load(file).seconds == found.seconds
    data = json.loads(file.read_text())
    del data["seconds"], data["command"]  # as files were
    file.write_text(json.dumps(data))
    found = Document.load(file)
    assert found.command == [] and found.seconds is None


def test_ops_are_run_by_one_command(tmp_path: Path, monkeypatch) -> None:
    lines = []

    def run(line: list[str], **options) -> SimpleNamespace:
        lines.append(line[3:])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(wanted.subprocess, "run", run)
    assert wanted.run(list(wanted.WANTED), tmp_path, 2400) == []
    (ops,) = [line for line in lines if line[0] == wanted.OPS]
    quick = list(wanted.QUICK)
    assert ops[:-2] == [wanted.OPS, *DEFINITIONS, *quick] and ops[-2] == "--out"
    assert len(lines) == sum(bool(e.command) for e in wanted.WANTED) - len(DEFINITIONS) + 1
    one = [entry for entry in wanted.WANTED if entry.name == "nmf"]
    assert wanted.run(one, tmp_path, 2400) == [] and lines[-1][0] == "nmf"


def saved(path: Path, *times: float, device: str = "A", **values) -> Path:
    rows = [
        Row(
            "nmf",
            f"contender {i}",
            [1, 8, 9],
            "float32",
            device=device,
            threads=2,
            p50=p50,
            **values,
        )
        for i, p50 in enumerate(times)
    ]
    Document(rows=rows).save(path)
    return path


def test_compare_names_what_is_worse(tmp_path: Path, capsys) -> None:
    before = saved(tmp_path / "a.json", 1.0, 2.0, 3.0)
    worse = saved(tmp_path / "b.json", 1.2, 2.0)
    assert main(["report", "--compare", str(before), str(before)]) == 0
    assert main(["report", "--compare", str(before), str(worse), "--threshold", "1.3"]) == 0
    capsys.readouterr()
    assert main(["report", "--compare", str(before), str(worse)]) == 1
    shown = capsys.readouterr().out
    assert "contender 0" in shown and "1.20" in shown and "contender 1" not in shown
    assert "only in the first: nmf | contender 2" in shown and "DIFFERENT" not in shown
    assert main(["report", "--compare", str(worse), str(before)]) == 0  # faster
    capsys.readouterr()
    other = saved(tmp_path / "c.json", 1.0, device="B")
    assert main(["report", "--compare", str(before), str(other)]) == 0
    assert "DIFFERENT HARDWARE" in capsys.readouterr().out
    kept = saved(tmp_path / "d.json", 9.0, malloc="kept")
    assert main(["report", "--compare", str(before), str(kept)]) == 2  # another setting of glibc


def test_compare_reads_memory_and_static_estimates(tmp_path: Path, capsys) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    saved(first / "nmf.json", 1.0, memory_above_inputs=10.0)
    saved(second / "nmf.json", 1.0, memory_above_inputs=10.5)  # under a MiB
    row = {"op": "nmf", "shape": [1, 8, 8], "options": [], "dtype": "float32"}
    row |= {"layout": "contiguous", "pass": "forward", "launches": 3, "high_us": 10.0}
    after = copy.deepcopy(row) | {"high_us": 12.0}
    for folder, entry in ((first, row), (second, after)):
        document = {"kind": "static estimate", "arch": "sm_90", "rows": [entry]}
        (folder / FILE).write_text(json.dumps(document))
    assert main(["report", "--compare", str(first), str(second), "--threshold", "1.25"]) == 0
    assert main(["report", "--compare", str(first), str(second)]) == 1
    assert "static estimate, not measured: nmf 1x8x8" in capsys.readouterr().out
    saved(second / "nmf.json", 1.0, memory_above_inputs=14.0)
    assert main(["report", "--compare", str(first), str(second), "--threshold", "1.3"]) == 1
    assert "MiB above the inputs" in capsys.readouterr().out


def test_requirements_take_the_better_format_and_every_setting() -> None:
    facts = {"threads": 2, "device": "A", "p20": 1.0, "p80": 1.0}
    shape = [1, 2048, 96, 96]
    times = {(EAGER_LINEAR, "contiguous"): 9.0, (EAGER_LINEAR, "channels_last"): 6.0}
    times |= {(OURS_LINEAR, "contiguous"): 2.0, (OURS_LINEAR, "channels_last"): 3.0}
    rows = [
        Row("apnb", name, shape, "float32", layout, p50=p50, malloc=malloc, **facts)
        for (name, layout), p50 in times.items()
        for malloc in ("", "kept")
    ]
    rows[-1].p50 = 1.0  # kept, ours
    found = [goal for goal in musts.of(rows) if goal.measured is not None]
    assert [(goal.measured, goal.met) for goal in found] == [(3.0, False), (6.0, True)]
    assert len(musts.of(rows)) == len(musts.MUSTS) + 1
    assert {goal.verdict for goal in musts.of([])} == {"not measured"}


def served(dtype: str, malloc: str, **times: float) -> list[Row]:
    facts = {"threads": 2, "options": [["network", "segnext_t"], ["malloc", malloc]]}
    names = {"deploy": "attnops deploy", "predict": "attnops predict"}
    names["frozen"] = "torch.compile with freezing, published chain"
    return [
        Row("serving", names.get(name, name), [1, 3, 512, 512], dtype, p50=p50, **facts)
        for name, p50 in times.items()
    ]


def test_requirements_of_serving_are_of_deployed_networks() -> None:
    """Under glibc as it is, but for one; against OpenVINO, onnxruntime and the fastest of all."""
    rows = served("float32", "default", OpenVINO=7.0, onnxruntime=6.0, deploy=2.0, predict=1.0)
    rows += served("float32", "kept", OpenVINO=7.0, frozen=3.0, deploy=2.0)
    rows += served("bfloat16", "default", OpenVINO=1.5, deploy=1.0)
    rows[2].agreement, rows[-1].agreement = 0.9985, 0.99
    reached = [goal for goal in serving_musts.of(rows) if goal.measured is not None]
    found = {(goal.what, goal.where): (goal.measured, goal.required, goal.met) for goal in reached}
    t, size = "segnext_t, forward: times faster than", "1x3x512x512"
    equal = "segnext_t, deployed: % of labels equal to predict's in float32"
    default, kept = f"{size} float32, memory default", f"{size} float32, memory kept"
    half = f"{size} bfloat16, memory default"
    assert found == {
        (f"{t} onnxruntime", default): (3.0, ">= 2.8", True),
        (f"{t} {serving_musts.FROZEN[0]}", kept): (1.5, ">= 1.8", False),
        (f"{t} OpenVINO", default): (3.5, ">= 3", True),
        (f"{t} OpenVINO", half): (1.5, ">= 1.8", False),
        (f"{t} the fastest of all peers", default): (3.0, ">= 1", True),
        (f"{t} the fastest of all peers", half): (1.5, ">= 1", True),
        (equal, f"{size} float32"): (pytest.approx(99.85), ">= 99.9", False),
        (equal, f"{size} bfloat16"): (99.0, ">= 98.5", True),
    }
    nothing = serving_musts.of([])
    assert {goal.verdict for goal in nothing} == {"not measured"}
    networks = {goal.what.partition(",")[0] for goal in nothing}
    assert networks == set(serving_musts.NETWORKS.split(","))


def test_requirements_of_strips_hold_in_both_formats() -> None:
    facts = {"threads": 2, "device": "A", "direction": "forward", "floor_ms": 2.5}
    times = {("eager", "contiguous"): 9.0, ("eager", "channels_last"): 6.0}
    times |= {("attnops", "contiguous"): 3.0, ("attnops", "channels_last"): 2.0}
    rows = [
        Row("strip_conv", name, [1, 64, 128, 128], "float32", layout, p50=p50, **facts)
        for (name, layout), p50 in times.items()
    ]
    found = [goal for goal in musts.of(rows) if goal.measured is not None]
    assert [(goal.measured, goal.met) for goal in found] == [(2.0, False), (3.0, True)]
    assert found[0].note.endswith("at which the ratio is 2.4: out of reach on this machine")
    assert "ours in contiguous" in found[0].what and "ours in channels_last" in found[1].what


def test_requirements_of_camvid() -> None:
    title = camvid_plan.SEGNEXT.title
    score = {"network": title, "heads": "fast", "miou": 0.42, "steps": 1500, "part": "longer"}
    runs = [score | {"name": "segnext_t_1500"}]
    longer = {"name": "segnext_t_long", "begins": "segnext_t_1500", "miou_over_scales": 0.525}
    runs += [score | longer | {"miou": 0.5}]
    lite = [("long", None), ("longer", 0.6)]  # the better of two
    runs += [
        score | {"name": f"segnext_lite0_{name}", "miou": 0.59, "miou_over_scales": scales}
        for name, scales in lite
    ]
    runs += [
        {"name": heads, "network": title, "heads": heads, "miou": 0.1, "steps": 150}
        | {"part": camvid_plan.SAME_BUDGET}
        for heads in camvid_plan.HEADS
    ]
    costs = [
        {"network": title, "heads": heads, "malloc": malloc, "p50": p50, "peak_mib": mib}
        for malloc, heads, p50, mib in (
            ("default", "fast", 400.0, 100.0),
            ("default", "reference", 800.0, 100.0),
            ("kept", "fast", 400.0, None),
            ("kept", "reference", 600.0, None),
        )
    ]
    labels = [
        {"network": title, "dtype": "float32", "equal": 0.9985, "logits_error": 3e-5},
        {"network": title, "dtype": "bfloat16", "equal": 0.99, "logits_error": 0.02},
    ]
    goals = camvid_musts.of([{"runs": runs, "costs": costs, "deployed": labels}])
    reached = [goal for goal in goals if goal.measured is not None]
    found = [(goal.measured, goal.required, goal.met) for goal in reached]
    assert found == [
        (0.42, ">= 0.4", True),
        (0.525, ">= 0.5", True),
        (0.6, ">= 0.68", False),
        (1, ">= 7", False),
        (2.0, ">= 1.8", True),
        (1.5, ">= 1.8", False),
        (1.0, "> 1", False),
        (pytest.approx(99.85), ">= 99.9", False),
        (99.0, ">= 98.5", True),
        (3e-5, "<= 0.0001", True),
    ]
    assert "1500 steps of 0.4 s: 10 minutes" in goals[0].note
    assert "1500 steps more of" in goals[1].note and "0.500 at one scale" in goals[1].note
    assert len(camvid_musts.of([])) == len(goals)
    assert {goal.verdict for goal in camvid_musts.of([])} == {"not measured"}
    names = {name for names in camvid_musts.SCORES for name in names}
    longer = [run for run in camvid_plan.RUNS if run.part == camvid_plan.LONGER]
    assert names == {run.name for run in longer if run.network != camvid_plan.SANET}


def test_options_are_taken_out_of_a_command_line() -> None:
    line = ["nmf", "--quick", "--malloc", "default,kept", "--json=a", "--markdown", "b", "-k", "x"]
    assert children.without(line, ("--malloc", "--json", "--markdown")) == [
        "nmf",
        "--quick",
        "-k",
        "x",
    ]
