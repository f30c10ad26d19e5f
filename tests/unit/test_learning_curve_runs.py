"""The trainings of a learning curve: which rows they get, what is kept of them, and what is refused."""

import json
from dataclasses import fields, replace
from io import StringIO
from itertools import pairwise
from pathlib import Path

import pytest

from prefopt.config.load import load_config
from prefopt.config.schema import DataConfig, TrainConfig
from prefopt.data.loading import read_splits
from prefopt.evaluation.learning_curve import LearningCurve
from prefopt.process.errors import EndedError, UserError
from prefopt.process.terminal import Terminal
from prefopt.runs.directory import RunDirectory
from prefopt.sweeps.learning_curve import SHARES, TOKENISING, measure_learning_curve
from tests.conftest import read_rows, write_rows

APPLIED = {
    "train", "held_out", "held_out_fraction", "test", "format", "columns", "pairs", "min_margin", "tag",
    "system", "on_identical", "on_empty", "on_overlap", "gate", "max_rows", "shuffle_seed",
}  # fmt: skip
"""Settings of the data that have done their work before the parts are written, or that no part may see."""


class Trainer:
    """Stands for `prefopt.train`: leaves what a run leaves, with accuracies that rise with the data.

    Attributes:
        configs: The settings of each training.
        stops_after: Trainings after which the next one fails.
    """

    def __init__(self, stops_after: int = 100) -> None:
        self.configs: list[TrainConfig] = []
        self.stops_after = stops_after

    def __call__(self, config: TrainConfig) -> RunDirectory:
        if len(self.configs) >= self.stops_after:
            raise KeyboardInterrupt
        self.configs.append(config)
        print("a line of the training")
        run = RunDirectory.of(config)
        for folder in (run.report, run.model, run.checkpoints):
            folder.mkdir(parents=True)
        measured = config.data.held_out or config.evaluation.pairs
        num_train, num_held_out = (Path(file).read_bytes().count(b"\n") for file in (config.data.train, measured))
        margins = [(row % 4 - 2) + num_train / 32 - 0.1 * config.run.seed for row in range(num_held_out)]
        pairs = [
            {"source": f"{measured}:{row}", "tuned_margin": margin, "base_margin": -1.0}
            for row, margin in enumerate(margins, start=1)
        ]
        write_rows(run.report / "pairs.jsonl", pairs)
        report = {
            "format": 1,
            "run": {"data": {"num_train": num_train}, "steps": num_train // 2},
            "throughput": {"train_time_s": 1.0},
            "phases": {"training": 1.0, "evaluation": 0.5},
        }
        (run.report / "report.json").write_text(json.dumps(report))
        run.status.write_text(json.dumps({"state": "done", "step": 1, "attempts": 1}))
        return run


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    """40 training prompts, two of whose rows share one with another, and 12 held-out prompts."""
    rows = [
        {"prompt": f"Question {row % 50}?", "chosen": f"good {row}", "rejected": f"bad {row}", "note": row}
        for row in range(52)
    ]
    pairs = write_rows(tmp_path / "pairs.jsonl", rows)
    return load_config(["data=files", f"data.train={pairs}", "data.held_out_fraction=0.24", "logger=none"])


def measure(config: TrainConfig, folder: Path, trainer: Trainer) -> tuple[LearningCurve, str]:
    """The curve, and what the terminal shows."""
    shown = StringIO()
    return measure_learning_curve(config, folder, trainer, Terminal(file=shown, width=200)), shown.getvalue()


def test_each_part_holds_the_prompts_of_the_smaller_ones_and_none_that_is_held_out(
    config: TrainConfig, tmp_path: Path
) -> None:
    trainer = Trainer()
    measure(config, tmp_path / "curve", trainer)
    splits = read_splits(config.data, kind="preference", seed=config.run.seed)
    train, held_out = ({record.prompt for record in side} for side in (splits.train, splits.held_out or ()))
    orders = set()
    for seed in (0, 1, 2):
        of_seed = [config for config in trainer.configs if config.run.seed == seed]
        parts = [[row["prompt"] for row in read_rows(Path(config.data.train))] for config in of_seed]
        assert [len(set(part)) for part in parts] == [round(share * len(train)) for share in SHARES]
        assert all(set(small) < set(large) for small, large in pairwise(parts))
        assert set(parts[-1]) == train
        assert not set(parts[-1]) & held_out
        orders.add(tuple(parts[0]))
        for part, whole in zip(parts, [parts[-1]] * 4, strict=True):  # all rows of a prompt go together
            assert part == [prompt for prompt in whole if prompt in set(part)]
    assert len(orders) == 3, "each seed draws other prompts"


def test_all_trainings_are_measured_on_the_held_out_rows_of_the_run_itself(
    config: TrainConfig, tmp_path: Path
) -> None:
    trainer = Trainer()
    curve, _ = measure(config, tmp_path / "curve", trainer)
    (file,) = {config.data.held_out for config in trainer.configs}
    splits = read_splits(config.data, kind="preference", seed=config.run.seed)
    assert [row["chosen"] for row in read_rows(Path(file))] == [record.chosen for record in splits.held_out or ()]
    assert curve.num_prompts == 12
    assert [size.n for size in curve.sizes] == sorted(size.n for size in curve.sizes)


def test_a_curve_that_was_stopped_goes_on_and_ends_with_the_same_result(config: TrainConfig, tmp_path: Path) -> None:
    whole, _ = measure(config, tmp_path / "whole", Trainer())
    with pytest.raises(KeyboardInterrupt):
        measure(config, tmp_path / "curve", Trainer(stops_after=5))
    second = Trainer()
    curve, shown = measure(config, tmp_path / "curve", second)
    assert len(second.configs) == 7
    assert "5 of them done" in shown
    assert curve.to_dict() == whole.to_dict()


@pytest.mark.parametrize(("model", "written"), [("tuned", None), ("base", None), ("tuned", float("nan"))])
def test_a_training_whose_margins_are_not_finite_ends_the_curve_and_has_no_accuracy(
    config: TrainConfig, tmp_path: Path, model: str, written: float | None
) -> None:
    class Broken(Trainer):
        def __call__(self, config: TrainConfig) -> RunDirectory:
            run = super().__call__(config)
            file = run.report / "pairs.jsonl"
            first, *others = read_rows(file)
            write_rows(file, [{**first, f"{model}_margin": written}, *others])
            return run

    with pytest.raises(EndedError, match=f"the margins of {model} are not finite for 1 of 12 held-out pairs"):
        measure(config, tmp_path / "curve", Broken())


def test_of_a_training_only_its_report_and_its_log_are_kept(config: TrainConfig, tmp_path: Path) -> None:
    trainer = Trainer()
    _, shown = measure(config, tmp_path / "curve", trainer)
    for settings in trainer.configs:
        run = RunDirectory.of(settings)
        assert run.report.is_dir()
        assert not run.model.exists()
        assert not run.checkpoints.exists()
        assert "a line of the training" in (tmp_path / "curve" / f"{settings.run.name}.log").read_text()
    assert "a line of the training" not in shown
    assert shown.count("accuracy") == 12


def test_other_settings_or_other_rows_are_trained_anew(config: TrainConfig, tmp_path: Path) -> None:
    measure(config, tmp_path / "curve", Trainer())
    unchanged, faster, changed = Trainer(), Trainer(), Trainer()
    measure(config, tmp_path / "curve", unchanged)
    assert not unchanged.configs
    measure(replace(config, optim=replace(config.optim, learning_rate=0.1)), tmp_path / "curve", faster)
    assert len(faster.configs) == 12
    file = Path(config.data.train)
    write_rows(file, [{**row, "rejected": "none"} for row in read_rows(file)])
    measure(config, tmp_path / "curve", changed)
    assert len(changed.configs) == 12


def test_the_users_settings_are_kept_but_what_only_a_report_needs(config: TrainConfig, tmp_path: Path) -> None:
    trainer = Trainer()
    measure(config, tmp_path / "curve", trainer)
    for settings in trainer.configs:
        assert (settings.model, settings.optim, settings.algorithm) == (config.model, config.optim, config.algorithm)
        assert settings.trainer.per_device_batch_size == config.trainer.per_device_batch_size
        assert settings.evaluation.num_samples == 0
        assert not settings.evaluation.judges
        assert settings.logger.name.value == "none"


def test_all_trainings_see_equally_many_examples_so_that_more_steps_do_not_pass_for_more_data(
    config: TrainConfig, tmp_path: Path
) -> None:
    config.trainer.num_epochs = 2
    trainer = Trainer()
    measure(config, tmp_path / "curve", trainer)
    num_train = len(read_splits(config.data, kind="preference", seed=0).train)
    for settings in trainer.configs:
        seen = settings.trainer.num_epochs * len(read_rows(Path(settings.data.train)))
        assert seen == pytest.approx(2 * num_train)
    assert config.trainer.num_epochs == 2, "the user's settings are not changed"


def test_every_setting_of_the_data_has_acted_before_or_is_handed_on() -> None:
    assert {field.name for field in fields(DataConfig)} == APPLIED | set(TOKENISING)


def test_rows_of_messages_tools_and_a_system_prompt_are_written_as_they_are_read(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": 1}}}
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Look at {row}"}],
            "chosen": [{"role": "assistant", "tool_calls": [call]}],
            "rejected": [{"role": "assistant", "content": "no\u2028"}],
            "tools": [tool],
        }
        for row in range(40)
    ]
    pairs = write_rows(tmp_path / "pairs.jsonl", rows)
    config = load_config(["data=files", f"data.train={pairs}", "data.held_out_fraction=0.3", "logger=none"])
    config.data.system = "Be brief."
    trainer = Trainer()
    measure(config, tmp_path / "curve", trainer)
    before = read_splits(config.data, kind="preference", seed=0)
    after = read_splits(trainer.configs[3].data, kind="preference", seed=0)
    contents = [
        [(record.prompt, record.chosen, record.rejected, record.tools) for record in splits.train]
        for splits in (before, after)
    ]
    assert contents[0] == contents[1]


def test_demonstrations_are_measured_on_the_pairs_of_the_evaluation(tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {row}?", "completion": "an answer"} for row in range(20)]
    pairs = [{"prompt": f"Other {row}?", "chosen": "good", "rejected": "bad"} for row in range(12)]
    overrides = ["data=files", f"data.train={write_rows(tmp_path / 'rows.jsonl', rows)}", "algorithm=sft"]
    overrides += ["data.held_out_fraction=0", "logger=none"]
    with pytest.raises(UserError, match=r"evaluation\.pairs=<file of pairs>"):
        measure(load_config(overrides), tmp_path / "curve", Trainer())
    measured = f"evaluation.pairs={write_rows(tmp_path / 'pairs.jsonl', pairs)}"
    curve, _ = measure(load_config([*overrides, measured]), tmp_path / "curve", Trainer())
    assert curve.num_prompts == 12
    assert curve.rows == "demonstrations"


def test_too_few_prompts_are_refused_before_anything_is_written(config: TrainConfig, tmp_path: Path) -> None:
    file = Path(config.data.train)
    write_rows(file, read_rows(file)[:18])
    with pytest.raises(UserError, match="training prompts, and it takes at least 16"):
        measure(config, tmp_path / "curve", Trainer())
    assert not (tmp_path / "curve").exists()
