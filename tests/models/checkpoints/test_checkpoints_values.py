"""What tensors a file may hold, that all are loaded or none, and models on the meta device."""

from __future__ import annotations

import copy

import pytest
import torch
from model_checks import tiny_resnet
from torch import Tensor, nn

from attnops.models import (
    ANN,
    GALDv1,
    GALDv2,
    MappingError,
    SANet,
    SegNeXt,
    create_model,
    export_checkpoint,
    load_checkpoint,
)
from attnops.nn import APNB, MSCA, Hamburger, LocalDistribution


def block() -> nn.Module:
    """A block with counters and a published form that repeats a tensor and moves biases."""
    return APNB(8, 4, 4)


def same(state: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return state.keys() == other.keys() and all(torch.equal(state[k], other[k]) for k in state)


def kept(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


UNFIT = {
    "int8": (lambda x: (100 * x).to(torch.int8), "is int8, which is no float32"),
    "int64": (lambda x: x.long(), "is int64"),
    "uint8": (lambda x: x.to(torch.uint8), "is uint8"),
    "bool": (lambda x: x > 0, "is bool"),
    "complex64": (lambda x: torch.complex(x, x), "is complex64"),
    "complex128": (lambda x: torch.complex(x, x).to(torch.complex128), "is complex128"),
    "float8": (lambda x: x.to(torch.float8_e4m3fn), "is float8_e4m3fn"),
    "meta": (lambda x: x.to("meta"), "has no values"),
    "sparse": (lambda x: x.to_sparse(), "is sparse"),
    "sparse, compressed": (lambda x: x.flatten(1).to_sparse_csr(), "is sparse"),
    "quantized": (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "is quantized"),
    "too large": (lambda x: x.double() + 1e300, "has values too large for float32"),
}


@pytest.mark.parametrize("style", ["attnops", "official", "mmseg"])
@pytest.mark.parametrize("where", ["first", "last", "copy", "fused"])
@pytest.mark.parametrize("name", UNFIT)
@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_one_tensor_of_another_kind_and_nothing_is_loaded(name, where, style):
    change, message = UNFIT[name]
    model, source = block(), block()
    state = export_checkpoint(source, style)
    keys = [key for key in state if state[key].is_floating_point() and state[key].dim() == 4]
    index = {"first": 0, "last": -1, "copy": len(keys) // 2, "fused": 1}[where]
    state[keys[index]] = change(state[keys[index]] + 1)
    before = kept(model)
    with pytest.raises(MappingError, match="nothing was loaded") as error:
        load_checkpoint(model, state)
    assert f"{keys[index]} {message}" in str(error.value)
    assert same(model.state_dict(), before)


def test_a_bias_that_is_moved_is_looked_at_too():
    source = block()
    state = export_checkpoint(source, "official")
    key = "conv_bn_dropout.0.bias"
    state[key] = state[key].to(torch.int8)
    model = block()
    model.fusion.conv.register_parameter("bias", None)
    model.attention.key.conv.register_parameter("bias", None)
    before = kept(model)
    with pytest.raises(MappingError, match=rf"{key} is int8"):
        load_checkpoint(model, state)
    assert same(model.state_dict(), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float32])
@pytest.mark.parametrize("ours", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("meta", [False, True])
def test_floats_of_other_widths_are_converted(dtype, ours, meta):
    source = block().to(dtype)
    with torch.device("meta" if meta else "cpu"):
        model = block().to(ours)
    load_checkpoint(model, source.state_dict())
    for key, value in model.state_dict().items():
        wanted = source.state_dict()[key]
        assert value.dtype == (torch.int64 if key.endswith("tracked") else ours)
        assert torch.equal(value, wanted.to(value.dtype)), key


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8, torch.float32])
def test_counters_may_be_any_whole_number(dtype):
    source, model = block(), block()
    state = kept(source)
    counters = [key for key in state if key.endswith("num_batches_tracked")]
    for key in counters:
        state[key] = torch.tensor(200).to(dtype)
    load_checkpoint(model, state)
    for key in counters:
        value = model.state_dict()[key]
        assert value.dtype == torch.int64 and value == 200
    before = kept(model)
    for bad in (torch.tensor(2.5), torch.tensor(float("nan")), torch.tensor(1j)):
        with pytest.raises(MappingError, match=f"{counters[0]} is "):
            load_checkpoint(model, state | {counters[0]: bad})
        assert same(model.state_dict(), before)


def test_infinity_and_nan_are_values():
    source, model = block(), block().half()
    state = source.state_dict()
    state["fusion.conv.bias"][0], state["fusion.conv.bias"][1] = torch.inf, torch.nan
    load_checkpoint(model, state)
    assert model.fusion.conv.bias[0] == torch.inf and model.fusion.conv.bias[1].isnan()


class Failing(MSCA):
    """A module whose last part cannot be copied into."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(4)
        self.error = error
        self.mix._load_from_state_dict = self._fail

    def _fail(self, *args, **kwargs):
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("no memory"), KeyboardInterrupt()])
def test_a_failure_while_copying_changes_nothing(error):
    model = Failing(error)
    before = kept(model)
    raised = MappingError if isinstance(error, Exception) else KeyboardInterrupt
    with pytest.raises(raised):
        load_checkpoint(model, MSCA(4).state_dict())
    assert same(model.state_dict(), before)


def test_a_failure_on_the_meta_device_changes_nothing():
    model = Failing(RuntimeError("no memory"))
    model.local.to("meta")
    parameters = dict(model.named_parameters())
    before = {k: v.clone() for k, v in model.state_dict().items() if not v.is_meta}
    with pytest.raises(MappingError, match="copying failed, and the model is as it was"):
        load_checkpoint(model, MSCA(4).state_dict())
    assert all(value is parameters[name] for name, value in model.named_parameters())
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


@pytest.mark.parametrize("style", ["attnops", "official", "mmseg"])
def test_counters_that_a_file_lacks_on_the_meta_device(style):
    source = block()
    state = {
        key: value
        for key, value in export_checkpoint(source, style).items()
        if not key.endswith("num_batches_tracked")
    }
    with torch.device("meta"):
        model = block()
        report = load_checkpoint(model, state)  # the context is the caller's business
    assert all(key.endswith("num_batches_tracked") for key in report.kept) and report.kept
    model.to("cpu")
    counters = {k: v for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")}
    assert len(counters) == 2
    assert all(torch.equal(value, torch.tensor(0)) for value in counters.values())
    x = torch.randn(1, 8, 9, 9)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), source.eval()(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["torch", "torch, with more", "safetensors"])
def test_files_are_read_where_the_meta_device_is_the_default(kind, tmp_path):
    path, source = tmp_path / "file", block()
    if kind == "safetensors":
        pytest.importorskip("safetensors.torch").save_file(source.state_dict(), path)
    else:
        more = {} if kind == "torch" else {"set": {1, 2}}
        torch.save({"state_dict": source.state_dict(), **more}, path)
    with torch.device("meta"):
        model = block()
        load_checkpoint(model, path)
    assert same(model.state_dict(), source.state_dict())


def test_a_model_that_is_partly_on_the_meta_device():
    source, model = block(), block()
    model.fusion.to("meta")
    mixed = model.attention.key.conv.weight
    mixed.requires_grad_(False)
    load_checkpoint(model, source.state_dict())
    assert same(model.state_dict(), source.state_dict())
    assert model.attention.key.conv.weight is mixed  # optimizers made before go on
    assert all(isinstance(p, nn.Parameter) for p in model.parameters())


def test_frozen_and_shared_parameters_stay_so_on_the_meta_device():
    with torch.device("meta"):
        model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    model["a"].bias.requires_grad_(False)
    source = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    source["b"].weight = source["a"].weight
    load_checkpoint(model, source.state_dict())
    assert model["a"].weight is model["b"].weight
    assert not model["a"].bias.requires_grad and model["b"].bias.requires_grad
    assert same(model.state_dict(), source.state_dict())


def all_real(model: nn.Module) -> bool:
    values = [*model.parameters(), *model.buffers()]
    return all(value.device.type == "cpu" for value in values)


@pytest.mark.parametrize("decoder", ["ham", "ema", "mlp"])
def test_heads_beside_a_backbone_are_initialised(decoder):
    source = create_model("segnext_t", num_classes=5, decoder=decoder)
    state = export_checkpoint(source, "official-backbone")
    with torch.device("meta"):
        model = create_model("segnext_t", num_classes=5, decoder=decoder)
    torch.manual_seed(4)
    report = load_checkpoint(model, state)
    assert all_real(model)
    torch.manual_seed(4)
    wanted = create_model("segnext_t", num_classes=5, decoder=decoder)
    for key, value in model.state_dict().items():
        from_file = key.startswith("backbone.")
        other = source if from_file else wanted
        assert torch.equal(value, other.state_dict()[key]), key
        assert from_file or key in report.kept
    model.to("cpu").eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 64))["out"].isfinite().all()


def test_deeplab_is_complete_after_its_backbone():
    options = {"widths": (4, 4, 8, 8, 8), "channels": 8, "hidden_channels": 8, "num_classes": 3}
    source = create_model("deeplab_attention", **options)
    with torch.device("meta"):
        model = create_model("deeplab_attention", **options)
    load_checkpoint(model, export_checkpoint(source, "backbone"))
    assert all_real(model)
    assert same(model.backbone.state_dict(), source.backbone.state_dict())


@pytest.mark.parametrize("cls", [ANN, GALDv1, GALDv2, SANet])
def test_a_network_that_create_model_did_not_make_is_refused(cls):
    pytest.importorskip("timm")
    source = cls(3, tiny_resnet())
    with torch.device("meta"):
        model = cls(3, tiny_resnet())
    with pytest.raises(MappingError, match=r"without values; nothing was loaded.*create_model"):
        load_checkpoint(model, export_checkpoint(source, "backbone"))
    assert all(p.is_meta for p in model.parameters())
    load_checkpoint(model, source.state_dict())
    assert all_real(model)


def test_a_network_that_was_changed_on_the_meta_device_is_refused():
    source = create_model("segnext_t", num_classes=5)
    with torch.device("meta"):
        model = create_model("segnext_t", num_classes=5)
        model.classify = nn.Conv2d(256, 9, 1)
    with pytest.raises(MappingError, match=r"classify\.weight.*a new segnext_t"):
        load_checkpoint(model, export_checkpoint(source, "mmseg-backbone"))
    assert all(p.is_meta for p in model.parameters())


class WithTable(SegNeXt):
    """A buffer that no state dict holds, as position tables of transformers are."""

    def __init__(self) -> None:
        super().__init__("t", num_classes=5)
        self.register_buffer("table", torch.arange(4.0), persistent=False)


def test_buffers_of_no_state_dict_are_not_left_without_values():
    source = WithTable()
    with torch.device("meta"):
        model = WithTable()
    with pytest.raises(MappingError, match="nothing for table"):
        load_checkpoint(model, source.state_dict())
    assert all(p.is_meta for p in model.parameters())
    ordinary = WithTable()
    load_checkpoint(ordinary, source.state_dict())
    assert torch.equal(ordinary.table, torch.arange(4.0))


def test_a_network_from_the_meta_device_can_be_saved(tmp_path):
    pytest.importorskip("huggingface_hub")
    source = create_model("segnext_t", num_classes=5, seed=1)
    state = {k: v for k, v in source.state_dict().items() if "tracked" not in k}
    with torch.device("meta"):
        model = create_model("segnext_t", num_classes=5, seed=1)
    load_checkpoint(model, state)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert same(again.state_dict(), source.state_dict())


@pytest.mark.parametrize(
    "make", [lambda: MSCA(4), lambda: Hamburger(32), lambda: LocalDistribution(4)]
)
def test_blocks_on_the_meta_device(make):
    source = make()
    with torch.device("meta"):
        model = make()
    load_checkpoint(model, copy.deepcopy(source.state_dict()))
    assert all_real(model)
    assert same(model.state_dict(), source.state_dict())
