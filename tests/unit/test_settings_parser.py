"""What was typed in another program's manner is answered with what to type, in words that a shell takes."""

import pytest

from prefopt.evaluate import main as evaluate
from prefopt.prepare import main as prepare
from prefopt.submit import main as submit
from prefopt.train import main as train
from tests.fake_runs import write_fake_run, write_fake_sweep

COMMANDS = {"train": train, "prepare": prepare, "submit": submit, "evaluate": evaluate}


@pytest.mark.parametrize("command", list(COMMANDS))
def test_a_setting_typed_as_an_option_is_answered_with_the_override_at_every_command(fails, command):
    said = fails(COMMANDS[command], ["run=x", "--max-steps", "3"])
    assert said.endswith(" Write trainer.max_steps=3\n")
    assert "usage:" not in said


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--max_steps=3"], "Write trainer.max_steps=3"),
        (["--lr", "1e-5"], "Write optim.learning_rate=1e-5"),
        (["--trainer.max_steps", "3"], "Write trainer.max_steps=3"),
        (["--experiment", "dpo_brand_voice"], "Write +experiment=dpo_brand_voice"),
        (["--model", "hf"], "Write model=hf"),
        (["--max-stepz", "3"], "Did you mean trainer.max_steps=3"),
        (["--beta", "algorithm=dpo"], "Write algorithm.beta=<value>"),
        (["--beta"], "Write algorithm.beta=<value>"),
        (["--held-out", "a (b).jsonl"], "Write 'data.held_out=\"a (b).jsonl\"'"),
        (["--qqqq", "3"], "What there is: prefopt list settings"),
    ],
)
def test_the_override_has_the_value_that_was_given(fails, argv, expected):
    assert fails(train, argv).endswith(f" {expected}\n")


def test_a_setting_of_a_submission_is_named_to_submit_alone(fails):
    assert "Write cluster.max_parallel=4" in fails(submit, ["--max-parallel", "4"])
    assert "What there is" in fails(train, ["--max-parallel", "4"])


def test_a_folder_without_run_is_answered_with_run(fails, tmp_path):
    write_fake_run(tmp_path / "my plants")
    assert f"write run='{tmp_path}/my plants'" in fails(evaluate, [f"{tmp_path}/my plants"])
    assert "write settings as name=value, and the run as run=<folder>" in fails(evaluate, ["plants"])


def test_a_run_that_is_not_there_is_answered_with_the_nearest_beside_it(fails, tmp_path):
    for name in ("plants", "animals"):
        write_fake_run(tmp_path / name)
    said = fails(evaluate, [f"run={tmp_path}/plnts"])
    assert said == f"error: run={tmp_path}/plnts: no such folder. Did you mean run={tmp_path}/plants\n"
    assert fails(evaluate, [f"run={tmp_path}/no/such"]) == f"error: run={tmp_path}/no/such: no such folder.\n"


def test_a_sweep_in_place_of_a_run_is_answered_with_its_points(fails, tmp_path):
    sweep = write_fake_sweep(tmp_path / "sweep", {f"{n}": {"run.seed": n} for n in range(7)})
    for name in map(str, range(7)):
        write_fake_run(sweep / name)
    said = fails(evaluate, [f"run={sweep}"])
    assert f"a folder of runs. Give one of them: run={sweep}/0 or run={sweep}/1 or " in said
    assert said.endswith("/4, or one of 2 more\n")
