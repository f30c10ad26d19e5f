"""Work in several processes: the same results and errors as here, in order, and no process outlives its parent."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefopt.process.errors import EndedError, UserError
from prefopt.process.parallel import AHEAD, map_in_processes


def test_results_come_in_order_from_several_processes() -> None:
    factor = 3  # inherited, not sent

    def work(item: int) -> tuple[int, int]:
        time.sleep(0.01 * (item % 3 == 0))
        return item * factor, os.getpid()

    results = list(map_in_processes(work, range(40), num_processes=2, doing="testing"))
    assert [product for product, _ in results] == [item * factor for item in range(40)]
    pids = {pid for _, pid in results}
    assert len(pids) == 2
    assert os.getpid() not in pids


@pytest.mark.parametrize("num_processes", [0, 1])
def test_one_process_is_this_one(num_processes: int) -> None:
    assert set(map_in_processes(lambda _: os.getpid(), range(3), num_processes=num_processes, doing="testing")) == {
        os.getpid()
    }


def test_an_error_is_raised_at_its_item() -> None:
    def work(item: int) -> int:
        if item >= 5:
            raise UserError(f"row {item} is bad")
        return item

    seen = []
    with pytest.raises(UserError, match="row 5 is bad"):  # noqa: PT012  (what came before the error is looked at)
        for result in map_in_processes(work, range(40), num_processes=2, doing="testing"):
            seen.append(result)
    assert seen == [0, 1, 2, 3, 4]


def test_work_within_work_begins_no_processes() -> None:
    def outer(_: int) -> set[int]:
        inner = map_in_processes(lambda _: os.getpid(), range(8), num_processes=2, doing="testing")
        return {os.getpid(), *inner}

    assert all(len(pids) == 1 for pids in map_in_processes(outer, range(4), num_processes=2, doing="testing"))


def test_a_process_that_is_ended_from_outside_is_told() -> None:
    with pytest.raises(EndedError, match="testing: one of its processes was ended, most often because memory ran out"):
        list(
            map_in_processes(
                lambda _: os.kill(os.getpid(), signal.SIGKILL), range(4), num_processes=2, doing="testing"
            )
        )


def test_items_are_taken_a_few_at_a_time() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    results = map_in_processes(lambda item: item, items(), num_processes=2, doing="testing")
    assert next(results) == 0
    assert len(taken) <= 2 * AHEAD + 1
    results.close()


def test_the_parents_handlers_are_not_called_in_a_process() -> None:
    called: list[int] = []

    def work(_: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    earlier = signal.signal(signal.SIGTERM, lambda *_: called.append(os.getpid()))
    try:
        with pytest.raises(EndedError):
            list(map_in_processes(work, range(2), num_processes=2, doing="testing"))
    finally:
        signal.signal(signal.SIGTERM, earlier)
    assert called == []


PARENT = """
import sys, time
from prefopt.process.parallel import map_in_processes
import os

def work(item):
    os.write(1, f"{os.getpid()}\\n".encode())
    time.sleep(0.2)

list(map_in_processes(work, range(1000), num_processes=2, doing="testing"))
"""


def test_no_process_outlives_a_parent_that_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = {int(parent.stdout.readline()) for _ in range(2)}
    parent.kill()
    parent.wait()
    limit = time.monotonic() + 10
    while time.monotonic() < limit and any(map(_is_running, pids)):
        time.sleep(0.05)
    assert not any(map(_is_running, pids))
    parent.stdout.close()


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_it_works_outside_the_main_thread() -> None:
    results: list[int] = []
    thread = threading.Thread(
        target=lambda: results.extend(map_in_processes(abs, [-1, -2, -3, -4], num_processes=2, doing="testing"))
    )
    thread.start()
    thread.join()
    assert results == [1, 2, 3, 4]


def test_an_item_or_a_result_that_is_nested_too_deeply_to_be_sent_is_worked_on_here() -> None:
    def nest(value: object, levels: int) -> object:
        for _ in range(levels):
            value = [value]
        return value

    deep = nest(1, 5_000)

    def work(item: object) -> object:
        return nest(2, 5_000) if item == 7 else os.getpid()

    items = [deep if number == 3 else number for number in range(12)]
    results = list(map_in_processes(work, items, num_processes=2, doing="testing"))
    assert [result == os.getpid() for result in results if isinstance(result, int)] == [
        number == 3 for number in range(12) if number != 7
    ]
    assert isinstance(results[7], list)


def test_work_that_recurses_too_deeply_is_an_error_here() -> None:
    def work(item: int) -> int:
        return work(item)

    with pytest.raises(RecursionError):
        list(map_in_processes(work, range(9), num_processes=2, doing="testing"))
