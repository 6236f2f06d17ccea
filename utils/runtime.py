"""Where the networks run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

    from model_building import SynergyNet

DEVICES = ("auto", "cpu", "cuda", "mps")


def choose_device(name: str = "auto") -> torch.device:
    """The torch device of a name; ``auto`` prefers cuda, then mps, then cpu.

    Raises:
        ValueError: an unknown name.
        RuntimeError: the device is not there or does not work; nothing else is taken instead.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            name = "cuda"
        else:
            name = "mps" if torch.backends.mps.is_available() else "cpu"
    kind = name.split(":")[0]
    if kind not in DEVICES:
        raise ValueError(f"unknown device {name!r}; expected one of: {', '.join(DEVICES)}")
    try:
        torch.zeros(1, device=name)
    except Exception as error:  # drivers fail in many ways
        reason = str(error).strip().splitlines()[0]
        raise RuntimeError(
            f"device {name!r} does not work here ({reason}); choose another with --device"
        ) from error
    return torch.device(name)


class TorchRegressor:
    """The image-to-parameters network in PyTorch (``utils.inference.Regressor``).

    Args:
        model: a ``SynergyNet`` in evaluation mode; only its ``I2P`` part is used.
        device: where it runs.
    """

    def __init__(self, model: SynergyNet, device: torch.device) -> None:
        import torch

        self.network = model.I2P.to(device).to(memory_format=torch.channels_last).eval()
        self.device = device

    def __call__(self, crops: np.ndarray) -> np.ndarray:
        """(n, 3, 120, 120) float32 -> (n, 62) float32 whitened parameters."""
        import torch

        with torch.inference_mode():
            images = torch.from_numpy(crops).to(self.device, memory_format=torch.channels_last)
            return self.network(images)[0].float().cpu().numpy()
