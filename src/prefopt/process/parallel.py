"""Work on many items in several processes, which inherit all that the work needs instead of getting it sent."""

import ctypes
import gc
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

from prefopt.process.errors import EndedError

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 4
"""Items for each process that are given out before their results are taken: it bounds the results in memory."""
ITEMS_PER_PROCESS = 4
"""Fewest items for which another process is begun."""
PR_SET_PDEATHSIG = 1

_work: Callable[[Any], Any] | None = None
"""In a process that this module has begun: its work. Work within such a process begins no others."""


def num_cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processes_for(num_items: int) -> int:
    """Returns in how many processes work on items is done, each of which takes about as long as to begin a process."""
    return min(num_cores(), num_items // ITEMS_PER_PROCESS)


def map_in_processes(
    work: Callable[[Item], Result], items: Iterable[Item], *, num_processes: int, doing: str
) -> Iterator[Result]:
    """Yields `work(item)` for each item, in order; an exception of the work is raised here, at its item.

    The processes are forks of this one as it is now, so `work` may use any object of it; what the work changes stays
    in its process. Only items and results are sent, and must be picklable; work on what is nested too deeply for
    that is done here. They end with this process.

    Args:
        work: Called with one item at a time. It must not use a GPU, and begins no processes itself.
        items: What it is called with. They are taken a few at a time.
        num_processes: With fewer than 2, the work is done here.
        doing: What it is called in an error: "tokenising".

    Raises:
        EndedError: A process was ended from outside.
    """
    if num_processes < 2 or _work is not None:
        for item in items:
            with _no_garbage_collection():
                result = work(item)
            yield result
        return
    gc.freeze()  # so that no process writes into the others' pages when it collects garbage
    try:
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(num_processes, mp_context=context, initializer=_begin, initargs=(work,)) as pool:
            given = ((item, pool.submit(_do, item)) for item in items)
            waiting: deque[tuple[Item, Future[Result]]] = deque(islice(given, AHEAD * num_processes))
            try:
                while waiting:
                    item, future = waiting.popleft()
                    try:
                        result = future.result()
                    except RecursionError:  # it may be nested too deeply to be sent, but not to be worked on
                        result = work(item)
                    yield result
                    waiting.extend(islice(given, 1))
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
    except BrokenProcessPool as error:
        raise EndedError(f"{doing}: one of its processes was ended, most often because memory ran out.") from error
    finally:
        gc.unfreeze()


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Spares the work of looking through all objects again and again while many are made, up to half of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _begin(work: Callable[[Any], Any]) -> None:
    """Sets up a process: it ends with its parent, whose handlers of signals are not called."""
    global _work
    _work = work
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a process for each core already
    gc.disable()


def _do(item: Any) -> Any:
    assert _work is not None, "it is set before the first item comes"
    return _work(item)
