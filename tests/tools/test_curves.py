"""Curves against size: exponents, tiny sweeps, tables and picture."""

from __future__ import annotations

from dataclasses import replace

import numpy
import pytest

from attnops.benchmarks import paper_networks
from attnops.benchmarks.apnb.cases import EAGER_NON_LOCAL, OURS_LINEAR
from attnops.benchmarks.apnb.operations import Block
from attnops.benchmarks.curves import command, fit, sweeps, table
from attnops.benchmarks.ops.cases import OpCase
from attnops.benchmarks.report.grid import markdown
from attnops.benchmarks.report.records import Document

TINY = (
    sweeps.Sweep("pixels", "N", (64, 144), lambda n: Block(round(n**0.5), round(n**0.5), 1, 16, 8)),
    sweeps.Sweep(
        "kernel",
        "k",
        (3, 5),
        lambda k: OpCase(
            "local_attention", (1, 8, 12, 10), options=(("kernel", k), ("dilation", 1))
        ),
    ),
)


@pytest.mark.parametrize("power", [-1.0, 0.0, 1.0, 2.5])
def test_exponent_of_a_power_law(power: float) -> None:
    x = numpy.array([3.0, 10.0, 40.0, 700.0])
    assert fit.exponent(x, 7 * x**power) == pytest.approx(power, abs=1e-9)


def test_exponent_is_of_least_squares_and_of_what_is_known() -> None:
    # Logarithms at 0, 1, 2 with values 0, 1, 4: the slope of the best line is 2, not 1.5 or 3.
    x = numpy.exp([0.0, 1.0, 2.0])
    assert fit.exponent(x, numpy.exp([0.0, 1.0, 4.0])) == pytest.approx(2.0)
    assert fit.exponent([1, 2, 4], [1, None, 16]) == pytest.approx(2.0)
    assert fit.exponent([1, 2], [0.0, 3.0]) is None
    assert fit.exponent([2, 2], [1.0, 3.0]) is None
    assert list(fit.last([1, 2, 3, 4, 5, 6, 7])) == [4, 5, 6, 7]
    assert list(fit.last([1, 2])) == [1, 2]


def test_the_leading_term_shows_in_the_larger_half() -> None:
    x = [2.0**i for i in range(12)]
    y = [1e3 * n + n * n for n in x]
    whole, larger = fit.exponent(x, y), fit.exponent(fit.last(x), fit.last(y))
    assert 1 < whole < larger < 2


def test_tiny_curves(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sweeps, "SWEEPS", TINY)
    monkeypatch.setattr(sweeps, "SECONDS", 0.01)
    rates = {"dtype": "float32", "copy_gb_s": 20.0, "matmul_gflop_s": 100.0}
    monkeypatch.setattr(command, "Document", lambda: Document(parts={"rates": {"float32": rates}}))
    files = [tmp_path / f"curves.{suffix}" for suffix in ("json", "md", "png")]
    options = zip(("--json", "--markdown", "--plot"), map(str, files), strict=True)
    pytest.importorskip("matplotlib")
    assert command.main(["--no-memory", *(word for pair in options for word in pair)]) == 0
    document = Document.load(files[0])
    found = {(curve.sweep, curve.name): curve for curve in table.curves(document.rows)}
    assert {name for sweep, name in found if sweep == "pixels"} == set(sweeps.BLOCKS)
    assert found["pixels", EAGER_NON_LOCAL].x == [64, 144]
    assert found["kernel", "attnops"].x == [3, 5]
    assert all(ms > 0 for curve in found.values() for ms in curve.ms)
    assert all(row.relative_error is not None for row in document.rows if row.name == OURS_LINEAR)
    text = files[1].read_text()
    assert text == "\n".join(map(markdown, table.grids(document.rows)))
    slope = fit.exponent([3, 5], found["kernel", "eager"].ms)
    assert f"| eager | 2 | {slope:.2f} |" in text
    assert files[2].stat().st_size > 10_000
    with pytest.raises(SystemExit):
        command.main(["nothing"])
    assert "no sweep 'nothing'" in capsys.readouterr().err


def test_points_without_time_say_so() -> None:
    document = Document()
    sweeps.measure(document, sweeps.Budget(0), TINY[1:], memory=False)
    assert all(row.note.startswith("not run: no time") for row in document.rows)
    assert "not run" in "\n".join(map(markdown, table.grids(document.rows)))


def test_sweeps_share_the_time_that_is_left() -> None:
    wanted = [replace(TINY[0], share=4), TINY[1], TINY[1]]
    assert sweeps._share(sweeps.Budget(60), wanted).left() == pytest.approx(40, abs=1)
    assert sweeps._share(sweeps.Budget(60), wanted[1:]).left() == pytest.approx(30, abs=1)
    assert sweeps._share(sweeps.Budget(None), wanted).left() == float("inf")


def test_the_papers_networks(tmp_path, monkeypatch) -> None:
    """Tiny images: a frame rate, and three scales against one in training."""
    file = tmp_path / "rows.json"
    titles = [paper_networks.SEGNEXT, paper_networks.ONE_SCALE]
    small = ["--shrink", "8", "--seconds", "0.01", "--no-memory", "--json", str(file)]
    monkeypatch.setattr(paper_networks, "measure_rates", lambda *given: Fixed())
    assert paper_networks.main([*titles, *small]) == 0
    rows = Document.load(file).rows
    assert [row.name for row in rows] == ["reference", "attnops"] * 2
    assert rows[0].shape == [1, 3, 96, 192] and rows[2].shape == [2, 3, 40, 40]
    assert rows[1].ratios == {"reference": pytest.approx(rows[0].p50 / rows[1].p50)}
    assert rows[0].floor_ms == 1.0 and rows[2].floor_ms is None
    assert "segnext 768x1536" in markdown(paper_networks.grid(Document.load(file)))


class Fixed:
    """Rates of a device that does everything in a millisecond."""

    def floor_ms(self, moved: float, macs: float) -> float:
        assert macs > 0
        return 1.0
