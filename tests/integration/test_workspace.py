"""`prefopt sync --workspace`: what the real client of W&B's workspaces sends, and that a second call updates it."""

import json

import pytest

from prefopt.comparison import workspace
from prefopt.sync import main as sync
from tests.wandb_runs import REPORT, attempt, make_run, recording_server
from tests.wandb_server import ENTITY, KEY

pytestmark = pytest.mark.slow
pytest.importorskip("wandb_workspaces", reason="pip install 'prefopt[workspace]'")


@pytest.fixture
def server(tmp_path, monkeypatch):
    with recording_server(monkeypatch, tmp_path) as server:
        yield server


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Two points of a sweep, recorded offline."""
    folder = tmp_path / "runs" / "beta_lr"
    for name in ("low", "high"):
        config, run = make_run(folder, name, "logger.group=beta_lr", "evaluation.judges=[]")
        attempt(config, run, [1, 2])
    (folder / "sweep.json").write_text("{}")
    monkeypatch.setenv("WANDB_MODE", "online")
    return folder


def saved(server):
    (view,) = server.views.values()
    section = json.loads(view["spec"])["section"]
    panels = {part["name"]: part["panels"] for part in section["panelBankConfig"]["sections"]}
    return view, section["runSets"][0], panels


def test_the_view_has_the_panels_by_which_people_compare_runs(server, sweep, capsys):
    sync([str(sweep), "--workspace"])
    view, runs, panels = saved(server)
    assert (view["displayName"], view["type"]) == ("beta_lr", "project-view")
    assert runs["filters"]["filters"] == [
        {"key": {"section": "run", "name": "group"}, "op": "=", "value": "beta_lr", "disabled": False}
    ]
    scatter, parallel = panels["Outcomes"]
    assert scatter["viewType"] == "Scatter Plot"
    assert scatter["config"]["xAxis"] == "summary:drift/kl_per_token"
    assert scatter["config"]["yAxis"] == "summary:held_out/tuned/preference_accuracy"
    assert parallel["viewType"] == "Parallel Coordinates Plot"
    assert [column["accessor"] for column in parallel["config"]["columns"]] == [
        "config:algorithm.value.beta",
        "config:optim.value.learning_rate",
        "summary:held_out/tuned/preference_accuracy",
        "summary:drift/kl_per_token",
    ]
    for axis, of_training in (("step", "train/global_step"), ("pairs", "train/pairs"), ("tokens", "train/tokens")):
        drawn = {panel["config"]["metrics"][0]: panel["config"]["xAxis"] for panel in panels[f"Against {axis}"]}
        of_held_out = of_training if axis == "step" else of_training.replace("train", "eval")
        assert drawn == {
            "eval/preference_accuracy": of_held_out,
            "eval/loss": of_held_out,
            "train/loss": of_training,
            "eval/rewards/margins": of_held_out,
            "train/rewards/margins": of_training,
        }
    assert runs["runFeed"]["columnOrder"] == [
        "run:displayName",
        "summary:decision",
        "summary:held_out/tuned/preference_accuracy",
        "summary:held_out/tuned/preference_accuracy_low",
        "summary:held_out/tuned/preference_accuracy_high",
        "summary:drift/kl_per_token",
        "summary:drift/perplexity/ratio",
    ]
    slug = view["name"].removeprefix("nw-").removesuffix("-v")
    assert f"workspace: {server.url}/{ENTITY}/prefopt?nw={slug}" in capsys.readouterr().out
    assert server.keys == {KEY}


def test_what_the_panels_show_is_what_runs_have_sent(server, sweep):
    sync([str(sweep), "--workspace"])
    _, runs, panels = saved(server)
    (found, _) = server.runs.values()
    shown = {panels["Outcomes"][0]["config"][axis] for axis in ("xAxis", "yAxis")} | set(
        runs["runFeed"]["columnOrder"]
    )
    missing = {name for name in shown if name.startswith("summary:") and name[8:] not in found.summary}
    assert missing == {"summary:drift/perplexity/ratio"}, "the report of these runs has no perplexity"
    assert found.summary["held_out/tuned/preference_accuracy_low"] == 0.4
    assert {"train/global_step", "train/pairs", "train/tokens", "train/loss"} <= set(
        found.rows()[-2] | found.rows()[0]
    )
    config = found.config
    assert config["algorithm"]["value"]["beta"] > 0
    assert config["optim"]["value"]["learning_rate"] > 0


def test_a_second_call_updates_the_same_view(server, sweep):
    sync([str(sweep), "--workspace"])
    first, _, _ = saved(server)
    sync([str(sweep), "--workspace"])
    second, _, _ = saved(server)
    assert (first["id"], first["name"]) == (second["id"], second["name"])
    sent = [json.loads(request.body)["variables"] for request in server.requests if request.operation == "UpsertView2"]
    assert [each.get("id") for each in sent] == [None, first["id"]]


def test_runs_whose_answers_were_judged_are_compared_by_their_win_rate_first(server, tmp_path, monkeypatch):
    config, run = make_run(tmp_path / "runs", "judged", "logger.group=judged")
    tuned = {"win_rate": {"value": 0.7, "ci95": [0.6, 0.8], "n": 50}, **REPORT["held_out"]["tuned"]}
    report = {**REPORT, "held_out": {"n": 7, "tuned": tuned}}
    assert config.evaluation.judges
    attempt(config, run, [1], report=report)
    monkeypatch.setenv("WANDB_MODE", "online")
    sync([str(run.path), "--workspace"])
    _, runs, panels = saved(server)
    assert [panel["config"].get("yAxis") for panel in panels["Outcomes"]] == [
        "summary:held_out/tuned/win_rate",
        "summary:held_out/tuned/preference_accuracy",
        None,
    ]
    assert panels["Outcomes"][2]["config"]["columns"][2]["accessor"] == "summary:held_out/tuned/win_rate"
    assert "summary:held_out/tuned/win_rate_low" in runs["runFeed"]["columnOrder"]
    (found,) = server.runs.values()
    assert (found.summary["held_out/tuned/win_rate_low"], found.summary["held_out/tuned/win_rate_high"]) == (0.6, 0.8)


def test_what_stands_in_the_way_is_said_before_anything_is_uploaded(server, sweep, monkeypatch, fails):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert "WANDB_MODE=offline" in fails(sync, [str(sweep), "--workspace"])
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY")
    assert "wandb login" in fails(sync, [str(sweep), "--workspace"])
    monkeypatch.setattr(workspace, "PACKAGE", "wandb_workspaces_absent")
    assert "pip install 'prefopt[workspace]'" in fails(sync, [str(sweep), "--workspace"])
    assert server.requests == []


def test_a_project_that_is_not_there_and_a_refusal_are_said(server, sweep, fails):
    sync([str(sweep)])
    server.runs.clear()
    assert "Project `recorded/prefopt` not found" in fails(sync, [str(sweep), "--workspace"])
    server.refused.add("View")
    assert "W&B has not saved the view 'beta_lr'" in fails(sync, [str(sweep), "--workspace"])
    assert server.views == {}


def test_runs_of_several_projects_have_no_common_view(server, tmp_path, monkeypatch, fails):
    for project in ("one", "two"):
        config, run = make_run(tmp_path / "runs", project, f"logger.project={project}")
        attempt(config, run, [1])
    monkeypatch.setenv("WANDB_MODE", "online")
    assert "found (default)/one, (default)/two" in fails(sync, [str(tmp_path / "runs"), "--workspace"])
