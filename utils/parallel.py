"""Work done ahead by threads, its results taken in order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def in_order(
    work: Callable[[Task], Result], tasks: Iterable[Task], workers: int, ahead: int = 1
) -> Generator[Result, None, None]:
    """``work(task)`` of each task, ``workers`` of them at once, results in the tasks' order.

    An exception of ``work``, Ctrl-C, or a caller that stops iterating ends it: what has begun is
    finished, what has not is dropped.

    Args:
        work: called in threads of its own.
        tasks: read in the caller's thread, no further ahead than needed.
        workers: threads, at least 1.
        ahead: how many tasks more than there are workers may wait, or have their result waiting.
    """
    pool = ThreadPoolExecutor(workers, "ahead")
    waiting: deque[Future[Result]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(work, task))
            if len(waiting) >= workers + ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
