"""Strided depthwise convolutions: the fast gradient against PyTorch's, and who takes it."""

import copy

import pytest
import torch
from torch import nn

from backbone_nets import create_backbone
from backbone_nets.strided_depthwise import StridedDepthwiseConv2d, speed_up_strided_depthwise


def layer(channels: int = 6, kernel: int = 3, stride=2, **options) -> nn.Conv2d:
    torch.manual_seed(0)
    options = {"groups": channels, "padding": kernel // 2, "bias": False} | options
    return nn.Conv2d(channels, channels, kernel, stride, **options)


def step(conv: nn.Module, x: torch.Tensor, dy: torch.Tensor, autocast: bool = True):
    """Output and both gradients."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = conv(x)
    y.backward(dy.to(y.dtype))
    return y.detach(), x.grad, conv.weight.grad


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(
    ("kernel", "stride", "size"),
    [
        (3, 2, (8, 8)),
        (3, 2, (15, 12)),
        (3, 2, (1, 7)),
        (5, 2, (9, 14)),
        (3, 3, (10, 11)),
        (3, (2, 1), (7, 6)),
        (1, 2, (5, 6)),
    ],
)
def test_equals_torch_in_double(kernel, stride, size, layout):
    x = torch.randn(4, 6, *size).contiguous(memory_format=layout).bfloat16()
    plain = layer(6, kernel, stride).bfloat16()
    exact = copy.deepcopy(plain).double()
    fast = speed_up_strided_depthwise(copy.deepcopy(plain))
    assert type(fast) is StridedDepthwiseConv2d
    dy = torch.randn_like(plain(x))
    results = step(fast, x, dy, autocast=False)
    assert all(result.dtype == torch.bfloat16 for result in results)
    for result, expected in zip(results, step(exact, x.double(), dy, autocast=False), strict=True):
        scale = expected.abs().max().item()
        torch.testing.assert_close(result.double(), expected, rtol=1e-2, atol=1e-2 * scale)


def test_autocast_runs_it_in_bfloat16_and_gives_float32_gradients():
    x, dy = torch.randn(4, 6, 9, 9), torch.randn(4, 6, 5, 5)
    plain = layer()
    fast = speed_up_strided_depthwise(copy.deepcopy(plain))
    ours, torchs = step(fast, x, dy), step(plain, x, dy)
    for result, expected in zip(ours, torchs, strict=True):
        assert result.dtype == expected.dtype
        scale = expected.abs().max().item()
        torch.testing.assert_close(result, expected, rtol=2e-2, atol=2e-2 * scale)
    with torch.autocast("cpu", torch.bfloat16):
        assert type(fast(x).grad_fn).__name__ == "_StridedDepthwiseBackward"


@pytest.mark.parametrize("case", ["float32", "no gradients", "not batched", "float16 autocast"])
def test_everything_else_goes_torchs_way(case):
    plain = layer()
    fast = speed_up_strided_depthwise(copy.deepcopy(plain))
    x = torch.randn(6, 9, 9) if case == "not batched" else torch.randn(2, 6, 9, 9)
    half = torch.float16 if case == "float16 autocast" else torch.bfloat16
    with (
        torch.autocast("cpu", half, enabled=case != "float32"),
        torch.set_grad_enabled(case != "no gradients"),
    ):
        ours, torchs = fast(x), plain(x)
    assert torch.equal(ours, torchs) and ours.dtype == torchs.dtype
    assert "Strided" not in str(ours.grad_fn)


@pytest.mark.parametrize("watching", ["compiler.is_compiling", "jit.is_tracing"])
def test_whoever_records_the_operations_sees_torchs(watching, monkeypatch):
    fast, x = speed_up_strided_depthwise(layer()), torch.randn(2, 6, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        assert "Strided" in str(fast(x).grad_fn)
        monkeypatch.setattr(f"torch.{watching}", lambda: True)
        assert "Strided" not in str(fast(x).grad_fn)


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 1},
        {"groups": 3},
        {"bias": True},
        {"padding": 0},
        {"dilation": 2},
        {"padding_mode": "reflect"},
        {"kernel": 2},
    ],
)
def test_other_layers_stay_as_they_are(options):
    assert type(speed_up_strided_depthwise(layer(**options))) is nn.Conv2d


def test_a_frozen_weight_or_input_needs_no_gradient():
    fast, x = speed_up_strided_depthwise(layer()), torch.randn(2, 6, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        fast(x).sum().backward()
        assert x.grad is None and fast.weight.grad is not None
        frozen, x = speed_up_strided_depthwise(layer()).requires_grad_(False), x.requires_grad_()
        frozen(x).sum().backward()
    assert frozen.weight.grad is None and x.grad is not None


def test_wrong_channels_are_torchs_error():
    fast = speed_up_strided_depthwise(layer())
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="channels"):
        fast(torch.randn(2, 5, 8, 8))


def test_gradients_of_gradients_are_refused():
    fast, x = speed_up_strided_depthwise(layer()), torch.randn(2, 6, 8, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = fast(x).square().sum()
    (gradient,) = torch.autograd.grad(y, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("name", "count"),
    [("mobilenet_v2", 4), ("mobilenet_025", 4), ("ghostnet", 8), ("resnet18", 0)],
)
def test_a_network_keeps_names_parameters_and_evaluation(name, count):
    plain = create_backbone(name)
    fast = copy.deepcopy(plain)
    parameters = list(fast.parameters())
    assert speed_up_strided_depthwise(fast) is fast
    assert sum(type(m) is StridedDepthwiseConv2d for m in fast.modules()) == count
    assert list(fast.state_dict()) == list(plain.state_dict())
    assert all(a is b for a, b in zip(parameters, fast.parameters(), strict=True))
    images = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        for ours, torchs in zip(fast.eval()(images), plain.eval()(images), strict=True):
            assert torch.equal(ours, torchs)
