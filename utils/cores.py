"""How many processors there are to use. Imports nothing heavy: start-up goes through here."""

import math
import os
from pathlib import Path

CONTAINER_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> int:
    """How many logical cores this process may use; all there are where the system does not tell."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:  # of `docker run --cpus` and Kubernetes' limits: microseconds of CPU in as many of time
        quota, period = map(int, CONTAINER_LIMIT.read_text().split())
    except (OSError, ValueError):  # no such limit ("max"), or another system
        return cores or 1
    return min(cores or 1, max(1, math.ceil(quota / period)))


def openmp_threads() -> int | None:
    """The first number of ``OMP_NUM_THREADS``; None where it is not set, or no number above 0."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(wanted) if wanted.isdecimal() and int(wanted) else None


def cpu_threads() -> int:
    """``OMP_NUM_THREADS`` where set, else the cores that this process may use.

    Two hardware threads of one core count once: they share its arithmetic units.
    """
    if wanted := openmp_threads():
        return wanted
    siblings = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    try:
        cores = {Path(siblings.format(cpu)).read_text() for cpu in os.sched_getaffinity(0)}
        return min(len(cores), usable_cores())
    except (AttributeError, OSError):  # macOS and Windows; no /sys in this container
        return usable_cores()
