"""SegNeXt: published checkpoints and the published function, variants, decoders, training."""

from __future__ import annotations

import itertools

import model_checks
import pytest
import torch
from model_checks import shake, targets
from torch import Tensor, nn
from torch.nn.functional import (
    batch_norm,
    conv2d,
    gelu,
    group_norm,
    interpolate,
    layer_norm,
    normalize,
)

from attnops.models import SegNeXt, create_model, export_checkpoint, list_models, load_checkpoint
from attnops.models.checkpoints import MappingError
from attnops.nn import MSCABlock

CLASSES = 5
DEPTHS = (3, 3, 5, 2)  # of the smallest variant
FILES = [
    ("segnext_t", "segnext_tiny_mmseg", "mmseg"),
    ("segnext_t", "segnext_tiny_official", "official"),
    ("segnext_s", "segnext_small_mmseg", "mmseg"),
    ("segnext_b", "segnext_base_mmseg", "mmseg"),
    ("segnext_l", "segnext_large_mmseg", "mmseg"),
]


def tiny(**options) -> SegNeXt:
    return shake(create_model("segnext_t", num_classes=CLASSES, seed=3, **options))


def numbered(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """Every tensor holds its own number, in no memory."""
    return {
        key: torch.full((), float(i)).to(torch.int64 if not shape else torch.float32).expand(shape)
        for i, (key, shape) in enumerate(shapes.items())
    }


@pytest.mark.parametrize(("name", "keys", "style"), FILES)
def test_published_checkpoints_go_there_and_back(name, keys, style):
    state = numbered(model_checks.published_keys(keys))
    model = create_model(name, num_classes=150)
    report = load_checkpoint(model, {"state_dict": {f"module.{k}": v for k, v in state.items()}})
    assert report.style == style
    assert set(report.loaded) == set(state)
    assert set(report.loaded.values()) == set(model.state_dict())
    back = export_checkpoint(model, style)
    assert {k: list(v.shape) for k, v in back.items()} == model_checks.published_keys(keys)
    assert all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("decode_head.conv_seg.bias"), r"missing: decode_head\.conv_seg\.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "extra"),
        (
            lambda s: s.update({"backbone.norm4.bias": torch.zeros(255)}),
            r"backbone\.norm4\.bias.*255",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(change, message):
    state = numbered(model_checks.published_keys("segnext_tiny_mmseg"))
    change(state)
    model = create_model("segnext_t", num_classes=150)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(MappingError, match=message):
        load_checkpoint(model, state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_file_is_read(tmp_path):
    source = tiny()
    torch.save({"state_dict": export_checkpoint(source, "official")}, tmp_path / "segnext.pth")
    model = tiny()
    assert load_checkpoint(model, tmp_path / "segnext.pth").style == "official"
    for key, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


class Published:
    """The published network as the specification words it, on a state dict of its own names."""

    def __init__(self, state: dict[str, Tensor], bases: Tensor):
        self.state, self.bases = state, bases

    def conv(self, key: str, x: Tensor, **options) -> Tensor:
        weight = self.state[f"{key}.weight"]
        groups = 1 if weight.shape[1] == x.shape[1] else x.shape[1]
        padding = tuple(side // 2 for side in weight.shape[2:])
        bias = self.state.get(f"{key}.bias")
        return conv2d(x, weight, bias, padding=padding, groups=groups, **options)

    def bn(self, key: str, x: Tensor) -> Tensor:
        names = ("running_mean", "running_var", "weight", "bias")
        return batch_norm(x, *(self.state[f"{key}.{name}"] for name in names))

    def gn(self, key: str, x: Tensor) -> Tensor:
        return group_norm(x, 32, self.state[f"{key}.weight"], self.state[f"{key}.bias"])

    def ln(self, key: str, x: Tensor) -> Tensor:
        weight, bias = self.state[f"{key}.weight"], self.state[f"{key}.bias"]
        return layer_norm(x.movedim(1, 3), weight.shape, weight, bias).movedim(3, 1)

    def block(self, key: str, x: Tensor) -> Tensor:
        z = self.bn(f"{key}.norm1", x)
        u = gelu(self.conv(f"{key}.attn.proj_1", z))
        gate = f"{key}.attn.spatial_gating_unit"
        a = self.conv(f"{gate}.conv0", u)
        s = a
        for i in range(3):
            s = s + self.conv(f"{gate}.conv{i}_2", self.conv(f"{gate}.conv{i}_1", a))
        o = self.conv(f"{key}.attn.proj_2", self.conv(f"{gate}.conv3", s) * u) + z
        x = x + self.state[f"{key}.layer_scale_1"][:, None, None] * o
        hidden = self.conv(f"{key}.mlp.fc1", self.bn(f"{key}.norm2", x))
        hidden = self.conv(f"{key}.mlp.fc2", gelu(self.conv(f"{key}.mlp.dwconv", hidden)))
        return x + self.state[f"{key}.layer_scale_2"][:, None, None] * hidden

    def features(self, x: Tensor) -> list[Tensor]:
        found = []
        for i, depth in enumerate(DEPTHS, 1):
            key = f"backbone.patch_embed{i}"
            if i == 1:
                x = gelu(self.bn(f"{key}.proj.1", self.conv(f"{key}.proj.0", x, stride=2)))
                x = self.bn(f"{key}.proj.4", self.conv(f"{key}.proj.3", x, stride=2))
            else:
                x = self.bn(f"{key}.norm", self.conv(f"{key}.proj", x, stride=2))
            for j in range(depth):
                x = self.block(f"backbone.block{i}.{j}", x)
            x = self.ln(f"backbone.norm{i}", x)
            found.append(x)
        return found

    def nmf(self, x: Tensor, steps: int = 7, eps: float = 1e-6) -> Tensor:
        a = self.bases.to(x)
        c = (x.mT @ a).softmax(dim=2)
        for step in range(steps + 1):
            c = c * (x.mT @ a) / (c @ (a.mT @ a) + eps)
            if step < steps:
                a = a * (x @ c) / (a @ (c.mT @ c) + eps)
        return a @ c.mT

    def __call__(self, images: Tensor) -> Tensor:
        _, *maps = self.features(images)
        size = maps[0].shape[2:]
        y = torch.cat([interpolate(m, size, mode="bilinear") for m in maps], dim=1)
        head = "decode_head."
        y = self.gn(f"{head}squeeze.gn", self.conv(f"{head}squeeze.conv", y)).relu()
        h = self.conv(f"{head}hamburger.ham_in.conv", y).relu()
        h = self.nmf(h.flatten(2)).view_as(h)
        out = f"{head}hamburger.ham_out"
        y = (y + self.gn(f"{out}.gn", self.conv(f"{out}.conv", h))).relu()
        y = self.gn(f"{head}align.gn", self.conv(f"{head}align.conv", y)).relu()
        logits = self.conv(f"{head}conv_seg", y)
        return interpolate(logits, images.shape[2:], mode="bilinear", align_corners=False)


def test_the_function_is_the_published_one():
    model = tiny().double().eval()
    bases = normalize(torch.rand(1, 256, 16, dtype=torch.float64), dim=1)
    model.decoder.context.bases = bases
    images = torch.randn(2, 3, 65, 90, dtype=torch.float64)
    with torch.no_grad():
        found = model(images)["out"]
        wanted = Published(export_checkpoint(model, "mmseg"), bases)(images)
    torch.testing.assert_close(found, wanted)


def test_bases_are_drawn_as_published():
    model = create_model("segnext_t", num_classes=CLASSES).double().eval()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.manual_seed(5)
        found = model(images)["out"]
        torch.manual_seed(5)
        bases = normalize(torch.rand(2, 256, 16), dim=1)
        wanted = Published(export_checkpoint(model, "mmseg"), bases)(images)
        assert not torch.equal(model(images)["out"], found)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_variants():
    assert list_models("segnext_?") == ["segnext_b", "segnext_l", "segnext_s", "segnext_t"]
    ranks = {"t": 16, "s": 16, "b": 64, "l": 64}
    for variant, rank in ranks.items():
        with torch.device("meta"):
            model = create_model(f"segnext_{variant}", num_classes=150)
        assert model.decoder.context.rank == rank
        rates = [block.drop_path for stage in model.backbone.stages for block in stage.blocks]
        assert rates[0] == 0.0 and rates[-1] == pytest.approx(0.3 if variant == "l" else 0.1)
        steps = {round(b - a, 9) for a, b in itertools.pairwise(rates)}
        assert len(steps) == 1
    with torch.device("meta"):
        assert create_model("segnext_l", num_classes=2, rank=16).decoder.context.rank == 16


@pytest.mark.parametrize("decoder", ["ham", "nl", "cc", "ema", "msca", "mlp"])
def test_training_step_of_every_decoder(decoder):
    model = tiny(decoder=decoder, drop_path_rate=0.0)
    model_checks.check_trains(model, torch.randn(2, 3, 65, 70), targets(2, CLASSES, 65, 70))


@pytest.mark.parametrize("decoder", ["ham", "nl", "cc", "ema", "msca", "mlp"])
def test_backends_and_layouts_agree(decoder):
    model_checks.check_backends_agree(tiny(decoder=decoder), torch.randn(1, 3, 65, 72))


def test_dropped_branches_leave_the_input():
    model = tiny(drop_path_rate=0.9).train()
    block = model.backbone.stages[3].blocks[-1]
    x = torch.randn(64, 256, 2, 2)
    block.norm1.eval()
    block.norm2.eval()
    left = (block(x) == x).flatten(1).all(1).float().mean()
    assert 0.6 < left < 0.95  # 0.81 are expected


def test_autocast():
    model_checks.check_autocast(tiny(drop_path_rate=0.0), torch.randn(2, 3, 64, 72))


@model_checks.every_trace
def test_whole_graphs(trace):
    model = tiny()
    for (
        stage
    ) in model.backbone.stages:  # the blocks of a stage differ in weights and drop rate alone
        del stage.blocks[1:]
    trace(model, torch.randn(1, 3, 65, 72))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder": "unet"}, "decoder must be"),
        ({"rank": 0}, "rank"),
        ({"drop_path_rate": 1.0}, "drop_path_rate"),
        ({"dropout": -0.1}, "dropout"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        create_model("segnext_t", num_classes=CLASSES, **options)


class Constant(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(x, self.value)


@pytest.mark.parametrize("rate", [0.3, 0.75])
def test_dropped_paths_are_a_fair_coin(rate):
    """Samples keep each branch with 1 - rate, divided by it, independently: binomial counts."""
    block = MSCABlock(3, 2.0, rate).train()
    block.norm1, block.norm2 = nn.Identity(), nn.Identity()
    block.attention, block.feed_forward = Constant(1.0), Constant(100.0)
    samples, kept = 3000, 1.0 - rate
    nn.init.constant_(block.scale1, 0.5)
    nn.init.constant_(block.scale2, 0.5)
    five_sigma = 5 * (samples * rate * kept) ** 0.5
    first_kept = []
    for seed in range(4):
        torch.manual_seed(seed)
        with torch.no_grad():
            y = block(torch.zeros(samples, 3, 2, 1))
        assert torch.equal(y, y[:, :1, :1, :1].expand_as(y))  # a sample loses a branch as a whole
        y = y[:, 0, 0, 0].double()
        second = y > 10
        first = y - second * 50 / kept > 0.1
        wanted = (0.5 * first.double() + 50.0 * second.double()) / kept
        torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-4)
        for branch in (first, second):
            assert abs(branch.sum().item() - samples * kept) < five_sigma
        both = (first & second).sum().item()
        assert abs(both - samples * kept**2) < five_sigma
        first_kept.append(first)
    assert not torch.equal(first_kept[0], first_kept[1])
    with torch.no_grad():  # in evaluation every sample has both, undivided
        y = block.eval()(torch.zeros(2, 3, 2, 1))
    torch.testing.assert_close(y, torch.full_like(y, 50.5))
