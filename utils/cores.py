"""How many processors there are to use. Imports nothing heavy: start-up goes through here."""

import os


def usable_cores() -> int:
    """Logical ones that this process may use; where the system does not tell, all there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def openmp_threads() -> int | None:
    """What ``OMP_NUM_THREADS`` says (its first number), None where it says nothing usable."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(wanted) if wanted.isdecimal() and int(wanted) else None
