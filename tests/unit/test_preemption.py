"""When a run is asked to stop: signals, clocks, and how a user writes a time limit."""

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from prefopt.config.durations import parse_time_limit
from prefopt.distributed.preemption import (
    SAFETY,
    SCHEDULER_MARGIN_S,
    TIME_LIMIT_MARGIN_S,
    Preempted,
    StopRequest,
    scheduler_end,
)
from prefopt.process.errors import UserError


class FakeClock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """A test that fails must not leave its handlers to the next."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def install(time_limit_s: float | None = None, scheduler_end: float | None = None, **clocks: Any) -> Any:
    return StopRequest.install(time_limit_s=time_limit_s, scheduler_end=scheduler_end, **clocks)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_is_a_request_by_name_and_no_more(name):
    with install() as stop:
        assert stop.requested is None
        os.kill(os.getpid(), signal.Signals[name])
        assert stop.requested == name


def test_further_signals_change_nothing():
    with install() as stop:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.raise_signal(number)
        assert stop.requested == "SIGUSR1"


def test_earlier_handlers_come_back():
    def earlier(number: int, frame: Any) -> None: ...

    signal.signal(signal.SIGTERM, earlier)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    def fail_while_installed() -> None:
        with install():
            assert signal.getsignal(signal.SIGTERM) is not earlier
            assert signal.getsignal(signal.SIGUSR1) is not signal.SIG_IGN
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_while_installed()
    assert signal.getsignal(signal.SIGTERM) is earlier
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_rank_that_is_on_its_way_out_is_not_ended_by_its_launcher(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
    with install() as stop:
        pass
    signal.raise_signal(signal.SIGTERM)
    assert (stop.requested, ended) == ("SIGTERM", [])


def test_a_second_ctrl_c_ends_a_process_without_launcher_at_once(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with install() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.requested == "SIGTERM"


def test_a_second_ctrl_c_changes_nothing_under_a_launcher(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    with install() as stop:
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
        assert stop.requested == "SIGINT"


def test_a_background_job_goes_on_ignoring_ctrl_c():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with install() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.requested is None
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested == "SIGTERM"


def test_a_signal_while_the_clock_is_read_is_not_lost():
    clock = FakeClock(0.0)

    def interrupted() -> float:
        signal.raise_signal(signal.SIGTERM)
        return clock()

    with install(100.0, monotonic=clock) as stop:
        stop._limits[0]._clock = interrupted
        assert stop.requested == "SIGTERM"
        assert stop.requested == "SIGTERM"


def test_the_time_limit_counts_from_the_start_and_keeps_the_least_margin():
    clock = FakeClock(1000.0)
    with install(60.0, monotonic=clock) as stop:
        clock.now = 1060.0 - TIME_LIMIT_MARGIN_S
        assert stop.requested is None
        clock.now += 0.1
        assert stop.requested == "time limit"


def test_the_scheduler_gets_a_greater_margin_because_it_kills():
    wall = FakeClock(1e9)
    with install(None, 1e9 + 600.0, wall=wall) as stop:
        wall.now = 1e9 + 600.0 - SCHEDULER_MARGIN_S
        assert stop.requested is None
        wall.now += 0.1
        assert stop.requested == "end of the scheduler's job"
    assert SCHEDULER_MARGIN_S > TIME_LIMIT_MARGIN_S


def test_whichever_limit_comes_first_stops_the_run():
    clock, wall = FakeClock(0.0), FakeClock(1e9)
    with install(1000.0, 1e9 + 100.0, monotonic=clock, wall=wall) as stop:
        clock.now, wall.now = 90.0, 1e9 + 90.0
        assert stop.requested == "end of the scheduler's job"
    with install(100.0, 1e9 + 1000.0, monotonic=FakeClock(0.0), wall=FakeClock(1e9)) as stop:
        assert stop.requested is None
    with install(4.0, 1e9 + 1000.0, monotonic=FakeClock(0.0), wall=FakeClock(1e9)) as stop:
        assert stop.requested == "time limit"


def test_time_is_kept_for_the_longest_step_and_the_longest_save():
    clock = FakeClock(0.0)
    with install(1000.0, monotonic=clock) as stop:
        for seconds in (3.0, 20.0, 2.0):
            stop.note_duration("step", seconds)
        for seconds in (40.0, 10.0):
            stop.note_duration("save", seconds)
        clock.now = 1000.0 - SAFETY * 60.0
        assert stop.requested is None
        clock.now += 0.1
        assert stop.requested == "time limit"


def test_a_request_by_the_clock_stays_and_keeps_its_reason():
    clock = FakeClock(0.0)
    with install(10.0, monotonic=clock) as stop:
        clock.now = 9.0
        assert stop.requested == "time limit"
        clock.now = 0.0
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested == "time limit"


def test_a_scheduler_end_that_has_passed_is_ignored_and_said(caplog):
    logger = logging.getLogger("prefopt.distributed.preemption")
    logger.addHandler(caplog.handler)
    try:
        with install(None, 1e9 - 1, wall=FakeClock(1e9)) as stop:
            assert stop.requested is None
    finally:
        logger.removeHandler(caplog.handler)
    assert "has passed; ignored" in caplog.text


def test_outside_the_main_thread_only_the_clock_works():
    clock, found = FakeClock(0.0), []

    def work() -> None:
        with install(10.0, monotonic=clock) as stop:
            found.append(stop.requested)
            clock.now = 9.0
            found.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None, "time limit"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_first_signal_breaks_off_a_block_that_asks_for_it_and_only_the_first():
    ended = []

    def report(stop: StopRequest) -> None:
        with stop.raise_at_once():
            try:
                signal.raise_signal(signal.SIGUSR1)
                ended.append("work")
            finally:
                signal.raise_signal(signal.SIGTERM)
                ended.append("clean-up")

    with install() as stop, pytest.raises(Preempted) as stopped:
        report(stop)
    assert stopped.value.reason == "SIGUSR1"
    assert ended == ["clean-up"]


def test_a_library_that_catches_every_exception_does_not_swallow_the_stop():
    def library() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception:
            pytest.fail("swallowed")

    with install() as stop, pytest.raises(Preempted), stop.raise_at_once():
        library()


def test_a_block_that_asks_for_it_does_not_begin_after_a_request():
    clock = FakeClock(0.0)
    with install(10.0, monotonic=clock) as stop:
        with stop.raise_at_once():
            pass
        clock.now = 9.0
        with pytest.raises(Preempted, match="time limit"), stop.raise_at_once():
            pytest.fail("began")


def test_after_the_block_a_signal_only_asks_again():
    with install() as stop:
        with stop.raise_at_once():
            pass
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested == "SIGTERM"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, None),
        ("45s", 45.0),
        ("90m", 5400.0),
        (" 1.5H ", 5400.0),
        ("1 d", 86400.0),
        ("00:30:05", 1805.0),
        ("48:00:00", 172800.0),
        ("1-02:03:04", 93784.0),
    ],
)
def test_a_time_limit_is_a_number_with_its_unit_or_a_time(text, seconds):
    assert parse_time_limit(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        *(90, 1.5, 45000, True, "90", "1.5", "", "h", "30:00", "1-2", "1-02:03", "00:61:00", "00:00:60", "1-24:00:00"),
        *("0s", "00:00:00", "-5m", "-1:00:00", "1h30m", "2 weeks", "inf", "nans", "1e3s", "\u0663h"),
    ],
)
def test_a_time_limit_that_can_be_misread_is_refused_with_the_forms_allowed(text):
    with pytest.raises(UserError, match=r"run\.time_limit: .*90m.*HH:MM:SS.*D-HH:MM:SS") as refused:
        parse_time_limit(text)
    assert f"found {text!r}" in str(refused.value)


@pytest.mark.parametrize(
    ("value", "end"),
    [
        ("1732190000", 1732190000.0),
        (None, None),
        ("", None),
        ("UNLIMITED", None),
        ("nan", None),
        ("inf", None),
        ("0", None),
    ],
)
def test_the_scheduler_end_is_read_if_it_is_a_time(monkeypatch, value, end):
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    if value is not None:
        monkeypatch.setenv("SLURM_JOB_END_TIME", value)
    assert scheduler_end() == end


def test_a_process_that_is_told_to_stop_ends_on_its_own_terms():
    program = (
        "import time, sys\n"
        "from prefopt.distributed.preemption import EXIT_CODE, StopRequest\n"
        "with StopRequest.install(time_limit_s=None, scheduler_end=None) as stop:\n"
        "    print('ready', flush=True)\n"
        "    while stop.requested is None: time.sleep(0.01)\n"
        "    print(stop.requested, 'torch' in sys.modules, flush=True)\n"
        "sys.exit(EXIT_CODE)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    assert output == "SIGTERM False\n"
    assert process.returncode == 75
