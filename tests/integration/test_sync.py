"""`prefopt sync`: what W&B's real client uploads, what is left alone, and what a second call does."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prefopt.cli import dispatch
from prefopt.distributed.preemption import Preempted
from prefopt.runs.lock import RunLock
from prefopt.storage.files import read_lines
from prefopt.sync import main as sync
from prefopt.tracking import wandb as tracker
from tests.conftest import REPOSITORY
from tests.wandb_runs import attempt, make_run, recording_server, sessions_of
from tests.wandb_server import KEY

pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path, monkeypatch):
    with recording_server(monkeypatch, tmp_path) as server:
        yield server


def steps_of(server, run):
    rows = server.runs[run.read_wandb_id()].rows()
    return [row["train/global_step"] for row in rows if "train/loss" in row]


def read(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


def fails_with_1(argv):
    with pytest.raises(SystemExit) as ended:
        sync(argv)
    assert ended.value.code == 1


def test_a_sweep_is_uploaded_once_with_each_runs_attempts_in_their_order(server, tmp_path, capsys):
    sweep = tmp_path / "runs" / "beta_lr"
    runs = []
    for name, parts in {"low": [[1, 2, 3, 4], [3, 4, 5]], "high": [[1, 2]]}.items():
        config, run = make_run(sweep, name, "logger.group=beta_lr")
        run.diff.write_text(f"+beta = {name}\n")
        for steps in parts[:-1]:
            attempt(config, run, steps, end=Preempted("SIGUSR1"))
        attempt(config, run, parts[-1])
        runs.append(run)
    (sweep / "sweep.json").write_text("{}")
    assert server.requests == []

    dispatch(["sync", str(sweep)])
    shown = capsys.readouterr().out
    assert set(server.runs) == {run.read_wandb_id() for run in runs}
    for run in runs:
        found = server.runs[run.read_wandb_id()]
        assert (found.fields["groupName"], found.fields["jobType"]) == ("beta_lr", "dpo")
        last = {row["train/global_step"]: row["train/loss"] for row in found.rows() if "train/loss" in row}
        assert last == {record["step"]: record["loss"] for record in read_lines(run.metrics)}
        assert found.summary["held_out/tuned/preference_accuracy"] == 0.75
        assert f"{server.url}/recorded/prefopt/runs/{found.name}" in shown
    low, high = runs
    assert (steps_of(server, low), steps_of(server, high)) == ([1, 2, 3, 4, 3, 4, 5], [1, 2])
    assert server.runs[low.read_wandb_id()].exit_codes == [75, 0]
    assert server.runs[low.read_wandb_id()].files["diff.patch"] == b"+beta = low\n"
    data = [artifact for artifact in server.artifacts.values() if artifact.type == "dataset"]
    assert [artifact.used_by for artifact in data] == [[artifact.fields["runName"]] for artifact in data]
    assert "2 uploaded" in shown

    num_requests = len(server.requests)
    sync([str(sweep)])
    assert len(server.requests) == num_requests
    shown = capsys.readouterr().out
    assert "2 nothing new" in shown
    assert f"{server.url}/recorded/prefopt/runs/{low.read_wandb_id()}" in shown


def test_an_attempt_that_was_killed_is_uploaded_up_to_its_cut_and_does_not_hold_back_later_ones(
    server, tmp_path, capsys
):
    config, run = make_run(tmp_path / "runs", "killed")
    logged = [*range(1, 9)]
    attempt(config, run, logged, end=Preempted("SIGTERM"))
    (first,) = sessions_of(run)
    log = next(first.glob("*.wandb"))
    places = [found.start() for found in re.finditer(b"train/loss", log.read_bytes())]
    os.truncate(log, places[len(places) // 2] + 4)  # within a record: at the end of one, nothing tells that more came
    attempt(config, run, [3, 4, 5])
    sync([str(run.path)])
    steps = steps_of(server, run)
    kept = len(steps) - 3
    assert 0 < kept <= len(logged)
    assert steps == [*logged[:kept], 3, 4, 5]
    assert f"{first.name}: uploaded up to where a kill cut it off" in capsys.readouterr().out
    sync([str(run.path)])
    assert steps_of(server, run) == steps


def test_an_attempt_that_was_killed_before_it_recorded_anything_is_passed_over(server, tmp_path, capsys):
    config, run = make_run(tmp_path / "runs", "killed")
    attempt(config, run, [1], end=Preempted("SIGTERM"))
    (first,) = sessions_of(run)
    log = next(first.glob("*.wandb"))
    header = log.read_bytes()[:7]
    attempt(config, run, [1, 2])
    for content, said in ((header, "1 uploaded"), (header + log.read_bytes()[7:60], "1 nothing new")):
        log.write_bytes(content)
        sync([str(run.path)])
        assert steps_of(server, run) == [1, 2]
        assert capsys.readouterr().out.splitlines()[-1] == said


def uploaded(run):
    return [path.parent.name for path in run.path.glob("wandb/offline-run-*/*.synced")]


def test_what_the_server_refuses_is_named_and_taken_up_by_the_next_call(server, tmp_path, capsys):
    config, run = make_run(tmp_path / "runs", "refused")
    attempt(config, run, [1, 2])
    (session,) = sessions_of(run)
    for refused in ("UpsertBucket", "/files-of-run/", "CreateArtifact"):
        server.refused = {refused}
        fails_with_1([str(run.path)])
        shown = capsys.readouterr().out
        assert f"failed ({session.name}: " in shown, refused
        assert "refused" in shown or "403" in shown, refused
        assert uploaded(run) == [], refused
    server.refused.clear()
    sync([str(run.path)])
    assert uploaded(run) == [session.name]
    assert set(steps_of(server, run)) == {1, 2}
    found = server.runs[run.read_wandb_id()]
    assert (found.summary["decision"], found.exit_codes[-1]) == ("ship", 0)


def test_an_attempt_waits_until_the_one_before_it_is_uploaded(server, tmp_path):
    config, run = make_run(tmp_path / "runs", "refused")
    attempt(config, run, [1, 2], end=Preempted("SIGTERM"))
    attempt(config, run, [3])
    server.refused.add("file_stream")
    fails_with_1([str(run.path)])
    assert uploaded(run) == []
    assert server.count("RunResumeStatus") == 1, "nothing was asked for the second attempt"
    server.refused.clear()
    sync([str(run.path)])
    assert steps_of(server, run) == [1, 2, 3]
    assert len(uploaded(run)) == 2


def test_an_upload_that_does_not_end_is_given_up_and_taken_up_by_the_next_call(server, tmp_path, capsys):
    config, run = make_run(tmp_path / "runs", "slow")
    attempt(config, run, [1, 2])
    server.stalled.add("UpsertBucket")
    fails_with_1([str(run.path), "--timeout-s", "3"])
    assert "no end after 3 s" in capsys.readouterr().out
    ours = f"WANDB_DATA_DIR={tmp_path}".encode()
    deadline = time.monotonic() + 60
    while [path for path in Path("/proc").glob("[0-9]*/environ") if ours in read(path)]:
        assert time.monotonic() < deadline, "a client goes on"
        time.sleep(0.05)
    server.stalled.clear()
    sync([str(run.path)])
    assert steps_of(server, run) == [1, 2]


def test_one_run_that_fails_does_not_hold_back_the_others(server, tmp_path, capsys):
    runs = []
    for name in ("bad", "good"):
        config, run = make_run(tmp_path / "runs", name)
        attempt(config, run, [1])
        runs.append(run)
    bad, good = runs
    log = next(sessions_of(bad)[0].glob("*.wandb"))
    log.write_bytes(b"\0" * 500)
    fails_with_1([str(tmp_path / "runs")])
    assert set(server.runs) == {good.read_wandb_id()}
    shown = capsys.readouterr().out
    assert f"{bad.path}: failed" in shown
    assert "1 uploaded, 1 failed" in shown


def test_a_run_that_is_going_on_is_left_for_later(server, tmp_path, capsys):
    config, run = make_run(tmp_path / "runs", "busy")
    attempt(config, run, [1], end=Preempted("SIGTERM"))
    with RunLock(run.path):
        sync([str(run.path)])
    shown = capsys.readouterr().out
    assert f"later (running: in use by process {os.getpid()}" in shown
    assert server.runs == {}
    sync([str(run.path)])
    assert steps_of(server, run) == [1]


def test_a_run_that_another_command_uploads_is_left_to_it(server, tmp_path, capsys):
    config, run = make_run(tmp_path / "runs", "busy")
    attempt(config, run, [1])
    with RunLock(run.path / "wandb"):
        sync([str(run.path)])
    assert "later (being uploaded by process" in capsys.readouterr().out
    assert server.runs == {}


def test_what_an_online_session_could_not_send_in_time_is_uploaded_later(server, tmp_path, monkeypatch):
    monkeypatch.setattr(tracker, "FINISH_TIMEOUT_S", 1)
    monkeypatch.setattr(tracker, "SERVICE_TIMEOUT_S", 5)
    monkeypatch.setenv("WANDB_MODE", "online")
    config, run = make_run(tmp_path / "runs", "online")
    mirror = tracker.start_wandb(config, run)
    server.stalled.add("file_stream")
    mirror.log({"step": 1, "loss": 0.5})
    mirror.close(0)
    server.stalled.clear()
    sync([str(run.path)])
    assert steps_of(server, run) == [1]
    num_requests = len(server.requests)
    sync([str(run.path)])
    assert len(server.requests) == num_requests


def test_the_content_of_data_and_model_is_uploaded_where_the_settings_say_so(server, tmp_path):
    config, run = make_run(tmp_path / "runs", "whole", "logger.log_artifacts=upload")
    attempt(config, run, [1])
    sync([str(run.path)])
    artifacts = {artifact.type: artifact for artifact in server.artifacts.values()}
    assert artifacts["model"].files["model.safetensors"] == b"weights of the model"
    assert set(artifacts["dataset"].files) == {"train/train.jsonl", "held_out/held_out.jsonl"}
    assert all("ref" not in entry for entry in artifacts["model"].manifest["contents"].values())


def test_without_a_key_it_says_how_to_log_in(server, tmp_path, monkeypatch, fails):
    config, run = make_run(tmp_path / "runs", "keyless")
    attempt(config, run, [1])
    monkeypatch.delenv("WANDB_API_KEY")
    assert "wandb login" in fails(sync, [str(run.path)])
    assert server.requests == []


def test_without_a_way_to_the_server_it_says_so_at_once(server, tmp_path, monkeypatch, fails):
    config, run = make_run(tmp_path / "runs", "alone")
    attempt(config, run, [1])
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 cannot be reached from here" in fails(sync, [str(run.path)])


def test_folders_without_anything_to_upload_are_named(tmp_path, fails):
    assert "no such folder" in fails(sync, [str(tmp_path / "nowhere")])
    assert "holds no runs" in fails(sync, [str(tmp_path)])
    _, run = make_run(tmp_path / "runs", "unrecorded")
    assert "W&B recorded none of them" in fails(sync, [str(run.path)])


def test_it_needs_neither_torch_nor_its_startup_time():
    code = "import sys; import prefopt.sync; print({'torch', 'transformers', 'wandb'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_no_key_is_written_down(server, tmp_path):
    config, run = make_run(tmp_path / "runs", "private")
    attempt(config, run, [1])
    server.refused.add("file_stream")
    fails_with_1([str(run.path)])
    assert server.keys == {KEY}
    for path in run.path.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path
    assert json.loads(run.status.read_text())["state"] == "running", "an upload leaves the run as it is"
