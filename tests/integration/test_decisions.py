"""The word of whole runs of the shipped study whose worth is known: good, ruined, and too short ones (issue 15)."""

from pathlib import Path

import pytest

from tests.study_runs import RANKS_BETTER, TWELVE_STEPS, Runs, runs_in, words_of

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path: Path) -> Runs:
    return runs_in(tmp_path)


def test_a_learning_rate_of_1e_2_ruins_the_model(run: Runs) -> None:
    report = run("optim.learning_rate=1e-2", *TWELVE_STEPS)
    assert report["decision"]["word"] == "do_not_ship", report["decision"]
    assert "ruined" in words_of(report)


def test_a_learning_rate_of_1e_7_moves_nothing(run: Runs) -> None:
    report = run("optim.learning_rate=1e-7", *TWELVE_STEPS)
    assert report["decision"]["word"] == "undecided", report["decision"]
    assert RANKS_BETTER not in words_of(report)
    assert any("hardly moved" in finding["finding"] for finding in report["verdict"])


def test_the_main_job_ranks_better_and_its_answers_were_not_judged(run: Runs) -> None:
    report = run()
    assert report["decision"]["word"] == "undecided"
    assert report["decision"]["reasons"] == [RANKS_BETTER]
    assert report["decision"]["would_decide"]


def test_twelve_steps_of_the_main_job_rank_better_too(run: Runs) -> None:
    report = run("trainer.max_steps=12")
    assert report["decision"]["word"] == "undecided"
    assert report["decision"]["reasons"] == [RANKS_BETTER]


def test_a_learning_rate_of_5e_4_drifts(run: Runs) -> None:
    report = run("optim.learning_rate=5e-4")
    assert report["decision"]["word"] == "undecided", report["decision"]
    assert "The model drifted far from its base" in report["decision"]["reasons"][0]


def test_four_steps_on_demonstrations_decide_nothing(run: Runs) -> None:
    report = run("trainer.max_steps=4", "optim.learning_rate=1e-5", experiment="sft_brand_voice")
    assert report["decision"]["word"] == "undecided", report["decision"]
    assert "not judged" not in words_of(report)
