"""The tracker without its client: code, lineage, credentials, settings, and failures that stop nothing."""

import hashlib
import logging
import os
import shutil
import subprocess
import time

import pytest

from prefopt.config.load import load_config
from prefopt.distributed.preemption import Preempted
from prefopt.process.errors import UserError
from prefopt.runs import code_state
from prefopt.runs.code_state import CodeState, without_credentials
from prefopt.runs.directory import RunDirectory, RunTakenOverError
from prefopt.tracking import service
from prefopt.tracking.answers import BUDGET, MOST_ROWS, build_table
from prefopt.tracking.artifacts import MOST_METADATA, _label, _plain, _sources, build_model
from prefopt.tracking.credentials import CLOUD, base_url, has_api_key
from prefopt.tracking.lineage import Parent, find_parent
from prefopt.tracking.sessions import Outcome, _conclude, find_sessions
from prefopt.tracking.wandb import SHOWN_OF_SLURM, WandbMirror, _few_of_slurm
from prefopt.training.guards import DivergedError

COMMIT = ("-c", "user.email=a@b", "-c", "user.name=a", "commit", "-q", "-m", "one")


@pytest.fixture
def repository(tmp_path, monkeypatch):
    folder = tmp_path / "code"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "loss.py").write_bytes(b"beta = 1\n# \xe9 in Latin-1\n")
    for arguments in (["init", "-q"], ["add", "."], COMMIT):
        subprocess.run(["git", *arguments], check=True, capture_output=True)
    return folder


def test_committed_code_has_a_commit_and_no_diff(repository, tmp_path):
    state = CodeState.read()
    assert len(state.commit) == 40
    assert (state.diff, state.diff_sha256, state.remote) == (b"", None, None)
    stale = tmp_path / "diff.patch"
    stale.write_text("of an earlier attempt")
    state.write_diff(stale)
    assert not stale.exists()


def test_the_diff_holds_what_is_not_committed_of_tracked_files_and_nothing_else(repository, tmp_path):
    (repository / "loss.py").write_bytes(b"beta = 2\n# \xe8 in Latin-1\n")
    (repository / ".env").write_text("untracked")
    state = CodeState.read()
    state.write_diff(tmp_path / "diff.patch")
    written = (tmp_path / "diff.patch").read_bytes()
    assert b"+beta = 2" in written
    assert b"\xe8 in Latin-1" in written
    assert b"untracked" not in written
    assert state.diff_sha256 == hashlib.sha256(written).hexdigest()
    subprocess.run(["git", "checkout", "-q", "."], check=True)
    subprocess.run(["git", "apply", str(tmp_path / "diff.patch")], check=True)
    assert (repository / "loss.py").read_bytes() == b"beta = 2\n# \xe8 in Latin-1\n"


def test_a_long_diff_is_cut_at_a_line_and_says_so_with_the_hash_of_the_whole(repository, tmp_path, monkeypatch):
    (repository / "loss.py").write_text("".join(f"line {number}\n" for number in range(1000)))
    whole = CodeState.read()
    monkeypatch.setattr(code_state, "MAX_DIFF_BYTES", 500)
    cut = CodeState.read()
    assert (cut.diff_sha256, cut.diff_size) == (whole.diff_sha256, len(whole.diff))
    assert 480 < len(cut.diff) <= 500
    assert whole.diff.startswith(cut.diff)
    assert cut.diff.endswith(b"\n")
    cut.write_diff(tmp_path / "diff.patch")
    first = (tmp_path / "diff.patch").read_bytes().splitlines()[0].decode()
    assert first == f"# cut: the first {len(cut.diff)} of {len(whole.diff)} bytes"


def test_outside_of_a_repository_there_is_no_code_state(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert CodeState.read() == CodeState()


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://user:secret@example.org:8443/code.git", "https://example.org:8443/code.git"),
        ("https://secret@example.org/code.git", "https://example.org/code.git"),
        ("git@example.org:team/code.git", "git@example.org:team/code.git"),
        ("../elsewhere.git", "../elsewhere.git"),
        (None, None),
    ],
)
def test_a_remote_keeps_its_address_and_loses_its_credentials(url, kept):
    assert without_credentials(url) == kept


@pytest.fixture
def sft(tmp_path):
    """A run that another one may start from."""
    run = RunDirectory(tmp_path / "runs" / "sft")
    run.model.mkdir(parents=True)
    (run.checkpoints / "step-2").mkdir(parents=True)
    run.config.write_text("")
    run.status.write_text("{}")
    run.wandb_id.write_text("id-of-sft\n")
    return run


def config_of(tmp_path, *overrides):
    return load_config(["+experiment=dpo_brand_voice", f"run.root={tmp_path / 'runs'}", "run.name=dpo", *overrides])


@pytest.mark.parametrize("inside", ["model", "checkpoints/step-2"])
def test_the_parent_is_the_run_in_whose_folder_the_model_lies(tmp_path, sft, inside):
    config = config_of(tmp_path, "model=hf", f"model.path={sft.path / inside}")
    assert find_parent(config) == Parent("sft", str(sft.path), "id-of-sft")


@pytest.mark.parametrize("model", ["prefopt:assets/base_model", "organisation/model", "prefopt:nowhere"])
def test_a_model_that_lies_in_no_run_has_no_parent(tmp_path, sft, model):
    assert find_parent(config_of(tmp_path, "model=hf", f"model.path={model}")) is None


def test_a_parent_can_be_named_by_folder_by_name_and_where_only_its_name_is_known(tmp_path, sft):
    known = Parent("sft", str(sft.path), "id-of-sft")
    assert find_parent(config_of(tmp_path, f"logger.parent={sft.path}")) == known
    assert find_parent(config_of(tmp_path, f"logger.parent={sft.model}")) == known
    assert find_parent(config_of(tmp_path, "logger.parent=sft")) == known
    assert find_parent(config_of(tmp_path, "logger.parent=of_another_machine")) == Parent("of_another_machine")


def test_the_server_is_the_environments_else_the_one_of_the_login_else_the_cloud(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    assert base_url() == CLOUD
    (tmp_path / "settings").write_text("[default]\nbase_url = https://wandb.example.org\n")
    assert base_url() == "https://wandb.example.org"
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert not has_api_key()
    (tmp_path / "netrc").write_text("machine wandb.example.org login user password secret\n")
    assert has_api_key()
    (tmp_path / "settings").write_text("no settings")
    assert base_url() == CLOUD
    monkeypatch.setenv("WANDB_BASE_URL", "http://here")
    assert base_url() == "http://here"


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("logger.tags=['']", "logger.tags"),
        (f"logger.tags=[{'x' * 65}]", "logger.tags"),
        ("logger.project=a/b", "logger.project"),
        ("logger.project=''", "logger.project"),
        ("logger.log_artifacts=copy", "logger.log_artifacts"),
    ],
)
def test_what_wandb_would_refuse_is_refused_before_the_run(setting, named):
    with pytest.raises(UserError, match=named):
        load_config(["+experiment=dpo_brand_voice", setting])


def test_of_slurms_variables_only_the_ones_that_are_known_to_be_harmless_are_shown(monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_JWT", "SLURM_ANYTHING_NEW"):
        monkeypatch.setenv(name, "value")
    before = dict(os.environ)
    with _few_of_slurm():
        assert {name for name in os.environ if name.startswith("SLURM_")} <= SHOWN_OF_SLURM
        assert os.environ["SLURM_JOB_ID"] == "value"
    assert dict(os.environ) == before


def test_artifacts_are_named_after_folder_and_file_in_letters_that_wandb_allows(tmp_path):
    folder = tmp_path / "für alle"
    folder.mkdir()
    (folder / "train.jsonl.gz").write_text("")
    assert _plain(f"data-{_label(str(folder / '*.gz'))}") == "data-f-r-alle-train"
    assert _label("hub:team/pairs:train") == "team/pairs"
    assert len(_plain("x" * 500)) == 128
    assert list(_sources(["hub:team/pairs:train", str(folder / "*.gz"), None])) == [
        "https://huggingface.co/datasets/team/pairs",
        folder / "train.jsonl.gz",
    ]


class BrokenSession:
    """A session of which every call fails, and which notes them."""

    def __init__(self):
        self.calls = []
        self.exit_code = self.settings = None

    def __getattr__(self, name):
        def call(*arguments, **named):
            self.calls.append(name)
            self.exit_code = named.get("exit_code")
            raise ConnectionResetError("gone")

        return call


@pytest.fixture
def mirror(tmp_path):
    session = BrokenSession()
    config = config_of(tmp_path, "logger.log_artifacts=none")
    return WandbMirror(session, config, RunDirectory.of(config)), session


def test_a_session_that_fails_stops_nothing_and_is_complained_of_once(mirror, caplog):
    caplog.set_level(logging.WARNING)
    mirror, session = mirror
    mirror.describe()
    for step in range(3):
        mirror.log({"step": step, "loss": 0.5})
    mirror.finish({"decision": {"word": "ship"}, "held_out": {}, "samples": []})
    assert session.calls.count("log") == 3
    assert [record.getMessage().partition("(")[0] for record in caplog.records] == [
        "W&B: the axis of the metrics could not be recorded ",
        "W&B: the session could not be ended ",
    ]


@pytest.mark.parametrize(
    ("error", "calls", "code"),
    [
        (Preempted("SIGTERM"), ["mark_preempting", "finish"], 75),
        (KeyboardInterrupt(), ["mark_preempting", "finish"], 75),
        (DivergedError("loss is nan"), ["finish"], 1),
        (RunTakenOverError("taken"), [], None),
    ],
)
def test_an_early_end_closes_the_session_unless_the_run_is_another_process_now(mirror, error, calls, code):
    mirror, session = mirror
    with pytest.raises(type(error)), mirror:
        raise error
    assert (session.calls, session.exit_code) == (calls, code)


def test_services_that_a_process_has_left_running_are_found_and_killed(tmp_path):
    program = shutil.copy("/bin/sleep", tmp_path / service.NAME)
    parent = subprocess.Popen(["sh", "-c", f"{program} 3600 & wait"])
    try:
        deadline = time.monotonic() + 60
        while not service.find_services(parent.pid):
            assert time.monotonic() < deadline, "it does not start"
            time.sleep(0.02)
        assert service.find_services(os.getpid()) == []
        assert service.kill_services(parent.pid) == 1
        parent.wait(60)
    finally:
        service.kill_services(parent.pid)
        parent.kill()


def test_sessions_are_found_in_the_order_in_which_they_were_started(tmp_path):
    for name in ("offline-run-20260102_000000-a", "run-20260101_120000-a", "offline-run-20260101_000000-a"):
        (tmp_path / "wandb" / name).mkdir(parents=True)
    (tmp_path / "wandb" / "latest-run").symlink_to("run-20260101_120000-a")
    (tmp_path / "wandb" / "logs").mkdir()
    found = find_sessions(tmp_path)
    assert [session.folder.name for session in found] == [
        "offline-run-20260101_000000-a",
        "run-20260101_120000-a",
        "offline-run-20260102_000000-a",
    ]
    assert [session.is_online for session in found] == [False, True, False]
    assert not any(session.is_pending() for session in found), "they hold nothing"


URL = "http://host/me/prefopt/runs/abc"
SEEN = f"wandb: [prefopt/abc] View run n at {URL}\nwandb: [prefopt/abc] Finished syncing"


@pytest.mark.parametrize(
    ("code", "output", "errors", "is_marked", "outcome", "reason"),
    [
        (0, SEEN, [], True, Outcome.uploaded, ""),
        (0, SEEN, ["api: HTTP error"], True, Outcome.uploaded, ""),
        (0, SEEN, ["filestream: fatal error: 403"], True, Outcome.failed, "filestream: fatal error: 403"),
        (0, SEEN, ["runsync: incomplete transaction log: unexpected EOF"], False, Outcome.cut, ""),
        (
            0,
            SEEN,
            ["runsync: incomplete transaction log: unexpected EOF", "sender: failed to log artifact: 403"],
            False,
            Outcome.failed,
            "sender: failed to log artifact: 403",
        ),
        (0, "", ["runsync: incomplete transaction log: unexpected EOF"], False, Outcome.empty, ""),
        (0, "", ["didn't find run info: transactionlog: bad header: EOF"], False, Outcome.empty, ""),
        (0, "", ["didn't find run info: permission denied"], False, Outcome.failed, "without a word"),
        (0, "wandb: ERROR no such entity", [], False, Outcome.failed, "no such entity"),
        (1, "Error: No API key configured.", [], False, Outcome.failed, "No API key configured."),
        (None, "", [], False, Outcome.failed, "no end after 9 s"),
    ],
)
def test_an_upload_is_concluded_by_what_is_missing_on_the_server(code, output, errors, is_marked, outcome, reason):
    upload = _conclude(code, output, errors, is_marked=is_marked, timeout_s=9)
    assert upload.outcome is outcome
    assert reason in upload.reason
    assert upload.url == (URL if output == SEEN else "")


def answered(num: int, text: str = "t") -> list[dict]:
    match = {"b": "base", "judge": "j", "reading": "win"}
    return [
        {
            "prompt": f"p{number}",
            "answers": {"base": text, "tuned": text},
            "chosen": None,
            "rejected": text,
            "outcomes": [{**match, "a": "tuned"}, {**match, "a": "brief"}],
        }
        for number in range(num)
    ]


def test_the_table_of_answers_has_a_column_per_contestant_and_per_verdict_on_the_tuned_one():
    table = build_table(answered(2))
    assert table.columns == ["prompt", "base", "tuned", "chosen", "rejected", "j: tuned against base"]
    assert table.rows[1] == ["p1", "t", "t", None, "t", "win"]
    assert build_table([]) is None


@pytest.mark.parametrize(
    ("num", "text", "num_rows", "said"),
    [
        (1200, "t", MOST_ROWS, "has 1000 of 1200 prompts, and 0 of"),
        (3, "x" * 5000, 3, "has 3 of 3 prompts, and 9 of its texts are cut at 2000 characters"),
        (900, "x" * 2000, BUDGET // 6004, "of 900 prompts, and 0 of"),
    ],
)
def test_the_table_of_answers_is_bounded_and_what_was_cut_is_said(num, text, num_rows, said, caplog):
    caplog.set_level(logging.INFO)
    table = build_table(answered(num, text))
    assert abs(len(table.rows) - num_rows) <= 1
    assert said in caplog.text
    assert sum(len(cell or "") for row in table.rows for cell in row[:5]) <= BUDGET
    assert max(len(cell or "") for row in table.rows for cell in row) <= 2000


def test_a_table_that_was_not_cut_says_nothing(caplog):
    caplog.set_level(logging.INFO)
    build_table(answered(3))
    assert caplog.text == ""


@pytest.mark.parametrize("num", [3, 200])
def test_the_metadata_of_a_model_are_no_more_than_wandb_takes(num, tmp_path, caplog):
    """With intervals and win rates, a report of the main job had more than a hundred; the model was not recorded."""
    (tmp_path / "model").mkdir()
    described = {f"held_out/tuned/metric_{number}": 0.5 for number in range(num)}
    with caplog.at_level("INFO", logger="prefopt"):
        artifact = build_model(load_config(["run.name=voice"]), tmp_path / "model", described)
    assert len(artifact.metadata) == min(num + 3, MOST_METADATA)
    assert artifact.metadata["algorithm"] == "dpo"
    assert ("the first 100 values of the report" in caplog.text) is (num > 97)
