"""Strided depthwise convolutions whose gradient is fast in bfloat16 on the CPU.

oneDNN (3.12, in PyTorch 2.13) has no depthwise kernel for the gradient of their input in bfloat16
and takes one for grouped convolutions, some fifty times slower than the forward pass: the four of
MobileNetV2 took half of a training step. The gradient is a convolution as well, of the output's
gradient with zeros between its pixels and stride 1, for which there is a fast kernel.
``speed_up_strided_depthwise(model)`` makes a model use it; keys, parameters, evaluation and results
(to bfloat16 rounding) stay what they were.
"""

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

Module = TypeVar("Module", bound=nn.Module)


class _StridedDepthwise(torch.autograd.Function):
    """(x (B, C, H, W), weight (C, 1, K, K), stride), K odd, padding K // 2 -> (B, C, H', W')."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, stride: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return _depthwise(x, weight, stride)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        dx = dweight = None
        if ctx.needs_input_grad[0]:
            spread = torch.zeros_like(x)
            spread[:, :, :: ctx.stride[0], :: ctx.stride[1]] = dy
            dx = _depthwise(spread, weight.flip(2, 3))
        if ctx.needs_input_grad[1]:
            dweight = nn.grad.conv2d_weight(
                x, weight.shape, dy, ctx.stride, weight.shape[2] // 2, groups=x.shape[1]
            )
        return dx, dweight, None


def _depthwise(x: Tensor, weight: Tensor, stride: tuple[int, int] = (1, 1)) -> Tensor:
    padding = weight.shape[2] // 2
    return nn.functional.conv2d(x, weight, None, stride, padding, groups=x.shape[1])


class StridedDepthwiseConv2d(nn.Conv2d):
    """Made by ``speed_up_strided_depthwise``."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16:
            weight, x = weight.bfloat16(), x.bfloat16()
        takes = (
            x.device.type == "cpu"
            and x.ndim == 4
            and x.dtype == weight.dtype == torch.bfloat16
            and x.shape[1] == self.in_channels
            and torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and not torch.jit.is_tracing()
        )
        return _StridedDepthwise.apply(x, weight, self.stride) if takes else super().forward(x)


def speed_up_strided_depthwise(module: Module) -> Module:
    """Makes a model's strided depthwise convolutions use the fast gradient; in place.

    They become ``StridedDepthwiseConv2d`` where they have as many outputs as inputs, an odd square
    kernel, half of it as zero padding, and no bias; all others stay as they are. What is not
    bfloat16 (by autocast or itself), not on the CPU, or without gradients takes PyTorch's own
    way, by design. Gradients of gradients are not there: asking for them raises RuntimeError.

    Returns:
        ``module`` itself.
    """
    for layer in module.modules():
        if type(layer) is nn.Conv2d and _is_strided_depthwise(layer):
            layer.__class__ = StridedDepthwiseConv2d
    return module


def _is_strided_depthwise(layer: nn.Conv2d) -> bool:
    size = layer.kernel_size[0]
    return (
        layer.groups == layer.in_channels == layer.out_channels > 1
        and max(layer.stride) > 1
        and layer.kernel_size == (size, size)
        and size % 2 == 1
        and layer.padding == (size // 2, size // 2)
        and layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
        and layer.bias is None
    )
