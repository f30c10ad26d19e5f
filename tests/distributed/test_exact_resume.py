"""A run that was killed goes on: on as many ranks bitwise as if undisturbed, on others with the same steps."""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch

from prefopt.config.algorithms import DPOAlgorithmConfig
from prefopt.storage import sealed
from prefopt.storage.files import hash_file
from prefopt.train import main
from tests.conftest import quick_run, read_rows, write_rows
from tests.distributed import outcomes
from tests.zygote import Ranks, Zygote

pytest.importorskip("deepspeed")

LIMIT = 1e-5
"""float32: another number of ranks sums gradients in another order."""
STEP_SIZE = 6
NUM_STEPS = 12
"""Three epochs of 22 pairs; the last step of each has four."""


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        ranks: Processes; 0 is one without a launcher.
        deepspeed: The option of that name.
        method: Value of `peft`; `dropout` is LoRA with dropout.
    """

    ranks: int
    deepspeed: str = "none"
    method: str = "none"

    def __str__(self) -> str:
        return f"{self.method}-{self.deepspeed}-{self.ranks}"


METHODS = {
    "none": [],
    "lora": ["peft=lora", "peft.r=4"],
    "dropout": ["peft=lora", "peft.r=4", "peft.dropout=0.1", "trainer.extra.disable_dropout=false"],
}
ENGINES = [(0, "none"), (2, "none"), (2, "zero1"), (2, "zero2"), (2, "zero3")]
PLAIN = [Case(*engine, method) for engine in ENGINES for method in ("none", "lora")]
CASES = [*PLAIN, Case(2, "none", "dropout"), Case(2, "zero3", "dropout")]
LAST_CHECKPOINT = 6
"""Of a run that `Runs.broken` leaves: two steps into the second epoch."""


class Runs:
    """The runs of this module; each starts when it is first asked for."""

    def __init__(self, folder: Path, common: list[str], zygote: Zygote) -> None:
        self.folder = folder
        self._common, self._zygote = common, zygote

    def start(self, case: Case, name: str, *changes: str, expect: int | None = 0, **rest: str) -> Ranks:
        """Runs a case, under the name of a run that may exist, and checks how it ended."""
        argv = [
            *self._common,
            "trainer.per_device_batch_size=1",
            f"trainer.gradient_accumulation_steps={STEP_SIZE // max(case.ranks, 1)}",
            "trainer.max_steps=null",
            "trainer.num_epochs=3",
            "trainer.log_every=2",
            "trainer.save_every=3",
            "trainer.eval_every=5",
            "trainer.log_rows=true",
            *METHODS[case.method],
            f"deepspeed={case.deepspeed}",
            f"run.name={name}",
            *changes,
        ]
        log = self.folder / "logs" / f"{name}.log"
        started = self._zygote.start(argv, ranks=case.ranks, log=log, **rest)
        codes = started.wait()
        if expect is None:
            assert 0 not in codes, "it was to be killed"
        else:
            assert codes == [expect] * len(codes), started.output()
        return started

    def path(self, name: str) -> Path:
        return self.folder / "runs" / name

    @cache  # noqa: B019 (lives as long as the module)
    def whole(self, case: Case) -> Path:
        """A run that nothing disturbed."""
        self.start(case, f"{case}-whole")
        return self.path(f"{case}-whole")

    @cache  # noqa: B019
    def broken(self, case: Case) -> Path:
        """A run that was killed between two forwards in its first epoch, and after an update in its second."""
        hooks = {"hooks": "tests.distributed.interrupt", "expect": None}
        self.start(case, f"{case}-broken", **hooks, KILL_IN_STEP="4", KILL_AT="forward")
        run = self.path(f"{case}-broken")
        assert checkpoints(run) == [3]
        self.start(case, f"{case}-broken", **hooks, KILL_IN_STEP="8", KILL_AT="end")
        assert checkpoints(run) == [3, LAST_CHECKPOINT]
        assert [record["step"] for record in outcomes.rows(run)] == list(range(1, 8))
        return run

    def copied(self, case: Case, name: str) -> Path:
        """A copy of the killed run."""
        return shutil.copytree(self.broken(case), self.path(f"{case}-{name}"))

    @cache  # noqa: B019
    def continued(self, case: Case, ranks: int) -> Path:
        """A copy of the killed run that went on to its end."""
        name = f"on-{ranks}"
        self.copied(case, name)
        steps = f"trainer.gradient_accumulation_steps={STEP_SIZE // max(case.ranks, 1)}"  # the command stays the same
        self.start(replace(case, ranks=ranks), f"{case}-{name}", steps)
        return self.path(f"{case}-{name}")


@pytest.fixture(scope="module")
def runs(
    tiny_model: Path, pair_files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory, zygote: Zygote
) -> Runs:
    folder = tmp_path_factory.mktemp("exact_resume")
    return Runs(folder, [*quick_run(tiny_model, pair_files, folder / "runs"), *outcomes.SHORT_REPORT], zygote)


def checkpoints(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))


def status(run: Path) -> dict:
    """Without the number of lines of metrics.jsonl, which is compared with those that there are."""
    found = json.loads((run / "status.json").read_text())
    lines = [*outcomes.training(run), *outcomes.held_out(run)]
    assert found.pop("records") == sum(line["step"] <= found["step"] for line in lines)
    return found


def snapshot(run: Path) -> dict[str, str]:
    """The content of every file of a run."""
    files = [path for path in run.rglob("*") if path.is_file()]
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_on_as_many_ranks_a_killed_run_ends_bitwise_like_an_undisturbed_one(runs, case):
    whole, broken = runs.whole(case), runs.continued(case, case.ranks)
    assert status(broken) == {"state": "done", "step": NUM_STEPS, "attempts": 3, "message": ""}
    assert [record["step"] for record in outcomes.training(whole)] == [2, 4, 6, 8, 10, 12]
    assert [record["step"] for record in outcomes.held_out(whole)] == [5, 10, 12]
    assert outcomes.metrics(broken) == outcomes.metrics(whole)
    assert outcomes.rows(broken) == outcomes.rows(whole)
    outcomes.assert_same_bits(broken / "model", whole / "model")


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("case", [case for case in PLAIN if case.ranks == 2], ids=str)
def test_on_another_number_of_ranks_a_killed_run_goes_on_with_the_same_steps(runs, case, ranks):
    whole, went_on = runs.whole(case), runs.continued(case, ranks)
    assert status(went_on) == {"state": "done", "step": NUM_STEPS, "attempts": 3, "message": ""}
    assert outcomes.rows(went_on) == outcomes.rows(whole)
    assert [len(record["rows"]) for record in outcomes.rows(went_on)] == [6, 6, 6, 4] * 3
    assert checkpoints(went_on) == [9, 12]
    for lines in (outcomes.training, outcomes.held_out):
        for line, expected in zip(lines(went_on), lines(whole), strict=True):
            if line["step"] <= LAST_CHECKPOINT:
                assert line == expected
            assert line["loss"] == pytest.approx(expected["loss"], rel=0, abs=LIMIT)
            for key in ("step", "pairs", "tokens", *(["learning_rate"] if "split" not in line else [])):
                assert line[key] == expected[key]
    last = outcomes.training(went_on)[-1]
    assert last["grad_norm"] == pytest.approx(outcomes.training(whole)[-1]["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("deepspeed", ["none", "zero3"])
def test_a_number_of_ranks_that_cannot_share_a_step_is_refused_and_nothing_changes(runs, deepspeed):
    run = runs.copied(Case(2, deepspeed), "on-4")
    before = snapshot(run)
    steps = f"trainer.gradient_accumulation_steps={STEP_SIZE // 2}"
    ended = runs.start(Case(4, deepspeed), run.name, steps, expect=2)
    assert "a step of this run has 6 examples, which 4 ranks cannot share evenly" in ended.output()
    assert "Traceback" not in ended.output()
    assert snapshot(run) == before


@pytest.mark.parametrize(
    "change",
    [
        "optim.learning_rate=2e-3",
        "optim.scheduler=cosine",
        "algorithm.beta=0.2",
        "run.seed=1",
        "trainer.per_device_batch_size=2",
        "trainer.gradient_accumulation_steps=3",
        "trainer.batch_order=length_grouped",
        "trainer.num_epochs=2",
        "trainer.keep_best=loss",
        "data.max_length=512",
        "engine=trl",
        "peft=lora",
        "reference=live",
    ],
)
def test_another_setting_is_refused_by_name_and_nothing_changes(runs, change):
    case = Case(0)
    run = runs.broken(case)
    before = snapshot(run)
    message = runs.start(case, run.name, change, expect=2).output()
    setting = change.partition("=")[0]
    name = {"engine": "engine.name", "peft": "peft.method", "reference": "reference.mode"}.get(setting, setting)
    assert f"({name}: " in message or f"; {name}: " in message
    assert snapshot(run) == before


def test_another_zero_stage_is_refused_by_name_and_nothing_changes(runs):
    run = runs.broken(Case(2, "zero3"))
    before = snapshot(run)
    ended = runs.start(Case(2, "zero2"), run.name, expect=2)
    assert "deepspeed.stage: 3 -> 2" in ended.output()
    assert snapshot(run) == before


@pytest.mark.parametrize("case", [Case(0), Case(2, "zero3")], ids=str)
def test_what_is_only_written_may_change_from_one_attempt_to_the_next(runs, case):
    run = runs.copied(case, "rewritten")
    changes = [
        "trainer.log_every=1",
        "trainer.save_every=4",
        "trainer.eval_every=4",
        "trainer.keep_checkpoints=5",
        "trainer.log_rows=false",
        "run.time_limit=2h",
        "run.timeout_s=100",
        "evaluation.batch_size=3",
        "logger.project=another",
    ]
    runs.start(case, run.name, *changes)
    assert status(run)["state"] == "done"
    assert [record["step"] for record in outcomes.training(run)] == [2, 4, 6, 7, 8, 9, 10, 11, 12]
    assert [record["step"] for record in outcomes.held_out(run)] == [5, 8, 12]
    assert checkpoints(run) == [3, 6, 8, 12]
    outcomes.assert_same_bits(run / "model", runs.whole(case) / "model")


@pytest.mark.parametrize("case", [Case(0), Case(2, "zero3", "lora")], ids=str)
def test_a_done_run_trains_on_when_its_length_is_raised(runs, case):
    def length(steps: int) -> list[str]:
        return [
            "trainer.num_epochs=1",
            f"trainer.max_steps={steps}",
            "optim.scheduler=constant",
            "optim.warmup_ratio=0",
        ]

    long, raised = f"{case}-long", f"{case}-raised"
    runs.start(case, long, *length(7))
    runs.start(case, raised, *length(4))
    assert status(runs.path(raised)) == {"state": "done", "step": 4, "attempts": 1, "message": ""}
    assert "this run is done" in runs.start(case, raised, *length(4)).output()
    runs.start(case, raised, *length(7))
    assert status(runs.path(raised)) == {"state": "done", "step": 7, "attempts": 2, "message": ""}
    assert outcomes.rows(runs.path(raised)) == outcomes.rows(runs.path(long))
    assert outcomes.training(runs.path(raised)) == outcomes.training(runs.path(long))
    evaluated = outcomes.held_out(runs.path(raised))
    assert [record["step"] for record in evaluated] == [4, 5, 7]  # the last step of the shorter run had one too
    assert evaluated[1:] == outcomes.held_out(runs.path(long))
    outcomes.assert_same_bits(runs.path(raised) / "model", runs.path(long) / "model")
    before = snapshot(runs.path(raised))
    assert "trainer.max_steps: 7 -> 4" in runs.start(case, raised, *length(4), expect=2).output()
    assert snapshot(runs.path(raised)) == before


@pytest.mark.parametrize("part", ["model", "train", "held_out"])
def test_a_run_whose_model_or_data_has_changed_is_refused_and_nothing_changes(
    runs, tiny_model, pair_files, tmp_path, part
):
    case, name = Case(0), f"changed-{part}"
    model = shutil.copytree(tiny_model, tmp_path / "model")
    train, held_out = (Path(shutil.copy(path, tmp_path / path.name)) for path in pair_files)
    inputs = [f"model.path={model}", f"data.train={train}", f"data.held_out={held_out}"]
    killed = {"hooks": "tests.distributed.interrupt", "expect": None, "KILL_IN_STEP": "4", "KILL_AT": "end"}
    runs.start(case, name, *inputs, **killed)
    if part == "model":
        from safetensors.torch import load_file, save_file

        weights = load_file(model / "model.safetensors")
        save_file(
            {key: tensor + 1e-3 for key, tensor in weights.items()}, model / "model.safetensors", {"format": "pt"}
        )
    else:
        path = train if part == "train" else held_out
        rows = read_rows(path)
        write_rows(path, [*rows[1:], rows[0]])
    before = snapshot(runs.path(name))
    what = {"model": f"model.path={model}", "train": "data.train", "held_out": "the held-out data"}[part]
    assert f"{what} has changed since this run began" in runs.start(case, name, *inputs, expect=2).output()
    assert snapshot(runs.path(name)) == before


class Touches:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self):
        return os.mkdir, (str(self._path),)


@pytest.mark.parametrize("ranks", [2, 1])
@pytest.mark.parametrize("deepspeed", ["zero2", "zero3"])
def test_code_in_a_checkpoint_that_somebody_has_sealed_is_refused_and_not_run(runs, tmp_path, deepspeed, ranks):
    case = Case(2, deepspeed)
    run = runs.copied(case, f"planted-{ranks}")
    checkpoint = run / "checkpoints" / f"step-{LAST_CHECKPOINT}"
    file = next(checkpoint.glob("global_step*/*rank_1*optim_states.pt"))
    state = torch.load(file, weights_only=False)
    torch.save({**state, "more": Touches(tmp_path / "touched")}, file)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"] |= sealed.digest(checkpoint, [str(file.relative_to(checkpoint))])
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    (checkpoint / "COMPLETE").write_text(hash_file(checkpoint / "manifest.json") + "\n")
    steps = f"trainer.gradient_accumulation_steps={STEP_SIZE // 2}"
    said = runs.start(replace(case, ranks=ranks), run.name, steps, expect=2).output()
    assert f"{file.relative_to(checkpoint)} would call posix.mkdir when it is loaded" in said
    assert not (tmp_path / "touched").exists()
    assert checkpoint.exists()


@pytest.mark.parametrize("case", [Case(0), Case(2, "zero3")], ids=str)
@pytest.mark.parametrize("metric", ["loss", "logps/chosen"])
def test_the_checkpoint_of_the_best_evaluation_outlives_rotation(runs, case, metric):
    name = f"{case}-best-{metric.replace('/', '-')}"
    changes = [
        f"trainer.keep_best={metric}",
        "trainer.keep_checkpoints=1",
        "trainer.eval_every=2",
        "trainer.save_every=7",
    ]
    too_fast = ["optim.scheduler=constant", "optim.learning_rate=0.2"]
    runs.start(case, name, *changes, *too_fast)
    run = runs.path(name)
    values = {record["step"]: record[metric] for record in outcomes.held_out(run)}
    assert list(values) == [2, 4, 6, 8, 10, 12]
    best = (min if metric == "loss" else max)(values, key=values.__getitem__)
    assert best not in (7, NUM_STEPS), "it would be there anyway"
    assert checkpoints(run) == [best, NUM_STEPS]
    kept, final = outcomes.weights(run / "checkpoints" / f"step-{best}"), outcomes.weights(run / "model")
    assert not all(torch.equal(tensor, final[key]) for key, tensor in kept.items())


@pytest.mark.parametrize(("algorithm", "metric"), [("dpo", "mean_token_accuracy"), ("sft", "rewards/margins")])
def test_a_best_metric_that_is_not_measured_is_refused(overrides, fails, algorithm, metric):
    argv = [*overrides, f"algorithm={algorithm}", "trainer.eval_every=2", f"trainer.keep_best={metric}"]
    assert f"trainer.keep_best={metric}: no held-out metric of algorithm={algorithm}" in fails(main, argv)


def test_the_metrics_that_can_be_best_are_those_that_are_measured(runs):
    (record, *_) = outcomes.held_out(runs.whole(Case(0)))
    assert record.keys() - {"step", "pairs", "tokens", "split"} == set(DPOAlgorithmConfig.held_out_metrics)
