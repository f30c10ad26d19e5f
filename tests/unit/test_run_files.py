"""Checkpoints, metrics, run directory and tracker: what survives, what is refused."""

import errno
import json
import logging
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from prefopt.config.choices import WandbMode
from prefopt.config.load import load_config, to_yaml
from prefopt.data.steps import StepBatches
from prefopt.distributed.checkpoint import (
    COMPLETE,
    MANIFEST,
    CheckpointFacts,
    clean,
    keep_newest,
    list_complete,
    list_files,
    read_manifest,
    remove,
    seal,
    set_aside,
    step_of,
)
from prefopt.distributed.saving import find_newest
from prefopt.process.errors import UserError
from prefopt.runs.directory import RunDirectory, State
from prefopt.storage import files
from prefopt.storage.files import hash_file, read_lines
from prefopt.storage.sealed import digest, find_damage
from prefopt.tracking.metrics import MetricsLog
from prefopt.tracking.wandb import choose_mode, start_wandb
from prefopt.training.batches import count_examples

FACTS = CheckpointFacts(
    step=0,
    num_ranks=2,
    zero_stage=1,
    batch_size=8,
    config="c0ffee",
    wandb_id=None,
    windows=[{"sums": {"loss": 0.1}, "counts": {"loss": 3}, "tokens": 7}],
    time_s=1.5,
)


def write_partial(folder: Path, step: int) -> Path:
    written = folder / f"checkpoint-{step}"
    (written / "global_step").mkdir(parents=True)
    (written / "model.safetensors").write_bytes(b"weights" * 100)
    (written / "trainer_state.json").write_text("{}")
    torch.save({"state": 1}, written / "global_step" / "rank_0.pt")
    return written


def write_checkpoint(folder: Path, step: int) -> Path:
    written = write_partial(folder, step)
    return seal(written, replace(FACTS, step=step), digest(written, list_files(written)))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_sealed_checkpoint_is_found_with_its_facts(tmp_path):
    write_checkpoint(tmp_path, 2)
    newest = write_checkpoint(tmp_path, 10)
    assert find_newest(tmp_path) == newest
    assert step_of(newest) == 10
    facts, digests = read_manifest(newest)
    assert facts == replace(FACTS, step=10)
    assert set(digests) == {"model.safetensors", "trainer_state.json", "global_step/rank_0.pt"}


def test_a_checkpoint_is_the_last_of_as_many_steps_as_it_has_or_as_a_callback_cut_short():
    assert [replace(FACTS, step=10).is_last(total) for total in (9, 10, 11)] == [True, True, False]
    early = replace(FACTS, step=4, ended_early_of=10)
    assert [early.is_last(total) for total in (3, 10, 11)] == [True, True, False]


def test_a_checkpoint_of_a_version_that_did_not_note_an_early_end_is_read(tmp_path):
    sealed = write_checkpoint(tmp_path, 2)
    manifest = json.loads((sealed / MANIFEST).read_text())
    del manifest["run"]["ended_early_of"]
    (sealed / MANIFEST).write_text(json.dumps(manifest))
    (sealed / COMPLETE).write_text(hash_file(sealed / MANIFEST) + "\n")
    assert read_manifest(find_newest(tmp_path))[0] == replace(FACTS, step=2)


def test_files_are_listed_with_their_sizes_and_without_what_is_written_last(tmp_path):
    sealed = write_checkpoint(tmp_path, 2)
    found = list_files(sealed)
    assert sorted(found) == ["global_step/rank_0.pt", "model.safetensors", "trainer_state.json"]
    assert all((sealed / name).stat().st_size == size for name, size in found.items())
    assert {MANIFEST, COMPLETE} <= set(names(sealed))


def test_a_checkpoint_of_the_same_step_is_replaced_whole(tmp_path):
    write_checkpoint(tmp_path, 2)
    (tmp_path / "step-2" / "leftover").write_text("")
    again = write_checkpoint(tmp_path, 2)
    assert not (again / "leftover").exists()
    assert names(tmp_path) == ["step-2"]


def test_no_checkpoint_is_found_where_there_is_none(tmp_path):
    assert find_newest(tmp_path) is None
    assert find_newest(tmp_path / "nowhere") is None


def test_a_partial_checkpoint_is_never_used_and_removed(tmp_path):
    good = write_checkpoint(tmp_path, 2)
    write_partial(tmp_path, 4)
    assert find_newest(tmp_path) == good
    assert names(tmp_path) == ["step-2"]


def test_cleaning_removes_what_an_attempt_left_half_done_and_keeps_what_a_person_may_want(tmp_path, caplog):
    write_checkpoint(tmp_path, 2)
    for leftover in ("checkpoint-4", "removed-step-1", "resharded-2", "damaged-step-3", "mine"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "file").write_text("")
    clean(tmp_path)
    assert names(tmp_path) == ["damaged-step-3", "mine", "step-2"]
    assert [record.getMessage() for record in caplog.records] == [
        f"checkpoint: {tmp_path / 'checkpoint-4'} was never completed; removed"
    ]


def test_of_links_among_the_checkpoints_only_the_links_are_removed(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "thesis.txt").write_text("mine")
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    for name in ("checkpoint-9", "removed-step-1"):
        (checkpoints / name).symlink_to(elsewhere)
    clean(checkpoints)
    assert names(checkpoints) == []
    assert (elsewhere / "thesis.txt").exists()


def test_a_folder_without_its_last_file_is_not_complete(tmp_path):
    good, broken = write_checkpoint(tmp_path, 2), write_checkpoint(tmp_path, 4)
    (broken / COMPLETE).unlink()
    (tmp_path / "step-x").mkdir()
    assert list_complete(tmp_path) == [good]
    assert find_newest(tmp_path) == good
    assert names(tmp_path) == ["damaged-step-4", "step-2", "step-x"]


def flip(path: Path) -> None:
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


def rewrite(manifest: Path, **facts: object) -> None:
    """As another version of prefopt would have written it."""
    content = json.loads(manifest.read_text())
    content["run"].update(facts)
    manifest.write_text(json.dumps(content))
    (manifest.parent / COMPLETE).write_text(hash_file(manifest) + "\n")


def rename_file(name: str, manifest: Path) -> None:
    """As somebody would have written it who wants a file read, or written, that is none of the run's."""
    content = json.loads(manifest.read_text())
    content["files"][name] = content["files"].pop("model.safetensors")
    manifest.write_text(json.dumps(content))
    (manifest.parent / COMPLETE).write_text(hash_file(manifest) + "\n")


DAMAGE = {
    "truncated": (
        "model.safetensors",
        lambda path: path.write_bytes(b"wei"),
        "model.safetensors has 3 bytes, not 700",
    ),
    "flipped": ("model.safetensors", flip, "model.safetensors has another checksum"),
    "deleted": ("global_step/rank_0.pt", Path.unlink, "global_step/rank_0.pt is missing"),
    "no manifest": (MANIFEST, Path.unlink, "manifest.json: "),
    "half a manifest": (MANIFEST, lambda path: path.write_text("{"), "manifest.json: "),
    "an empty manifest": (MANIFEST, lambda path: path.write_text('{"run": {}, "files": {}}'), "manifest.json: "),
    "no text": (MANIFEST, lambda path: path.write_bytes(b"\xff"), "manifest.json: "),
    "changed": (MANIFEST, lambda path: path.write_text(path.read_text() + " "), "manifest.json: is not the one that"),
    "format": (MANIFEST, partial(rewrite, format=99), "manifest.json: has format 99, and this version reads 1"),
    "step": (MANIFEST, partial(rewrite, step=3), "manifest.json: is of step 3"),
    "an unknown fact": (MANIFEST, partial(rewrite, new=1), "manifest.json: "),
    "a name outside": (
        MANIFEST,
        partial(rename_file, "../../secret"),
        "manifest.json: names '../../secret', which lies",
    ),
    "an absolute name": (
        MANIFEST,
        partial(rename_file, "/etc/passwd"),
        "manifest.json: names '/etc/passwd', which lies",
    ),
}


@pytest.mark.parametrize(("file", "damage", "reason"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named_and_the_checkpoint_before_is_used(tmp_path, caplog, file, damage, reason):
    good, bad = write_checkpoint(tmp_path, 2), write_checkpoint(tmp_path, 4)
    _, expected = read_manifest(bad)
    damage(bad / file)
    if file == MANIFEST:
        with pytest.raises(ValueError, match=r"manifest\.json"):
            read_manifest(bad)
    else:
        assert find_damage(bad, expected) == reason
    assert find_damage(good, expected) is None
    assert find_newest(tmp_path) == good
    assert names(tmp_path) == ["damaged-step-4", "step-2"]
    assert f"is damaged ({reason}" in caplog.text


def test_when_every_checkpoint_is_damaged_there_is_none_and_all_are_set_aside(tmp_path):
    for step in (2, 4):
        flip(write_checkpoint(tmp_path, step) / "trainer_state.json")
    assert find_newest(tmp_path) is None
    assert names(tmp_path) == ["damaged-step-2", "damaged-step-4"]


def test_a_checkpoint_set_aside_replaces_an_older_damaged_one_of_its_step(tmp_path, caplog):
    set_aside(write_checkpoint(tmp_path, 2), "first")
    again = write_checkpoint(tmp_path, 2)
    (again / "second").write_text("")
    set_aside(again, "second")
    assert names(tmp_path) == ["damaged-step-2"]
    assert (tmp_path / "damaged-step-2" / "second").exists()
    assert "is damaged (second); set aside as damaged-step-2" in caplog.text


def test_a_kill_while_a_checkpoint_is_removed_leaves_none_that_looks_whole(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, 2)
    doomed = write_checkpoint(tmp_path, 4)

    def killed(path: Path, ignore_errors: bool = False) -> None:
        if path.exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(files.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove(doomed)
    monkeypatch.undo()
    assert step_of(list_complete(tmp_path)[-1]) == 2
    assert find_newest(tmp_path) == tmp_path / "step-2"
    assert names(tmp_path) == ["step-2"]


@pytest.mark.parametrize(
    ("number", "best", "kept"),
    [
        (1, None, ["step-10"]),
        (2, None, ["step-10", "step-4"]),
        (9, None, ["step-10", "step-2", "step-3", "step-4"]),
        (1, 2, ["step-10", "step-2"]),
        (2, 4, ["step-10", "step-4"]),
        (2, 3, ["step-10", "step-3", "step-4"]),
        (1, 7, ["step-10"]),
    ],
)
def test_only_the_newest_complete_checkpoints_and_the_best_are_kept(tmp_path, number, best, kept):
    for step in (2, 3, 4, 10):
        write_checkpoint(tmp_path, step)
    keep_newest(tmp_path, number, best)
    assert names(tmp_path) == kept


def test_the_last_checkpoint_is_never_given_up(tmp_path):
    with pytest.raises(AssertionError, match="last good checkpoint"):
        keep_newest(tmp_path, 0)


def test_records_beyond_the_checkpoint_are_cut_and_half_lines_dropped(tmp_path):
    run = RunDirectory(tmp_path)
    log = MetricsLog(run.metrics)
    for step in (1, 2, 3):
        log.write({"step": step, "loss": 0.5})
    run.rows.write_text('{"step": 2, "rows": [5, 6]}\n{"step": 3, "rows": [1, 2]}\n')
    with run.metrics.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [record["step"] for record in read_lines(run.metrics)] == [1, 2, 3]
    run.cut_records_after(2)
    assert run.metrics.read_text() == '{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.5}\n'
    assert run.rows.read_text() == '{"step": 2, "rows": [5, 6]}\n'
    run.cut_records_after(0)
    assert run.metrics.read_text() == run.rows.read_text() == ""


def test_a_line_in_the_midst_that_is_no_json_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: not a JSON object"):
        list(read_lines(tmp_path / "metrics.jsonl"))


def test_a_line_that_is_taken_out_as_the_message_says_lets_the_rest_be_read(tmp_path):
    path = tmp_path / "my metrics.jsonl"
    path.write_text('{"step": 1}\n[2]\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: not a JSON object, found \[2\]") as error:
        list(read_lines(path))
    subprocess.run(str(error.value).partition("take it out: ")[2], shell=True, check=True)
    assert list(read_lines(path)) == [{"step": 1}, {"step": 3}]


def test_records_that_cannot_be_written_wait_for_the_next_and_leave_no_part(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write({"step": 1})
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("prefopt.storage.files.os.fsync", full)
    for step in (2, 3):
        with pytest.raises(OSError, match="No space"):
            log.write({"step": step})
        assert (tmp_path / "metrics.jsonl").read_bytes() == before
    monkeypatch.undo()
    log.write({"step": 4})
    assert [record["step"] for record in read_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]


def test_values_that_are_not_finite_are_null_so_that_every_line_is_json(tmp_path):
    MetricsLog(tmp_path / "metrics.jsonl").write({"step": 1, "loss": float("nan")})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": None}


@pytest.mark.parametrize(
    ("accumulation", "num_ranks", "expected"),
    [(2, 1, [0, 4, 20, 22, 26, 44]), (1, 2, [0, 4, 20, 22, 26, 44]), (1, 3, [0, 6, 28, 34, 40, 66])],
)
def test_examples_count_the_short_last_step_of_an_epoch(accumulation, num_ranks, expected):
    args = SimpleNamespace(gradient_accumulation_steps=accumulation, world_size=num_ranks)
    batches = StepBatches(22, seed=0, batch_size=2, accumulation=accumulation, num_ranks=num_ranks)
    trainer = SimpleNamespace(args=args, batches=batches)
    assert [count_examples(trainer, step) for step in (0, 1, 5, 6, 7, 12)] == expected


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
    with pytest.raises(UserError, match=r"data\.train has changed since this run began"):
        run.start(config, {"data": {"sha256": {"train": "b"}}})
    config.run.overwrite = True
    run.start(config, {"data": {"sha256": {"train": "b"}}})


def test_overwriting_through_a_link_replaces_what_it_leads_to_and_leaves_the_link(config, tmp_path):
    run = RunDirectory.of(config)
    real = tmp_path / "scratch" / "real"
    real.mkdir(parents=True)
    run.path.parent.mkdir()
    run.path.symlink_to(real)
    run.start(config, {"data": {}})
    run.metrics.write_text('{"step": 1}\n')
    config.run.overwrite = True
    run.check(config)
    run.set_state(State.done)
    run.start(config, {"data": {}})
    assert run.path.is_symlink()
    assert names(real) == ["config.yaml", "provenance.json", "status.json"]
    assert names(real.parent) == ["real"]


def test_a_link_to_nowhere_is_refused(config, tmp_path):
    run = RunDirectory.of(config)
    run.path.parent.mkdir()
    run.path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"is a link to .*nowhere, which is not there"):
        run.check(config)


@pytest.mark.parametrize("content", ["", '{"state": "do', "[]", "\xff", "[" * 100_000], ids=range(5))
@pytest.mark.parametrize("name", ["status", "work", "provenance"])
def test_a_damaged_file_of_a_run_is_named_with_what_to_type(config, name, content):
    run = RunDirectory.of(config)
    run.start(config, {"data": {}})
    path = getattr(run, name)
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=rf"{path}: is .*rm {path}"):
        getattr(run, f"read_{name}")()
    path.unlink()
    run.start(config, {"data": {}})


def test_a_run_with_damaged_files_can_be_overwritten(config, caplog):
    run = RunDirectory.of(config)
    run.start(config, {"data": {}})
    config.run.overwrite = True
    for path in (run.status, run.config):
        path.write_text("{")
        run.check(config)
        run.start(config, {"data": {}})
        assert f"{path}: is damaged" in caplog.text
        assert run.read_status()["attempts"] == 1


def test_a_damaged_config_is_written_anew_by_what_the_message_says(config):
    run = RunDirectory.of(config)
    run.start(config, {"command": "python -m prefopt.train +experiment=mine", "data": {}})
    run.config.write_bytes(b"run:\0")
    with pytest.raises(UserError, match=rf"python -m prefopt.train \+experiment=mine --cfg job > {run.config}"):
        run.check(config)
    run.provenance.unlink()
    with pytest.raises(UserError, match=rf"prefopt.train <the overrides of the run> --cfg job > {run.config}"):
        run.check(config)
    run.config.write_text(to_yaml(config))
    run.check(config)


def test_lines_that_metrics_jsonl_has_lost_since_the_last_save_are_counted(config):
    run = RunDirectory.of(config)
    run.start(config, {"data": {}})
    log = MetricsLog(run.metrics)
    for step in (1, 2, 3):
        log.write({"step": step})
    assert run.count_lost_records(run.read_records()) == 0, "an earlier version did not count"
    run.set_state(State.running, step=2, records=2)
    assert run.count_lost_records(run.read_records()) == 0
    run.metrics.write_text('{"step": 2}\n{"step": 3}\n')
    assert run.count_lost_records(run.read_records()) == 1


def test_a_full_disk_does_not_keep_a_run_from_saying_how_it_ended(config, monkeypatch):
    run = RunDirectory.of(config)
    run.start(config, {"data": {}})

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_bytes", full)
    run.set_state(State.failed, message="the disk is full")
    assert run.read_status()["state"] == "failed"
    run.set_state(State.failed, message="")
    assert run.read_status() == {"state": "failed", "step": 0, "attempts": 1, "message": ""}


def test_other_versions_are_said_and_all_of_them_are_kept(config, caplog):
    run = RunDirectory.of(config)
    for torch_version in ("2.11.0", "2.12.0", "2.12.0", "2.13.0"):
        run.start(config, {"data": {}, "versions": {"torch": torch_version, "trl": "1.16.0"}})
    provenance = run.read_provenance()
    assert provenance["versions"]["torch"] == "2.13.0"
    assert [each["versions"]["torch"] for each in provenance["earlier"]] == ["2.11.0", "2.12.0"]
    assert [record.getMessage() for record in caplog.records] == [
        "resume: goes on with other versions (torch 2.11.0 -> 2.12.0), so numbers may differ a little",
        "resume: goes on with other versions (torch 2.12.0 -> 2.13.0), so numbers may differ a little",
    ]


def test_the_commit_that_a_models_name_meant_may_be_named_later(config, tmp_path):
    run = RunDirectory.of(config)
    run.start(config, {"data": {}, "model": {"revision": None, "commit": "c0ffee"}})
    named = replace(config, model=replace(config.model, revision="c0ffee"))
    run.check(named)
    with pytest.raises(UserError, match=r"model\.revision: None -> decade"):
        run.check(replace(config, model=replace(config.model, revision="decade")))


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
    run.set_state(State.done)
    assert not run.is_done(config), "there is no model"
    run.model.mkdir()
    assert run.is_done(config)


def longer(config, **settings):
    return replace(config, trainer=replace(config.trainer, **settings))


def test_a_run_that_is_done_goes_on_when_its_length_is_raised(config, caplog):
    caplog.set_level(logging.INFO)
    run = RunDirectory.of(config)
    run.start(config, {"data": {}})
    run.model.mkdir()
    run.set_state(State.done, step=6)
    raised = longer(config, num_epochs=config.trainer.num_epochs + 1)
    assert not run.is_done(raised)
    run.check(raised)
    run.start(raised, {"data": {}})
    assert not run.model.exists(), "the model of the shorter run would pass for the one of the longer"
    assert "its length was raised" in caplog.text
    run.model.mkdir()
    run.set_state(State.done, step=12)
    assert run.is_done(raised)
    with pytest.raises(UserError, match=r"trainer\.num_epochs"):
        run.check(config)


def test_a_run_that_is_done_stays_done_when_only_what_is_written_changes(config):
    run = RunDirectory.of(config)
    run.start(config, {"data": {}})
    run.model.mkdir()
    run.set_state(State.done)
    assert run.is_done(longer(config, log_every=1, save_every=7))
    run.start(longer(config, log_every=1), {"data": {}})
    assert run.model.exists()


def test_how_a_step_was_divided_stays_with_the_run(config):
    run = RunDirectory.of(config)
    assert run.read_step_size() is None
    run.start(config, {"data": {}, "step_size": {"per_device": 4, "accumulation": 1, "num_ranks": 2}})
    assert run.read_step_size() == {"per_device": 4, "accumulation": 1, "num_ranks": 2}


def test_the_id_in_wandb_is_read_back_and_none_without(config):
    run = RunDirectory.of(config)
    run.start(config, {"data": {}})
    assert run.read_wandb_id() is None
    run.wandb_id.write_text("abc\n")
    assert run.read_wandb_id() == "abc"


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


FOUND = {"check": "empty", "level": "note", "count": 1, "share": 0.5, "summary": "1 row"}
AUDIT = {"gate": "default", "rows": 2, "checks": [FOUND]}
DAMAGED_AUDITS = [
    3,
    [],
    {},
    *({**AUDIT, key: wrong} for key in AUDIT for wrong in (None, [None], {"a": 1})),
    *({**AUDIT, "checks": [{**FOUND, key: wrong}]} for key in FOUND for wrong in (None, [])),
]


@pytest.mark.parametrize("audit", [None, AUDIT, {**AUDIT, "checks": []}])
def test_a_whole_audit_in_provenance_is_read(config, audit):
    run = RunDirectory.of(config)
    run.start(config, {"data": {"audit": audit}})
    assert run.read_provenance()["data"]["audit"] == audit


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("status", {"state": None}),
        ("status", {"state": "done", "attempts": None}),
        ("status", {"state": "done", "step": "6"}),
        ("status", {"state": "done", "step": 10**30}),
        ("provenance", {"model": None}),
        ("provenance", {"data": {"sha256": {"train": 3}}}),
        *(("provenance", {"data": {"audit": wrong}}) for wrong in DAMAGED_AUDITS),
        ("provenance", {"step_size": {"per_device": 4}}),
        ("work", {"phases": {"other": [1]}}),
        ("work", {"checkpoints": {"num": 1, "bytes": 1}}),
        ("work", {"reference": {"hit_rate": 1.0}}),
    ],
)
def test_a_file_of_another_shape_is_refused_where_it_is_read(config, name, value):
    run = RunDirectory.of(config)
    run.start(config, {"data": {}})
    getattr(run, name).write_text(json.dumps(value))
    with pytest.raises(UserError, match=rf"{name}\.json: is damaged \(no .* can be .*rm "):
        getattr(run, f"read_{name}")()


@pytest.mark.parametrize(
    "line", ['{"loss": 1}', '{"step": "1"}', '{"step": 1, "time_s": null}', '{"step": 1, "tokens": -1}']
)
def test_a_record_that_cannot_be_computed_with_is_refused_with_its_line(config, line):
    run = RunDirectory.of(config)
    run.start(config, {"data": {}})
    run.metrics.write_text(f'{{"step": 1, "loss": null}}\n\n{line}\n')
    with pytest.raises(UserError, match=rf"{run.metrics}:3: .* take it out: sed -i 3d {run.metrics}"):
        run.read_records()
