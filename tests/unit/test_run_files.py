"""Checkpoints, metrics, run directory and tracker: what survives, what is refused."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from prefopt.choices import WandbMode
from prefopt.config import load_config
from prefopt.distributed.checkpoint import (
    COMPLETE,
    find_damage,
    find_newest,
    keep_newest,
    read_counters,
    seal,
    step_of,
)
from prefopt.errors import UserError
from prefopt.run_directory import RunDirectory, State
from prefopt.tracking.metrics import MetricsLog, read_metrics
from prefopt.tracking.wandb import choose_mode, start_wandb
from prefopt.trainers.batches import count_examples


def write_checkpoint(folder: Path, step: int) -> Path:
    partial = folder / f"checkpoint-{step}"
    partial.mkdir(parents=True)
    (partial / "model.safetensors").write_bytes(b"weights" * 100)
    (partial / "trainer_state.json").write_text("{}")
    return seal(partial, {"tokens": step * 10, "time_s": 1.5})


def test_a_sealed_checkpoint_is_found_with_its_counters(tmp_path):
    write_checkpoint(tmp_path, 2)
    newest = write_checkpoint(tmp_path, 10)
    assert find_newest(tmp_path) == newest
    assert step_of(newest) == 10
    assert read_counters(newest) == {"tokens": 100, "time_s": 1.5}


def test_a_partial_checkpoint_is_never_used_and_removed(tmp_path):
    good = write_checkpoint(tmp_path, 2)
    (tmp_path / "checkpoint-4").mkdir()
    assert find_newest(tmp_path) == good
    assert not (tmp_path / "checkpoint-4").exists()


def test_a_folder_without_its_last_file_is_not_complete(tmp_path):
    good, broken = write_checkpoint(tmp_path, 2), write_checkpoint(tmp_path, 4)
    (broken / COMPLETE).unlink()
    assert find_newest(tmp_path) == good


@pytest.mark.parametrize("damage", ["truncated", "flipped", "deleted", "no manifest"])
def test_damage_is_found_and_the_checkpoint_before_is_used(tmp_path, damage):
    good, bad = write_checkpoint(tmp_path, 2), write_checkpoint(tmp_path, 4)
    weights = bad / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(b"wei")
    elif damage == "flipped":
        weights.write_bytes(b"W" + weights.read_bytes()[1:])
    elif damage == "deleted":
        weights.unlink()
    else:
        (bad / "manifest.json").unlink()
    assert find_damage(bad)
    assert find_damage(good) is None
    assert find_newest(tmp_path) == good
    assert (tmp_path / "damaged-step-4").exists()


def test_only_the_newest_complete_checkpoints_are_kept(tmp_path):
    for step in (2, 4, 10):
        write_checkpoint(tmp_path, step)
    keep_newest(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-4"]


def test_records_beyond_the_checkpoint_are_cut_and_half_lines_dropped(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        log.write({"step": step, "loss": 0.5})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    log.cut_after(2)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.5}\n'


def test_values_that_are_not_finite_are_null_so_that_every_line_is_json(tmp_path):
    MetricsLog(tmp_path / "metrics.jsonl").write({"step": 1, "loss": float("nan")})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": None}


def test_pairs_count_the_short_last_batch_of_an_epoch():
    args = SimpleNamespace(gradient_accumulation_steps=2, world_size=1, per_device_train_batch_size=2)
    trainer = SimpleNamespace(args=args, train_dataset=range(22))
    assert [count_examples(trainer, step) for step in (0, 1, 5, 6, 7, 12)] == [0, 4, 20, 22, 26, 44]


@pytest.fixture
def config(tmp_path):
    return load_config(["+experiment=dpo_brand_voice", f"run.root={tmp_path / 'runs'}", "run.name=x"])


def test_empty_folders_of_a_run_that_never_began_do_not_block_its_name(config):
    run = RunDirectory.of(config)
    run.checkpoints.mkdir(parents=True)
    run.check(config)
    (run.path / "mine.txt").write_text("")
    with pytest.raises(UserError, match="no run of prefopt"):
        run.check(config)


def test_checking_a_run_directory_writes_nothing(config, tmp_path):
    RunDirectory.of(config).check(config)
    assert list(tmp_path.iterdir()) == []


def test_a_run_with_other_settings_is_refused_by_name(config, tmp_path):
    run = RunDirectory.of(config)
    run.start(config, {"data": {}})
    run.check(config)
    changed = load_config([f"run.root={tmp_path / 'runs'}", "run.name=x", "algorithm.beta=0.9"])
    with pytest.raises(UserError, match=r"algorithm.beta: .* -> 0.9.*run.overwrite=true"):
        run.check(changed)
    changed.run.overwrite = True
    run.check(changed)


def test_a_folder_that_is_no_run_is_left_alone(config):
    run = RunDirectory.of(config)
    run.path.mkdir(parents=True)
    (run.path / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        config.run.overwrite = overwrite
        with pytest.raises(UserError, match="is no run of prefopt"):
            run.check(config)


def test_overwriting_never_deletes_what_the_run_reads(config):
    run = RunDirectory.of(config)
    run.start(config, {"data": {}})
    config.run.overwrite = True
    config.model.path = str(run.model)
    with pytest.raises(UserError, match="would delete"):
        run.check(config)


def test_changed_data_is_noticed_before_a_run_goes_on(config):
    run = RunDirectory.of(config)
    run.start(config, {"data": {"sha256": {"train": "a"}}})
    with pytest.raises(UserError, match="the data has changed"):
        run.start(config, {"data": {"sha256": {"train": "b"}}})
    config.run.overwrite = True
    run.start(config, {"data": {"sha256": {"train": "b"}}})


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "runs").write_text("")
    config = load_config([f"run.root={tmp_path / 'runs'}", "run.name=x"])
    with pytest.raises(UserError, match="cannot be written"):
        RunDirectory.of(config).check(config)


def test_status_counts_attempts_and_keeps_the_step(config):
    run = RunDirectory.of(config)
    run.start(config, {"data": {}})
    run.set_state(State.running, step=7)
    run.start(config, {"data": {}})
    assert run.read_status() == {"state": "running", "step": 7, "attempts": 2, "message": ""}
    assert not run.is_done()
    run.set_state(State.done)
    assert run.is_done()


def test_wandb_stays_off_where_the_environment_says_so(config, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert start_wandb(config, RunDirectory.of(config)) is None


def test_wandb_is_offline_without_a_key_and_online_with_one(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert choose_mode(WandbMode.auto) == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert choose_mode(WandbMode.auto) == "online"
    assert choose_mode(WandbMode.offline) == "offline"
    (tmp_path / "netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert choose_mode(WandbMode.auto) == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert choose_mode(WandbMode.auto) == "offline"
