"""A run that is asked to stop ends with exit code 75 and a checkpoint, and goes on with the same command."""

import signal

import pytest

from tests.faults.harness import FAILED, MODES, PREEMPTED, Attempt, Fault, killed, stopped
from tests.faults.hooks import Injection
from tests.faults.places import PLACES, TRAINER

CASES = [
    ("single", "in the final report", 1, signal.SIGINT, None),
    ("single", "in the reference pass", 3, signal.SIGTERM, None),
    ("ddp", "in an evaluation", 2, signal.SIGUSR1, 1),
    ("zero2", "before a forward", 12, signal.SIGTERM, 0),
    ("zero3", "in a checkpoint, before its manifest", 2, signal.SIGINT, None),
    ("zero3", "while reference log-probs are written", 1, signal.SIGTERM, 1),  # one forward of the pass is left then
]


@pytest.mark.parametrize(("mode", "place", "call", "number", "rank"), CASES)
def test_a_request_to_stop_is_heard_by_all_ranks_and_costs_nothing(arena, mode, place, call, number, rank):
    arena.survive(MODES[mode], stopped(place, PLACES[place].at(call), number, only=rank))


@pytest.mark.parametrize("call", [3, 5], ids=["after step 10", "after the last step"])
def test_an_evaluation_that_is_interrupted_twice_is_made_up_for_and_recorded_once(arena, call):
    place, log = PLACES["in an evaluation"], PLACES["after a log line"]
    arena.survive(
        MODES["ddp"],
        stopped("in an evaluation", place.at(call)),
        stopped("in the same evaluation", place.at()),
        killed("after its record", log.at()),
    )


def test_a_run_stops_before_its_time_limit(arena):
    at = Injection(f"{TRAINER}.training_step", "slow", times=100, value=0.3)
    limited = Fault(
        "time limit", Attempt.wait, at, frozenset({PREEMPTED}), "preempted", ("time limit",), ("run.time_limit=8s",)
    )
    arena.survive(MODES["ddp"], limited)


def test_a_rank_that_hangs_is_named_with_what_the_others_waited_in(arena):
    at = Injection(f"{TRAINER}.training_step", call=9, rank=1)
    messages = ("rank 0 waited in vain during step 5", "rank 1 was last seen")
    hanging = Fault("a hang", Attempt.wait_for_others, at, None, "failed", messages, ("run.timeout_s=8",))
    codes, _ = arena.survive(MODES["ddp"], hanging)
    assert codes == [FAILED, -signal.SIGKILL]


def test_a_rank_that_hangs_ends_the_run_where_a_collective_has_no_timeout(arena):
    at = Injection(f"{TRAINER}.training_step", call=9, rank=1)
    messages = ("rank 0 waited in vain during step 5", "rank 1 was last seen", "is stuck and ends itself")
    hanging = Fault("a hang", Attempt.wait_for_others, at, None, "running", messages, ("run.timeout_s=8",))
    codes, _ = arena.survive(MODES["zero2"], hanging)
    assert FAILED in codes
