"""Parameters and multiply-adds of the networks against the published ones, on the meta device."""

from __future__ import annotations

import json
from math import prod

import pytest
import torch
from model_checks import multiply_adds, shake
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("timm")

import attnops
from attnops.benchmarks.__main__ import main
from attnops.benchmarks.costs import table as costs
from attnops.benchmarks.costs.cases import IMAGE, OLD, STREET, Case, cases
from attnops.benchmarks.costs.multiply_adds import _Counter, count, nmf, parameters
from attnops.benchmarks.costs.published_chains import CHAINS, published_chains
from attnops.benchmarks.report import document_markdown as whole_report
from attnops.benchmarks.report.records import RESULTS, Document
from attnops.models import create_model, list_models
from attnops.nn import AFNB, APNB, ASPP, Hamburger

NINETEEN, VOC, ADE = {"num_classes": 19}, {"num_classes": 21}, {"num_classes": 150}


def on_meta(name: str, **options) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, **options)


@pytest.mark.parametrize(
    ("variant", "options", "million", "whole", "products"),
    [
        ("t", {}, 4.263414, 6.593, 6.404),
        ("s", {}, 13.932886, 15.853, 15.646),
        ("b", {}, 27.636310, 34.896, 34.663),
        ("b", {"rank": 16}, 27.636310, 32.917, 32.686),
        ("l", {}, 48.926550, 69.955, 69.686),
        ("l", {"rank": 16}, 48.926550, 66.236, 65.968),
    ],
)
def test_segnext(variant, options, million, whole, products):
    """What torchprofile counts in the authors' code, in all and in convolutions and products."""
    model = on_meta(f"segnext_{variant}", **ADE, **options)
    assert parameters(model) == (round(million * 1e6),) * 2
    found = count(model, IMAGE, published=True, auxiliary=False)
    assert found.total(True) == pytest.approx(whole * 1e9, rel=5e-4)
    assert found.products == found.total(False) == pytest.approx(products * 1e9, rel=2e-4)
    assert found.resizes > 4 * 150 * prod(IMAGE)
    done = count(model, IMAGE, published=False, auxiliary=False)
    channels, rank = model.decoder.context.channels, model.decoder.context.rank
    assert found.products - done.products == channels**2 * (64 * 64 - rank)  # ham_out
    assert (done.norms, done.resizes) == (found.norms, found.resizes)


@pytest.mark.parametrize(
    ("name", "size", "options", "with_aux", "without", "giga"),
    [
        ("ann_r101", STREET, NINETEEN, 67_694_310, 62_964_435, 2329.7),
        ("ann_r101", STREET, NINETEEN | {"form": "mmseg"}, 65_220_742, 62_856_051, None),
        ("ann_r50", STREET, NINETEEN | {"form": "mmseg"}, 46_228_614, 43_863_923, None),
        ("galdv1_r50", IMAGE, NINETEEN, 52_402_662, 47_672_787, 209.96),
        ("galdv1_r101", IMAGE, NINETEEN, 71_394_790, 66_664_915, 290.0),
        ("sanet_r101", IMAGE, VOC, 55_445_622, 55_445_622, 205.3),
        ("deeplab_attention", OLD, VOC, 34_663_256, 34_663_256, 116.9),
    ],
)
def test_other_networks(name, size, options, with_aux, without, giga):
    model = on_meta(name, **options)
    assert parameters(model) == (with_aux, without)
    if giga is not None:
        found = count(model, size, published=True, auxiliary=name.startswith("ann"))
        assert found.products == pytest.approx(giga * 1e9, rel=5e-4)


def test_what_the_fused_ann_leaves_out():
    """Value, output and the context's half of the fusion on the map; the query's own projection."""
    model = on_meta("ann_r101", **NINETEEN)
    found, done = (count(model, STREET, published, True) for published in (True, False))
    positions, anchors = 129 * 257, 110
    moved = sum(low * 256 + 256 * out + out * out for low, out in ((1024, 2048), (512, 512)))
    products = sum(anchors * (inner - 256) for inner in (2048, 512))  # with the wider values
    saved = positions * (moved + 512 * 256 - products) - anchors * moved
    assert found.products - done.products == saved


MISSED = {  # what does not round to the paper's figure: ours
    ("segnext_b", "num_classes=150, decoder=cc", "parameters_million"): 27.702,
    ("segnext_b", "num_classes=150, decoder=cc", "gmac"): 34.54,
    ("segnext_b", "num_classes=150, decoder=ema", "gmac"): 32.196,
    ("segnext_t", "num_classes=150, decoder=mlp", "parameters_million"): 4.337,
    ("segnext_t", "num_classes=150, decoder=mlp", "gmac"): 10.06,
    ("segnext_s", "num_classes=150, MSCA 5, 21", "gmac"): 15.68,
    ("segnext_l", "num_classes=19", "gmac"): 553.70,
    ("ann_r101", "num_classes=19, with aux", "parameters_million"): 62.964,
    ("galdv1_r101", "num_classes=19", "parameters_million"): 66.665,
    ("galdv2_r101", "num_classes=19, ga=aspp", "parameters_million"): 65.839,
    ("sanet_r101", "num_classes=21", "parameters_million"): 55.446,
    ("sanet_r101", "num_classes=21", "gmac"): 205.35,
}


@pytest.fixture(scope="module")
def document() -> Document:
    document = Document()
    for case in cases():
        costs.add_row(document, case)
    return document


def test_printed_figures_are_met_but_for_the_known_ones(document):
    missed, seen = {}, 0
    for row in document.rows:
        options = dict(row.options)
        ours = {"parameters_million": options["parameters"] / 1e6, "gmac": row.gmac}
        for name, printed in row.paper.items():
            seen += 1
            rounding = 0.5 * 10.0 ** -len(str(printed).partition(".")[2])
            if abs(ours[name] - printed) > rounding:
                missed[row.name, options["words"], name] = pytest.approx(ours[name], rel=5e-4)
    assert seen > 30
    assert missed == MISSED


def test_every_network_has_a_row(document):
    assert {row.name for row in document.rows} == set(list_models())
    assert all(0 < row.gmac_done <= row.gmac for row in document.rows)


def test_the_committed_table_is_up_to_date(document):
    saved = Document.load(RESULTS / "costs" / "costs.json")
    facts = [
        [(row.name, row.shape, row.options, row.gmac, row.gmac_done, row.paper) for row in rows]
        for rows in (document.rows, saved.rows)
    ]
    assert facts[0] == facts[1]


def small_blocks() -> list[tuple[nn.Module, tuple[torch.Tensor, ...]]]:
    low, high = torch.randn(2, 12, 18, 20), torch.randn(2, 16, 9, 10)
    return [
        (AFNB(12, 16, 8, 8), (low, high)),
        (APNB(16, 8, 8), (high,)),
        (APNB(16, 8, 8, share="key_value", projection="linear", fuse=False), (high,)),
        (Hamburger(32, rank=4, seed=0), (torch.randn(2, 32, 9, 10),)),
        (ASPP(12, 4, 8), (low,)),
    ]


@pytest.mark.parametrize("which", range(5))
def test_published_chains_compute_what_their_blocks_do(which):
    block, inputs = small_blocks()[which]
    shake(block).eval()
    with torch.no_grad():
        wanted = block(*inputs)
        with published_chains(block):
            called = [m for m in block.modules() if "forward" in vars(m)]
            found = block(*inputs)
    assert called and all(type(module) in CHAINS for module in called)
    assert not any("forward" in vars(module) for module in block.modules())
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_rule_of_nmf_is_its_chain():
    x, bases = torch.empty(2, 12, 35, device="meta"), torch.empty(2, 12, 4, device="meta")
    with FlopCounterMode(display=False) as counter:
        attnops.reference.nmf(x, bases, 7)
    assert nmf(x.shape, bases.shape, 7) == counter.get_total_flops() / 2


def test_products_are_those_of_the_flop_counter():
    model = on_meta("sanet_r50")
    found = count(model, (96, 64), published=False, auxiliary=False)
    assert found.products == multiply_adds(model, 96, 64)


def test_an_op_without_a_rule_is_refused():
    with pytest.raises(NotImplementedError, match="upsample_argmax"), _Counter():
        attnops.upsample_argmax(torch.empty(1, 3, 4, 4, device="meta"), (8, 8))


def test_one_branch_keeps_the_rest():
    whole, single = (costs.build(Case("segnext_t", options=ADE, one_branch=b)) for b in (0, 1))
    channels = sum(
        stage.norm.normalized_shape[0] * len(stage.blocks) for stage in whole.backbone.stages
    )
    taps = 2 * (7 + 11) + 4  # of two pairs, with biases
    assert parameters(whole)[0] - parameters(single)[0] == taps * channels


def test_command(tmp_path, capsys):
    files = tmp_path / "costs.json", tmp_path / "costs.md"
    assert main(["costs", "sanet_r50", "--json", str(files[0]), "--markdown", str(files[1])]) == 0
    assert "sanet_r50" in capsys.readouterr().out
    (row,) = json.loads(files[0].read_text())["rows"]
    assert row["gmac"] == pytest.approx(127.77, rel=1e-3)
    text = files[1].read_text()
    assert "| sanet_r50 |" in text and "127.77" in text
    assert text in whole_report.as_markdown(Document.load(files[0]))
    with pytest.raises(SystemExit):
        main(["costs", "sanet_r49"])
    assert "sanet_r49" in capsys.readouterr().err
