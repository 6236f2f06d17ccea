"""Where the networks run, and by what: PyTorch, or ONNX Runtime where the CPU does the work.

Importing this module imports neither; a choice that falls on ONNX Runtime never imports torch.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import textwrap
import threading
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from utils.errors import UnavailableError, first_line
from utils.memory import is_out_of_memory
from utils.onnx_engine import missing_packages, open_network

if TYPE_CHECKING:
    import torch

    from model_building import SynergyNet
    from utils.morphable_model import MorphableModel

Module = TypeVar("Module", bound="torch.nn.Module")

logger = logging.getLogger(__name__)

DEVICES = ("auto", "cpu", "cuda", "mps")
ENGINES = ("auto", "torch", "onnx")
# What a driver that torch can use leaves on the machine: NVIDIA's, AMD's, WSL's, Jetson's.
DRIVERS = {
    "linux": ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg", "/dev/nvmap"),
    "win32": (os.path.join(os.environ.get("SYSTEMROOT", ""), "System32", "nvcuda.dll"),),
}
_FULL_DEVICE = "end what else uses the device, or choose another with --device"


def choose_engine(engine: str = "auto", device: str | torch.device = "auto") -> tuple[str, str]:
    """What runs the networks, ``torch`` or ``onnx``, and the name of the device.

    ``auto`` is ONNX Runtime where it is installed and the device is the CPU, else PyTorch.

    Raises:
        ValueError: an unknown name, or an engine that does not run on the device.
        UnavailableError: the device or the engine is not there; nothing else is taken instead.
    """
    if engine not in ENGINES:
        raise ValueError(f"unknown engine {engine!r}; expected one of: {', '.join(ENGINES)}")
    if not isinstance(device, str) and type(device).__name__ != "device":
        raise ValueError(f"unknown device {device!r}; expected a name such as 'auto' or 'cuda:1'")
    device = "cpu" if str(device) == "cpu:0" else str(device)
    missing = missing_packages()
    if engine == "onnx":
        if device not in ("auto", "cpu"):
            raise ValueError(f"the onnx engine runs on the CPU, not on {device!r}; torch does")
        if "onnxruntime" in missing:
            raise UnavailableError("the onnx engine needs a package: pip install onnxruntime onnx")
        return "onnx", "cpu"
    has_torch = importlib.util.find_spec("torch") is not None
    if device == "auto" and not (has_torch and _may_have_accelerator()):
        device = "cpu"  # known without torch, whose import takes longer than the rest of a run
    if device != "cpu" and has_torch:
        device = str(choose_device(device))
    if engine == "auto":
        engine = "onnx" if device == "cpu" and not missing else "torch"
    if engine == "torch" and not has_torch:
        raise UnavailableError("the torch engine needs a package: pip install torch; or take onnx")
    return engine, device


def _may_have_accelerator() -> bool:
    """Whether torch is worth asking for a GPU that ``auto`` takes."""
    return any(os.path.exists(path) for path in DRIVERS.get(sys.platform, ()))


def choose_device(name: str = "auto") -> torch.device:
    """The torch device of a name.

    ``auto`` is cuda where it works (where there is one that does not, a warning says so), else the
    CPU. Apple's GPU is taken by name only: nobody has tried it here.

    Raises:
        ValueError: an unknown name.
        UnavailableError: the device is not there or does not work; nothing else is taken instead.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            try:
                return choose_device("cuda")
            except UnavailableError as error:  # a GPU too old for this torch, for example
                logger.warning("%s; going on with the CPU", error)
        return torch.device("cpu")
    kind = name.split(":")[0]
    if kind not in DEVICES:
        raise ValueError(f"unknown device {name!r}; expected one of: {', '.join(DEVICES)}")
    if kind == "mps" and not torch.amp.is_autocast_available("mps"):  # full_precision asks
        raise UnavailableError("device 'mps' needs torch 2.5 or newer, and 2.8 to train")
    try:
        torch.zeros(1, device=name)
    except Exception as error:  # drivers fail in many ways
        reason = textwrap.shorten(first_line(error), 160)  # torch's lists all devices
        raise UnavailableError(
            f"device {name!r} does not work here ({reason}); choose another with --device"
        ) from error
    return torch.device(name)


def open_regressor(
    engine: str,
    weights: str | os.PathLike,
    face_model: MorphableModel,
    device: str,
    threads: int | None = None,
) -> TorchRegressor | OnnxRegressor:
    """The image-to-parameters network of a checkpoint, run by ``engine`` (``torch`` or ``onnx``).

    ``device`` counts for torch, ``threads`` for onnx.

    Raises:
        FileNotFoundError, ValueError: see ``model_building.load_synergynet``.
        UnavailableError: see ``utils.onnx_engine.export_onnx``; or the device has no memory.
    """
    if engine == "onnx":
        return OnnxRegressor(weights, face_model, threads)
    from model_building import load_synergynet  # imports torch

    return TorchRegressor(load_synergynet(weights, face_model), device)


_APPLE_GPU = threading.Lock()


def alone_on(device: torch.device) -> AbstractContextManager:
    """Holds a device that one thread at a time may use, which is Apple's: torch crashes there
    (pytorch issue 197805). No wait on others."""
    return _APPLE_GPU if device.type == "mps" else nullcontext()


def picture_layout(device: torch.device | str) -> torch.memory_format:
    """Of pictures (B, C, H, W) and of convolutions' weights in memory.

    Channels last: two thirds of the time on a CPU, and what tensor cores want. Not on Apple's GPU,
    where some backward passes are wrong in it (torch 2.13; pytorch issues 175189 and 175190).
    """
    import torch

    is_apple = torch.device(device).type == "mps"
    return torch.contiguous_format if is_apple else torch.channels_last


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy that the host does not wait for.

    On Apple's GPU it does: before torch 2.13 the copy may be read from memory that is already used
    for something else (pytorch issue 189690).
    """
    return tensor.to(device, non_blocking=device.type != "mps")


def on_device(network: Module, device: torch.device) -> Module:
    """A network moved to a device, in the layout for its pictures.

    Raises:
        UnavailableError: the device has no memory for it.
    """
    try:
        return network.to(device, memory_format=picture_layout(device))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UnavailableError(
            f"{device}: no memory for the network ({first_line(error)}); {_FULL_DEVICE}"
        ) from error


class TorchRegressor:
    """The image-to-parameters network in PyTorch (``utils.inference.Regressor``).

    Where the device has no memory for all crops at once they go through in parts, half as many at
    a time until they fit; later calls begin with the size that did.

    Args:
        model: a ``SynergyNet`` in evaluation mode; only its ``I2P`` part is used.
        device: where it runs.

    Raises:
        UnavailableError: the device has no memory for the network.
    """

    def __init__(self, model: SynergyNet, device: torch.device | str) -> None:
        import torch

        self.device = torch.device(device)
        self.network = on_device(model.I2P.eval(), self.device)
        self.largest: int | None = None  # crops at once, once the memory was too small for more

    def __call__(self, crops: np.ndarray) -> np.ndarray:
        """(n, 3, 120, 120) float32 -> (n, 62) float32 whitened parameters.

        Raises:
            MemoryError: the device has no memory for a single crop.
        """
        size = self.largest or max(len(crops), 1)
        while True:
            try:
                parts = [
                    self._forward(crops[start : start + size])
                    for start in range(0, max(len(crops), 1), size)
                ]
                return parts[0] if len(parts) == 1 else np.concatenate(parts)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = textwrap.shorten(str(error), 160)
            # Out here the error is gone, and with it the arrays that its traceback held.
            size = self._smaller(min(size, len(crops)), reason)

    def _forward(self, crops: np.ndarray) -> np.ndarray:
        import torch

        from utils.precision import full_precision

        # the calling program's autocast is for its own networks
        with alone_on(self.device), full_precision(self.device), torch.inference_mode():
            images = torch.from_numpy(crops).to(
                self.device, memory_format=picture_layout(self.device)
            )
            return self.network(images)[0].float().cpu().numpy()

    def _smaller(self, size: int, reason: str) -> int:
        """Half of a size that was too much, remembered; said the first time."""
        import torch

        if size <= 1:
            raise MemoryError(
                f"{self.device}: out of memory with a single crop ({reason}); {_FULL_DEVICE}"
            )
        if self.largest is None:
            logger.warning(
                "%s: out of memory with %d crops at once; going on with fewer", self.device, size
            )
        self.largest = min(size // 2, self.largest or size)
        if self.device.type in ("cuda", "mps"):
            getattr(torch, self.device.type).empty_cache()
        return self.largest


class OnnxRegressor:
    """The image-to-parameters network in ONNX Runtime, on the CPU; threads may share it.

    More than ``BATCH`` crops go through in parts: on a CPU more at once take no less time a crop,
    but memory (128: 350 MB).

    Args:
        weights: SynergyNet checkpoint. The first use exports its network (``utils.onnx_engine``).
        face_model: the one the weights were trained with.
        threads: how many work on one call; ``utils.cores.cpu_threads()`` if None.

    Raises:
        FileNotFoundError, ValueError, UnavailableError: see ``model_building.export_encoder``.
    """

    BATCH = 16

    def __init__(
        self, weights: str | os.PathLike, face_model: MorphableModel, threads: int | None = None
    ) -> None:
        def export() -> bytes:
            from model_building import export_encoder  # imports torch

            return export_encoder(weights, face_model)

        # The export checks that weights and face model belong together. A cache file made with
        # another face model does not fit, so that the weights are checked against this one.
        expected = {"network": "SynergyNet", "face_model": face_model.fingerprint}
        self.network = open_network(weights, export, expected, threads)

    def __call__(self, crops: np.ndarray) -> np.ndarray:
        """(n, 3, 120, 120) float32 -> (n, 62) float32 whitened parameters."""
        return self.encode(crops)[0]

    def encode(self, crops: np.ndarray) -> list[np.ndarray]:
        """(n, 3, 120, 120) float32 -> parameters (n, 62) and pooled features (n, D), float32."""
        if len(crops) <= self.BATCH:
            return self.network(crops)
        parts = [
            self.network(crops[start : start + self.BATCH])
            for start in range(0, len(crops), self.BATCH)
        ]
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
