"""The networks: names, parameter counts of the specification, a training step, labels."""

from __future__ import annotations

import pytest
import torch

models = pytest.importorskip("attnops.models")

COUNTS = {  # classes, parameters without auxiliary heads
    "segnext_t": (150, 4_263_414),
    "segnext_s": (150, 13_932_886),
    "segnext_b": (150, 27_636_310),
    "segnext_l": (150, 48_926_550),
    "ann_r101": (19, 62_964_435),
    "galdv1_r50": (19, 47_672_787),
    "galdv1_r101": (19, 66_664_915),
    "deeplab_attention": (21, 20_505_429 + 14_157_827),
}


def create(name: str, **options):
    try:
        return models.create_model(name, **options)
    except ImportError as error:
        pytest.skip(str(error))


def test_every_published_name_is_there() -> None:
    assert {*COUNTS, "ann_r50", "galdv2_r50", "galdv2_r101", "sanet_r50"} <= set(
        models.list_models()
    )
    assert models.list_models("segnext_*") == ["segnext_b", "segnext_l", "segnext_s", "segnext_t"]


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_of_the_specification(name: str) -> None:
    classes, expected = COUNTS[name]
    with torch.device("meta"):
        network = create(name, num_classes=classes)
    named = network.named_parameters()
    assert sum(p.numel() for n, p in named if not n.startswith("aux")) == expected


@pytest.mark.parametrize("name", ["segnext_t", "galdv1_r50", "ann_r50"])
def test_training_step_and_labels(name: str) -> None:
    network = create(name, num_classes=5)
    size = (129, 137) if name.startswith("gald") else (65, 73)
    images = torch.randn(2, 3, *size)
    target = torch.randint(5, (2, *size))
    loss = network.loss(network(images), target)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    network.eval()
    with torch.no_grad():
        assert network(images)["out"].shape == (2, 5, *size)
    labels = network.predict(images)
    assert labels.shape == (2, *size) and labels.dtype == torch.int64


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="segnext_x"):
        models.create_model("segnext_x", num_classes=5)
