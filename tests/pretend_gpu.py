"""A GPU that is not there: tensors that say they lie on another device, computed by the CPU.

What a real one refuses is refused: tensors of both devices in one operation, numpy of a tensor that
is not on the CPU. ``PretendGpu.waits`` names the operations for which the program would stand still
until a real one has caught up. Not covered: autocast, inference mode, pinned memory, streams,
kernels that only GPUs have, and how they round.

The device is called ``meta``, which a PyTorch without CUDA knows too, and whose own tensors, which
have no values, nothing here uses.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
import torch._dynamo  # the first operation would import it, when torch is changed already
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("meta")
aten = torch.ops.aten
COPIES = (aten._to_copy, aten.copy_)  # from one device to the other
INDEXING = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)
# tell the program something that was computed
READING = (aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero)


class GpuTensor(torch.Tensor):
    """``host``: its values, a tensor on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    is_meta = False

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> "GpuTensor":
        return torch.Tensor._make_wrapper_subclass(
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=GPU,
        )

    def __init__(self, host: torch.Tensor) -> None:
        self.host = host

    def __repr__(self) -> str:
        return f"GpuTensor({self.host})"

    def __reduce_ex__(self, protocol: int):
        return self.host.__reduce_ex__(protocol)

    def tolist(self) -> list:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _compute(func, args, kwargs or {}, [])


class PretendGpu(TorchDispatchMode):
    """``waits``: names of the operations that waited for the device, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _compute(func, args, kwargs or {}, self.waits)


def _compute(func, args: tuple, kwargs: dict, waits: list[str]):
    name, packet = func._schema.name, func.overloadpacket
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, GpuTensor)]
    device = kwargs.get("device")
    if packet is aten.copy_:
        device = args[0].device
    if not ours and (device is None or torch.device(device) != GPU):
        return func(*args, **kwargs)

    strangers = [t for t in tensors if not isinstance(t, GpuTensor)]
    if packet in INDEXING and isinstance(args[0], GpuTensor):
        allowed = set(map(id, tree_leaves(args[1])))  # indices may lie on the CPU
        strangers = [t for t in strangers if id(t) not in allowed]
    if ours and packet not in COPIES and any(tensor.ndim for tensor in strangers):
        shapes = [tuple(tensor.shape) for tensor in strangers]
        raise RuntimeError(f"{name}: tensors of both devices; on the CPU are those of {shapes}")

    stays = bool(ours) if device is None else torch.device(device) == GPU
    if packet in READING or (ours and not stays and not kwargs.get("non_blocking")):
        waits.append(name)
    host_args, host_kwargs = tree_map(
        lambda leaf: leaf.host if isinstance(leaf, GpuTensor) else leaf, (args, kwargs)
    )
    if kwargs.get("device") is not None:
        host_kwargs["device"] = torch.device("cpu")
    result = func(*host_args, **host_kwargs)
    if any(result is leaf for leaf in tree_leaves(host_args)) and packet is aten._to_copy:
        result = result.clone()  # the other device is another memory
    if not stays:
        return result
    result = tree_map(lambda leaf: GpuTensor(leaf) if torch.is_tensor(leaf) else leaf, result)
    return return_and_correct_aliasing(func, args, kwargs, result) if ours else result


@contextmanager
def pretend_gpu() -> Iterator[PretendGpu]:
    """Inside, tensors may be moved to ``GPU``."""
    mode, real_tensor, real_generator = PretendGpu(), torch.tensor, torch.Generator
    real_autocast = torch.autocast

    def tensor(data, *, device=None, **kwargs):
        made = real_tensor(data, **kwargs)
        return made if device is None else made.to(device)

    changed = {
        "tensor": tensor,
        "Generator": lambda device="cpu": real_generator(),
        "autocast": lambda device_type, *args, **kwargs: real_autocast("cpu", *args, **kwargs),
        "is_autocast_enabled": lambda device_type=None: False,
    }
    with (
        patch.multiple(torch, **changed),
        patch("torch._C._InferenceMode", lambda mode: torch.no_grad()),
        mode,
    ):
        yield mode
