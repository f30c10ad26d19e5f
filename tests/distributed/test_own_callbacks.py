"""What one rank's callback asks for, all ranks do: otherwise the others would wait for it in the next step."""

import json

import pytest

from tests.conftest import quick_run


@pytest.mark.parametrize(
    ("name", "steps"),
    [("StopOnRank0AtStep3", 3), ("StopOnRank0AtTheFirstEvaluation", 2)],
    ids=["a step", "an evaluation"],
)
def test_a_callback_that_stops_on_one_rank_stops_all_and_the_report_counts_its_steps(
    name, steps, tiny_model, pair_files, tmp_path, zygote
):
    argv = quick_run(tiny_model, pair_files, tmp_path / "runs")
    argv += [f"trainer.callbacks=[tests.distributed.own_callbacks:{name}]", "trainer.eval_every=2"]
    argv += ["trainer.log_every=10", "trainer.per_device_batch_size=2"]
    zygote.run(argv, ranks=2, log=tmp_path / "log")
    run = tmp_path / "runs" / "test"
    assert json.loads((run / "report" / "report.json").read_text())["run"]["steps"] == steps
    assert json.loads((run / "status.json").read_text())["state"] == "done"


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_status_says_why_another_rank_failed_and_not_only_that_it_was_missed(
    ranks, tiny_model, pair_files, tmp_path, zygote
):
    argv = quick_run(tiny_model, pair_files, tmp_path / "runs")
    argv += ["trainer.callbacks=[tests.distributed.own_callbacks:FailOnRank1AtStep3]"]
    ended = zygote.start([*argv, "trainer.per_device_batch_size=2"], ranks=ranks, log=tmp_path / "log")
    assert set(ended.wait()) == {1}, ended.output()
    status = json.loads((tmp_path / "runs" / "test" / "status.json").read_text())
    assert status["state"] == "failed"
    failed = f"rank {status['message'][5]} failed: ZeroDivisionError: a mistake of the callback"
    assert status["message"] == failed, ended.output()
    assert "GLHF" not in ended.output()


def test_an_end_that_one_ranks_callback_asked_for_outlives_the_attempt(tiny_model, pair_files, tmp_path, zygote):
    argv = quick_run(tiny_model, pair_files, tmp_path / "runs")
    argv += ["trainer.callbacks=[tests.distributed.own_callbacks:EndOnRank0AtStep3AndDieOnce]"]
    argv += ["trainer.save_every=100", "trainer.per_device_batch_size=2"]
    attempt = zygote.start(argv, ranks=2, log=tmp_path / "log")
    assert any(attempt.wait()), attempt.output()
    assert "the attempt dies" in attempt.output()
    zygote.run(argv, ranks=2, log=tmp_path / "log")
    run = tmp_path / "runs" / "test"
    assert json.loads((run / "report" / "report.json").read_text())["run"]["steps"] == 3
    assert json.loads((run / "status.json").read_text())["state"] == "done"
