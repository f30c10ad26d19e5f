"""A loss or a gradient that is not finite ends the run before the weights take it, and its rows are named."""

import re

import pytest

from tests.faults.harness import FAILED, MODES, Attempt, Fault, read_json, read_records
from tests.faults.hooks import Injection

STEP_7 = 14
"""The call of `compute_loss` on a rank of two: after 2 in each of 5 steps, 2 in the evaluation, and 1 in step 6."""


@pytest.mark.parametrize(
    ("mode", "action"),
    [("ddp", "spoil_loss"), ("zero2", "spoil_gradient"), ("zero2", "spoil_loss"), ("zero3", "spoil_gradient")],
)
def test_a_nan_on_one_rank_stops_all_and_names_the_rows(arena, mode, action):
    at = Injection("prefopt.algorithms.dpo:DPOTrainer.compute_loss", action, "after", call=STEP_7, rank=1)
    seen = {}

    def look(run):
        seen.update(read_json(run / "status.json"))

    messages = ("step 7: the gradient is not finite", "the last checkpoint is good")
    fault = Fault("NaN", Attempt.wait, at, frozenset({FAILED}), "diverged", messages, afterwards=look)
    arena.survive(MODES[mode], fault)
    rows = read_records(arena.undisturbed(MODES[mode]) / "rows.jsonl")[6]["rows"]
    named = [int(line) - 1 for line in re.findall(r"train\.jsonl:(\d+)", seen["message"])]
    if action == "spoil_loss":
        assert len(named) == 1
        assert set(named) <= set(rows)
    else:
        assert named == rows
