"""Results in order, whatever the threads do."""

import threading
import time

import pytest

from utils.parallel import in_order


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_in_order(workers):
    """Results in the order of the tasks, at most ``workers`` at once, few waiting."""
    running, most, started = 0, 0, 0
    lock = threading.Lock()

    def work(number: int) -> int:
        nonlocal running, most, started
        with lock:
            running, started = running + 1, started + 1
            most = max(most, running)
        time.sleep(0.001 * (number % 5))
        with lock:
            running -= 1
        return number

    for expected, number in enumerate(in_order(work, range(60), workers, ahead=3)):
        assert number == expected
        assert started <= number + 1 + workers + 3
    assert number == 59 and most <= workers


@pytest.mark.parametrize("workers", [2, 5])
def test_workers_work_at_once(workers):
    together = threading.Barrier(workers)

    def work(number: int) -> int:
        together.wait(timeout=60)
        return number

    assert list(in_order(work, range(4 * workers), workers)) == list(range(4 * workers))


@pytest.mark.parametrize("workers", [1, 3])
def test_an_unexpected_fault_ends_the_run(workers):
    done = []

    def work(number: int) -> None:
        if number == 4:
            raise ZeroDivisionError
        done.append(number)

    with pytest.raises(ZeroDivisionError):
        list(in_order(work, range(100), workers))
    assert {0, 1, 2, 3} <= set(done) and len(done) < 20
