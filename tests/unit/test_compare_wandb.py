"""Runs of W&B are the same records as runs of this machine, and W&B's failures are told without a traceback."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from prefopt import compare
from prefopt.comparison import wandb_source
from prefopt.comparison.places import find_places
from prefopt.comparison.ranking import build_comparison
from prefopt.comparison.read import RunReader
from prefopt.comparison.records import Mode, RunRecord
from prefopt.comparison.wandb_source import WandbGroup, distinct, parse_group, read_group, to_lines
from prefopt.config.plain import as_dict
from prefopt.process.errors import UserError
from prefopt.tracking.wandb import _values
from tests.fake_runs import base_config, fake_lines, fake_report, with_settings, write_fake_run

GROUP = WandbGroup("team", "project", "group")


@dataclass
class FakeRun:
    """A run as W&B's API returns it, with what our mirror sends."""

    name: str
    state: str = "finished"
    job_type: str | None = "dpo"
    settings: dict[str, Any] = field(default_factory=dict)
    num_lines: int = 20
    with_report: bool = True

    @property
    def url(self) -> str:
        return f"https://wandb.test/team/project/runs/{self.name}-id"

    @property
    def lines(self) -> list[dict[str, Any]]:
        return fake_lines("dpo", self.num_lines, 5, 0.9, 0)

    @property
    def config(self) -> dict[str, Any]:
        return {**as_dict(with_settings(base_config(), self.settings)), "parent_run": {"name": "x"}, "_wandb": {}}

    @property
    def summary(self) -> dict[str, Any]:
        if not self.with_report:
            return {"train/loss": 0.5}
        report = fake_report(base_config(), self.lines, 0.9, 0.2, None, 132, "ship")
        blocks = {**_values(report["held_out"], "held_out"), **_values(report["drift"], "drift")}
        return {"decision": report["decision"]["word"], **blocks}

    def scan_history(self) -> Iterable[dict[str, Any]]:
        for line in self.lines:
            prefix = "eval" if "split" in line else "train"
            values = {f"{prefix}/{key}": v for key, v in line.items() if key not in ("step", "split")}
            yield {"_step": 0, "train/global_step": line["step"], **values, "train/grad_norm": "NaN"}
        yield {"samples": {"_type": "table-file"}}


@dataclass
class FakeApi:
    """Answers like `wandb.Api`, and remembers what it was asked for."""

    found: list[FakeRun]
    error: Exception | None = None
    asked: list[Any] = field(default_factory=list)

    def runs(self, path: str, filters: dict[str, Any], *, lazy: bool) -> list[FakeRun]:
        self.asked.append((path, filters))
        if self.error is not None:
            raise self.error
        return self.found


def test_a_run_of_wandb_is_the_record_that_its_folder_gives(tmp_path: Path) -> None:
    (there,) = read_group(GROUP, FakeApi([FakeRun("run", settings={"algorithm.beta": 0.3})]))
    folder = write_fake_run(tmp_path / "run", settings={"algorithm.beta": 0.3})
    (here,) = RunReader().read(find_places([folder]))
    assert (there.name, there.state, there.step, there.decision, there.is_ranked) == ("run", "done", 100, "ship", True)
    compared = set(there.metrics) & set(here.metrics)
    assert {
        "preference_accuracy",
        "mean_margin",
        "kl_per_token",
        "length_change",
        "train_time_s",
        "pairs_per_s",
    } <= compared
    assert {key: there.metrics[key].value for key in compared} == pytest.approx(
        {key: here.metrics[key].value for key in compared}
    )
    curves = {key: curve for key, curve in here.curves.items() if key != "train:grad_norm"}
    assert dict(there.curves) == curves
    ignored = ("run.name", "logger")
    assert {k: v for k, v in there.settings.items() if not k.startswith(ignored)} == {
        k: v for k, v in here.settings.items() if not k.startswith(ignored)
    }


def test_the_group_is_asked_for_once_and_its_page_is_named() -> None:
    api = FakeApi([FakeRun("a"), FakeRun("b", settings={"algorithm.beta": 0.2})])
    records = read_group(GROUP, api)
    assert api.asked == [("team/project", {"group": "group"})]
    assert records[0].wandb is not None
    assert records[0].wandb.mode is Mode.online
    assert build_comparison(records, title="t").links == ["In W&B: https://wandb.test/team/project/groups/group"]


@pytest.mark.parametrize(
    ("word", "with_report", "state"),
    [
        ("finished", True, "done"),
        ("finished", False, "finished"),
        ("running", False, "running"),
        ("pending", False, "not begun"),
        ("crashed", False, "failed"),
        ("failed", False, "failed"),
        ("killed", False, "preempted"),
        ("preempted", False, "preempted"),
    ],
)
def test_states_of_wandb_become_ours(word: str, with_report: bool, state: str) -> None:
    (record,) = read_group(GROUP, FakeApi([FakeRun("a", state=word, with_report=with_report)]))
    assert record.state == state
    assert record.is_ranked is with_report
    assert record.is_open is (state in ("running", "not begun"))
    assert record.measured_at == (None if with_report else 100)
    assert "preference_accuracy" in record.metrics


def test_later_evaluations_of_a_run_are_no_runs() -> None:
    records = read_group(GROUP, FakeApi([FakeRun("a"), FakeRun("a-eval", job_type="eval")]))
    assert [record.name for record in records] == ["a"]


def test_lines_without_a_step_and_values_that_are_no_numbers_are_left_out() -> None:
    history = [
        {"train/global_step": 4, "train/loss": 1, "eval/loss": 0.5},
        {"train/global_step": 2, "train/loss": "NaN", "train/x": None, "train/pairs": 3},
        {"train/loss": 7.0},
        {"train/global_step": 6},
    ]
    assert to_lines(history) == [
        {"step": 2, "pairs": 3.0},
        {"step": 4, "loss": 1.0},
        {"step": 4, "split": "held_out", "loss": 0.5},
    ]


@pytest.mark.parametrize("error", [ValueError("Could not find project\nmore"), ConnectionError("no route")])
def test_what_wandb_cannot_give_is_the_users_to_mend(error: Exception) -> None:
    with pytest.raises(
        UserError, match=r"team/project/group: .*(Could not find project|no route).*Check the"
    ) as raised:
        read_group(GROUP, FakeApi([], error))
    assert "\n" not in str(raised.value)


def test_an_empty_group_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="no run in group 'group'"):
        read_group(GROUP, FakeApi([]))


def test_without_a_key_nothing_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(UserError, match="WANDB_API_KEY"):
        read_group(GROUP)


def test_runs_of_one_name_get_their_ids() -> None:
    records = [RunRecord(name, f"https://x/runs/{i}", "done") for i, name in enumerate("aab")]
    assert [record.name for record in distinct(records)] == ["a (0)", "a (1)", "b"]


@pytest.mark.parametrize(
    ("target", "group"),
    [
        ("team/project/group", GROUP),
        ("team/project/group/", GROUP),
        ("runs/sweep", None),
        ("/a/b", None),
        ("./runs/sweep", None),
        ("../runs/sweep", None),
        ("a/b/c/d", None),
        ("a//c", None),
    ],
)
def test_three_parts_name_a_group(target: str, group: WandbGroup | None) -> None:
    assert parse_group(target) == group


def test_a_folder_of_three_parts_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a/b/c").mkdir(parents=True)
    targets = compare.sort_targets(["a/b/c", "a/b/d"])
    assert targets.folders == [Path("a/b/c")]
    assert targets.groups == [WandbGroup("a", "b", "d")]


def test_the_command_compares_folders_with_a_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    api = FakeApi([FakeRun("there", settings={"algorithm.beta": 0.3})])
    original = wandb_source.read_group
    monkeypatch.setattr(compare, "read_group", lambda group: original(group, api))
    monkeypatch.chdir(tmp_path)
    write_fake_run(tmp_path / "runs" / "here", accuracy=0.8)
    compare.main(["runs/here", "team/project/group"])
    output = capsys.readouterr().out
    assert "2 runs: 2 done" in output
    assert "In W&B: https://wandb.test/team/project/groups/group" in output
    assert (tmp_path / "compare.html").is_file()


def test_a_run_of_this_machine_is_online_as_soon_as_one_of_its_sessions_is_or_was_uploaded(tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "run")

    def mode() -> Mode | None:
        (record,) = RunReader().read(find_places([folder]))
        return None if record.wandb is None else record.wandb.mode

    assert mode() is None
    session = folder / "wandb" / "offline-run-20260101_000000-abc"
    session.mkdir(parents=True)
    (session / "run-abc.wandb").write_bytes(b"x" * 100)
    assert mode() is Mode.offline
    (session / "run-abc.wandb.synced").touch()
    assert mode() is Mode.online
    (session / "run-abc.wandb.synced").unlink()
    (folder / "wandb" / "run-20260102_000000-abc").mkdir()
    assert mode() is Mode.online
