"""Files that are no checkpoints are named for what they are; others are read without their code."""

from __future__ import annotations

import argparse
import collections
import gzip
import io
import json
import pathlib
import pickle
import struct
import sys
import tarfile
import types
import zipfile

import pytest
import torch
from torch import nn

from attnops.models import MappingError, load_checkpoint
from attnops.nn import MSCA


@pytest.fixture
def source() -> nn.Module:
    return MSCA(4)


@pytest.fixture
def model() -> nn.Module:
    return MSCA(4)


def same(model: nn.Module, source: nn.Module) -> bool:
    wanted = source.state_dict()
    return all(torch.equal(value, wanted[key]) for key, value in model.state_dict().items())


def saved(what: object, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(what, buffer, **options)
    return buffer.getvalue()


def zipped(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/"), content)
    return buffer.getvalue()


def tarred(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("model.pth")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def scripted() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


STATE = {"weight": torch.arange(300.0)}
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 54532\n"
SAFE = (lambda h: struct.pack("<Q", len(h)) + h)(
    json.dumps({"weight": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}).encode()
)
FILES = {
    "lfs": (LFS, "git-lfs pointer.*git lfs pull"),
    "page": (b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>", "a web page"),
    "page, plain": (b"<html><head></head></html>" * 99, "a web page"),
    "page, marked": (b"\xef\xbb\xbf<!doctype HTML>", "a web page"),
    "server": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML document"),
    "json": (b'{"model_type": "segnext"}', "a JSON text"),
    "json, long": (json.dumps({f"key{i}": i for i in range(999)}).encode(), "a JSON text"),
    "json, a list": (b"[1, 2]", "a JSON text"),
    "text": (b"404: Not Found", "a text.*404: Not Found"),
    "text, yaml": ("größe: 3\n".encode() * 500, "a text"),
    "empty": (b"", r"empty \(0 bytes\).*get the file again"),
    "zeros": (bytes(4096), "full of zeros"),
    "cut": (saved(STATE)[:900], "the beginning of a zip archive.*cut short"),
    "cut, old": (
        saved(STATE, _use_new_zipfile_serialization=False)[:-200],
        "broken torch.save file",
    ),
    "cut, safe": (SAFE[:40], "the beginning of a safetensors file"),
    "cut, safe's values": (SAFE + bytes(4), "broken safetensors file"),
    "damaged": (saved(STATE).replace(b"storage", b"st0rage"), "broken torch.save file"),
    "gzip": (gzip.compress(saved(STATE)), "compressed with gzip"),
    "tar": (tarred(saved(STATE)), "a tar archive"),
    "zip": (zipped(weights__model=b"x"), "a zip archive that torch.save did not write"),
    "npz": (zipped(**{"a.npy": b"x"}), "an archive of NumPy arrays"),
    "script": (scripted(), r"TorchScript.*torch\.jit\.load"),
    "pickle": (pickle.dumps({"weight": [1.0]}), "a pickle that torch.save did not write"),
    "pickle, old": (pickle.dumps({"weight": [1.0]}, 2), "a pickle that torch.save did not write"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5"),
    "bytes": (bytes(range(128, 256)), "neither of torch.save nor of safetensors"),
    "a tensor": (saved(torch.ones(2)), "holds a Tensor"),
    "a list": (saved([torch.ones(2)]), "holds a list"),
    "a module": (saved(nn.Linear(2, 2)), r"a whole torch\.nn\.\S+Linear.*model\.state_dict\(\)"),
    "a module inside": (saved({"model": nn.Linear(2, 2)}), r"model \(torch\.nn\.\S+Linear\)"),
    "a module, old": (
        saved(nn.Linear(2, 2), _use_new_zipfile_serialization=False),
        r"a whole torch\.nn\.\S+Linear",
    ),
}


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_checkpoint_is_named(name, suffix, model, tmp_path):
    content, message = FILES[name]
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(MappingError, match=rf"(?s){path.name} .*{message}") as error:
        load_checkpoint(model, path)
    text = str(error.value)
    assert "weights_only" not in text and "\n" not in text
    assert error.value.__suppress_context__ or error.value.__context__ is None
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_what_is_not_there(model, tmp_path):
    (tmp_path / "folder").mkdir()
    for path, message in (
        (tmp_path / "none.pth", "no file .*none.pth"),
        (str(tmp_path / "none.safetensors"), "no file"),
        ("https://example.com/model.pth", "an address: download the file"),
        (tmp_path / "folder", r"has no model\.safetensors; it is empty"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            load_checkpoint(model, path)
    (tmp_path / "folder" / "epoch_3.pth").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match=r"give one of its files: epoch_3\.pth"):
        load_checkpoint(model, tmp_path / "folder")
    (tmp_path / "folder" / ".metadata").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match="dcp_to_torch_save"):
        load_checkpoint(model, tmp_path / "folder")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".bin", ".pth.tar", ""])
def test_the_name_of_a_file_plays_no_part(source, model, suffix, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / f"a{suffix}"
    safetensors.save_file(source.state_dict(), path)
    load_checkpoint(model, path)
    assert same(model, source)
    second = MSCA(4)
    path.write_bytes(saved({"state_dict": source.state_dict()}))
    load_checkpoint(second, str(path))
    assert same(second, source)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_every_form_of_torch_save(source, model, zipped, protocol, tmp_path):
    path = tmp_path / "a.pth"
    content = {"state_dict": dict(source.named_parameters()), "set": {1, 2}, "size": source.mix}
    options = {"_use_new_zipfile_serialization": zipped, "pickle_protocol": protocol}
    path.write_bytes(saved(content, **options))
    load_checkpoint(model, path)
    assert same(model, source)
    assert not any(p.grad_fn for p in model.parameters())


class HistoryBuffer:
    """As mmengine's pickles are: arrays of numpy, and methods of the class by name."""

    def __init__(self, numpy) -> None:
        self._log_history = numpy.arange(3.0)
        self._count_history = numpy.ones(3)
        self._statistics_methods = {"min": HistoryBuffer.min, "mean": HistoryBuffer.mean}

    def min(self):
        raise AssertionError("it ran")

    mean = min

    def __setstate__(self, state):
        raise AssertionError("it ran")

    def __reduce_ex__(self, protocol):
        return object.__reduce_ex__(self, protocol)


class ConfigDict(dict):
    """A dict with a class of its own, as mmengine's configuration is."""

    def __setitem__(self, key, value):
        raise AssertionError("it ran")


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False])
def test_what_mmengine_saves(source, model, protocol, zipped, monkeypatch, tmp_path):
    numpy = pytest.importorskip("numpy")
    module = types.ModuleType("mmengine_stand_in")
    for cls in (HistoryBuffer, ConfigDict):
        monkeypatch.setattr(cls, "__module__", module.__name__)
        setattr(module, cls.__name__, cls)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    state = collections.OrderedDict(source.state_dict())
    state._metadata = {"": {"version": 1}}
    content = {
        "meta": {
            "cfg": "model = dict()",
            "dataset_meta": {"palette": numpy.arange(6).reshape(2, 3), "classes": ("road",)},
            "seed": numpy.int64(3),
            "mmengine_version": "0.10.7",
        },
        "state_dict": state,
        "message_hub": {
            "log_scalars": collections.OrderedDict({"train/lr": HistoryBuffer(numpy)}),
            "runtime_info": ConfigDict({"lr": numpy.float64(0.1)}),
            "path": pathlib.PurePosixPath("/work"),
            "arguments": argparse.Namespace(lr=0.1, betas=[1, 2]),
            "queue": collections.deque([torch.ones(1)], maxlen=3),
            "by": collections.defaultdict(list, {1: [2]}),
            "dtype": torch.float16,
            "device": torch.device("cpu"),
        },
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1.0}]},
    }
    path = tmp_path / "iter_160000.pth"
    options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": zipped}
    path.write_bytes(saved(content, **options))
    monkeypatch.delitem(sys.modules, module.__name__)  # mmengine is not installed
    report = load_checkpoint(model, path)
    assert report.part == "state_dict"
    assert same(model, source)


def test_a_state_dict_of_a_class_of_its_own(source, model, tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(saved({"state_dict": collections.Counter()}))
    with pytest.raises(MappingError, match="should be a state dict"):
        load_checkpoint(model, path)
    path.write_bytes(saved(argparse.Namespace(a=1)))
    with pytest.raises(MappingError, match=r"argparse\.Namespace"):
        load_checkpoint(model, path)


@pytest.mark.parametrize("attribute", ["note", "scale"])
def test_parameters_with_attributes_are_read(source, model, attribute, tmp_path):
    for parameter in source.parameters():
        setattr(parameter, attribute, {"x": 1})
    path = tmp_path / "a.pth"
    path.write_bytes(saved({"net": dict(source.named_parameters()), "set": {3}}))
    load_checkpoint(model, path)
    assert same(model, source)


class Payload:
    """Unpickling calls `function(*arguments)`."""

    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def ran(path: str) -> None:
    pathlib.Path(path).touch()


PAYLOADS = {
    "system": lambda path: Payload(__import__("os").system, f"touch {path}"),
    "popen": lambda path: Payload(__import__("subprocess").Popen, ["touch", path]),
    "exec": lambda path: Payload(exec, f"open({path!r}, 'w')"),
    "eval": lambda path: Payload(eval, f"open({path!r}, 'w')"),
    "open": lambda path: Payload(open, path, "w"),
    "own function": lambda path: Payload(ran, path),
    "pathlib": lambda path: Payload(pathlib.Path.touch, pathlib.PosixPath(path)),
    "getattr": lambda path: Payload(getattr, pathlib.PosixPath(path), "touch"),
}


@pytest.mark.parametrize("where", ["alone", "beside", "as a tensor", "as the dict"])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", PAYLOADS)
def test_nothing_in_a_file_is_called(name, zipped, where, source, model, tmp_path):
    marker = tmp_path / "ran"
    payload = PAYLOADS[name](str(marker))
    state = source.state_dict()
    content = {
        "alone": payload,
        "beside": {"state_dict": state, "meta": [payload]},
        "as a tensor": state | {"mix.bias": payload},
        "as the dict": {"state_dict": payload},
    }[where]
    path = tmp_path / "a.pth"
    path.write_bytes(saved(content, _use_new_zipfile_serialization=zipped))
    assert not marker.exists()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    harmful = name in ("system", "popen", "exec", "eval", "open")
    if where == "beside" and not harmful:
        load_checkpoint(model, path)
        assert same(model, source)
    else:
        with pytest.raises(MappingError, match="could do harm" if harmful else None):
            load_checkpoint(model, path)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not marker.exists()


def test_functions_of_pytorch_cannot_be_changed(source, model, tmp_path):
    function = torch._utils._rebuild_tensor_v2
    # GLOBAL torch._utils _rebuild_tensor_v2, BUILD with (None, {"changed": True})
    change = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(N}X\x07\x00\x00\x00changedI01\nstb."
    content = saved(source.state_dict())
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            new.writestr(name, change if name.endswith("data.pkl") else old.read(name))
    path = tmp_path / "a.pth"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(MappingError):
        load_checkpoint(model, path)
    assert not hasattr(function, "changed")


def test_what_was_on_a_gpu_comes_to_the_cpu(source, model, tmp_path):
    """The place is text in the pickle; no GPU is needed to read it."""
    content = saved({"state_dict": source.state_dict(), "set": {1}})
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("data.pkl"):
                assert data.count(b"\x03\x00\x00\x00cpu") == 1
                data = data.replace(b"\x03\x00\x00\x00cpu", b"\x06\x00\x00\x00cuda:5")
            new.writestr(name, data)
    path = tmp_path / "a.pth"
    path.write_bytes(buffer.getvalue())
    load_checkpoint(model, path)
    assert same(model, source)


def test_where_pytorch_is_told_to_read_tensors_alone(source, model, monkeypatch, tmp_path):
    path = tmp_path / "a.pth"
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    path.write_bytes(saved({"state_dict": source.state_dict(), "set": pathlib.PurePath("x")}))
    with pytest.raises(MappingError, match="TORCH_FORCE_WEIGHTS_ONLY_LOAD"):
        load_checkpoint(model, path)
    path.write_bytes(saved(source.state_dict()))
    load_checkpoint(model, path)
    assert same(model, source)
