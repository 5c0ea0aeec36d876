"""Tools that look at modules from outside: counting, symbolic tracing, exporting."""

from __future__ import annotations

import io

import pytest
import torch
from op_calls import CALLS, CallModule
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

import attnops

every_op = pytest.mark.parametrize("name", CALLS)


def counted(name: str) -> tuple[int, int]:
    """Operations of the forward and of the backward."""
    leaves = [t.requires_grad_() for t in CALLS[name].tensors()]
    with FlopCounterMode(display=False) as counter:
        out = CALLS[name].call(attnops, *leaves)
        forward = counter.get_total_flops()
        out.sum().backward()
    return forward, counter.get_total_flops() - forward


@every_op
def test_every_op_is_counted(name):
    forward, backward = counted(name)
    assert forward > 0
    if name == "nmf one_step":  # the gradient of the last of five updates
        assert 0 < backward < forward
    else:
        assert backward == 2 * forward


def test_counts_are_those_of_pytorch_s_products():
    """The reference runs matrix products and convolutions that PyTorch counts itself."""
    for name in ("anchor_attention", "strip_conv", "depthwise_gelu", "nmf"):
        tensors = CALLS[name].tensors()
        with FlopCounterMode(display=False) as counter:
            CALLS[name].call(attnops.reference, *tensors)
        assert counted(name)[0] == counter.get_total_flops(), name


def test_labels_are_counted():
    with FlopCounterMode(display=False) as counter:
        attnops.upsample_argmax(torch.randn(2, 5, 3, 4), (6, 7))
    assert counter.get_total_flops() == 2 * 4 * 2 * 5 * 6 * 7


class Heads(nn.Module):
    def forward(self, x, logits, weight):
        anchors = attnops.pyramid_pool(x, sizes=(1, 2))
        x = attnops.anchor_attention(x, anchors, value=anchors)
        x = attnops.depthwise_gelu(attnops.upsample_gate(logits, x), weight)
        x = attnops.strip_conv(x, weight, None, [])
        x = attnops.merge_scales([x, logits], reduce="mean")
        return attnops.upsample_argmax(attnops.group_attention(x, x, x, 2), 9)


def test_symbolic_tracing_records_ops_as_calls():
    arguments = torch.randn(2, 4, 5, 6), torch.randn(2, 4, 2, 3), torch.randn(4, 1, 3, 3)
    traced = fx.symbolic_trace(Heads())
    targets = {node.target for node in traced.graph.nodes if node.op == "call_function"}
    assert {attnops.pyramid_pool, attnops.merge_scales, attnops.upsample_argmax} <= targets
    assert torch.equal(traced(*arguments), Heads()(*arguments))


def test_symbolic_tracing_of_modules():
    """They look at shapes; as leaves they are recorded, and without that the error says so."""
    model = nn.Sequential(attnops.nn.MSCA(4, strips=(3,)), nn.ReLU()).eval()
    with pytest.raises(TypeError, match=r"torch\.export, or a torch\.fx\.Tracer.*is_leaf_module"):
        fx.symbolic_trace(model)

    class Tracer(fx.Tracer):
        def is_leaf_module(self, module, name):
            return type(module).__module__.startswith("attnops") or super().is_leaf_module(
                module, name
            )

    traced = fx.GraphModule(model, Tracer().trace(model))
    x = torch.randn(1, 4, 5, 6)
    torch.testing.assert_close(traced(x), model(x))


def test_subclasses_of_tensors_may_override():
    class Seen(Tensor):
        functions = []  # noqa: RUF012

        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            cls.functions.append(function)
            return super().__torch_function__(function, types, args, kwargs or {})

    x = torch.randn(1, 2, 4, 4)
    found = attnops.pyramid_pool(x.as_subclass(Seen))
    assert attnops.pyramid_pool in Seen.functions
    torch.testing.assert_close(found.as_subclass(Tensor), attnops.pyramid_pool(x))


@every_op
def test_traces_of_torchscript(name):
    if name == "upsample_cross_entropy":
        pytest.skip("its check of the labels reads values")
    tensors = CALLS[name].tensors()
    traced = torch.jit.trace(CallModule(name), tuple(tensors))
    torch.testing.assert_close(traced(*tensors), CallModule(name)(*tensors))


@every_op
def test_graphs_for_onnx_hold_pytorch_s_operators_alone(name, monkeypatch):
    """What torch.onnx.export gets to translate; this needs no ONNX packages."""
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    tensors = tuple(CALLS[name].tensors())
    program = torch.export.export(CallModule(name), tensors, strict=False)
    assert "attnops" not in str(program.graph)
    torch.testing.assert_close(program.module()(*tensors), CallModule(name)(*tensors))


@pytest.mark.parametrize("name", ["depthwise_gelu", "anchor_attention", "group_attention"])
def test_the_older_onnx_exporter_gets_standard_operators(name):
    pytest.importorskip("onnx")
    file = io.BytesIO()
    torch.onnx.export(CallModule(name), tuple(CALLS[name].tensors()), file, dynamo=False)
    assert b"attnops" not in file.getvalue()


@pytest.mark.slow
@every_op
def test_onnx_gets_standard_operators(name):
    pytest.importorskip("onnxscript")
    tensors = tuple(CALLS[name].tensors())
    program = torch.onnx.export(CallModule(name), tensors, dynamo=True, verbose=False)
    domains = {node.domain for node in program.model.graph}
    assert domains <= {"", "ai.onnx"}
