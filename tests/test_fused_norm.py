"""Fused batch norm: against PyTorch's own in double, at the door, and in a whole network."""

import copy

import numpy as np
import pytest
import torch
from conftest import run_python
from test_backbones import FAMILIES
from torch import nn

from backbone_nets import create_backbone, fused_norm
from backbone_nets.fused_norm import FusedBatchNorm1d, FusedBatchNorm2d, fuse_batch_norm, norm_relu

pytestmark = pytest.mark.skipif(fused_norm.kernel is None, reason="the extension is not built")

LAYERS = {None: nn.Identity, "relu": nn.ReLU, "relu6": nn.ReLU6}
# (B, C, H, W), mean, standard deviation of the input
INPUTS = {
    "narrow": ((3, 16, 9, 7), 0.5, 2.0),
    "one channel": ((2, 1, 3, 5), 0.0, 1.0),
    "odd, many rows": ((8, 37, 50, 47), -3.0, 1.0),
    "wide": ((5, 700, 2, 3), 1.0, 0.1),
    "two rows": ((2, 24, 1, 1), 0.0, 1.0),
    "far from zero": ((4, 20, 31, 17), 1000.0, 0.01),
}


def channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def layer(channels: int, activation: str | None, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(channels)
    nn.init.uniform_(norm.weight, -2, 4)
    nn.init.uniform_(norm.bias, -2, 4)
    return nn.Sequential(norm, LAYERS[activation]())


def step(net: nn.Module, x: torch.Tensor, dy: torch.Tensor) -> dict[str, torch.Tensor]:
    """Output, gradients and running statistics of one training step."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = net(x)
    y.backward(dy.to(y.dtype))
    results = {"y": y.detach(), "dx": x.grad}
    results |= {name: p.grad for name, p in net.named_parameters()}
    return results | dict(net.named_buffers())


def assert_no_worse(actual, plain, exact) -> None:
    """As near to the exact result as PyTorch's float32 is, and near in float32's terms."""
    for name, expected in exact.items():
        difference = (actual[name].double() - expected).abs().max().item()
        allowed = 2 * (plain[name].double() - expected).abs().max().item()
        size = expected.abs().max().item()
        assert difference <= max(allowed, 3e-6 * size + 1e-9), name


@pytest.mark.parametrize("activation", LAYERS)
@pytest.mark.parametrize("name", INPUTS)
def test_equals_torch_in_double(name, activation):
    shape, mean, std = INPUTS[name]
    generator = torch.Generator().manual_seed(1)
    x = channels_last(mean + std * torch.randn(shape, generator=generator))
    dy = torch.randn(shape, generator=generator)
    plain = layer(shape[1], activation)
    fused, exact = fuse_batch_norm(copy.deepcopy(plain)), copy.deepcopy(plain).double()
    assert fused[0]._takes(x)
    # An activation within rounding of the clamp has either gradient: none of them here.
    with torch.no_grad():
        z = copy.deepcopy(exact)[0](x.double())
        near = torch.minimum(z.abs(), (z - 6).abs()) < 1e-3 * (z.abs() + 1)
        dy[near] = 0
    assert_no_worse(step(fused, x, dy), step(plain, x, dy), step(exact, x.double(), dy))


@pytest.mark.parametrize("activation", LAYERS)
@pytest.mark.parametrize("name", INPUTS)
def test_bfloat16_is_float32_rounded(name, activation):
    shape, mean, std = INPUTS[name]
    generator = torch.Generator().manual_seed(1)
    x = channels_last(mean + std * torch.randn(shape, generator=generator)).bfloat16()
    dy = torch.randn(shape, generator=generator).bfloat16()
    half, full = (fuse_batch_norm(layer(shape[1], activation)) for _ in range(2))
    assert half[0]._takes(x)
    actual, expected = step(half, x, dy), step(full, x.float(), dy.float())
    assert actual["y"].dtype == actual["dx"].dtype == torch.bfloat16
    for key, value in expected.items():  # to the last bit
        assert torch.equal(actual[key], value.to(actual[key].dtype)), key


def test_every_bfloat16_goes_in_and_out():
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.uint16)
    x = bits.view(torch.bfloat16).float().nan_to_num(1, 1, 1).clamp(-1e9, 1e9).bfloat16()
    norm = fuse_batch_norm(nn.BatchNorm1d(2**16, eps=0))
    rows = torch.stack([x, -x])  # mean 0, deviation |x|: what comes out is weight and -weight
    nn.init.ones_(norm.weight).data.copy_(x.float())
    assert norm._takes(rows)
    sizes = x.float().abs()
    expected = (x.float() * x.float().sign()).bfloat16()
    kept = sizes > 1e-18  # the square of smaller ones is none
    assert torch.equal(norm(rows)[0][kept], expected[kept])


@pytest.mark.parametrize(("bias", "activation"), [(0.0, "relu"), (0.0, "relu6"), (6.0, "relu6")])
def test_nothing_passes_exactly_at_the_clamp(bias, activation):
    plain = layer(8, activation)
    nn.init.zeros_(plain[0].weight)
    nn.init.constant_(plain[0].bias, bias)
    x, dy = channels_last(torch.randn(2, 8, 3, 3)), torch.ones(2, 8, 3, 3)
    results = step(fuse_batch_norm(copy.deepcopy(plain)), x, dy)
    assert (results["y"] == bias).all()
    assert not results["dx"].any() and not results["0.bias"].any()
    assert not step(plain, x, dy)["0.bias"].any()  # as PyTorch has it


def test_constant_channel_is_finite():
    x = channels_last(torch.full((4, 3, 30, 30), 1234.567))
    fused = fuse_batch_norm(layer(3, None))
    results = step(fused, x, torch.randn(x.shape))
    torch.testing.assert_close(results["y"][0, :, 0, 0], fused[0].bias.detach())
    assert all(torch.isfinite(value).all() for value in results.values())
    assert (results["0.running_var"] == 0.9).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", LAYERS)
def test_nan_is_not_clamped_away(activation, dtype):
    x = channels_last(torch.randn(2, 4, 5, 5, dtype=dtype))
    x[1, 2, 3, 3] = torch.nan
    results = step(fuse_batch_norm(layer(4, activation)), x, torch.ones(x.shape))
    for name in ("y", "dx"):
        assert results[name][:, 2].isnan().all(), name
        assert not results[name][:, [0, 1, 3]].isnan().any(), name


@pytest.mark.parametrize("shape", [(4, 16, 64, 65), (9, 500, 16, 16), (2, 3, 4, 4)])
def test_threads_change_no_bit(shape):
    x, dy = channels_last(torch.randn(shape)), channels_last(torch.randn(shape))
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(step(fuse_batch_norm(layer(shape[1], "relu6")), x, dy))
    finally:
        torch.set_num_threads(1)
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in other)


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
def test_running_statistics_over_batches(momentum):
    plain = layer(6, "relu")
    plain[0].momentum = momentum
    fused = fuse_batch_norm(copy.deepcopy(plain))
    for seed in range(3):
        x = channels_last(torch.randn(4, 6, 5, 5, generator=torch.Generator().manual_seed(seed)))
        plain(x), fused(x)
    for (name, expected), actual in zip(plain.named_buffers(), fused.buffers(), strict=True):
        torch.testing.assert_close(actual, expected, msg=name)


def test_rows_of_points():
    torch.manual_seed(0)
    plain = nn.BatchNorm1d(70)
    fused, x = fuse_batch_norm(copy.deepcopy(plain)), 3 + torch.randn(136, 70)
    assert isinstance(fused, FusedBatchNorm1d) and fused._takes(x)
    torch.testing.assert_close(norm_relu(fused, x), norm_relu(plain, x))
    torch.testing.assert_close(fused(x), plain(x))
    points = torch.randn(2, 70, 68)  # (B, C, L) is not rows of channels: PyTorch's way
    assert not fused._takes(points)
    assert torch.equal(norm_relu(fused, points), norm_relu(plain, points))


# ---------------------------------------------------------------- in a network


def test_mobilenet_step_equals_unfused():
    torch.manual_seed(0)
    plain = create_backbone("mobilenet_v2").to(memory_format=torch.channels_last)
    for module in plain.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    fused, exact = fuse_batch_norm(copy.deepcopy(plain)), copy.deepcopy(plain).double()
    images = channels_last(torch.randn(8, 3, 64, 64))
    results = []
    for net in (fused, plain, exact):
        parameters, features = net(images.to(next(net.parameters()).dtype))
        (parameters.square().sum() + features.square().mean()).backward()
        grads = torch.cat([p.grad.flatten().double() for p in net.parameters()])
        results.append((features.detach().double(), grads))
    for actual, expected, reference in zip(*results, strict=True):
        error = (actual - reference).norm() / reference.norm()
        assert error <= 3 * (expected - reference).norm() / reference.norm() + 1e-6
        assert error < 1e-2
    for name, value in exact.named_buffers():
        torch.testing.assert_close(
            fused.get_buffer(name).to(value.dtype), value, rtol=1e-4, atol=1e-4, msg=name
        )


def test_fusing_changes_no_name_and_no_parameter():
    plain = create_backbone("mobilenet_v2")
    keys, parameters = list(plain.state_dict()), list(plain.parameters())
    fused = fuse_batch_norm(plain)
    assert fused is plain and list(fused.state_dict()) == keys
    assert all(a is b for a, b in zip(parameters, fused.parameters(), strict=True))
    norms = [m for m in fused.modules() if isinstance(m, FusedBatchNorm2d)]
    assert len(norms) == 52 and sum(m.activation == "relu6" for m in norms) == 35
    assert not any(isinstance(m, nn.ReLU6) for m in fused.modules())
    assert fuse_batch_norm(fused) is fused  # again: nothing left to do
    create_backbone("mobilenet_v2").load_state_dict(fused.state_dict())


@pytest.mark.parametrize("name", [*FAMILIES, "resnet50"])  # its blocks are not resnet18's
def test_evaluation_is_unchanged(name):
    plain = create_backbone(name).to(memory_format=torch.channels_last)
    images = channels_last(torch.randn(2, 3, 40, 40))
    plain(images)
    fused = fuse_batch_norm(copy.deepcopy(plain))
    with torch.no_grad():
        for ours, torchs in zip(fused.eval()(images), plain.eval()(images), strict=True):
            assert torch.equal(ours, torchs), "uses what is between a batch norm and its ReLU"


@pytest.mark.parametrize("case", ["packed channels", "double", "bfloat16", "frozen", "no affine"])
def test_everything_else_goes_torchs_way(case):
    plain = layer(6, "relu6")
    x = torch.randn(4, 6, 5, 5)
    if case == "no affine":
        plain[0] = nn.BatchNorm2d(6, affine=False)
    if case == "frozen":
        plain.eval()
    if case != "packed channels":
        x = channels_last(x)
    if case in ("double", "bfloat16"):
        x, plain = x.to(getattr(torch, case)), plain.to(getattr(torch, case))
    fused = fuse_batch_norm(copy.deepcopy(plain))
    assert not fused[0]._takes(x)
    ours, torchs = (step(net, x, torch.ones(x.shape)) for net in (fused, plain))
    assert ours.keys() == torchs.keys()
    assert all(torch.equal(ours[key], torchs[key]) for key in ours)


@pytest.mark.parametrize("watching", ["compiler.is_compiling", "jit.is_tracing"])
def test_whoever_records_the_operations_sees_torchs(watching, monkeypatch):
    fused, x = fuse_batch_norm(layer(6, "relu6")), channels_last(torch.randn(4, 6, 5, 5))
    assert fused[0]._takes(x)
    monkeypatch.setattr(f"torch.{watching}", lambda: True)
    assert not fused[0]._takes(x)


def test_weights_of_another_precision_are_not_taken():
    fused, x = fuse_batch_norm(layer(6, "relu6")), channels_last(torch.randn(4, 6, 5, 5))
    fused[0].weight.data = fused[0].weight.data.double()
    assert not fused[0]._takes(x)


@pytest.mark.parametrize("shape", [(2, 98_304), (4, 90_000)])
def test_more_channels_than_a_share_of_the_work_has_numbers(shape):
    plain = nn.BatchNorm1d(shape[1])
    fused, x = fuse_batch_norm(copy.deepcopy(plain)), 3 + torch.randn(shape)
    assert fused._takes(x)
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-4, atol=1e-3)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(fused, name), getattr(plain, name))


def test_shared_norms_and_other_sequentials_keep_their_activation():
    norm, x = nn.BatchNorm2d(4), channels_last(torch.randn(2, 4, 3, 3))
    model = nn.Sequential(
        nn.Sequential(norm, nn.ReLU()), nn.Sequential(norm), nn.Sequential(norm, nn.ReLU6())
    )
    expected = copy.deepcopy(model)(x)
    torch.testing.assert_close(fuse_batch_norm(model)(x), expected)
    assert isinstance(norm, FusedBatchNorm2d) and norm.activation is None


def test_gradient_of_a_mean_arrives_unpacked():
    fused, plain = fuse_batch_norm(layer(5, "relu")), layer(5, "relu")
    x = channels_last(torch.randn(2, 5, 4, 4))
    for net in (fused, plain):
        net(x).mean(dim=(2, 3)).square().sum().backward()
    torch.testing.assert_close(fused[0].weight.grad, plain[0].weight.grad)


# ---------------------------------------------------------------- what is refused


def test_errors():
    fused = fuse_batch_norm(layer(4, None))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        fused(torch.randn(1, 4, 1, 1))
    with pytest.raises(ValueError, match="expected 4D input"):
        fused(torch.randn(4, 4))
    with pytest.raises(RuntimeError):  # as PyTorch's
        fused(channels_last(torch.randn(2, 3, 4, 4)))
    x = channels_last(torch.randn(2, 4, 3, 3)).requires_grad_()
    (gradient,) = torch.autograd.grad(fused(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("wrong", ["rows", "statistics", "empty", "dtype", "mixed", "layout"])
def test_binding_checks_what_memory_safety_rests_on(wrong):
    x, y = np.zeros((6, 4), np.float32), np.zeros((6, 4), np.float32)
    statistics, limits = np.zeros((3, 4)), (-np.inf, np.inf, 1)
    if wrong == "rows":
        y = y[:5]
    elif wrong == "statistics":
        statistics = statistics[:2]
    elif wrong == "empty":
        x, y = x[:0], y[:0]
    elif wrong == "dtype":
        x = x.astype(np.float64)
    elif wrong == "mixed":
        x = x.astype(np.uint16)
    else:
        x = np.asfortranarray(x)
    weight, bias, dweight, dbias = np.zeros((4, 4), np.float32)
    refused = TypeError if wrong == "dtype" else ValueError  # neither of the two that there are
    with pytest.raises(refused):
        fused_norm.kernel.forward(x, weight, bias, 1e-5, *limits, statistics, y)
    for dx in (y, None):
        with pytest.raises(refused):
            fused_norm.kernel.backward(x, y, weight, bias, statistics, *limits, dx, dweight, dbias)


@pytest.mark.parametrize(
    "wrong", ["y", "weight", "bias", "statistics", "dy", "dx", "dweight", "dbias"]
)
def test_binding_checks_each_array(wrong):
    """One array is short, all others are right: no other check can stand in."""
    arrays = {name: np.ones((6, 4), np.float32) for name in ("x", "y", "dy", "dx")}
    arrays |= {name: np.ones(4, np.float32) for name in ("weight", "bias", "dweight", "dbias")}
    arrays["statistics"] = np.ones((3, 4))
    arrays[wrong] = np.ascontiguousarray(arrays[wrong][..., :3])
    if wrong in ("y", "weight", "bias", "statistics"):
        before = [arrays[name] for name in ("x", "weight", "bias")]
        with pytest.raises(ValueError, match="must be|differ"):
            fused_norm.kernel.forward(*before, 1e-5, 0, 6, 1, arrays["statistics"], arrays["y"])
    before = [arrays[name] for name in ("x", "dy", "weight", "bias", "statistics")]
    for dx in {"y": [], "dx": [arrays["dx"]]}.get(wrong, [arrays["dx"], None]):
        with pytest.raises(ValueError, match="must be|differ"):
            fused_norm.kernel.backward(*before, 0, 6, 1, dx, arrays["dweight"], arrays["dbias"])


def test_binding_refuses_none():
    many, few, statistics = np.ones((6, 4), np.float32), np.ones(4, np.float32), np.ones((3, 4))
    forward, backward, how = fused_norm.kernel.forward, fused_norm.kernel.backward, (0, 6, 1)
    arguments = {
        forward: (many, few, few, 1e-5, *how, statistics, many),
        backward: (many, many, few, few, statistics, *how, many, few, few),
    }
    for function, given in arguments.items():
        for k in range(len(given)):
            if (function, k) != (backward, 8):  # dx, which may be None
                with pytest.raises(TypeError):
                    function(*given[:k], None, *given[k + 1 :])


def test_without_the_kernel_the_model_stays_and_says_so():
    code = """
import sys, warnings
sys.modules["backbone_nets.fused_norm_cython"] = None
from torch import nn
from backbone_nets.fused_norm import fuse_batch_norm
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("default")
    for _ in range(2):
        model = fuse_batch_norm(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))
print([str(w.message) for w in caught], [type(m).__name__ for m in model])
"""
    run = run_python("-c", code, check=True)
    assert run.stdout.count("not built") == 1 and "['BatchNorm2d', 'ReLU']" in run.stdout
