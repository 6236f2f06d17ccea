"""Where the networks run."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

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
