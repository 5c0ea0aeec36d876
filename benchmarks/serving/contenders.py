"""Who labels images: every contender takes float images `[B, 3, H, W]` and gives labels.

All have the same network, weights and normalised images. Peers run the published chain: the
network on the reference backend, or its export in standard operators.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import attnops
from attnops import models
from attnops.models.export._program import exported_module, trace

from ..measure.timing import once

Labels = Callable[[Tensor], Tensor]
OURS = ("attnops predict", "attnops deploy")
HINT = {"float32": "f32", "bfloat16": "bf16"}  # OpenVINO's names of precisions


class NotHere(RuntimeError):
    """The contender cannot run this; the message says why."""


def _autocast(call: Labels, dtype: str) -> Labels:
    reduced = getattr(torch, dtype)

    def run(images: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", reduced, enabled=dtype != "float32"):
            return call(images)

    return run


def _on_reference(call: Labels) -> Labels:
    def run(images: Tensor) -> Tensor:
        with attnops.use_backend("reference"):
            return call(images)

    return run


def predict(network: nn.Module, images: Tensor, dtype: str) -> Labels:
    """`network.predict` as it is."""
    return _autocast(network.predict, dtype)


def deploy(network: nn.Module, images: Tensor, dtype: str) -> Labels:
    return models.deploy(network, dtype=dtype, keep_memory=False)


def eager(network: nn.Module, images: Tensor, dtype: str) -> Labels:
    return _on_reference(_autocast(network.predict, dtype))


def plain(network: nn.Module, images: Tensor, dtype: str) -> Labels:
    """Labels by the published chain in PyTorch's own operators, which inductor sees into.

    Of attnops' ops it would see a call each, which stays one, whatever backend was chosen.
    """

    def write_down(images: Tensor) -> nn.Module:
        module = exported_module(network, "labels", 0)
        return trace(module, tuple(images.shape[2:]), plain=True).module()

    return _autocast(write_down, dtype)(images)


def _compiled(network: nn.Module, images: Tensor, dtype: str, frozen: bool) -> Labels:
    from torch._inductor import config

    # Dynamo would take the code that it has for a program like this, but not that of other options.
    compiled = torch.compile(plain(network, images, dtype), options={"freezing": frozen})
    call = _autocast(compiled, dtype)

    def run(images: Tensor) -> Tensor:
        with config.patch(freezing=frozen):
            return call(images)

    return run


def compiled(network: nn.Module, images: Tensor, dtype: str) -> Labels:
    return _compiled(network, images, dtype, frozen=False)


def frozen(network: nn.Module, images: Tensor, dtype: str) -> Labels:
    return _compiled(network, images, dtype, frozen=True)


def _exported(network: nn.Module, images: Tensor, folder: str) -> Path:
    path = Path(folder) / "network.onnx"
    models.export_onnx(network, path, size=tuple(images.shape[2:]), output="labels")
    return path


def onnxruntime(network: nn.Module, images: Tensor, dtype: str) -> Labels:
    import onnxruntime as runtime

    if dtype != "float32":
        raise NotHere("its CPU provider has no bfloat16")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = str(_exported(network, images, folder))
        session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def openvino(network: nn.Module, images: Tensor, dtype: str) -> Labels:
    """Through its front end for PyTorch or for ONNX, whichever labels sooner."""
    found, reasons = {}, []
    for title, read in (("PyTorch", _openvino_traced), ("ONNX", _openvino_onnx)):
        try:
            call = _openvino_compiled(read(network, images), dtype)
            call(images)
            found[title] = min(once(lambda call=call: call(images)) for _ in range(5)), call
        except Exception as error:  # OpenVINO raises its own, undocumented kinds
            reasons.append(f"{title}: {(str(error).splitlines() or [''])[0][:120]}")
    if not found:
        raise NotHere("; ".join(reasons))
    title = min(found, key=lambda name: found[name][0])
    call = found[title][1]
    call.note = f"through its {title} front end"
    return call


def _openvino_traced(network: nn.Module, images: Tensor) -> Any:
    from openvino import convert_model

    class Predict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            return self.network.predict(x)

    with attnops.use_backend("reference"), torch.no_grad():
        traced = torch.jit.trace(Predict().eval(), images, check_trace=False)
        return convert_model(traced, example_input=images)


def _openvino_onnx(network: nn.Module, images: Tensor) -> Any:
    from openvino import convert_model

    with tempfile.TemporaryDirectory() as folder:
        return convert_model(_exported(network, images, folder))


class _openvino_compiled:
    """A compiled model as a function of images."""

    note = ""

    def __init__(self, model: Any, dtype: str) -> None:
        from openvino import Core

        settings = {
            "INFERENCE_PRECISION_HINT": HINT[dtype],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        self.request = Core().compile_model(model, "CPU", settings).create_infer_request()

    def __call__(self, images: Tensor) -> Tensor:
        return torch.from_numpy(next(iter(self.request.infer([images.numpy()]).values())))


CONTENDERS: dict[str, Callable[[nn.Module, Tensor, str], Labels]] = {
    "OpenVINO": openvino,
    "onnxruntime": onnxruntime,
    "eager, published chain": eager,
    "torch.compile, published chain": compiled,
    "torch.compile with freezing, published chain": frozen,
    "attnops predict": predict,
    "attnops deploy": deploy,
}
