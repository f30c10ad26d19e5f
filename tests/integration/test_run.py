"""Whole runs through the entry points: what they leave, what a second command does."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from prefopt.distributed.checkpoint import read_manifest
from prefopt.evaluate import main as evaluate
from prefopt.storage.files import copy_file, read_lines
from prefopt.storage.sealed import find_damage
from prefopt.train import main as train
from prefopt.training import training


def read_report(run):
    return json.loads((run / "report" / "report.json").read_text())


def test_a_dpo_run_leaves_everything_that_the_run_directory_promises(overrides, tmp_path, capsys):
    train([*overrides, "trainer.eval_every=3"])
    run = tmp_path / "runs" / "test"
    status = json.loads((run / "status.json").read_text())
    assert status == {"state": "done", "step": 6, "attempts": 1, "message": "", "records": 8}
    assert {"config.yaml", "provenance.json", "metrics.jsonl", "model", "report"} <= {p.name for p in run.iterdir()}
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step-4", "step-6"]
    assert (run / "report" / "report.html").exists()

    records = list(read_lines(run / "metrics.jsonl"))
    training = [r for r in records if "split" not in r]
    held_out = [r for r in records if r.get("split") == "held_out"]
    assert [r["step"] for r in training] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in held_out] == [3, 6]
    assert [r["pairs"] for r in training] == [4, 8, 12, 16, 20, 22]
    assert all({"loss", "grad_norm", "rewards/accuracies", "time_s", "tokens"} <= r.keys() for r in training)
    assert training[0]["tokens"] < training[5]["tokens"]

    report = read_report(run)
    assert report["held_out"]["n"] == 7
    assert len(list(read_lines(run / "report" / "pairs.jsonl"))) == 7
    assert report["run"]["steps"] == 6
    assert report["held_out"]["tuned"]["reward_accuracy"]["value"] == held_out[-1]["rewards/accuracies"]
    assert report["held_out"]["tuned"]["reward_margin"]["value"] == pytest.approx(
        held_out[-1]["rewards/margins"], rel=1e-3
    )
    assert len(report["samples"]) == 2
    assert report["verdict"]

    capsys.readouterr()
    train([*overrides, "trainer.eval_every=3"])
    assert "this run is done" in capsys.readouterr().out
    assert json.loads((run / "status.json").read_text()) == status


def test_a_run_that_is_done_tells_of_data_that_changed_since(overrides, tmp_path, pair_files, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, path in zip(("pairs.jsonl", "held_out.jsonl"), pair_files, strict=True):
        shutil.copy(path, name)
    own = [*overrides, "data.train=pairs.jsonl", "data.held_out=held_out.jsonl", "trainer.max_steps=1"]

    def again() -> list[str]:
        capsys.readouterr()
        train(own)
        first, *more, last = capsys.readouterr().out.splitlines()
        assert "this run is done" in first
        assert "run.overwrite=true" in last
        return more

    train(own)
    assert again() == []
    with open("pairs.jsonl", "a") as file:
        file.write("\n")
    assert again() == ["data.train: pairs.jsonl has changed since, so this report is of the earlier data."]
    os.remove("held_out.jsonl")
    assert again() == [
        "data.train: pairs.jsonl has changed since and data.held_out: held_out.jsonl is gone, or cannot be read, "
        "so this report is of the earlier data."
    ]
    provenance = tmp_path / "runs" / "test" / "provenance.json"
    for unknown in ('{"data": {"files": {"train": null}}}', '{"data": {"sha256": {}}}', "[]", "{"):
        provenance.write_text(unknown)
        assert again() == []
    provenance.unlink()
    assert again() == []


@pytest.mark.parametrize("batch_size", [1, 3])
def test_evaluating_again_with_another_batch_size_gives_the_same_numbers(overrides, tmp_path, batch_size):
    train([*overrides, "trainer.max_steps=2"])
    run = tmp_path / "runs" / "test"
    first = read_report(run)
    evaluate([f"run={run}", f"evaluation.batch_size={batch_size}"])
    second = read_report(run)
    for model, metrics in first["held_out"].items():
        if model not in ("base", "tuned"):
            assert second["held_out"][model] == metrics
            continue
        for name, entry in metrics.items():
            again = second["held_out"][model][name]
            if name.endswith("accuracy"):
                assert again == entry
            else:
                assert again["value"] == pytest.approx(entry["value"], rel=1e-5)
    assert first["samples"] == second["samples"]
    assert second["drift"]["kl_per_token"]["value"] == pytest.approx(first["drift"]["kl_per_token"]["value"], rel=1e-3)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_adapters_are_saved_as_adapters_and_the_base_is_measured_without(overrides, tmp_path, method):
    train([*overrides, f"peft={method}", "peft.r=4"])
    run = tmp_path / "runs" / "test"
    assert (run / "model" / "adapter_config.json").exists()
    report = read_report(run)
    assert report["run"]["method"] == method
    assert report["drift"]["kl_per_token"]["value"] != 0

    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(run / "model") is not None


@pytest.mark.parametrize("shape", ["messages", "prompt_completion", "text"])
def test_sft_runs_on_every_format_and_its_held_out_loss_is_exact(overrides, tmp_path, shape):
    from tests.conftest import STUDY, read_rows, write_rows

    rows = read_rows(STUDY / "sft_train.jsonl", 14)
    if shape == "prompt_completion":
        rows = [{"prompt": r["messages"][:1], "completion": r["messages"][1:]} for r in rows]
    elif shape == "text":
        rows = [{"text": r["messages"][1]["content"]} for r in rows]
    train_file = write_rows(tmp_path / "train.jsonl", rows[:10])
    held_out = write_rows(tmp_path / "held_out.jsonl", rows[10:])
    train(
        [
            *overrides,
            "algorithm=sft",
            f"data.train={train_file}",
            f"data.held_out={held_out}",
            "trainer.eval_every=6",
            f"evaluation.pairs={STUDY / 'held_out.jsonl'}",
        ]
    )
    run = tmp_path / "runs" / "test"
    report = read_report(run)
    logged = [r for r in read_lines(run / "metrics.jsonl") if "split" in r][-1]
    assert report["held_out"]["tuned"]["loss"]["value"] == pytest.approx(logged["loss"], rel=1e-5)
    assert report["held_out"]["tuned"]["loss"]["value"] < report["held_out"]["base"]["loss"]["value"]
    assert report["held_out"]["tuned"]["preference_accuracy"]["n"] == 132


def test_dpo_goes_on_from_an_sft_adapter(overrides, tmp_path):
    from tests.conftest import STUDY, read_rows, write_rows

    rows = write_rows(tmp_path / "sft.jsonl", read_rows(STUDY / "sft_train.jsonl", 10))
    sft = ["algorithm=sft", f"data.train={rows}", "data.held_out=null", "peft=lora", "run.name=sft"]
    train([*overrides, *sft])
    train([*overrides, f"model.path={tmp_path / 'runs' / 'sft' / 'model'}", "run.name=dpo"])
    report = read_report(tmp_path / "runs" / "dpo")
    # The reference is the SFT model, not the model below its adapter: the first loss says so.
    first = next(read_lines(tmp_path / "runs" / "dpo" / "metrics.jsonl"))
    assert first["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert report["held_out"]["n"] == 7


def test_bf16_trains_where_the_hardware_has_it(overrides, tmp_path):
    from prefopt.models.load import has_bf16

    if not has_bf16():
        pytest.skip("no bfloat16 on this CPU")
    train([*overrides, "trainer.precision=bf16", "trainer.gradient_checkpointing=true"])
    assert read_report(tmp_path / "runs" / "test")["held_out"]["n"] == 7


def test_wandb_records_offline_without_a_key_and_keeps_its_id(overrides, tmp_path, capfd, monkeypatch):
    monkeypatch.delenv("WANDB_SILENT")
    train([*overrides, "logger=wandb", "trainer.max_steps=2"])
    assert not [line for line in "".join(capfd.readouterr()).splitlines() if line.startswith("wandb:")], (
        "our lines only"
    )
    run = tmp_path / "runs" / "test"
    assert (run / "wandb_id").read_text()
    assert list((run / "wandb").glob("offline-run-*"))


def test_a_tracker_that_cannot_be_reached_never_stops_a_run(overrides, tmp_path, monkeypatch, capsys):
    from prefopt.tracking import wandb as tracker

    monkeypatch.setattr(tracker, "INIT_TIMEOUT_S", 2)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.delenv("WANDB_MODE")
    train([*overrides, "logger=wandb", "trainer.max_steps=2"])
    run = tmp_path / "runs" / "test"
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    assert list((run / "wandb").glob("offline-run-*"))
    assert "recorded offline" in capsys.readouterr().out


def test_the_last_step_is_always_logged_so_that_the_report_counts_every_step(overrides, tmp_path):
    train([*overrides, "trainer.log_every=4", "trainer.save_every=5"])
    run = tmp_path / "runs" / "test"
    training = [r for r in read_lines(run / "metrics.jsonl") if "split" not in r]
    assert [r["step"] for r in training] == [4, 6], "a checkpoint alone is no reason for a line"
    assert training[-1]["pairs"] == 22
    assert read_report(run)["run"]["steps"] == 6
    assert json.loads((run / "status.json").read_text())["step"] == 6


def test_a_part_of_an_epoch_ends_with_a_whole_step_and_says_how_many_rows_that_are(overrides, tmp_path, capsys):
    own = [line for line in overrides if not line.startswith("trainer.max_steps")]
    train([*own, "trainer.num_epochs=0.5"])
    said = "training: 3 whole steps see 12 of 22 rows, 0.5455 epochs, where trainer.num_epochs=0.5"
    printed = capsys.readouterr().out
    assert said in printed
    assert "and a report calls a gain shown from 30 prompts on. Name a larger" in printed
    assert read_report(tmp_path / "runs" / "test")["run"]["epochs"] == 0.5455
    train([*own, "run.name=whole"])
    assert "whole steps see" not in capsys.readouterr().out
    assert read_report(tmp_path / "runs" / "whole")["run"]["epochs"] == 1


def test_the_parts_of_a_run_sum_up_to_the_wall_time_of_its_command(overrides, tmp_path):
    command = [sys.executable, "-m", "prefopt.train", *overrides, "trainer.eval_every=3"]
    begun = time.monotonic()
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    wall_s = time.monotonic() - begun
    work, report = (json.loads((tmp_path / "runs/test" / f).read_text()) for f in ("work.json", "report/report.json"))
    seconds = work["phases"]
    assert sum(seconds.values()) == pytest.approx(wall_s, abs=0.75, rel=0.1)  # but for the end of Python
    assert seconds["other"] < max(0.5, 0.05 * wall_s)
    assert {
        "imports", "configuration", "tokenising", "model_load", "set_up", "reference", "first_step",
        "training", "held_out_evaluation", "checkpoints", "final_model", "evaluation/model_load",
        "evaluation/held_out", "evaluation/train", "evaluation/neutral_texts", "evaluation/sampling", "report",
    } <= set(seconds)  # fmt: skip
    assert work["checkpoints"]["num"] == 3
    assert work["checkpoints"]["bytes"] > 0
    assert report["throughput"]["checkpoints"] == work["checkpoints"]
    assert "phases" not in report["throughput"]
    assert set(report["phases"]) == set(seconds)
    assert shown.count("\ntime: ") == 1


def test_throughput_leaves_evaluations_and_checkpoints_out(overrides, tmp_path, monkeypatch, capsys):
    """Each takes a second here; a step takes milliseconds."""
    from prefopt.algorithms.dpo import DPOTrainer
    from prefopt.distributed.saving import CheckpointSaver

    def after_a_second(cls, name):
        plain = getattr(cls, name)

        def slow(*args, **kwargs):
            time.sleep(1)
            return plain(*args, **kwargs)

        monkeypatch.setattr(cls, name, slow)

    after_a_second(DPOTrainer, "measure_held_out")
    after_a_second(CheckpointSaver, "_write")
    train([*overrides, "trainer.eval_every=2"])
    run = tmp_path / "runs" / "test"
    *_, line, last = read_lines(run / "metrics.jsonl")
    assert last["time_s"] >= 5, "three evaluations and, before the last line, two checkpoints"
    assert last["training_s"] <= last["time_s"] - 5
    speed = read_report(run)["throughput"]
    assert speed["train_time_s"] == last["training_s"]
    assert speed["pairs_per_s"] == pytest.approx(22 / last["training_s"])
    phases = json.loads((run / "work.json").read_text())["phases"]
    assert last["training_s"] == pytest.approx(phases["first_step"] + phases["training"], abs=0.1)
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")][-1]
    assert f"{22 / line['training_s']:.1f} examples/s" in shown

    shutil.rmtree(run / "model")
    (run / "status.json").write_text(json.dumps({"state": "failed", "attempts": 1}))
    shutil.rmtree(run / "checkpoints" / "step-6")
    train([*overrides, "trainer.eval_every=2"])
    again = list(read_lines(run / "metrics.jsonl"))
    at = {record["step"]: record["training_s"] for record in again}
    assert at[6] > at[4] > 0, "a run that goes on counts on"


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_final_model_is_the_checkpoint_of_the_last_step_and_not_written_again(overrides, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "save_weights", lambda *_: pytest.fail("the final model was written again"))
    train(overrides)
    model, checkpoint = tmp_path / "runs/test/model", tmp_path / "runs/test/checkpoints/step-6"
    copied = {name: content for name, content in files_of(model).items() if name != "manifest.json"}
    assert copied.items() <= files_of(checkpoint).items()
    for path in model.iterdir():
        path.write_bytes(b"changed")  # in place
    digests = read_manifest(checkpoint)[1]
    assert find_damage(checkpoint, digests) is None


@pytest.mark.parametrize("peft", ["none", "lora"])
def test_a_final_model_without_a_checkpoint_of_the_last_step_is_the_same(overrides, tmp_path, monkeypatch, peft):
    train([*overrides, f"peft={peft}"])
    monkeypatch.setattr(training, "_checkpoint_of_last_step", lambda *_: None)
    train([*overrides, f"peft={peft}", "run.name=written"])
    assert files_of(tmp_path / "runs/test/model") == files_of(tmp_path / "runs/written/model")


@pytest.mark.parametrize("system", ["copies", "ends early", "refuses", "lacks it"])
def test_a_copied_file_is_whole_on_any_file_system(tmp_path, monkeypatch, system):
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(bytes(range(256)) * 100)
    target.write_bytes(b"x" * 10**6)
    if system == "ends early":
        monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)
    elif system == "refuses":
        monkeypatch.setattr(os, "copy_file_range", lambda *_: os.open(tmp_path / "absent" / "x", os.O_RDONLY))
    elif system == "lacks it":
        monkeypatch.delattr(os, "copy_file_range")
    copy_file(source, target)
    assert target.read_bytes() == source.read_bytes()
