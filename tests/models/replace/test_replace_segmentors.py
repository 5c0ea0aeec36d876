"""Swapping whole blocks, encoders and decode heads: stand-ins with the published names."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace

import published_modules as published
import published_segmentor as segmentor
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import attnops
from attnops.models import load_checkpoint
from attnops.nn import MSCA, Hamburger, MSCABlock

CLASSES = 5


def samples_of(labels: Tensor) -> list[SimpleNamespace]:
    return [SimpleNamespace(gt_sem_seg=SimpleNamespace(data=label)) for label in labels[:, None]]


def drawn_labels(*shape: int) -> Tensor:
    labels = torch.randint(CLASSES, shape)
    labels[:, : shape[1] // 3] = 255
    return labels


def pair(model: nn.Module, layout=torch.contiguous_format) -> tuple[nn.Module, nn.Module]:
    """The model in float64, as it was and replaced."""
    model = published.shaken(model).double().to(memory_format=layout)
    before = copy.deepcopy(model)
    report = attnops.replace_modules(model)
    assert report.left == [] and not any(
        "not compared" in entry.note for entry in (*report.replaced, *report.extended)
    )
    assert [id(p) for p in before.parameters()] != [id(p) for p in model.parameters()]
    return before, model


def seeded(run, *args) -> Tensor:
    torch.manual_seed(7)
    return run(*args)


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    """In the order of the parameters, which replacing keeps."""
    return list(torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True))


def check_same(before: nn.Module, after: nn.Module, run) -> None:
    """Values, and the gradients of all parameters, from the same state of the generator."""
    wanted, found = (seeded(run, model) for model in (before, after))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)
    if before.training:
        weight = torch.linspace(-1, 1, wanted.numel(), dtype=wanted.dtype).view_as(wanted)
        losses = [(x * weight).sum() for x in (wanted, found)]
        for a, b in zip(gradients(before, losses[0]), gradients(after, losses[1]), strict=True):
            torch.testing.assert_close(b, a, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("wrapped", [False, True], ids=["mmseg", "official"])
@pytest.mark.parametrize("inner", [False, True], ids=["contiguous", "channels_last"])
def test_blocks_on_tokens(training, wrapped, inner):
    block = segmentor.SegNeXtBlock(6, 13, 0.4, wrapped)
    before, after = pair(nn.ModuleList([block]).train(training))
    assert type(after[0]) is MSCABlock and after.training == training
    assert after[0].training == after[0].attention.training == training
    tokens = torch.randn(3, 77, 6, dtype=torch.float64)
    tokens = tokens if inner else tokens.mT.contiguous().mT
    check_same(before, after, lambda model: model[0](tokens, 7, 11))
    assert after[0](tokens, 7, 11).stride() == before[0](tokens, 7, 11).stride()


@pytest.mark.parametrize("wrapped", [False, True], ids=["mmseg", "official"])
def test_a_block_of_ours_loads_a_published_one(wrapped):
    theirs = published.shaken(segmentor.SegNeXtBlock(6, 12, wrapped=wrapped)).eval()
    ours = MSCABlock(6, 2.0).eval()
    assert load_checkpoint(ours, theirs.state_dict()).kept == []
    tokens = torch.randn(2, 63, 6)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens, 7, 9), theirs(tokens, 7, 9))
        maps = ours(tokens.mT.unflatten(2, (7, 9)))
    torch.testing.assert_close(maps.flatten(2).mT, ours(tokens, 7, 9))
    with pytest.raises(ValueError, match=r"x must be \[B, 64, 6\], got \[2, 63, 6\]"):
        ours(tokens, 8, 8)


def test_blocks_on_maps():
    before, after = pair(nn.Sequential(segmentor.MapBlock(6, 12), segmentor.MapBlock(6, 7)))
    assert all(type(block) is MSCABlock for block in after)
    check_same(before, after, lambda model: model(torch.ones(2, 6, 8, 9).double()))


@pytest.mark.parametrize(
    "make", [lambda: segmentor.MapBlock(6, 12), lambda: published.PublishedHamburger(16, 5)]
)
def test_a_known_module_itself_becomes_ours(make):
    model = published.shaken(make()).double().train()
    before, held = copy.deepcopy(model), model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    report = attnops.replace_modules(model)
    (entry,) = report.replaced
    assert entry.path == "" and "(the model itself)" in str(report)
    assert held is model and type(model) in (MSCABlock, Hamburger) and model.training
    assert report.to_new_names(before.state_dict()).keys() == model.state_dict().keys()
    channels = 6 if isinstance(model, MSCABlock) else 16
    x = torch.randn(2, channels, 8, 9, dtype=torch.float64)
    check_same(before, model, lambda net: net(x))
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {
        id(p) for p in model.parameters()
    }
    assert attnops.replace_modules(model) == attnops.ReplacementReport()


def hook(module: nn.Module) -> None:
    module.register_forward_hook(lambda *args: None)


def with_other(block: nn.Module, path: str, other: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(block.get_submodule(parent), name, other)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda block: hook(block.attn), "attn has hooks"),
        (lambda block: hook(block.mlp.act), "mlp.act has hooks"),
        (lambda block: (hook(block), hook(block.mlp)), "it, mlp have hooks"),
        (lambda block: hook(block.mlp.fc1), "mlp.fc1 has hooks"),
        (lambda block: with_other(block, "mlp.act", nn.GELU("tanh")), "exact GELU"),
        (lambda block: with_other(block, "attn.activation", nn.ReLU()), "exact GELU"),
        (lambda block: with_other(block, "mlp.drop", nn.Dropout(0.2)), "p=0.2"),
        (lambda block: with_other(block, "norm2", nn.InstanceNorm2d(6)), "InstanceNorm2d"),
        (lambda block: with_other(block, "adapter", nn.Conv2d(6, 6, 1)), "adapter"),
        (lambda block: with_other(block, "drop_path", nn.Dropout(0.1)), "Dropout"),
        (lambda block: setattr(block, "layer_scale_1", None), "layer scales"),
    ],
)
def test_other_blocks_are_left_alone_but_for_their_gating_unit(change, reason):
    model = nn.Sequential(segmentor.SegNeXtBlock(6, 12))
    change(model[0])
    report = attnops.replace_modules(model)
    (entry,) = report.left
    assert entry.path == "0" and reason in entry.note
    assert [(e.path, e.now) for e in report.replaced] == [("0.attn.spatial_gating_unit", "MSCA")]
    assert isinstance(model[0].attn.spatial_gating_unit, MSCA)


def test_hooks_on_wrappers_of_other_heads_are_named():
    model = nn.Sequential(published.PublishedHamburger(16, 4), published.Block(8, 8, True, False))
    hook(model[0].ham_out)
    hook(model[1].stages[0].key_project.activate)
    report = attnops.replace_modules(model)
    assert report.replaced == []
    assert [entry.note for entry in report.left] == [
        "ham_out has hooks, which would be lost",
        "stages.0.key_project.activate has hooks, which would be lost",
    ]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_segmentors(layout, training):
    before, after = pair(segmentor.Segmentor(drop_path=0.3).train(training), layout)
    assert [type(m) for m in after.children()] != [type(m) for m in before.children()]
    assert isinstance(after.backbone, segmentor.Encoder)
    assert isinstance(after.decode_head, segmentor.LightHead)
    images = torch.randn(2, 3, 50, 46, dtype=torch.float64).contiguous(memory_format=layout)
    check_same(before, after, lambda model: model(images))
    samples = samples_of(drawn_labels(2, 50, 46))
    check_same(before, after, lambda model: model.loss(images, samples)["loss_ce"])
    accuracies = [seeded(model.loss, images, samples)["acc_seg"] for model in (before, after)]
    torch.testing.assert_close(accuracies[1], accuracies[0])
    for maps in (after.backbone(images), after.backbone(images[:1])):
        assert all(x.is_contiguous(memory_format=layout) for x in maps)
    # One image's strides may be such that convolutions copy, though they are contiguous.
    assert all(x.stride() == torch.empty_like(x, memory_format=layout).stride() for x in maps)
    assert attnops.replace_modules(after) == attnops.ReplacementReport()


def test_the_report_of_a_segmentor():
    model = segmentor.Segmentor()
    state = copy.deepcopy(model.state_dict())
    report = attnops.replace_modules(model)
    paths = [entry.path for entry in report.replaced]
    blocks = [f"backbone.block{i}.{j}" for i, j in ((1, 0), (1, 1), (2, 0), (3, 0))]
    assert paths == [*blocks, "decode_head.hamburger"]
    assert [entry.path for entry in report.extended] == ["backbone", "decode_head"]
    assert str(report).startswith("5 modules replaced, 0 left alone, 2 extended\n")
    assert "block1.0: SegNeXtBlock -> attnops.nn.MSCABlock" in str(report)
    assert "convolutions before resizes and upsample_cross_entropy" in str(report)
    assert model.state_dict().keys() == report.to_new_names(state).keys()
    assert report.to_old_names(model.state_dict()).keys() == state.keys()


def test_copies_and_files_of_segmentors():
    model = segmentor.Segmentor().eval()
    attnops.replace_modules(model)
    images = torch.randn(1, 3, 40, 40)
    for other in (copy.deepcopy(model), copy.copy(model), pickle.loads(pickle.dumps(model))):
        assert type(other.decode_head) is type(model.decode_head)
        assert torch.equal(seeded(other, images), seeded(model, images))


def test_a_segmentor_compiles():
    model = segmentor.Segmentor()
    attnops.replace_modules(model)
    images = torch.randn(2, 3, 40, 48)
    samples = samples_of(drawn_labels(2, 40, 48))
    model.eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(seeded(compiled, images), seeded(model, images))
    loss = torch.compile(
        lambda logits: model.decode_head.loss_by_feat(logits, samples)["loss_ce"],
        backend="eager",
        fullgraph=True,
    )
    logits = torch.randn(2, CLASSES, 6, 5)
    wanted = model.decode_head.loss_by_feat(logits, samples)["loss_ce"]
    torch.testing.assert_close(loss(logits), wanted)


def test_autocast_stays_within_the_budget():
    """Its error against float64 is at most twice the original's."""
    wide, after = pair(segmentor.Segmentor().eval())
    before = copy.deepcopy(wide).float()
    after = after.float()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        oracle = seeded(wide, images.double())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            errors = [(seeded(m, images).double() - oracle).norm() for m in (before, after)]
    assert errors[1] <= 2 * errors[0]


WEIGHTS = [0.5, 2.0, 1.0, 0.1, 3.0]
LOSSES = {
    "all pixels": lambda: None,
    "valid pixels": lambda: segmentor.CrossEntropyLoss(0.4, avg_non_ignore=True),
    "weighted": lambda: segmentor.CrossEntropyLoss(class_weight=WEIGHTS),
    "two": lambda: nn.ModuleList(
        [segmentor.CrossEntropyLoss(), segmentor.CrossEntropyLoss(0.3, avg_non_ignore=True)]
    ),
    "two names": lambda: nn.ModuleList(
        [segmentor.CrossEntropyLoss(), segmentor.CrossEntropyLoss(0.3, name="loss_other")]
    ),
}


@pytest.mark.parametrize("ignored", ["some", "all", "none"])
@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name, corners, ignored):
    head = segmentor.BaseDecodeHead(8, CLASSES, LOSSES[name]())
    head.align_corners = corners
    before, after = pair(nn.ModuleList([head]))
    logits = torch.randn(2, CLASSES, 6, 5, dtype=torch.float64, requires_grad=True)
    labels = drawn_labels(2, 23, 17)
    if ignored != "some":
        labels = torch.full_like(labels, 255) if ignored == "all" else labels % CLASSES
    wanted, found = (m[0].loss_by_feat(logits, samples_of(labels)) for m in (before, after))
    assert list(found) == list(wanted)
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-12)
        assert found[key].shape == value.shape and found[key].dtype == value.dtype
        if value.requires_grad:
            grads = [
                torch.autograd.grad(x[key], logits, retain_graph=True) for x in (found, wanted)
            ]
            torch.testing.assert_close(*grads, rtol=1e-6, atol=1e-12)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for x in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.numel())
        return found


def test_no_full_size_logits_are_made():
    images, size = torch.randn(2, 3, 96, 96), (2, 96, 96)
    samples = samples_of(torch.randint(99, size))
    model = segmentor.Segmentor(head=segmentor.LightHead(classes=99))
    full = 2 * 99 * 96 * 96
    for replaced in (False, True):
        with Largest() as largest:
            model.loss(images, samples)["loss_ce"].backward()
        assert (largest.elements < full / 3) == replaced
        attnops.replace_modules(model)
    with Largest() as largest:
        labels = attnops.predict_labels(model, images)
    assert labels.shape == size and largest.elements < full / 3


def sampling(head: nn.Module) -> None:
    head.sampler = SimpleNamespace(sample=None)


class Overridden(segmentor.BaseDecodeHead):
    def loss_by_feat(self, *args: object) -> dict[str, Tensor]:
        return {"loss": super().loss_by_feat(*args)["loss_ce"] * 2}


@pytest.mark.parametrize(
    ("make", "change", "reason"),
    [
        (lambda: segmentor.BaseDecodeHead(8, 5), sampling, "samples pixels"),
        (lambda: segmentor.BaseDecodeHead(8, 1), None, "one class"),
        (lambda: segmentor.BaseDecodeHead(8, 5, segmentor.FocalLoss()), None, "FocalLoss"),
        (
            lambda: segmentor.BaseDecodeHead(8, 5),
            lambda head: setattr(head.loss_decode, "use_sigmoid", True),
            "single classes",
        ),
        (lambda: segmentor.BaseDecodeHead(8, 5), lambda h: hook(h.loss_decode), "hooks"),
        (lambda: Overridden(8, 5), None, None),
    ],
)
def test_other_losses_are_left_alone(make, change, reason):
    model = nn.ModuleList([make()])
    if change is not None:
        change(model[0])
    kind = type(model[0])
    report = attnops.replace_modules(model)
    assert report.replaced == report.extended == [] and type(model[0]) is kind
    assert [reason in entry.note for entry in report.left] == ([] if reason is None else [True])


class OverriddenLight(Overridden, segmentor.LightHead):
    pass


@pytest.mark.parametrize(
    ("make", "reason", "loss"),
    [
        (lambda: segmentor.LightHead(losses=segmentor.FocalLoss()), "FocalLoss", "loss_ce"),
        (OverriddenLight, "loss_by_feat of its own", "loss"),
    ],
)
def test_a_light_head_with_another_loss_is_half_replaced(make, reason, loss):
    before, after = pair(segmentor.Segmentor(head=make()))
    report = attnops.replace_modules(copy.deepcopy(before))
    (entry,) = [e for e in report.extended if e.path == "decode_head"]
    assert entry.note.startswith("its loss is left alone: ") and reason in entry.note
    images, samples = torch.randn(1, 3, 40, 40).double(), samples_of(drawn_labels(1, 40, 40))
    check_same(before, after, lambda m: m.loss(images, samples)[loss])


def test_what_is_set_later_counts():
    before, after = pair(segmentor.Segmentor())
    images, samples = torch.randn(1, 3, 40, 40).double(), samples_of(drawn_labels(1, 40, 40))
    seen = []
    for model in (before, after):
        model.decode_head.loss_decode = segmentor.FocalLoss()
        model.decode_head.squeeze.register_forward_hook(lambda *args: seen.append(args[1][0].shape))
    check_same(before, after, lambda m: m.loss(images, samples)["loss_ce"])
    assert len(seen) == 2 and seen[0] == seen[1]
