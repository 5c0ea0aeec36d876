"""What save_pretrained writes, and that nothing half-written or unloadable is left."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

pytest.importorskip("huggingface_hub")
pytest.importorskip("safetensors")

from safetensors import torch as safetensors

from attnops.models import MappingError, SegmentationModel, create_model, load_checkpoint


def same(model: nn.Module, other: nn.Module) -> bool:
    state, wanted = model.state_dict(), other.state_dict()
    return state.keys() == wanted.keys() and all(torch.equal(state[k], wanted[k]) for k in state)


def test_the_folder_can_be_read_without_us(tmp_path):
    model = create_model("segnext_t", num_classes=7, rank=5, seed=1)
    model.save_pretrained(tmp_path)
    weights = safetensors.load_file(tmp_path / "model.safetensors")
    state = model.state_dict()
    assert weights.keys() == state.keys()
    assert all(torch.equal(weights[key], state[key]) for key in state)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["name"] == "segnext_t"
    assert (config["num_classes"], config["rank"], config["seed"]) == (7, 5, 1)
    assert {path.name for path in tmp_path.iterdir()} <= {
        "config.json",
        "model.safetensors",
        "README.md",
    }
    other = create_model("segnext_t", num_classes=7, rank=5, seed=1)
    load_checkpoint(other, tmp_path)
    assert same(other, model)


def test_options_of_numpy_are_saved_as_numbers(tmp_path):
    numpy = pytest.importorskip("numpy")
    model = create_model(
        "deeplab_attention",
        num_classes=numpy.int64(3),
        dropout=numpy.float32(0.25),
        scales=(numpy.float64(1.0), torch.tensor(0.5)),
        widths=numpy.array([4, 4, 8, 8, 8]),
        channels=numpy.uint8(8),
        hidden_channels=numpy.array(8),
    )
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["num_classes"] == 3 and type(config["num_classes"]) is int
    assert (config["dropout"], config["scales"]) == (0.25, [1.0, 0.5])
    assert config["widths"] == [4, 4, 8, 8, 8]
    assert same(SegmentationModel.from_pretrained(tmp_path), model)
    model.config["dropout"] = numpy.float16(0.5)  # changed by hand
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dropout"] == 0.5


@pytest.mark.parametrize("classes", [2, 19])
@pytest.mark.parametrize("name", ["segnext_t", "deeplab_attention"])
def test_an_exchanged_classifier_comes_back(name, classes, tmp_path):
    small = {"widths": (4, 4, 8, 8, 8), "channels": 8, "hidden_channels": 8}
    model = create_model(name, num_classes=7, **(small if name != "segnext_t" else {"seed": 1}))
    attribute = "classify" if name == "segnext_t" else "cls"
    old = getattr(model, attribute)
    setattr(model, attribute, nn.Conv2d(old.in_channels, classes, 1))
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["num_classes"] == classes
    again = SegmentationModel.from_pretrained(tmp_path)
    assert same(again, model)
    with torch.no_grad():
        assert again(torch.randn(1, 3, 65, 65))["out"].shape[1] == classes


CHANGES = {
    "no bias": lambda m: setattr(m, "classify", nn.Conv2d(256, 5, 1, bias=False)),
    "3x3": lambda m: setattr(m, "classify", nn.Conv2d(256, 5, 3)),
    "deeper": lambda m: setattr(m, "classify", nn.Sequential(nn.Conv2d(256, 5, 1))),
    "another head": lambda m: setattr(m.decoder, "align", nn.Identity()),
    "one more": lambda m: setattr(m, "aux", nn.Conv2d(3, 3, 1)),
    "meta": lambda m: m.to("meta"),
    "nameless": lambda m: setattr(m, "config", None),
    "unsaveable": lambda m: m.config.update(backbone=nn.Conv2d(3, 3, 1)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_could_not_be_loaded_is_refused_before_anything_is_written(name, tmp_path):
    model = create_model("segnext_t", num_classes=7)
    model.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    CHANGES[name](model)
    with pytest.raises((ValueError, TypeError), match="save_pretrained"):
        model.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises((ValueError, TypeError), match="save_pretrained"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
@pytest.mark.parametrize("half", [False, True])
def test_a_failure_while_writing_leaves_what_was_there(error, half, tmp_path, monkeypatch):
    model = create_model("segnext_t", num_classes=7)
    model.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def failing(model, filename, *args, **kwargs):
        if half:
            with open(filename, "wb") as file:
                file.write(bytes(1000))
        raise error

    monkeypatch.setattr(safetensors, "save_model", failing)
    with pytest.raises(type(error)):
        create_model("segnext_t", num_classes=3).save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_without_its_weights_says_so(tmp_path):
    create_model("segnext_t", num_classes=7).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 5\n"
    )
    with pytest.raises(MappingError, match="git lfs pull"):
        SegmentationModel.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        SegmentationModel.from_pretrained(tmp_path)
