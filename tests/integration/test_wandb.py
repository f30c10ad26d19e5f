"""What W&B's real client sends, and what it writes offline; only the far end is recorded (tests/wandb_server.py)."""

import base64
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prefopt.distributed.preemption import Preempted
from prefopt.runs.code_state import CodeState
from prefopt.runs.directory import RunDirectory
from prefopt.storage.files import read_lines
from prefopt.tracking import wandb as tracker
from prefopt.tracking.metrics import MetricsLog
from prefopt.tracking.service import find_services
from prefopt.tracking.wandb import INCOMPLETE, record_evaluation
from prefopt.train import main as train
from tests.conftest import REPOSITORY
from tests.wandb_runs import (
    REPORT,
    attempt,
    has_config,
    make_run,
    of_kind,
    read_session,
    record,
    recording_server,
    sessions_of,
)
from tests.wandb_server import KEY

pytestmark = pytest.mark.slow

SECRETS = {"SLURM_JWT": "slurm-credentials", "SLURM_MINE": "slurm-private", "HF_TOKEN": "hub-credentials"}


def git(folder, *arguments):
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def sent(tmp_path_factory):
    """A DPO run after an SFT run, in two attempts of which the first was stopped at step 4 and its checkpoint at 2."""
    folder = tmp_path_factory.mktemp("sent")
    code = folder / "code"
    code.mkdir()
    git(code, "init", "-q")
    (code / "loss.py").write_text("beta = 1\n")
    git(code, "add", ".")
    git(code, "-c", "user.email=a@b", "-c", "user.name=a", "commit", "-q", "-m", "one")
    git(code, "remote", "add", "origin", "https://me:remote-credentials@example.org/code.git")
    (code / "loss.py").write_text("beta = 2\n")
    (code / ".env").write_text("untracked-credentials\n")
    with pytest.MonkeyPatch.context() as patch, recording_server(patch, folder) as server:
        patch.chdir(code)
        patch.delenv("WANDB_MODE")
        patch.setenv("SLURM_JOB_ID", "4711")
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        _, parent = make_run(folder / "runs", "voice_sft")
        parent.wandb_id.write_text("id-of-sft")
        config, run = make_run(
            folder / "runs",
            "voice_dpo",
            "model=hf",
            f"model.path={parent.model}",
            "logger.group=beta_lr",
            "logger.tags=[draft,voice]",
        )
        state = CodeState.read()
        code_fields = {"git_commit": state.commit, "git_remote": state.remote}
        run.provenance.write_text(json.dumps(run.read_provenance() | code_fields))
        state.write_diff(run.diff)
        attempt(config, run, [1, 2, 3, 4], end=Preempted("SIGUSR1"))
        attempt(config, run, [3, 4, 5, 6])
    return server, config, run, state


def only_run(server):
    (run,) = server.runs.values()
    return run


def test_a_run_has_the_name_group_job_type_and_tags_that_its_settings_say(sent):
    server, _, _, _ = sent
    fields = only_run(server).fields
    assert fields["displayName"] == "voice_dpo"
    assert (fields["groupName"], fields["jobType"], fields["tags"]) == ("beta_lr", "dpo", ["draft", "voice"])
    assert fields["project"] == "prefopt"


def test_the_resolved_configuration_is_sent_as_it_is(sent):
    server, config, _, _ = sent
    found = {key: entry["value"] for key, entry in only_run(server).config.items()}
    assert has_config(found, config)


def test_the_run_that_a_model_comes_from_is_named_in_configuration_and_summary(sent):
    server, config, _, _ = sent
    parent = only_run(server).config["parent_run"]["value"]
    assert (parent["name"], parent["wandb_id"]) == ("voice_sft", "id-of-sft")
    assert f"{parent['path']}/model" == config.model.path
    assert only_run(server).summary["parent_run"] == "voice_sft"


def test_both_attempts_are_one_run_that_was_preempted_and_then_finished(sent):
    server, _, run, _ = sent
    assert only_run(server).name == run.read_wandb_id()
    assert len(sessions_of(run)) == 2
    assert only_run(server).is_preempting
    assert only_run(server).exit_codes == [75, 0]


def test_the_last_value_of_every_step_is_the_one_in_metrics_jsonl(sent):
    server, _, run, _ = sent
    rows = [row for row in only_run(server).rows() if "train/loss" in row]
    assert [row["train/global_step"] for row in rows] == [1, 2, 3, 4, 3, 4, 5, 6]
    last = {row["train/global_step"]: row for row in rows}
    kept = list(read_lines(run.metrics))
    assert [line["step"] for line in kept] == [1, 2, 3, 4, 5, 6]
    for line in kept:
        values = {f"train/{key}": value for key, value in line.items() if key != "step"}
        assert last[line["step"]] == {**values, "train/global_step": line["step"]}


def test_metrics_are_plotted_against_the_training_step(sent):
    server, _, _, _ = sent
    axes = only_run(server).config["_wandb"]["value"]["m"]
    assert {"1": "train/global_step", "6": [3], "7": []} in axes
    assert [axis["5"] for axis in axes if axis.get("2") == "*"] == [1]


def test_the_summary_has_the_reports_numbers_under_the_names_that_comparisons_use(sent):
    server, _, _, _ = sent
    summary = only_run(server).summary
    assert summary["decision"] == "ship"
    assert summary["held_out/tuned/preference_accuracy"] == 0.75
    assert summary["drift/kl_per_token"] == 0.2


def test_the_summary_counts_what_each_check_of_the_audit_found(sent):
    server, _, _, _ = sent
    found = {key: value for key, value in only_run(server).summary.items() if key.startswith("audit/")}
    assert found == {"audit/empty": 2, "audit/leakage": 0}


def test_the_code_is_named_by_its_commit_and_the_diff_of_tracked_files(sent):
    server, _, run, state = sent
    found = only_run(server)
    assert (found.fields["commit"], found.fields["repo"]) == (state.commit, "https://example.org/code.git")
    assert found.files["diff.patch"] == run.diff.read_bytes()
    assert b"+beta = 2" in found.files["diff.patch"]


def test_data_is_an_input_by_reference_with_checksums(sent):
    server, config, run, _ = sent
    artifacts = [artifact for artifact in server.artifacts.values() if artifact.type == "dataset"]
    assert len(artifacts) == 2, "one per attempt; the same content is one version to W&B"
    for artifact in artifacts:
        assert artifact.is_committed
        assert artifact.used_by == [run.read_wandb_id()]
        assert artifact.fields["artifactCollectionName"] == "data-voices-train"
        assert artifact.metadata == {"sha256": {"train": "5eed"}}
        contents = artifact.manifest["contents"]
        assert set(contents) == {"train/train.jsonl", "held_out/held_out.jsonl"}
        assert contents["train/train.jsonl"]["ref"] == f"file://{config.data.train}"
        assert contents["train/train.jsonl"]["digest"] == md5_of(b'{"split": "train"}\n')
        assert artifact.files == {}


def md5_of(content):
    return base64.b64encode(hashlib.md5(content).digest()).decode()


def test_the_model_of_a_finished_run_is_an_output_by_reference_and_stays_where_it_is(sent):
    server, _, run, _ = sent
    (model,) = (artifact for artifact in server.artifacts.values() if artifact.type == "model")
    assert model.is_committed
    assert model.fields["runName"] == run.read_wandb_id()
    assert model.fields["artifactCollectionName"] == "model-voice_dpo"
    assert model.metadata["held_out/tuned/preference_accuracy"] == 0.75
    assert not [name for name in model.metadata if name.endswith(("_low", "_high"))], "intervals are in the summary"
    content = (run.model / "model.safetensors").read_bytes()
    entry = model.manifest["contents"]["model.safetensors"]
    assert entry["ref"] == (run.model / "model.safetensors").as_uri()
    assert (entry["digest"], entry["size"]) == (md5_of(content), len(content))
    assert content not in server.sent()


def test_no_credentials_leave_the_machine_and_no_key_is_written_down(sent):
    server, _, run, _ = sent
    assert server.keys == {KEY}
    sent_bytes = server.sent()
    assert b"4711" in sent_bytes, "the job's number is shown"
    for secret in (*SECRETS.values(), "remote-credentials", "untracked-credentials", KEY):
        assert secret.encode() not in sent_bytes
    for path in run.path.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path


def exit_codes(records):
    return [ended.get("exit_code", 0) for ended in of_kind(records, "exit")]


@pytest.fixture
def server(tmp_path, monkeypatch):
    with recording_server(monkeypatch, tmp_path) as server:
        yield server


def test_offline_both_attempts_are_written_under_one_id_with_all_that_a_server_needs(server, tmp_path):
    config, run = make_run(tmp_path / "runs", "away", "logger.group=beta_lr", "logger.job_type=ablation")
    attempt(config, run, [1, 2, 3], end=Preempted("SIGTERM"))
    attempt(config, run, [3, 4])
    first, second = (read_session(folder) for folder in sessions_of(run))
    for records in (first, second):
        (started,) = of_kind(records, "run")
        assert started["run_id"] == run.read_wandb_id()
        assert (started["run_group"], started["job_type"]) == ("beta_lr", "ablation")
        assert started["resume"] is True
        assert has_config(started["config"]["update"], config)
        assert started["git"]["commit"] == "c0ffee"
        (data,) = (artifact for artifact in of_kind(records, "artifact") if artifact["type"] == "dataset")
        assert data["use_after_commit"] is True
    steps = [[item["item"].get("train/global_step") for item in of_kind(part, "history")] for part in (first, second)]
    assert steps == [[1, 2, 3], [3, 4, 4]], "the table of samples has a line of its own"
    assert of_kind(first, "preempting") == [{}]
    assert [exit_codes(part) for part in (first, second)] == [[75], [0]]
    assert [artifact["type"] for artifact in of_kind(second, "artifact")].count("model") == 1
    assert server.requests == []


RANK = """
import os, sys
from contextlib import ExitStack
from prefopt.distributed.preemption import Preempted
from prefopt.tracking.metrics import MetricsLog
from prefopt.tracking.wandb import start_wandb
from tests.wandb_runs import make_run, record
from pathlib import Path

config, run = make_run(Path(sys.argv[1]), "rank")
try:
    with ExitStack() as after:
        after.push(mirror := start_wandb(config, run))
        log = MetricsLog(run.metrics, mirror)
        for step in range(1, 21):
            log.write(record(step))
        raise Preempted("SIGTERM")
except Preempted:
    os._exit(75)
"""


def test_a_rank_that_leaves_python_at_once_has_written_its_last_records(tmp_path):
    done = subprocess.run([sys.executable, "-c", RANK, str(tmp_path / "runs")], cwd=REPOSITORY, timeout=600)
    assert done.returncode == 75
    (folder,) = (tmp_path / "runs" / "rank" / "wandb").glob("offline-run-*")
    records = read_session(folder)
    assert [item["item"]["train/global_step"] for item in of_kind(records, "history")] == list(range(1, 21))
    assert exit_codes(records) == [75]


@pytest.mark.parametrize("silent", ["file_stream", "ServerFeaturesQuery"])
def test_a_server_that_falls_silent_holds_the_end_of_a_run_up_for_a_bounded_time(
    server, tmp_path, monkeypatch, caplog, silent
):
    """W&B's own limit covers the first; in the second its service hangs before it gets to its limit."""
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(tracker, "FINISH_TIMEOUT_S", 1)
    monkeypatch.setattr(tracker, "SERVICE_TIMEOUT_S", 1)
    server.stalled.add(silent)
    config, run = make_run(tmp_path / "runs", "silent")
    mirror = tracker.start_wandb(config, run)
    mirror.log(record(1))
    mirror.close(1)  # without a bound it would never return: the server stays silent until the test ends
    (folder,) = sessions_of(run)
    assert (folder / INCOMPLETE).exists()
    assert f"prefopt sync {run.path} goes on" in caplog.text
    deadline = time.monotonic() + 60
    while find_services(os.getpid()):
        assert time.monotonic() < deadline, "a service goes on"
        time.sleep(0.05)


def test_a_run_that_is_stopped_ends_its_session_as_one_that_goes_on(overrides, tmp_path, monkeypatch):
    write = MetricsLog.write

    def write_and_stop(log, line):
        write(log, line)
        if line["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(MetricsLog, "write", write_and_stop)
    with pytest.raises(Preempted):
        train([*overrides, "logger=wandb"])
    run = RunDirectory(tmp_path / "runs" / "test")
    assert run.read_status()["state"] == "preempted"
    (folder,) = sessions_of(run)
    records = read_session(folder)
    assert of_kind(records, "preempting") == [{}]
    assert exit_codes(records) == [75]
    logged = [item["item"]["train/loss"] for item in of_kind(records, "history")]
    assert len(logged) >= 2
    assert logged == [line["loss"] for line in read_lines(run.metrics)]
    assert run.read_provenance()["git_commit"] == of_kind(records, "run")[0]["git"]["commit"]


def test_all_that_is_to_be_uploaded_later_lies_in_the_runs_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_DATA_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home_of_a_compute_node"))
    config, run = make_run(tmp_path / "runs", "packed", "logger.log_artifacts=upload")
    attempt(config, run, [1])
    assert "WANDB_DATA_DIR" not in os.environ
    (folder,) = sessions_of(run)
    entries = [
        entry for artifact in of_kind(read_session(folder), "artifact") for entry in artifact["manifest"]["contents"]
    ]
    local = [Path(entry["local_path"]) for entry in entries]
    data = tmp_path / "voices"
    assert len(local) == 4, "two files of data, the model, the table of samples"
    assert all(path.is_relative_to(run.path) or path.parent == data for path in local), local


def test_artifacts_are_left_out_where_the_settings_say_so(tmp_path):
    config, run = make_run(tmp_path / "runs", "plain", "logger.log_artifacts=none")
    attempt(config, run, [1], report={**REPORT, "samples": []})
    (folder,) = sessions_of(run)
    assert of_kind(read_session(folder), "artifact") == []


ANSWERS = [
    {
        "prompt": f"prompt {number}",
        "chosen": "c",
        "rejected": None,
        "answers": {"base": f"base {number}", "tuned": f"tuned {number}"},
        "outcomes": [{"a": "tuned", "b": "base", "judge": "voice", "outcome": -1, "reading": "loss"}],
    }
    for number in range(3)
]
WINS = {"a": "tuned", "b": "base", "judge": "voice", "value": 0.25, "ci95": [0.1, 0.4], "n": 3}


def check_answers_table(content):
    assert content["columns"] == ["prompt", "base", "tuned", "chosen", "rejected", "voice: tuned against base"]
    assert content["data"] == [[f"prompt {n}", f"base {n}", f"tuned {n}", "c", None, "loss"] for n in range(3)]


def test_all_judged_answers_are_a_table_and_win_rates_with_intervals_in_the_summary(server, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    config, run = make_run(tmp_path / "runs", "judged")
    attempt(config, run, [1], report={**REPORT, "win_rates": [WINS]}, answers=ANSWERS)
    recorded = only_run(server)
    key = "win_rates/voice/tuned against base"
    assert [recorded.summary[name] for name in (key, f"{key}_low", f"{key}_high")] == [0.25, 0.1, 0.4]
    (file,) = (content for name, content in recorded.files.items() if name.startswith("media/table/answers"))
    check_answers_table(json.loads(file))
    assert recorded.summary["answers"]["nrows"] == 3


def test_offline_the_table_of_answers_lies_in_the_session_until_it_is_uploaded(tmp_path):
    config, run = make_run(tmp_path / "runs", "judged_away")
    attempt(config, run, [1], answers=ANSWERS)
    (folder,) = sessions_of(run)
    (file,) = (folder / "files" / "media" / "table").glob("answers*.table.json")
    check_answers_table(json.loads(file.read_text()))


def test_no_answer_leaves_where_none_are_to_be_shown(server, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    config, run = make_run(tmp_path / "runs", "silent", "evaluation.num_shown_samples=0")
    attempt(config, run, [1], report={**REPORT, "samples": []}, answers=ANSWERS)
    assert b"tuned 1" not in server.sent()
    assert "answers" not in only_run(server).summary


def test_the_code_is_left_out_where_the_environment_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DISABLE_GIT", "true")
    config, run = make_run(tmp_path / "runs", "closed")
    run.diff.write_text("+secret algorithm\n")
    attempt(config, run, [1])
    (folder,) = sessions_of(run)
    records = read_session(folder)
    assert "git" not in of_kind(records, "run")[0]
    assert "diff.patch" not in json.dumps(of_kind(records, "files"))


def test_an_evaluation_is_a_run_of_its_own_below_the_run_that_it_measures(server, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    config, run = make_run(tmp_path / "runs", "measured", "logger.group=beta_lr")
    run.wandb_id.write_text("id-of-run")
    report = {**REPORT, "provenance": {"data": {"sha256": {"held_out": "rows"}}}}
    record_evaluation(config, run, report)
    record_evaluation(config, run, report)
    record_evaluation(config, run, {**report, "provenance": {"data": {"sha256": {"held_out": "changed rows"}}}})
    record_evaluation(config, run, {**report, "test": {"looks": 1}})
    config.evaluation.num_samples += 1
    record_evaluation(config, run, report)
    assert len(server.runs) == 4, "the same evaluation made twice is one run"
    assert "id-of-run" not in server.runs
    for found in server.runs.values():
        assert (found.fields["jobType"], found.fields["groupName"]) == ("eval", "beta_lr")
        assert found.config["parent_run"]["value"]["wandb_id"] == "id-of-run"
        assert found.summary["held_out/tuned/preference_accuracy"] == 0.75
    assert not [artifact for artifact in server.artifacts.values() if artifact.type == "model"]
