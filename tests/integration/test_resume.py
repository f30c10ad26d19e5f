"""A run that was killed ends as if nothing had happened: same records, same weights, same report."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from prefopt.storage.files import read_lines
from prefopt.tracking.metrics import TIMES
from prefopt.train import main as train
from tests.conftest import read_rows, write_rows
from tests.zygote import Zygote

pytestmark = pytest.mark.slow


def deterministic(run: Path) -> list[dict]:
    """The metrics without what a clock decides."""
    return [{k: v for k, v in record.items() if k not in TIMES} for record in read_lines(run / "metrics.jsonl")]


def weights_equal(a: Path, b: Path) -> bool:
    files = sorted(path.name for path in a.glob("*.safetensors"))
    assert files
    return all(
        (left == right).all()
        for name in files
        for left, right in zip(load_file(a / name).values(), load_file(b / name).values(), strict=True)
    )


def report_without_times(run: Path) -> dict:
    report = json.loads((run / "report" / "report.json").read_text())
    for key in ("date", "throughput", "phases", "provenance"):
        del report[key]
    report.get("audit", {}).pop("date", None)
    del report["run"]["name"]
    return report


@pytest.fixture
def kill_in(zygote: Zygote, tmp_path: Path) -> Callable[[int, list[str]], None]:
    """Runs the command in a process of its own, which dies at the end of a step, before that is logged or saved."""

    def run(step: int, argv: list[str]) -> None:
        where = {"KILL_IN_STEP": str(step), "KILL_AT": "end"}
        started = zygote.start(argv, ranks=0, log=tmp_path / "log", hooks="tests.distributed.interrupt", **where)
        assert started.wait() == [-signal.SIGKILL], started.output()

    return run


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param([], id="dpo"),
        pytest.param(
            [
                "peft=lora",
                "peft.dropout=0.1",
                "trainer.extra.disable_dropout=false",
                "trainer.gradient_accumulation_steps=2",
            ],
            id="lora",
        ),
        pytest.param(["trainer.tokens_per_device=500", "trainer.gradient_accumulation_steps=2"], id="tokens"),
        pytest.param(["trainer.batch_order=length_grouped"], id="length_grouped"),
    ],
)
def test_a_killed_run_resumes_and_ends_bitwise_like_an_undisturbed_one(overrides, tmp_path, kill_in, changes):
    steps = ["trainer.max_steps=16", "trainer.save_every=4", "trainer.log_every=3", "trainer.eval_every=7"]
    argv = [*overrides, *changes, *steps]
    train([*argv, "run.name=whole"])
    whole, broken = tmp_path / "runs" / "whole", tmp_path / "runs" / "broken"
    kill_in(10, [*argv, "run.name=broken"])
    assert {path.name for path in (broken / "checkpoints").iterdir()} == {"step-4", "step-8"}
    assert json.loads((broken / "status.json").read_text())["state"] == "running"
    train([*argv, "run.name=broken"])
    status = json.loads((broken / "status.json").read_text())
    assert (status["state"], status["attempts"], status["step"]) == ("done", 2, 16)
    assert deterministic(broken) == deterministic(whole)
    assert weights_equal(broken / "model", whole / "model")
    assert report_without_times(broken) == report_without_times(whole)


def test_a_damaged_newest_checkpoint_costs_only_its_steps(overrides, tmp_path):
    train([*overrides, "run.name=whole"])
    train([*overrides, "run.name=broken"])
    whole, broken = tmp_path / "runs" / "whole", tmp_path / "runs" / "broken"
    newest = broken / "checkpoints" / "step-6" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-8])
    status = json.loads((broken / "status.json").read_text())
    (broken / "status.json").write_text(json.dumps({**status, "state": "running"}))
    train([*overrides, "run.name=broken"])
    assert deterministic(broken) == deterministic(whole)
    assert weights_equal(broken / "model", whole / "model")


@pytest.mark.parametrize("left", ["checkpoint", "model"])
def test_a_run_that_died_after_its_last_step_trains_no_further(overrides, tmp_path, left):
    argv = [*overrides, "trainer.max_steps=3", "optim.scheduler=constant"]
    train([*argv, "run.name=whole"])
    train([*argv, "run.name=broken"])
    whole, broken = tmp_path / "runs" / "whole", tmp_path / "runs" / "broken"
    status = json.loads((broken / "status.json").read_text())
    (broken / "status.json").write_text(json.dumps({**status, "state": "running"}))
    shutil.rmtree(broken / "report")
    if left == "checkpoint":
        shutil.rmtree(broken / "model")
    train([*argv, "run.name=broken"])
    assert deterministic(broken) == deterministic(whole)
    assert weights_equal(broken / "model", whole / "model")
    assert {p.name for p in (broken / "model").iterdir()} == {p.name for p in (whole / "model").iterdir()}
    assert report_without_times(broken) == report_without_times(whole)


def test_overwrite_starts_afresh(overrides, tmp_path):
    train(overrides)
    first = (tmp_path / "runs" / "test" / "metrics.jsonl").read_text()
    train([*overrides, "run.overwrite=true", "run.seed=3"])
    assert (tmp_path / "runs" / "test" / "metrics.jsonl").read_text() != first
    assert json.loads((tmp_path / "runs" / "test" / "status.json").read_text())["attempts"] == 1


def test_a_loss_that_is_not_finite_stops_the_run_and_is_recorded(overrides, tmp_path):
    from prefopt.training.guards import DivergedError

    with pytest.raises(DivergedError, match="not finite"):
        train([*overrides, "optim.learning_rate=1e30", "optim.max_grad_norm=0", "optim.warmup_ratio=0"])
    status = json.loads((tmp_path / "runs" / "test" / "status.json").read_text())
    assert status["state"] == "diverged"
    assert "not finite" in status["message"]


def test_an_error_during_a_run_is_recorded_as_failed(overrides, tmp_path, monkeypatch):
    from prefopt.training import runner

    def broken(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(runner, "evaluate_run", broken)
    with pytest.raises(RuntimeError):
        train(overrides)
    status = json.loads((tmp_path / "runs" / "test" / "status.json").read_text())
    assert status["state"] == "failed"
    assert status["message"] == "RuntimeError: out of memory"


def test_a_run_that_is_done_trains_on_when_its_length_is_raised(overrides, tmp_path, capsys):
    constant = [*overrides, "optim.scheduler=constant"]
    train([*constant, "run.name=whole", "trainer.max_steps=9"])
    train([*constant, "run.name=raised"])
    whole, raised = tmp_path / "runs" / "whole", tmp_path / "runs" / "raised"
    first = (raised / "metrics.jsonl").read_text()
    shorter = load_file(raised / "model" / "model.safetensors")
    train([*constant, "run.name=raised", "trainer.max_steps=9"])
    status = json.loads((raised / "status.json").read_text())
    assert (status["state"], status["attempts"], status["step"]) == ("done", 2, 9)
    assert (raised / "metrics.jsonl").read_text().startswith(first), "what was trained is not trained again"
    training = [[r for r in deterministic(run) if "split" not in r] for run in (whole, raised)]
    assert training[0] == training[1]
    assert weights_equal(raised / "model", whole / "model")
    longer = load_file(raised / "model" / "model.safetensors")
    assert any((shorter[name] != longer[name]).any() for name in shorter)
    capsys.readouterr()
    train([*constant, "run.name=raised", "trainer.max_steps=9"])
    assert "this run is done" in capsys.readouterr().out


def test_the_rows_of_every_step_are_written_and_cut_with_the_metrics(overrides, tmp_path, kill_in):
    argv = [*overrides, "trainer.log_rows=true", "trainer.gradient_accumulation_steps=2", "trainer.save_every=4"]
    train([*argv, "run.name=whole"])
    whole, broken = tmp_path / "runs" / "whole", tmp_path / "runs" / "broken"
    written = list(read_lines(whole / "rows.jsonl"))
    assert [record["step"] for record in written] == [1, 2, 3, 4, 5, 6]
    for epoch in (written[:3], written[3:]):
        assert sorted(row for record in epoch for row in record["rows"]) == list(range(22))
    kill_in(6, [*argv, "run.name=broken"])
    assert [record["step"] for record in read_lines(broken / "rows.jsonl")] == [1, 2, 3, 4, 5]
    train([*argv, "run.name=broken"])
    assert (broken / "rows.jsonl").read_text() == (whole / "rows.jsonl").read_text()


@pytest.mark.parametrize(("metric", "choose"), [("loss", min), ("rewards/margins", max)])
def test_the_checkpoint_with_the_best_held_out_metric_is_kept(overrides, tmp_path, pair_files, metric, choose):
    """Saved for it, too. Training makes held-out pairs with sides swapped worse, so the best is not the last."""
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in read_rows(pair_files[1])]
    held_out = f"data.held_out={write_rows(tmp_path / 'swapped.jsonl', swapped)}"
    every = ["trainer.eval_every=1", "trainer.save_every=100", "trainer.keep_checkpoints=1"]
    train([*overrides, held_out, *every, f"trainer.keep_best={metric}"])
    run = tmp_path / "runs" / "test"
    values = {r["step"]: r[metric] for r in read_lines(run / "metrics.jsonl") if "split" in r}
    best = choose(values, key=values.get)
    assert best < 5
    assert {path.name for path in (run / "checkpoints").iterdir()} == {f"step-{best}", "step-6"}
