"""Full precision inside somebody's autocast: the caller's own, or that of training."""

from contextlib import AbstractContextManager, nullcontext

import torch


def full_precision(device: torch.device) -> AbstractContextManager:
    """Turns autocast off where it is on; traces and exports without it stay as they are."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
