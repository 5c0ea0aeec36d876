"""State dicts inside of what training tools put around them, and networks inside of wrappers."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

pytest.importorskip("timm")

from tiny_networks import CLASSES, tiny_network

from attnops.models import (
    MappingError,
    export_checkpoint,
    load_checkpoint,
)
from attnops.nn import MSCA

STYLES = ["attnops", "mmseg", "official"]
PREFIXES = [
    "module.",
    "_orig_mod.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "module.module.",
    "model.",
    "net.",
    "network.",
    "model._orig_mod.",
    "model.module.",
    "_forward_module.model.",
    "student.net._orig_mod.",
    "whatever.",
]


def drawn(seed: int) -> nn.Module:
    model = tiny_network("ann_mmseg", seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                value.fill_(seed)
            else:
                value.uniform_(0.5, 1.5)
    return model


@pytest.fixture(scope="module")
def source() -> nn.Module:
    return drawn(1)


@pytest.fixture(scope="module")
def other() -> nn.Module:
    return drawn(2)


@pytest.fixture
def model(blank) -> nn.Module:
    return copy.deepcopy(blank)


@pytest.fixture(scope="module")
def blank() -> nn.Module:
    return drawn(3)


def same(model: nn.Module, source: nn.Module) -> bool:
    wanted = source.state_dict()
    return all(torch.equal(value, wanted[key]) for key, value in model.state_dict().items())


def prefixed(state: dict, prefix: str) -> dict:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    ("prefix", "style"), list(zip(PREFIXES, itertools.cycle(STYLES), strict=False))
)
def test_prefixes_are_taken_off(model, source, prefix, style):
    report = load_checkpoint(model, prefixed(export_checkpoint(source, style), prefix))
    assert report.style == style
    assert same(model, source)
    assert set(report.loaded.values()) == set(model.state_dict())
    assert report.dropped == []


@pytest.mark.parametrize("part", ["_orig_mod", "module", "_fsdp_wrapped_module"])
def test_wrappers_of_a_submodule_are_taken_off_inside_of_the_keys(model, source, part):
    state = {
        key.replace("backbone.", f"backbone.{part}.", 1): value
        for key, value in export_checkpoint(source, "mmseg").items()
    }
    load_checkpoint(model, state)
    assert same(model, source)


@pytest.mark.parametrize(
    "keys",
    [
        ("state_dict",),
        ("model",),
        ("params",),
        ("net",),
        ("network",),
        ("weights",),
        ("module",),
        ("model_state_dict",),
        ("state_dict_ema",),
        ("model_ema",),
        ("ema",),
        ("params_ema",),
        ("ema_state_dict",),
        ("my_own_name",),
        ("checkpoint", "model", "state_dict"),
        ("ema", "module"),
    ],
)
def test_dicts_around_are_taken_off(model, source, keys):
    found = export_checkpoint(source, "official")
    for key in reversed(keys):
        found = {"epoch": 3, key: found, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}
    report = load_checkpoint(model, found)
    assert same(model, source)
    assert report.part == ".".join(keys)


@pytest.mark.parametrize(
    ("raw", "averaged"),
    [
        ("state_dict", "state_dict_ema"),
        ("model", "model_ema"),
        ("model", "ema"),
        ("params", "params_ema"),
        ("state_dict", "ema_state_dict"),
        ("student", "teacher"),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_of_raw_and_averaged_weights_the_raw_ones_are_taken(
    model, source, other, raw, averaged, turned
):
    file = {raw: source.state_dict(), averaged: other.state_dict()}
    if turned:
        file = dict(reversed(file.items()))
    report = load_checkpoint(model, file)
    assert same(model, source)
    assert (report.part, report.others) == (raw, (averaged,))
    assert averaged in str(report)
    assert load_checkpoint(model, file, part=averaged).part == averaged
    assert same(model, other)


def test_what_lightning_saves(model, source):
    state = prefixed(source.state_dict(), "net.")
    state["criterion.weight"] = torch.ones(CLASSES)
    report = load_checkpoint(model, {"epoch": 1, "state_dict": state, "callbacks": {"x": {}}})
    assert same(model, source)
    assert report.dropped == ["criterion.weight"]


def test_what_averaged_models_save(model, source):
    average = AveragedModel(source)
    average.n_averaged += 7
    for state in (average.state_dict(), prefixed(average.state_dict(), "ema_model.")):
        target = copy.deepcopy(model)
        report = load_checkpoint(target, {"state_dict": state})
        assert same(target, source)
        assert [key.rpartition(".")[2] for key in report.dropped] == ["n_averaged"]


@pytest.mark.parametrize("counter", ["steps", "module.steps", "num_updates"])
def test_counters_of_other_averages_are_left_out(model, source, counter):
    state = prefixed(source.state_dict(), "module.") | {counter: torch.tensor(3)}
    assert load_checkpoint(model, {"ema_state_dict": state}).dropped == [counter]
    assert same(model, source)


def test_two_equal_candidates_are_named_and_chosen(model, source, other):
    file = {"first": source.state_dict(), "second": other.state_dict()}
    with pytest.raises(MappingError, match=r"first, second .*part="):
        load_checkpoint(model, file)
    load_checkpoint(model, file, part="second")
    assert same(model, other)
    keys = {
        **prefixed(source.state_dict(), "student."),
        **prefixed(other.state_dict(), "teacher."),
    }
    before = copy.deepcopy(model)
    with pytest.raises(MappingError, match=r'unexpected: (student|teacher)\.backbone.*part="'):
        load_checkpoint(model, {"state_dict": keys})
    assert same(model, before)
    load_checkpoint(model, {"state_dict": keys}, part="teacher")
    assert same(model, other)


def test_a_part_that_is_not_there_is_refused(model, source):
    with pytest.raises(MappingError, match=r"no part 'ema'; it has state_dict"):
        load_checkpoint(model, {"state_dict": source.state_dict()}, part="ema")


class Training(nn.Module):
    """As training frameworks hold a network: beside a criterion and metrics."""

    def __init__(self, name: str, network: nn.Module) -> None:
        super().__init__()
        setattr(self, name, network)
        self.criterion = nn.CrossEntropyLoss(torch.ones(CLASSES))


class Alone(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.model = network


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "compiled": lambda m: torch.compile(m, backend="eager"),
    "compiled, parallel": lambda m: torch.compile(nn.DataParallel(m), backend="eager"),
    "parallel, compiled": lambda m: nn.DataParallel(torch.compile(m, backend="eager")),
    "averaged": AveragedModel,
    "training module": lambda m: Training("net", m),
    "training module of a parallel": lambda m: Training("model", nn.DataParallel(m)),
    "alone": Alone,
}


@pytest.mark.parametrize(
    ("wrapper", "style"),
    [
        *zip(WRAPPERS, itertools.cycle(STYLES), strict=False),
        ("DataParallel", "backbone-mmseg"),
        ("training module", "backbone"),
    ],
)
def test_wrapped_networks_are_found(model, source, wrapper, style):
    wrapped = WRAPPERS[wrapper](model)
    report = load_checkpoint(wrapped, {"state_dict": export_checkpoint(source, style)})
    assert report.style == style
    inner = next(m for m in wrapped.modules() if type(m) is type(source))
    if style.startswith("backbone"):
        inner, source = inner.backbone, source.backbone
    assert same(inner, source)
    assert set(export_checkpoint(wrapped, "mmseg")) == set(export_checkpoint(model, "mmseg"))


def test_distributed_data_parallel(model, source, tmp_path):
    if not torch.distributed.is_available():
        pytest.skip("no torch.distributed")
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        load_checkpoint(wrapped, export_checkpoint(source, "official"))
        assert same(model, source)
        load_checkpoint(model, wrapped.state_dict())
    finally:
        torch.distributed.destroy_process_group()


def test_all_of_a_training_module_is_loaded_where_the_file_has_it(source, other):
    target, wanted = Training("model", copy.deepcopy(other)), Training("model", source)
    wanted.criterion.weight.fill_(0.25)
    report = load_checkpoint(target, wanted.state_dict())
    assert same(target, wanted)
    assert report.dropped == []


def test_a_file_that_belongs_to_something_larger_does_not_fill_a_block(source):
    """A network has these names in many places: none is meant."""
    gate = MSCA(32)
    before = copy.deepcopy(gate)
    with pytest.raises(MappingError, match="nothing was loaded"):
        load_checkpoint(gate, source.state_dict())
    assert same(gate, before)


def test_messages_name_the_keys_of_the_file(model, source):
    state = prefixed(export_checkpoint(source, "mmseg"), "module.")
    state["module.decode_head.conv_seg.weight"] = torch.zeros(CLASSES, 7, 1, 1)
    state["module.decode_head.extra"] = torch.zeros(1)
    lost = "decode_head.bottleneck.conv.weight"
    del state[f"module.{lost}"]
    with pytest.raises(MappingError) as error:
        load_checkpoint(model, {"state_dict": state})
    text = str(error.value)
    assert "module.decode_head.conv_seg.weight (here cls.weight) [5, 7, 1, 1]" in text
    assert "unexpected: module.decode_head.extra" in text
    assert f"missing: {lost}" in text


def test_bad_arguments_are_refused(model, source):
    with pytest.raises(TypeError, match=r"give its state_dict\(\)"):
        load_checkpoint(model, source)
    with pytest.raises(TypeError, match="a path or a state dict, got a list"):
        load_checkpoint(model, [source.state_dict()])
    with pytest.raises(TypeError, match="expected a module, got a dict"):
        load_checkpoint({}, source.state_dict())
    for empty in ({}, {"state_dict": {}}, {"epoch": 3}):
        with pytest.raises(MappingError, match="the mapping should be a state dict"):
            load_checkpoint(model, empty)
    with pytest.raises(MappingError, match=r"no key of the file fits a ANN.*the file has a, b"):
        load_checkpoint(model, {"a": torch.ones(1), "b": torch.ones(1)})
