"""Every run is read in whatever state it is, and nothing of it that is damaged stops the comparison."""

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from prefopt.comparison import log, read
from prefopt.comparison.curves import CURVES
from prefopt.comparison.log import NUMBERS, from_rows, parse_log
from prefopt.comparison.places import find_places
from prefopt.comparison.read import RunReader
from prefopt.comparison.records import DONE, NOT_BEGUN, RunRecord
from prefopt.comparison.settings import differing, from_typed, identity_but_seed, read_settings, short_names
from prefopt.comparison.thinning import points_for, read_curves, thin
from prefopt.config.load import fingerprint, to_yaml
from prefopt.process.errors import UserError
from prefopt.runs.directory import RunDirectory
from prefopt.runs.files import REPORT_FORMAT
from prefopt.runs.jobs import Attempt
from prefopt.storage.files import append_line
from tests.fake_runs import base_config, fake_lines, with_settings, write_fake_run, write_fake_sweep


def read_one(folder: Path) -> RunRecord:
    (record,) = RunReader().read(find_places([folder]))
    return record


def to_bytes(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_a_done_run_has_the_numbers_of_its_report(tmp_path: Path) -> None:
    record = read_one(write_fake_run(tmp_path / "run", accuracy=0.75, kl=0.25, settings={"algorithm.beta": 0.3}))
    assert record.is_ranked
    assert (record.state, record.step, record.decision, record.measured_at) == (DONE, 100, "ship", None)
    accuracy = record.metrics["preference_accuracy"]
    assert (accuracy.value, accuracy.n) == (0.75, 132)
    assert accuracy.low is not None
    assert accuracy.low < 0.75
    assert record.metrics["kl_per_token"].value == 0.25
    assert record.metrics["length_change"].value == pytest.approx(120 * 0.25 / 94.2)
    assert record.metrics["chosen_change"].value == -0.2
    assert record.metrics["train_time_s"].value == pytest.approx(20 * 0.61)
    assert record.settings["algorithm.beta"] == 0.3


@pytest.mark.parametrize("state", ["running", "failed", "preempted", "diverged", "pruned"])
def test_an_unfinished_run_has_its_last_held_out_evaluation_and_no_rank(state: str, tmp_path: Path) -> None:
    record = read_one(write_fake_run(tmp_path / "run", state=state, message="why", num_lines=18))
    assert not record.is_ranked
    assert (record.state, record.message, record.step, record.measured_at) == (state, "why", 90, 75)
    last = [line for line in fake_lines("dpo", 18, 5, 0.9, 0) if "split" in line][-1]
    assert record.metrics["preference_accuracy"].value == last["preference_accuracy"]
    assert record.metrics["preference_accuracy"].low is None
    assert record.metrics["pairs_per_s"].value == pytest.approx(40 / 0.61)


def test_a_preference_loss_is_not_taken_for_a_loss_per_token(tmp_path: Path) -> None:
    dpo = read_one(write_fake_run(tmp_path / "dpo", state="running"))
    sft = read_one(write_fake_run(tmp_path / "sft", state="running", algorithm="sft"))
    assert "loss" not in dpo.metrics
    assert (
        sft.metrics["loss"].value == [line for line in fake_lines("sft", 20, 5, 0.9, 0) if "split" in line][-1]["loss"]
    )


def test_points_of_a_sweep_that_have_not_begun_are_listed_in_its_order(tmp_path: Path) -> None:
    sweep = write_fake_sweep(
        tmp_path / "sweep", {"b": {"algorithm.beta": "0.1"}, "a": {"optim.learning_rate": "3e-5"}, "c": {}}
    )
    write_fake_run(sweep / "a")
    write_fake_run(sweep / "stray")
    for name in ("reference", "reference-2", ".hidden", "folder"):
        (sweep / name).mkdir()
        (sweep / name / "status.json").write_text("{}") if name != "folder" else None
    records = RunReader().read(find_places([sweep]))
    assert [(record.name, record.state) for record in records] == [
        ("b", NOT_BEGUN),
        ("a", DONE),
        ("c", NOT_BEGUN),
        ("stray", DONE),
    ]
    assert records[0].settings == {"algorithm.beta": 0.1}


def test_a_folder_of_runs_and_sweeps_gives_all_of_them_once(tmp_path: Path) -> None:
    write_fake_run(tmp_path / "one")
    write_fake_run(write_fake_sweep(tmp_path / "sweep", {"two": {}}) / "two")
    (tmp_path / "link").symlink_to(tmp_path / "one")
    targets = [tmp_path / "sweep", tmp_path / "one", tmp_path / "link", tmp_path / "sweep" / "two", tmp_path]
    assert [place.name for place in find_places(targets)] == ["two", "one"]


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for folder in ("x/same", "y/same", "other"):
        write_fake_run(tmp_path / folder)
    targets = [tmp_path / "x", tmp_path / "y", tmp_path / "other"]
    assert [place.name for place in find_places(targets)] == ["x/same", "y/same", "other"]


def test_a_folder_without_runs_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing: no such folder"):
        find_places([tmp_path / "nothing"])
    with pytest.raises(UserError, match="holds no runs"):
        find_places([tmp_path])


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ("", "damaged"),
        ("[]", "of another version"),
        ('{"format": 1, "points": 3}', "damaged"),
        ('{"format": 1, "points": [{"index": 0}]}', "damaged"),
        ('{"format": 1, "points": [{"name": "a", "changes": 3}]}', "damaged"),
    ],
)
def test_a_damaged_plan_of_a_sweep_is_refused_with_its_path(plan: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(plan)
    with pytest.raises(UserError, match=rf"sweep\.json: {expected}"):
        find_places([tmp_path])


def test_a_plan_cannot_point_outside_of_its_folder(tmp_path: Path) -> None:
    write_fake_sweep(tmp_path, {"../elsewhere": {}})
    with pytest.raises(UserError, match="no plain folder name"):
        find_places([tmp_path])


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (99, f"was written by a later version of prefopt (format 99; this one reads up to {REPORT_FORMAT})"),
        ("1", "is damaged (no format can be '1')"),
        (True, "is damaged (no format can be 'True')"),
    ],
)
def test_a_report_of_another_format_is_not_read_as_todays(version: object, expected: str, tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "run", margins=[0.1] * 3)
    path = folder / "report" / "report.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": version}))
    record = read_one(folder)
    assert (record.has_report, record.decision, record.outcomes) == (False, None, None)
    assert record.problems == (f"report/report.json {expected}",)
    assert RunDirectory(folder).read_report() == {}
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": None}))
    assert read_one(folder).has_report, "written before reports had formats"


@pytest.mark.parametrize("content", [b'{"format": 1, "held', b"[1, 2]", b"\xff\xfe", b""])
def test_a_damaged_report_is_named_and_the_run_still_listed(content: bytes, tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "run")
    (folder / "report" / "report.json").write_bytes(content)
    record = read_one(folder)
    assert not record.is_ranked
    assert record.state == DONE
    assert record.measured_at == 100
    (problem,) = record.problems
    assert problem.startswith("report/report.json is damaged")


@pytest.mark.parametrize("state", ["done", "running"])
def test_lines_that_a_log_has_lost_are_named_and_those_still_to_be_written_are_not(state: str, tmp_path: Path) -> None:
    run = write_fake_run(tmp_path / "a", state=state)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    steps = [json.loads(line)["step"] for line in lines]
    status = json.loads((run / "status.json").read_text())
    saved = steps[len(steps) // 2]
    written = sum(step <= saved for step in steps)
    (run / "status.json").write_text(json.dumps({**status, "step": saved, "records": written}))
    assert not any("lost" in problem for problem in read_one(tmp_path / "a").problems)
    (run / "metrics.jsonl").write_text("".join(lines[2:]))
    expected = f"metrics.jsonl has lost 2 of its {written} lines up to step {saved}"
    assert expected in read_one(tmp_path / "a").problems


def test_a_done_run_without_a_report_says_so(tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "run")
    (folder / "report" / "report.json").unlink()
    assert read_one(folder).problems == ("report/report.json is missing",)


@pytest.mark.parametrize("name", ["config.yaml", "status.json", "metrics.jsonl"])
@pytest.mark.parametrize("content", [None, b"", b"\x00\x01", b"{: -"])
def test_any_damaged_or_missing_file_leaves_a_record(name: str, content: bytes | None, tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "run")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    record = read_one(folder)
    assert record.name == "run"
    assert record.is_ranked is (name != "status.json")


def test_report_values_of_a_wrong_type_are_missing_and_not_zero(tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "run")
    path = folder / "report" / "report.json"
    report = json.loads(path.read_text())
    report["held_out"]["tuned"]["preference_accuracy"] = {"value": None, "ci95": [None, None]}
    report["held_out"]["tuned"]["mean_margin"] = "0.3"
    report["drift"] = None
    report["verdict"] = "good"
    path.write_text(json.dumps(report))
    record = read_one(folder)
    assert record.is_ranked
    assert not {"preference_accuracy", "mean_margin", "kl_per_token", "length_change"} & set(record.metrics)


def test_a_half_written_last_line_is_no_damage_and_a_whole_one_counts() -> None:
    rows = fake_lines("dpo", 3, 5, 0.9, 0)
    whole = to_bytes(rows)
    cut = parse_log(whole + b'{"step": 20, "lo')
    assert (cut.last_step, cut.num_damaged) == (15, 0)
    assert (parse_log(whole + b'{"step": 20}').last_step, parse_log(whole[:-1]).last_step) == (20, 15)


@pytest.mark.parametrize("damage", [b"{oops\n", b"[1]\n", b"7\n", b'{"a": 1}{"b": 2}\n', b"\xff\xff\n"])
@pytest.mark.parametrize("num_lines", [4, 400])
def test_a_damaged_line_is_left_out_and_counted(damage: bytes, num_lines: int) -> None:
    rows = fake_lines("dpo", num_lines, 5, 0.9, 0)
    first, rest = to_bytes(rows[:1]), to_bytes(rows[1:])
    found = parse_log(first + damage + rest)
    assert found.num_damaged == 1
    assert len(found.is_train) == len(rows)
    assert found.last_step == 5 * num_lines


def test_both_readers_of_a_log_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = fake_lines("dpo", 300, 20, 0.9, 0) + fake_lines("sft", 20, 7, 0.9, 1)
    rows[3]["loss"] = None
    rows[4]["grad_norm"] = 5
    rows[5]["rewards/margins"] = 1e308
    rows[6]["unknown"] = {"nested": [1, None]}
    rows[7]["split"] = "another"
    del rows[8]["tokens"]
    content = to_bytes(rows)
    by_arrow = log._by_arrow(content)
    assert by_arrow is not None
    monkeypatch.setattr(log, "ARROW_FROM", len(content) + 1)
    by_json = parse_log(content)
    for name in NUMBERS:
        np.testing.assert_array_equal(by_arrow.columns[name], by_json.columns[name], err_msg=name)
    np.testing.assert_array_equal(by_arrow.is_held_out, by_json.is_held_out)
    np.testing.assert_array_equal(by_arrow.is_train, by_json.is_train)
    assert by_json.is_held_out.sum() == 17
    assert not by_json.is_train[7]


@pytest.mark.parametrize("num_lines", [4, 400])
@pytest.mark.parametrize("value", ["1e999", "-1e999", "NaN", "Infinity", "null", "true", '"0.5"', "[1]"])
def test_a_value_that_is_no_finite_number_is_missing(value: str, num_lines: int) -> None:
    content = to_bytes(fake_lines("dpo", num_lines, 5, 0.9, 0)) + f'{{"step": 7, "loss": {value}}}\n'.encode()
    found = parse_log(content)
    assert np.isnan(found.columns["loss"][-1])
    assert np.isfinite(found.columns["loss"][:-1]).all()
    assert (found.last_step, found.num_damaged) == (7, 0)


def test_values_that_are_not_finite_have_no_point_in_a_curve() -> None:
    rows = [{"step": step, "pairs": 8 * step, "tokens": step, "loss": float(step)} for step in range(1, 6)]
    rows[1]["loss"], rows[2]["loss"], rows[3]["step"] = None, float("nan"), None
    curve = read_curves(from_rows(rows), 100)["train:loss"]
    assert (curve.steps, curve.values, curve.pairs) == ([1, 5], [1.0, 5.0], [8, 40])


def test_a_curve_without_a_pair_count_keeps_its_steps() -> None:
    rows = [{"step": step, "tokens": step, "loss": 1.0} for step in (1, 2)]
    curve = read_curves(from_rows(rows), 100)["train:loss"]
    assert curve.pairs is None
    assert curve.tokens == [1, 2]


@pytest.mark.parametrize("num_values", [1, 7, 10, 11, 100, 997])
def test_a_thinned_curve_keeps_its_ends_and_its_extremes(num_values: int) -> None:
    values = [float((37 * index) % 101) for index in range(num_values)]
    kept = thin(values, 10)
    assert len(kept) <= 10
    assert kept == sorted(set(kept))
    assert (kept[0], kept[-1]) == (0, num_values - 1)
    assert {min(values), max(values)} <= {values[index] for index in kept}


def test_a_trend_is_the_mean_of_each_stretch_at_its_middle() -> None:
    rows = [{"step": step, "pairs": step, "tokens": step, "loss": float(step)} for step in range(1, 201)]
    trend = read_curves(from_rows(rows), 60)["train:loss"].trend
    assert trend is not None
    assert len(trend.values) == 40
    assert trend.values[0] == 3.0  # the mean of 1 to 5
    assert trend.steps[0] == 3
    assert np.mean(trend.values) == pytest.approx(100.5)


def test_the_points_of_a_chart_are_bounded() -> None:
    assert points_for(1) >= 200
    assert 1000 * points_for(1000) <= 60_000


def test_a_run_is_read_again_only_if_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        write_fake_run(tmp_path / name, state="running")
    reader, places = RunReader(), find_places([tmp_path])
    reader.read(places)
    seen: list[str] = []
    original = read.read_run
    monkeypatch.setattr(
        read, "read_run", lambda place, max_points: seen.append(place.name) or original(place, max_points)
    )
    reader.read(places)
    assert seen == []
    with (tmp_path / "b" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 105, "loss": 0.5}\n')
    assert [record.step for record in reader.read(places)] == [100, 105]
    assert seen == ["b"]


def test_many_runs_read_by_several_processes_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        write_fake_run(tmp_path / f"{number}", num_lines=number + 1)
    places = find_places([tmp_path])
    alone = RunReader().read(places)
    monkeypatch.setattr(read, "MIN_FOR_POOL", 2)
    monkeypatch.setattr(read.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    assert RunReader().read(places) == alone
    assert [record.step for record in alone] == [5, 10, 15, 20, 25, 30]


def test_a_run_whose_process_was_killed_cannot_move_any_more(tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "run", state="running")
    assert read_one(folder).is_open
    long_ago = time.time() - 3600
    for path in folder.iterdir():
        os.utime(path, (long_ago, long_ago))
    record = read_one(folder)
    assert record.is_abandoned
    assert not record.is_open


@pytest.mark.parametrize(("state", "following", "is_open"), [
    ("preempted", "again", True), ("failed", "again", True), ("failed", "stop", False), ("preempted", None, False),
    ("diverged", "again", False),
])  # fmt: skip
def test_a_run_that_its_job_has_queued_again_may_still_move(
    tmp_path: Path, state: str, following: str | None, is_open: bool
) -> None:
    folder = write_fake_run(tmp_path / "run", state=state)
    if following is not None:
        attempt = Attempt("7", "2026-01-01T00:00:00+00:00", state, 0, 5, 75, following, "")
        append_line(folder / "slurm" / "attempts.jsonl", asdict(attempt))
    assert read_one(folder).is_open == is_open


def test_the_yaml_of_a_run_reads_as_the_settings_that_wrote_it(tmp_path: Path) -> None:
    config = with_settings(base_config(), {"optim.learning_rate": 1e-5, "algorithm.loss_type": ["sigmoid", "sft"]})
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    settings = read_settings(path)
    assert settings["optim.learning_rate"] == 1e-5
    assert settings["algorithm.loss_type"] == ["sigmoid", "sft"]
    assert settings["peft.target_modules"] is None


@pytest.mark.parametrize(
    ("changes", "is_same"),
    [
        ({"run.name": "x", "run.root": "y", "logger.project": "z", "trainer.log_rows": True}, True),
        ({"run.time_limit": "2h", "reference.path": "/x", "evaluation.batch_size": 1}, True),
        ({"algorithm.beta": 0.2}, False),
        ({"evaluation.num_samples": 3}, False),
        ({"trainer.extra": {"padding_free": True}}, False),
    ],
)
def test_the_identity_of_plain_settings_is_that_of_the_run(changes: dict, is_same: bool, tmp_path: Path) -> None:
    before, after = base_config(), with_settings(base_config(), changes)
    assert (fingerprint(before) == fingerprint(after)) is is_same
    identities = []
    for number, config in enumerate((before, after)):
        path = tmp_path / f"{number}.yaml"
        path.write_text(to_yaml(with_settings(config, {"run.seed": number})))
        identities.append(identity_but_seed(read_settings(path)))
    assert (identities[0] == identities[1]) is is_same


def test_only_settings_with_several_values_differ() -> None:
    runs = [
        {"algorithm.name": "dpo", "algorithm.beta": 0.1, "optim.learning_rate": 1, "run.seed": 0, "run.name": "a"},
        {"algorithm.name": "dpo", "algorithm.beta": 0.2, "optim.learning_rate": 1.0, "run.seed": 1, "run.name": "b"},
        {"algorithm.name": "sft", "optim.learning_rate": 1, "logger.project": "x"},
    ]
    assert differing(runs) == ["algorithm.name", "algorithm.beta"]


def test_settings_that_change_only_what_is_written_tell_no_runs_apart() -> None:
    runs = [
        {"trainer.eval_every": every, "trainer.save_every": every, "trainer.log_every": every, "data.tag": tag}
        for every, tag in ((15, "topic"), (None, None))
    ]
    assert differing(runs) == []
    assert identity_but_seed(runs[0]) == identity_but_seed(runs[1])


def test_short_names_tell_settings_apart() -> None:
    assert short_names(["algorithm.name", "engine.name", "algorithm.beta", "a.x", "b.x", "model.path"]) == {
        "algorithm.name": "algorithm",
        "engine.name": "engine",
        "algorithm.beta": "beta",
        "a.x": "a.x",
        "b.x": "b.x",
        "model.path": "model.path",
    }


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("0.1", 0.1),
        ("3e-5", 3e-5),
        ("null", None),
        ("true", True),
        ("[a,b]", ["a", "b"]),
        ("sigmoid", "sigmoid"),
        (7, 7),
    ],
)
def test_what_is_typed_becomes_the_value_that_it_stands_for(typed: object, value: object) -> None:
    assert from_typed(typed) == value


def test_every_curve_is_read_from_the_log() -> None:
    assert {kind.name for kind in CURVES} <= set(NUMBERS)
