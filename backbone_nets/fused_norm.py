"""Batch norm and the ReLU after it as one operation, for training on the CPU.

A step is bound by memory: PyTorch's batch norm and clamp move a layer's activations some thirteen
times between memory and processor, this one eight times (statistics, then norm and clamp; two sums,
then the gradient). It keeps the input and the statistics; backward recomputes the rest, the clamp's
mask among it. ``fuse_batch_norm(model)`` makes a model use it; state-dict keys, parameters,
buffers, evaluation and results (to float32 rounding) stay what they were.

The fused kernel runs in training mode on float32 or bfloat16 CPU tensors (of a float32 layer, as
under autocast) whose channels lie together in memory: (B, C, H, W) in ``torch.channels_last``, or
(rows, C). Everything else takes PyTorch's own operations, by design: evaluation and frozen
statistics, other devices and dtypes, other layouts, and compiling, tracing or exporting.
"""

import warnings
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

try:
    import backbone_nets.fused_norm_cython as kernel  # `from` raises another error if missing
except ModuleNotFoundError:  # not built; a kernel that is there but broken is an error
    kernel = None

CLAMPS = {None: (-np.inf, np.inf), "relu": (0.0, np.inf), "relu6": (0.0, 6.0)}
ACTIVATIONS: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.ReLU6: "relu6"}

Module = TypeVar("Module", bound=nn.Module)


class _FusedNorm(torch.autograd.Function):
    """(x, weight, bias, eps, clamp) -> y, batch mean, biased batch variance (both float64)."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        clamp: tuple[float, float],
    ) -> tuple[Tensor, Tensor, Tensor]:
        y = torch.empty_like(x)
        statistics = torch.empty(3, x.shape[1], dtype=torch.float64)
        kernel.forward(
            _rows(x),
            _array(weight),
            _array(bias),
            eps,
            *clamp,
            torch.get_num_threads(),
            statistics.numpy(),
            _rows(y),
        )
        ctx.save_for_backward(x, weight, bias, statistics)
        ctx.clamp = clamp
        mean, variance = statistics[0].clone(), statistics[1].clone()
        ctx.mark_non_differentiable(mean, variance)
        ctx.set_materialize_grads(False)
        return y, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * 5
        x, weight, bias, statistics = ctx.saved_tensors
        dy = dy.contiguous(memory_format=_packed(x))
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        dweight, dbias = torch.empty_like(weight), torch.empty_like(bias)
        kernel.backward(
            _rows(x),
            _rows(dy),
            _array(weight),
            _array(bias),
            statistics.numpy(),
            *ctx.clamp,
            torch.get_num_threads(),
            None if dx is None else _rows(dx),
            dweight.numpy(),
            dbias.numpy(),
        )
        return dx, dweight, dbias, None, None


class _Fused:
    """What the fused classes add to PyTorch's: the kernel, and an activation after the norm."""

    activation: str | None = None  # a key of CLAMPS, always applied

    def forward(self, x: Tensor, activation: str | None = None) -> Tensor:
        """Batch norm and, where this layer or the call names one, ``"relu"`` or ``"relu6"``."""
        activation = activation or self.activation
        self._check_input_dim(x)
        if not self._takes(x):
            y = super().forward(x)
            # in place: batch norm keeps its input, not its output
            return y if activation is None else getattr(nn.functional, activation)(y, inplace=True)
        y, mean, variance = _FusedNorm.apply(
            x, self.weight, self.bias, self.eps, CLAMPS[activation]
        )
        if self.track_running_stats:
            self._update(mean, variance, x.numel() // x.shape[1])
        return y

    def _takes(self, x: Tensor) -> bool:
        return (
            kernel is not None
            and self.training
            and x.device.type == "cpu"
            and x.dtype in (torch.float32, torch.bfloat16)
            and x.ndim in (2, 4)
            and x.numel() > x.shape[1] == self.num_features  # one row: PyTorch says what is wrong
            and x.is_contiguous(memory_format=_packed(x))
            and self.affine
            and self.weight.dtype == self.bias.dtype == torch.float32
            and not torch.compiler.is_compiling()
            and not torch.jit.is_tracing()
        )

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor, rows: int) -> None:
        """The running statistics, as PyTorch has them: the variance unbiased."""
        self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:  # the plain average of all batches
            momentum = 1.0 / float(self.num_batches_tracked)
        for running, batch in (
            (self.running_mean, mean),
            (self.running_var, variance * (rows / (rows - 1))),
        ):
            running.copy_((1 - momentum) * running.double() + momentum * batch)


class FusedBatchNorm1d(_Fused, nn.BatchNorm1d):
    """Made by ``fuse_batch_norm``. The kernel takes (rows, C); (B, C, L) goes PyTorch's way."""


class FusedBatchNorm2d(_Fused, nn.BatchNorm2d):
    """Made by ``fuse_batch_norm``. The kernel takes (B, C, H, W) in ``torch.channels_last``."""


FUSED: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: FusedBatchNorm1d,
    nn.BatchNorm2d: FusedBatchNorm2d,
}


def norm_relu(norm: nn.Module, x: Tensor) -> Tensor:
    """``relu(norm(x))``, as one operation where ``norm`` is fused."""
    return norm(x, "relu") if isinstance(norm, _Fused) else torch.relu(norm(x))


def fuse_batch_norm(module: Module) -> Module:
    """Makes a model's batch norms use the fused kernel where it applies; in place.

    Every ``BatchNorm1d`` and ``BatchNorm2d`` becomes its fused subclass, parameters and buffers
    untouched. A ``ReLU`` or ``ReLU6`` that follows one in an ``nn.Sequential`` moves into it and
    leaves an ``Identity`` in its place, so no name changes; a forward hook on such a batch norm
    sees the result after the activation. Layers of other classes stay as they are. Give the model
    and its images ``memory_format=torch.channels_last``, or the kernel has nothing to do.

    Gradients of gradients are not there: asking for them raises RuntimeError.

    Returns:
        ``module`` itself; unchanged, with a RuntimeWarning, where the extension is not built.
    """
    if kernel is None:
        warnings.warn(
            "The fused batch norm is not built: training with PyTorch's own, which is slower. "
            "Build it with `pip install -e .` (this needs a C++ compiler).",
            RuntimeWarning,
            stacklevel=2,
        )
        return module
    places = [child for _, child in module.named_modules(remove_duplicate=False)]
    for layer in set(places):
        if type(layer) in FUSED:
            layer.__class__ = FUSED[type(layer)]
    for parent in set(places):
        if type(parent) is not nn.Sequential:
            continue
        for index in range(len(parent) - 1):
            norm, activation = parent[index], ACTIVATIONS.get(type(parent[index + 1]))
            # one that stands in several places may have different neighbours there
            if isinstance(norm, _Fused) and activation and places.count(norm) == 1:
                norm.activation = activation
                parent[index + 1] = nn.Identity()
    return module


def _packed(x: Tensor) -> torch.memory_format:
    """The layout in which channels lie together."""
    return torch.channels_last if x.ndim == 4 else torch.contiguous_format


def _rows(x: Tensor) -> np.ndarray:
    """The memory of a packed (B, C, H, W) or (R, C) tensor as (rows, C), without a copy; of
    bfloat16 its bits."""
    x = x.detach()
    x = x if x.ndim == 2 else x.permute(0, 2, 3, 1).view(-1, x.shape[1])
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


def _array(x: Tensor) -> np.ndarray:
    return x.detach().contiguous().numpy()
