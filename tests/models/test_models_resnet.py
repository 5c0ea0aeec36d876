"""The dilated ResNet: stems, dilations, sizes, names."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("timm")

from attnops.models import DilatedResNet


def sizes(net: DilatedResNet, height: int, width: int) -> list[tuple[int, ...]]:
    """Sizes of the four maps of an image, without computing them."""
    with torch.device("meta"):
        return [tuple(x.shape[2:]) for x in net(torch.empty(1, 3, height, width))]


def dilations(stage) -> list[int]:
    for block in stage:
        assert block.conv2.padding == block.conv2.dilation
    return [block.conv2.dilation[0] for block in stage]


@pytest.fixture(scope="module")
def meta_nets():
    with torch.device("meta"):
        return {
            "released": DilatedResNet("resnet101", "deep", ceil_mode=True),
            "mmseg": DilatedResNet("resnet101", "v1c"),
            "gald": DilatedResNet("resnet50", "deep", "full", ceil_mode=True),
            "plain": DilatedResNet("resnet50"),
        }


@pytest.mark.parametrize(
    ("name", "stem"),
    [("released", [64, 64, 128]), ("gald", [64, 64, 128]), ("mmseg", [32, 32, 64])],
)
def test_deep_stems(meta_nets, name, stem):
    convolutions = [meta_nets[name].conv1[i] for i in (0, 3, 6)]
    assert [conv.out_channels for conv in convolutions] == stem
    assert [conv.stride[0] for conv in convolutions] == [2, 1, 1]
    assert all(conv.kernel_size == (3, 3) and conv.bias is None for conv in convolutions)


def test_plain_stem(meta_nets):
    conv = meta_nets["plain"].conv1
    assert (conv.kernel_size, conv.stride, conv.out_channels) == ((7, 7), (2, 2), 64)


@pytest.mark.parametrize("name", ["released", "mmseg", "plain"])
def test_contracted_dilation_halves_that_of_the_first_block(meta_nets, name):
    net = meta_nets[name]
    assert dilations(net.layer3) == [1] + [2] * (len(net.layer3) - 1)
    assert dilations(net.layer4) == [2, 4, 4]


def test_full_dilation_holds_in_the_first_block_too(meta_nets):
    net = meta_nets["gald"]
    assert dilations(net.layer3) == [2] * 6
    assert dilations(net.layer4) == [4, 8, 16]


def test_strides_stand_in_the_3x3_convolution_and_the_shortcut(meta_nets):
    net = meta_nets["released"]
    block = net.layer2[0]
    strides = [conv.stride[0] for conv in (block.conv1, block.conv2, block.conv3)]
    assert strides == [1, 2, 1]
    assert block.downsample[0].stride == (2, 2)
    for stage in (net.layer3, net.layer4):
        assert all(m.stride[0] == 1 for m in stage.modules() if isinstance(m, torch.nn.Conv2d))


@pytest.mark.parametrize(
    ("name", "image", "expected"),
    [
        ("released", (769, 769), (97, 97)),
        ("released", (512, 512), (65, 65)),
        ("released", (1024, 2048), (129, 257)),
        ("mmseg", (769, 769), (97, 97)),
        ("mmseg", (512, 512), (64, 64)),
        ("mmseg", (1024, 2048), (128, 256)),
    ],
)
def test_the_pooling_decides_on_sizes(meta_nets, name, image, expected):
    first, *others = sizes(meta_nets[name], *image)
    assert others == [expected] * 3
    assert first[0] in (2 * expected[0], 2 * expected[0] - 1)


def test_trunk_has_the_published_number_of_parameters(meta_nets):
    assert sum(p.numel() for p in meta_nets["released"].parameters()) == 42_623_936
    assert meta_nets["released"].channels == (256, 512, 1024, 2048)


def test_dilation_leaves_the_function_of_the_undilated_net_at_its_positions():
    """At every 8th position of a dilated stage stands what the strided one computes."""
    timm = pytest.importorskip("timm.models.resnet")
    torch.manual_seed(0)
    strided = timm.ResNet(timm.Bottleneck, (1, 1, 1, 1), num_classes=0, channels=(4, 8, 16, 32))
    dilated = DilatedResNet((1, 1, 1, 1), width=4)
    dilated.load_state_dict(strided.state_dict())
    x = torch.randn(1, 3, 65, 65)
    wanted = strided.eval().forward_features(x)
    found = dilated.eval()(x)[-1][:, :, ::4, ::4]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"stem": "tiered"}, {"dilation": "none"}, {"blocks": "resnet18"}]
)
def test_unknown_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        DilatedResNet(**options)


def test_a_missing_timm_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm.models.resnet", None)
    with pytest.raises(ImportError, match=r"attnops\[models\]"):
        DilatedResNet((1, 1, 1, 1), width=4)
