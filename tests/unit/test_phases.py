"""The seconds of a command: every moment belongs to one part, whatever nests, fails or goes on later."""

import gc
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from prefopt.comparison.metrics import from_report, from_summary
from prefopt.evaluation.metrics import OUTSIDE
from prefopt.evaluation.report import Report
from prefopt.process import phases
from prefopt.process.imports import importing
from prefopt.reports.render import render_report
from prefopt.reports.time import GROUPS, time_block
from prefopt.runs.directory import RunDirectory


class FakeTime:
    """A clock that only moves when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    """A command that begins at 100 s."""
    fake = FakeTime()
    monkeypatch.setattr(phases.time, "monotonic", fake)
    phases.begin()
    return fake


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def seconds(run: RunDirectory) -> dict[str, float]:
    phases.save()
    found: dict[str, float] = run.read_work()["phases"]
    return found


def test_time_counts_for_the_innermost_part_alone(clock: FakeTime, run: RunDirectory) -> None:
    phases.keep(run)
    clock.passes(1)
    with phases.of("training"):
        clock.passes(2)
        with phases.of("checkpoints"):
            clock.passes(4)
        clock.passes(8)
    clock.passes(16)
    assert seconds(run) == {"other": 17, "training": 10, "checkpoints": 4}


def test_a_part_of_a_group_has_its_name(clock: FakeTime, run: RunDirectory) -> None:
    phases.keep(run)
    load = phases.of("model_load")(lambda: clock.passes(1))
    load()
    with phases.group("evaluation"):
        clock.passes(2)
        load()
        with phases.of("sampling"):
            clock.passes(4)
            load()
    load()
    assert seconds(run) == {
        "model_load": 2,
        "evaluation/other": 2,
        "evaluation/model_load": 2,
        "evaluation/sampling": 4,
    }


def test_a_part_ends_where_another_one_goes_on(clock: FakeTime, run: RunDirectory) -> None:
    phases.keep(run)
    with phases.of("set_up"):
        clock.passes(1)
        phases.turn_into("first_step")
        clock.passes(2)
        phases.turn_into("training")
        clock.passes(4)
        phases.turn_into("training")
    clock.passes(8)
    assert seconds(run) == {"set_up": 1, "first_step": 2, "training": 4, "other": 8}


def test_an_error_closes_its_part(clock: FakeTime, run: RunDirectory) -> None:
    phases.keep(run)

    @phases.of("training")
    def fail() -> None:
        clock.passes(1)
        raise KeyError

    with pytest.raises(KeyError):
        fail()
    clock.passes(2)
    assert seconds(run) == {"training": 1, "other": 2}


def test_a_run_that_goes_on_adds_to_the_seconds_and_checkpoints_of_earlier_attempts(
    clock: FakeTime, run: RunDirectory
) -> None:
    for _ in range(2):
        phases.begin()
        phases.keep(run)
        with phases.of("checkpoints"):
            clock.passes(2)
            phases.count_checkpoint(3 * 10**9)
        phases.save()
        phases.save()  # writing twice adds nothing
    assert run.read_work() == {
        "phases": {"checkpoints": 4},
        "checkpoints": {"num": 2, "bytes": 6 * 10**9, "gb_per_s": 1.5},
    }


def test_a_run_goes_on_from_an_attempt_without_a_checkpoint(clock: FakeTime, run: RunDirectory) -> None:
    for written in (0, 10**9):
        phases.begin()
        phases.keep(run)
        with phases.of("checkpoints"):
            clock.passes(1)
            if written:
                phases.count_checkpoint(written)
        phases.save()
        found = run.read_work()["checkpoints"]
        assert found == {"num": int(written > 0), "bytes": written, "gb_per_s": 0.5 if written else None}


def test_the_rest_of_work_json_stays(clock: FakeTime, run: RunDirectory) -> None:
    run.add_work(engine="trl")
    phases.keep(run)
    clock.passes(1)
    phases.save()
    run.add_work(reference={"num_pairs": 3, "hit_rate": 1.0, "saved_s": 0.5, "computed_s": 0.0})
    phases.save()
    assert list(run.read_work()) == ["engine", "phases", "checkpoints", "reference"]


def test_a_new_command_in_the_same_process_begins_at_zero(clock: FakeTime, run: RunDirectory) -> None:
    clock.passes(1000)
    phases.begin()
    phases.keep(run)
    clock.passes(1)
    assert seconds(run) == {"other": 1}


def test_only_rank_0_writes(clock: FakeTime, run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    phases.keep(run)
    clock.passes(1)
    phases.save()
    assert not run.work.exists()


def test_a_full_disk_costs_the_seconds_and_not_the_run(
    clock: FakeTime, run: RunDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    phases.keep(run)
    clock.passes(1)
    monkeypatch.setattr(RunDirectory, "add_work", full)
    logging.getLogger("prefopt").propagate = True
    phases.save()
    assert "No space left on device" in caplog.text


def test_a_process_counts_from_its_start() -> None:
    """Python's own start and the imports before the clock are in it, be the system's clock coarse."""
    code = (
        "import time; time.sleep(0.5); from prefopt.process import phases; "
        "phases.count_from_process_start(); phases.begin(); print(phases._clock.seconds()['imports'])"
    )
    begun = time.monotonic()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert 0.49 < float(out.stdout) < time.monotonic() - begun + 0.02


def test_without_proc_the_seconds_of_the_processor_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", absent)
    assert phases._age_s() == pytest.approx(time.process_time(), abs=0.05)


SECONDS = {
    "imports": 3.0,
    "model_load": 0.5,
    "first_step": 1.0,
    "training": 10.0,
    "held_out_evaluation": 2.0,
    "evaluation/other": 0.25,
    "evaluation/sampling": 4.0,
    "report": 0.75,
    "other": 0.5,
}
"""22 s, of which 11 are training steps."""


def test_the_line_names_the_largest_parts_and_their_rest_is_other() -> None:
    assert phases.describe(SECONDS) == (
        "time: 22.0 s: training 11.0 · evaluation 4.2 · imports 3.0 · held out evaluation 2.0 · report 0.8 · "
        "model load 0.5 · other 0.5"
    )
    assert phases.describe({"training": 1000.0, "imports": 1.0}) == "time: 1001.0 s: training 1000.0 · other 1.0"


def test_the_bar_adds_up_to_the_whole() -> None:
    block = time_block(Report(phases=SECONDS))
    assert block is not None
    assert (block.total, block.outside) == ("22.0 s", "11.0 s")
    for shares in (block.segments, block.parts):
        assert sum(share.percent for share in shares) == pytest.approx(100)
    assert [share.name for share in block.segments] == [
        "start", "model", "training", "held-out", "evaluation", "report", "other",
    ]  # fmt: skip
    assert [share.name for share in block.parts][5:] == [
        "evaluation: sampling",
        "evaluation: other",
        "report",
        "other",
    ]


def test_a_part_that_the_report_does_not_know_is_shown_with_the_others() -> None:
    block = time_block(Report(phases={"training": 1.0, "yet_unknown": 1.0}))
    assert block is not None
    assert [(share.name, share.group) for share in block.parts] == [("training", "training"), ("yet unknown", "other")]


@pytest.mark.parametrize("report", [{}, {"phases": {}}, {"phases": {"other": 0.0}}])
def test_a_report_without_seconds_has_no_bar(report: dict, tmp_path: Path) -> None:
    assert time_block(Report.from_dict(report)) is None
    assert "Where the time went" not in render_report(Report.from_dict(report), [], [], tmp_path).read_text(
        encoding="utf-8"
    )


def test_the_report_shows_bar_legend_and_table(tmp_path: Path) -> None:
    page = render_report(Report(phases=SECONDS), [], [], tmp_path).read_text(encoding="utf-8")
    assert 'aria-label="22.0 s: start 3.0 s, model 0.5 s, training 11.0 s' in page
    assert re.search(r'<span style="--c: var\(--training\); flex-grow: 50\.000"', page)
    assert "| evaluation: sampling | 4.0 s | 18.2 % |" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["phases"] == SECONDS


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_has_a_colour_in_light_and_dark(group: str, tmp_path: Path) -> None:
    page = render_report(Report(phases=SECONDS), [], [], tmp_path).read_text(encoding="utf-8")
    assert len(re.findall(rf"--{group}: #", page)) == 2
    assert set(re.findall(r'style="--c: var\(--([a-z-]+)\)', page)) <= set(GROUPS)


def test_seconds_are_asked_for_when_the_charts_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    drawn: Callable[..., list] = lambda *_: order.append("drawn") or []  # noqa: E731
    monkeypatch.setattr("prefopt.reports.render.training_figures", drawn)
    report = Report()
    render_report(report, [], [], tmp_path, lambda: order.append("asked") or SECONDS)
    assert order == ["drawn", "asked"]
    assert report.phases == SECONDS


def test_a_comparison_reads_the_seconds_outside_training() -> None:
    assert from_report({"phases": SECONDS})[OUTSIDE].value == pytest.approx(11.0)
    assert from_summary({OUTSIDE: 11.0})[OUTSIDE].value == 11.0
    for damaged in ({}, {"phases": None}, {"phases": []}, {"phases": {"training": "x"}}):
        assert OUTSIDE not in from_report(damaged)


def test_the_collector_rests_during_imports_and_works_again_after(clock: FakeTime, run: RunDirectory) -> None:
    phases.keep(run)
    with importing():
        assert not gc.isenabled()
        clock.passes(1)
    assert gc.isenabled()
    assert seconds(run) == {"imports": 1}


def test_only_a_process_of_its_own_keeps_what_lives_from_the_collector() -> None:
    """In somebody's notebook a dead model must still be found."""
    frozen = gc.get_freeze_count()
    with importing():
        pass
    assert gc.get_freeze_count() == frozen


def test_a_run_without_wandb_does_not_import_it() -> None:
    code = (
        "import sys; from prefopt.process.imports import importing\n"
        "with importing():\n    import prefopt.training.runner\n"
        "print([name for name in sys.modules if name.partition('.')[0] == 'wandb'])\n"
        "import wandb; print(wandb.__name__)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert out.stdout.split("\n")[-3:-1] == ["[]", "wandb"]


def test_a_package_that_is_imported_stays_so() -> None:
    import wandb

    with importing():
        assert sys.modules["wandb"] is wandb
    assert sys.modules["wandb"] is wandb
