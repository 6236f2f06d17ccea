"""One process or many: what ``torchrun`` sets up, and what the training loop needs of it.

Without ``torchrun`` everything here is the plain case of one process.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from utils.errors import UnavailableError
from utils.runtime import choose_device


class World(NamedTuple):
    """The processes that train together; each holds the whole network and a slice of the batch."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_main(self) -> bool:
        """The one process that prints and writes."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes, of a tensor that each has."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
            # by a tensor: GPUs multiply with a number's rounded inverse, and the mean of seven
            # threes would not be three
            values /= torch.full_like(values, self.size)
        return values

    def wait(self) -> None:
        """Returns when every process is here."""
        if self.size > 1:
            dist.barrier()


def local_rank() -> int:
    """The number of this process among those that ``torchrun`` started on this machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def join_world(device: str = "auto") -> Iterator[World]:
    """The world that ``torchrun`` started this process in, or a world of one.

    Args:
        device: as ``choose_device``; several GPUs of a machine are shared out by local rank.

    Raises:
        ValueError, UnavailableError: of ``choose_device``; more processes than GPUs.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(device=choose_device(device))
        return
    if device == "auto":  # the same for all processes
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "mps":
        raise UnavailableError("Apple's GPU trains in one process only; start it without torchrun")
    local = local_rank()
    if device == "cuda" and (gpus := torch.cuda.device_count()):
        if local >= gpus:
            raise UnavailableError(
                f"process {local + 1} of this machine has no GPU, it has {gpus}; start "
                f"--nproc_per_node {gpus}"
            )
        torch.cuda.set_device(local)  # before it is tried, or all would take memory of the first
    chosen = choose_device(device)
    if chosen.type == "cuda":
        chosen = torch.device("cuda", local)
        torch.cuda.set_device(chosen)
        dist.init_process_group("nccl", device_id=chosen)
    else:
        dist.init_process_group("gloo")
    yield World(dist.get_rank(), size, chosen)
    # not after an error: on GPUs it may wait for the others, who wait for this process; it would be
    # told after their time-out or never. The process ends without, and torchrun ends the others.
    dist.destroy_process_group()
