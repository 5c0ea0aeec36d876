"""timm's padding as TensorFlow's, in sizes that compilers can reckon with."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from attnops.models import ANN, SegmentationModel, deploy, export_program
from attnops.models._same_padding import SamePadding, with_same_padding
from attnops.models.deploy.deployment import evaluation_copy
from attnops.models.deploy.folding import fold

Conv2dSame = pytest.importorskip("timm.layers").Conv2dSame

SIZES = ((7, 8), (9, 12), (10, 5), (3, 1))


@pytest.mark.parametrize("kernel", [2, 3, 5, (3, 6)])
@pytest.mark.parametrize("stride", [2, 3, (1, 2)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_convolves_as_timm(kernel, stride, dilation):
    conv = Conv2dSame(4, 6, kernel, stride, dilation=dilation, groups=2)
    same = with_same_padding(conv)
    if kernel == 2 and stride == 3 and dilation == 1:
        assert same is None  # results of some positions alone, for which nothing is padded
        return
    for height, width in SIZES:
        x = torch.randn(2, 4, height, width)
        assert torch.equal(same(x), conv(x))


def test_leaves_what_is_not_as_timm_built_it():
    hooked, own = Conv2dSame(4, 6, 3, 2), type("Own", (Conv2dSame,), {})(4, 6, 3, 2)
    hooked.register_forward_hook(lambda *_: None)
    assert with_same_padding(hooked) is None
    assert with_same_padding(own) is None
    assert with_same_padding(nn.Conv2d(4, 6, 3, 2)) is None


def test_sizes_stay_short():
    layers = [with_same_padding(Conv2dSame(3, 3, k, 2)) for k in (3, 5, 3, 5, 3)]
    images = torch.zeros(2, 3, 128, 160)
    free = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        nn.Sequential(*layers), (images,), dynamic_shapes=({2: free, 3: free},)
    )
    out = next(iter(program.graph_module.graph.find_nodes(op="output"))).args[0][0].meta["val"]
    assert tuple(map(int, (s.node.hint for s in out.shape[2:]))) == (4, 5)
    assert all(len(str(size)) < 120 for size in out.shape[2:])


def test_deployed_backbone_labels_as_before():
    torch.manual_seed(0)
    model = ANN(5, "tf_efficientnet_lite0.in1k", channels=24, key_channels=8).eval()
    with torch.no_grad():
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 2)
    ready = deploy(model, compile=False, keep_memory=False)
    for height, width in itertools.product((64, 75), (90, 97)):
        images = torch.randn(1, 3, height, width)
        expected = model(images)["out"]
        found = ready.logits(images)
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    copied = evaluation_copy(model, seed=0)
    folded = fold(copied, images)
    assert folded.folded == folded.norms > 0
    kinds = {type(module) for module in copied.modules()}
    assert SamePadding in kinds and Conv2dSame not in kinds
    assert Conv2dSame in map(type, model.modules())


class Padded(SegmentationModel):
    """As many strided convolutions as EfficientNet has."""

    smallest_side = 32

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 8, 8, 8, 8, 8)
        self.body = nn.Sequential(
            *(
                Conv2dSame(i, o, k, 2)
                for i, o, k in zip(widths, widths[1:], (3, 3, 5, 3, 5), strict=False)
            )
        )
        self.classify = nn.Conv2d(8, 4, 1)

    def logits(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": self.classify(self.body(images))}


def test_program_for_any_size(tmp_path):
    model = Padded().eval()
    export_program(model, tmp_path / "padded.pt2", output="logits")
    program = torch.export.load(tmp_path / "padded.pt2").module()
    for size in ((64, 64), (97, 130)):
        images = torch.randn(1, 3, *size)
        assert torch.allclose(program(images), model(images)["out"], atol=1e-5)


@pytest.mark.slow
def test_deployment_compiles():
    model = Padded().eval()
    ready = deploy(model, compile=True, keep_memory=False)
    images = torch.randn(2, 3, 65, 96)
    assert torch.allclose(ready.logits(images), model(images)["out"], atol=1e-5)
