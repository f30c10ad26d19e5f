"""A run that is killed anywhere ends, run again, as if nothing had happened."""

import pytest

from tests.faults.harness import MODES, killed
from tests.faults.places import PLACES

CASES = [
    ("single", "while config.yaml is written", 1, None),
    ("single", "in the reference pass", 5, None),
    ("single", "in a checkpoint, before COMPLETE", 2, None),
    ("single", "in a checkpoint, before the oldest goes", 3, None),
    ("single", "while the final report is written", 1, None),
    ("ddp", "between backward and optimizer", 7, 1),
    ("ddp", "in an evaluation", 4, 0),
    ("zero2", "in a checkpoint, while state is written", 4, 1),
    ("zero2", "between optimizer and the end of the step", 10, None),
    ("zero3", "in a checkpoint, before the rename", 2, 0),
    ("zero3", "before the final model gets its name", 1, None),
]


@pytest.mark.parametrize(("mode", "place", "call", "rank"), CASES)
def test_a_killed_run_ends_like_an_undisturbed_one(arena, mode, place, call, rank):
    arena.survive(MODES[mode], killed(place, PLACES[place].at(call), only=rank))


def test_a_run_that_is_killed_again_and_again_ends_like_an_undisturbed_one(arena):
    places = ["after a log line", "in a checkpoint, while the oldest goes", "in the final report"]
    arena.survive(MODES["single"], *(killed(place, PLACES[place].at()) for place in places))
