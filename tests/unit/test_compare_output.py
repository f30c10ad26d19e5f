"""The table, the page, the CSV file and the command: everything is shown, nothing that a run is called acts."""

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from benchmarks import compare as benchmark
from benchmarks import results
from prefopt import compare
from prefopt.comparison.csv_file import to_json, write_csv
from prefopt.comparison.page import render_page
from prefopt.comparison.places import find_places
from prefopt.comparison.ranking import Comparison, build_comparison
from prefopt.comparison.read import RunReader
from prefopt.comparison.records import Measure, RunRecord
from prefopt.comparison.table import expendable, print_table, ranked_columns
from prefopt.evaluation.metrics import BY_KEY
from prefopt.process.errors import UserError
from prefopt.process.terminal import printable
from tests.fake_runs import write_fake_run, write_fake_sweep
from tests.run_states import write_prepared
from tests.unit.test_compare_statistics import record
from tests.unit.test_report_render import Elements, visible

HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script>\"' =1+1 \x1b[31m\x00 {{ 7*7 }}"


def compared(*folders: Path, rank_by: str | None = None) -> Comparison:
    runs = RunReader().read(find_places(list(folders)))
    return build_comparison(runs, title="t", metric=BY_KEY[rank_by] if rank_by else None, folders=["t"])


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two settings with two and three seeds, one of each unfinished state, an SFT run, and a point not begun."""
    points = {f"{n}": {"algorithm.beta": beta, "run.seed": seed} for n, (beta, seed) in enumerate(
        [(0.1, 0), (0.1, 1), (0.3, 0), (0.3, 1), (0.3, 2), (0.5, 0), (0.5, 1), (0.7, 0)]
    )}  # fmt: skip
    folder = write_fake_sweep(tmp_path / "sweep", {**points, "sft": {}})
    for number, accuracy in enumerate((0.95, 0.94, 0.80, 0.81, 0.82)):
        settings = points[f"{number}"]
        write_fake_run(folder / f"{number}", settings=settings, accuracy=accuracy, kl=0.1 + accuracy, seed=number)
    write_fake_run(folder / "5", state="failed", settings=points["5"], message="RuntimeError: out of memory")
    write_fake_run(folder / "6", state="running", settings=points["6"], num_lines=150)
    write_fake_run(folder / "sft", algorithm="sft", accuracy=None, kl=0.3, loss=1.9)
    return folder


def printed(comparison: Comparison, width: int | None = None, limit: int = 40) -> str:
    output = io.StringIO()
    console = Console(file=output, force_terminal=width is not None, width=width, color_system=None)
    print_table(comparison, console, limit=limit)
    return output.getvalue()


def read_csv(file: Path) -> dict[str, dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return {row["run"]: row for row in csv.DictReader(lines)}


def test_what_was_only_prepared_is_no_run_to_compare(tmp_path: Path) -> None:
    prepared = write_prepared(tmp_path / "runs" / "prepared")
    for folder in (prepared, prepared.parent):
        with pytest.raises(UserError, match="holds nothing but what prefopt prepare made"):
            find_places([folder])
    trained = write_fake_run(tmp_path / "runs" / "trained")
    assert [place.run.path for place in find_places([prepared.parent, prepared])] == [trained]


def test_no_run_is_dropped_from_any_output(sweep: Path, tmp_path: Path) -> None:
    comparison = compared(sweep)
    write_csv(comparison, tmp_path / "compare.csv")
    assert set(read_csv(tmp_path / "compare.csv")) == {*map(str, range(8)), "sft"}
    for text in (printed(comparison), visible(render_page(comparison))):
        assert "9 runs: 6 done, 1 failed, 1 running, 1 not begun." in text
        for part in ("failed", "out of memory", "not begun", "running", "at step 750"):
            assert part in text


def test_what_was_not_measured_is_a_dash_and_never_zero(sweep: Path) -> None:
    (line,) = (line for line in printed(compared(sweep)).splitlines() if re.match(r"\s*—\s+sft\b", line))
    head = next(line for line in printed(compared(sweep)).splitlines() if "accuracy ▼" in line)
    cells, heads = re.split(r"\s{2,}", line.strip()), re.split(r"\s{2,}", head.strip())
    shown = dict(zip(heads, cells, strict=False))
    assert (shown["accuracy ▼"], shown["margin"], shown["beta"]) == ("—", "—", "—")
    assert (shown["loss"], shown["KL"]) == ("1.90", "0.300")


def test_seeds_are_shown_as_mean_and_sample_sd_with_their_number(sweep: Path) -> None:
    text = printed(compared(sweep))
    assert re.search(r"^1\s+0 \+1\s+.*\b0\.1\b.*\s2\s+94\.5 ± 0\.7 %", text, flags=re.MULTILINE)
    assert re.search(r"^2\s+2 \+2\s+.*\b0\.3\b.*\s3\s+81\.0 ± 1\.0 %", text, flags=re.MULTILINE)


def test_only_settings_that_differ_are_columns(sweep: Path) -> None:
    assert compared(*(sweep / name for name in "0126")).settings == {"algorithm.beta": "beta"}
    with_sft = compared(sweep).settings
    assert with_sft["algorithm.name"] == "algorithm"
    assert not {"run.name", "run.seed", "run.root", "peft.r", "algorithm.label_smoothing"} & set(with_sft)


@pytest.mark.parametrize("width", [40, 80, 100, 140, 200])
def test_the_table_fits_a_terminal_and_says_what_it_left_out(sweep: Path, width: int) -> None:
    comparison = compared(sweep, rank_by="preference_accuracy")
    comparison.settings.clear()
    text = printed(comparison, width)
    assert max(map(cell_len, text.splitlines())) <= width
    assert ("No room here" in text) is (width < 140)
    assert "accuracy" in text


@pytest.fixture
def loose(tmp_path: Path) -> Comparison:
    """Two runs that differ in far more settings than a line has room for, one of them a long path."""
    for number, where in enumerate(("/shared/models/of/the/team/one/qwen", "/shared/models/of/the/team/two/llama")):
        settings = {"model.path": where, "algorithm.beta": 0.1 + number, "algorithm.label_smoothing": number / 10}
        settings |= {f"optim.{name}": 0.1 + number / 2 for name in ("learning_rate", "weight_decay", "max_grad_norm")}
        settings |= {f"trainer.{name}": 5 + number for name in ("max_steps", "eval_every")}
        write_fake_run(tmp_path / f"team_voice_{number}_of_november", settings=settings, accuracy=0.977 - number / 10)
    return compared(*sorted(tmp_path.iterdir()), rank_by="preference_accuracy")


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_a_narrow_table_of_loose_runs_keeps_what_names_and_judges_a_row_whole(loose: Comparison, width: int) -> None:
    lines = printed(loose, width).splitlines()
    head = re.split(r"\s{2,}", next(line for line in lines if "against #1" in line).strip())
    assert head[:2] == ["#", "run"]
    assert head[-2:] == ["report", "against #1"]
    assert "accuracy ▼" in head
    for number in range(2):
        (line,) = (line for line in lines if re.match(rf"\s*{number + 1}  team", line))
        assert re.search(r"\d\d\.\d % \(\d\d\.\d to \d\d\.\d\)", line), "no number is cut"
    assert re.search(r"No room here for .*\bmax_steps,", " ".join(lines))


def test_settings_that_tell_little_make_room_for_metrics_and_those_for_the_first_settings(loose: Comparison) -> None:
    columns = ranked_columns(loose, loose.rows)
    order = expendable(columns, loose)
    assert order.index("trainer.max_steps") < order.index("train_time_s") < order.index("algorithm.beta")
    assert not {"rank", "name", "preference_accuracy", "decision", "verdict"} & set(order)
    constant = [replace(c, cells=[c.cells[0]] * 2) if c.key == "algorithm.beta" else c for c in columns]
    assert expendable(constant, loose)[0] == "algorithm.beta"


def test_a_long_path_is_shown_by_its_last_part_where_that_tells_rows_apart(loose: Comparison, tmp_path: Path) -> None:
    assert re.search(r"  qwen  ", printed(loose))
    for number in range(2):
        settings = {"model.path": f"/shared/models/of/the/team/{number}/llama"}
        write_fake_run(tmp_path / "same" / f"run_{number}", settings=settings, accuracy=0.9)
    same = printed(compared(*(tmp_path / "same").iterdir()))
    assert re.search(r"m/0/llama  ", same)
    assert re.search(r"m/1/llama  ", same)


@pytest.mark.parametrize("width", [40, 60, 80])
def test_rows_whose_shortened_names_would_be_the_same_have_them_wrapped(tmp_path: Path, width: int) -> None:
    for number, middle in enumerate(("first", "other")):
        settings = {"algorithm.beta": 0.1 + number}
        write_fake_run(tmp_path / f"voice_of_many_{middle}_many_more_of_them", settings=settings)
    table = printed(compared(*tmp_path.iterdir()), width).split("─\n")[1].split("\nNo room")[0]
    names = "".join(line[4:].split("  ")[0].strip() for line in table.splitlines())
    for middle in ("first", "other"):
        assert f"many_{middle}_many" in names


def test_rows_beyond_the_limit_are_counted(sweep: Path) -> None:
    text = printed(compared(sweep), limit=1)
    assert "Not shown here: 2 ranked rows, 2 other runs" in text


def test_the_last_column_says_how_it_was_found(sweep: Path) -> None:
    text = printed(compared(sweep))
    assert (
        "Within noise of #1: 0 of 1 other row. Were all equally good models, any would be called worse in at most"
        in text
    )
    assert "from both runs' own intervals" in text
    assert "The luck of a training's seed is in it." in text
    assert re.search(
        r"#1 of 2 was chosen by these numbers: measured 94\.5 %, more likely 94\.\d % \(8\d\.\d to 9\d\.\d\)", text
    )


def test_a_row_that_breaks_the_constraint_in_sweep_json_is_marked_in_every_output(tmp_path: Path) -> None:
    points = {"far": {"algorithm.beta": 0.1}, "near": {"algorithm.beta": 0.3}}
    folder = write_fake_sweep(tmp_path / "sweep", points, constraint={"kl_per_token": 1.0})
    write_fake_run(folder / "far", settings=points["far"], accuracy=0.95, kl=1.5)
    write_fake_run(folder / "near", settings=points["near"], accuracy=0.9, kl=0.2)
    comparison = compared(folder)
    write_csv(comparison, tmp_path / "compare.csv")
    rows = read_csv(tmp_path / "compare.csv")
    assert [(rows[name]["rank"], rows[name]["refusal"]) for name in points] == [
        ("2", "kl_per_token 1.5 is above 1"),
        ("1", ""),
    ]
    for text in (printed(comparison), visible(render_page(comparison))):
        assert "within noise of #1\u2020" in text
        assert "\u2020 After all others, whatever its numbers: kl_per_token 1.5 is above 1." in text
        assert "far would be before #1" in text
    assert [row.group.name for row in compared(folder / "far", folder / "near").rows] == ["far", "near"], "no sweep"


def test_names_do_not_act_on_a_terminal() -> None:
    text = printed(build_comparison([record(HOSTILE), record("[red]b[/]", state="failed")], title=HOSTILE))
    assert "\x1b" not in text
    assert "\x00" not in text
    assert "[red]b[/]" in text


def hostile_comparison(tmp_path: Path) -> Comparison:
    folder = tmp_path / "folder"
    write_fake_run(folder / "a", settings={"algorithm.beta": 0.2})
    write_fake_run(folder / "b", settings={"algorithm.beta": 0.3}, accuracy=0.7)
    runs = RunReader().read(find_places([folder]))
    changes: dict[str, Any] = {"settings": {**runs[0].settings, "data.train": HOSTILE, "model.path": HOSTILE}}
    named = [
        replace(runs[0], name=HOSTILE, reason=HOSTILE, decision="do_not_ship", problems=(HOSTILE,), **changes),
        replace(runs[1], settings={**runs[1].settings, "data.train": "x", "model.path": "y"}),
        RunRecord(HOSTILE + "2", HOSTILE, HOSTILE, message=HOSTILE, settings={"data.train": HOSTILE}),
    ]
    return build_comparison(named, title=HOSTILE, folders=[HOSTILE])


def test_hostile_names_settings_and_messages_stay_text_on_the_page(tmp_path: Path) -> None:
    html = render_page(hostile_comparison(tmp_path))
    elements = Elements(html)
    assert elements.open == []
    assert [tag for tag, _ in elements.found].count("script") == 2  # the page's own data and code
    assert not [tag for tag, _ in elements.found if tag in ("img", "iframe", "link", "object", "embed")]
    assert not [a for _, attributes in elements.found for a in attributes if a.startswith("on")]
    assert "\x1b" not in html
    assert "\x00" not in html
    assert "{{ 7*7 }}" in html
    assert "&lt;img src=x" in html
    (data,) = re.findall(r'<script type="application/json" id="names">(.*?)</script>', html, flags=re.DOTALL)
    assert len(json.loads(data)) == 3
    assert "<" not in data


def test_the_page_loads_nothing_and_shows_its_charts_without_scripts(sweep: Path) -> None:
    html = render_page(compared(sweep))
    assert "src=" not in html
    assert "http" not in re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)
    charts = re.findall(r'<svg role="img".*?aria-label="([^"]+)"', html)
    assert [chart.split(" of ")[0].split(" against ")[0] for chart in charts] == [
        "Held-out preference accuracy",
        "Parallel coordinates",
        "Held-out preference accuracy",
        "Held-out loss",
        "Held-out loss",
        "Training loss",
        "Training loss",
        "Training reward margin",
        "Held-out log-prob",
        "Gradient norm",
    ]
    static = re.sub(r"<script.*", "", html, flags=re.DOTALL)
    assert len(re.findall(r'<path class="[^"]*" data-g="0" d="M', static)) >= 7


def test_colours_come_from_the_page_in_light_and_dark(sweep: Path) -> None:
    html = render_page(compared(sweep))
    charts = "".join(re.findall(r'<svg role="img".*?</figure>', html, flags=re.DOTALL))
    assert not re.search(r"#[0-9a-f]{6}\b", charts)
    style = html[html.index("<style>") : html.index("</style>")]
    for name in ("k0", "k1", "k2", "k3", "k4", "rest"):
        assert len(re.findall(rf"--{name}: #", style)) == 2


def contrast(colour: str, page: str) -> float:
    """WCAG 2's ratio of two colours written as #rrggbb."""
    shares = [[int(name[i : i + 2], 16) / 255 for i in (1, 3, 5)] for name in (colour, page)]
    linear = [[c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb] for rgb in shares]
    low, high = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in linear)
    return (high + 0.05) / (low + 0.05)


def test_words_and_lines_stand_out_in_light_and_dark(sweep: Path) -> None:
    html = render_page(compared(sweep))
    is_dark, is_colour = re.compile(r"dark\) \{(.*?)\n\}", re.DOTALL), re.compile(r"--([\w-]+): (#\w{6});")
    dark = dict(is_colour.findall("".join(is_dark.findall(html))))
    light = dict(is_colour.findall(is_dark.sub("", html)))
    words = ["ink", "muted", "base", "tuned", "chosen", "rejected", "good", "info", "warning", "bad"]
    words += [f"k{number}" for number in range(5)]
    for colours in (light, dark):
        assert {name: ratio for name in words if (ratio := contrast(colours[name], colours["page"])) < 4.5} == {}
        assert contrast(colours["rest"], colours["page"]) > 3


def test_a_run_is_the_same_number_in_every_chart_and_table(sweep: Path) -> None:
    html = render_page(compared(sweep))
    elements = Elements(html)
    numbered = {attributes["data-g"] for _, attributes in elements.found if "data-g" in attributes}
    (data,) = re.findall(r'id="names">(.*?)</script>', html, flags=re.DOTALL)
    names = json.loads(data)
    assert numbered == {str(index) for index in range(len(names))}
    assert names[0] == "#1  " + names[0].removeprefix("#1  ")
    assert "beta 0.1" in names[0]
    assert names[-1] == "7 (not begun)"


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_page_of_few_or_no_done_runs_is_whole(count: int, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    for number in range(count):
        write_fake_run(tmp_path / "runs" / f"{number}", settings={"algorithm.beta": 0.1 + number}, num_lines=number)
    write_fake_run(tmp_path / "runs" / "live", state="running", num_lines=0)
    html = render_page(compared(tmp_path / "runs"))
    assert Elements(html).open == []
    assert ("No run is done yet." in html) is (count == 0)


def test_runs_that_differ_in_nothing_and_runs_of_strange_numbers_are_drawn(tmp_path: Path) -> None:
    metrics = [
        {"preference_accuracy": Measure(1.0, 1.0, 1.0, 3), "kl_per_token": Measure(-0.01)},
        {"preference_accuracy": Measure(1.0), "kl_per_token": Measure(1e9)},
        {"kl_per_token": Measure(0.0)},
        {},
    ]
    runs = [
        record(f"r{i}", None, metrics=found, settings={"trainer.max_steps": 10**i}) for i, found in enumerate(metrics)
    ]
    assert Elements(render_page(build_comparison(runs, title="t"))).open == []
    same = [record("a"), record("b")]
    assert Elements(render_page(build_comparison(same, title="t"))).open == []
    printed(build_comparison(same, title="t"))


def test_csv_numbers_come_back_as_they_were_measured(sweep: Path, tmp_path: Path) -> None:
    comparison = compared(sweep)
    write_csv(comparison, tmp_path / "compare.csv")
    rows = read_csv(tmp_path / "compare.csv")
    for run in comparison.runs:
        row = rows[run.name]
        assert row["state"] == run.state
        for key, measure in run.metrics.items():
            assert float(row[key]) == measure.value
            if measure.low is not None:
                assert (float(row[f"{key}_low"]), float(row[f"{key}_high"])) == (measure.low, measure.high)
        for metric in BY_KEY:
            assert bool(row.get(metric)) is (metric in run.metrics)
    best, other = rows["0"], rows["2"]
    assert (best["rank"], best["against_first"], best["difference"]) == ("1", "best", "")
    assert (other["rank"], other["against_first"], other["difference_method"]) == ("2", "worse", "both intervals")
    assert float(other["difference"]) == comparison.rows[1].difference.value
    assert rows["1"]["configuration"] == best["configuration"] != other["configuration"]
    assert (best["seed"], best["setting.algorithm.beta"]) == ("0", "0.1")
    assert (rows["6"]["rank"], rows["6"]["measured_at_step"]) == ("", "750")


def test_json_has_the_rows_of_the_csv_and_writes_nothing(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(sweep.rglob("*"))
    compare.main([str(sweep), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert sorted(sweep.rglob("*")) == before
    compare.main([str(sweep), "--no-html"])
    written = read_csv(sweep / "compare.csv")
    assert found["ranked_by"] == "preference_accuracy"
    assert [row["run"] for row in found["runs"]] == [*written]
    for row in found["runs"]:
        as_text = {key: json.dumps(value) if not isinstance(value, str) else value for key, value in row.items()}
        assert as_text == {key: value for key, value in written[row["run"]].items() if value != ""}


def test_json_has_null_for_a_number_that_is_none_and_is_not_watched(fails: Any) -> None:
    broken = replace(record("b"), metrics={"mean_margin": Measure(nan, nan, nan, 3)})
    rows = to_json(build_comparison([record("a"), broken], title="t"))["runs"]
    assert json.loads(json.dumps(rows, allow_nan=False))[-1]["mean_margin"] is None
    assert "leave out --watch" in fails(compare.main, ["runs", "--json", "--watch"])


@pytest.mark.parametrize("options", [["--output", "x"], ["--no-html"], ["--rows", "3"], ["--rows", "3", "--no-html"]])
def test_json_refuses_what_it_would_ignore(options: list[str], sweep: Path, fails: Any) -> None:
    said = fails(compare.main, [str(sweep), "--json", *options]).strip()
    assert said.endswith(f"leave out {', '.join(each for each in options if each.startswith('--'))}.")


def test_settings_have_their_own_types_in_json_and_are_json_as_text_in_the_csv(tmp_path: Path) -> None:
    settings = {"a": False, "b": None, "c": [], "d": [1, None], "e": "yes", "f": 3, "g": 0.5}
    comparison = build_comparison([replace(record("run"), settings=settings)], title="t")
    (row,) = json.loads(json.dumps(to_json(comparison), allow_nan=False))["runs"]
    assert {key.removeprefix("setting."): row[key] for key in row if key.startswith("setting.")} == settings
    write_csv(comparison, tmp_path / "compare.csv")
    written = read_csv(tmp_path / "compare.csv")["run"]
    assert [written[f"setting.{key}"] for key in settings] == ["false", "null", "[]", "[1, null]", "yes", "3", "0.5"]


def test_a_metric_that_is_not_finite_in_the_report_is_null_in_json_and_empty_in_the_csv(sweep: Path) -> None:
    path = sweep / "0" / "report" / "report.json"
    report = json.loads(path.read_text())
    report["held_out"]["tuned"]["mean_margin"] = {"value": None, "ci95": [None, None], "n": 24}
    report["drift"]["kl_per_token"] = {"value": None, "ci95": [None, None], "n": 0}
    path.write_text(json.dumps(report))
    comparison = build_comparison(RunReader().read(find_places([sweep])), title="t")
    row = next(each for each in to_json(comparison)["runs"] if each["run"] == "0")
    assert row["mean_margin"] is None
    assert "kl_per_token" not in row, "on no examples, nothing was measured"
    write_csv(comparison, sweep / "compare.csv")
    assert read_csv(sweep / "compare.csv")["0"]["mean_margin"] == ""


def test_csv_keeps_hostile_names_in_one_field(tmp_path: Path) -> None:
    name = 'a,"b"\nc;=1+1\udce2'
    write_csv(build_comparison([record(name), record("b")], title="t"), tmp_path / "x.csv")
    assert set(read_csv(tmp_path / "x.csv")) == {'a,"b"\nc;=1+1\ufffd', "b"}


def test_csv_holds_nothing_that_acts_on_a_terminal(tmp_path: Path) -> None:
    hostile = "a\x1b]0;title\x07\x1b[2J\u202eb\x9b31m"
    records = [replace(record(hostile), message=hostile, settings={f"trainer.extra.{hostile}": hostile}), record("b")]
    write_csv(build_comparison(records, title="t"), tmp_path / "x.csv")
    text = (tmp_path / "x.csv").read_text(encoding="utf-8")
    assert text == printable(text)
    assert "a\ufffd]0;title\ufffd\ufffd[2J\ufffdb\ufffd31m" in read_csv(tmp_path / "x.csv")


def test_csv_cells_that_a_spreadsheet_would_compute_are_text_and_numbers_stay_numbers(tmp_path: Path) -> None:
    formulas = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1"]
    records = [replace(record(name), message=name, settings={"algorithm.x": "-1e-05", "n": -3}) for name in formulas]
    write_csv(build_comparison(records, title="t"), tmp_path / "x.csv")
    with open(tmp_path / "x.csv", encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    expected = sorted("'" + name.replace("\r", "\n") for name in formulas)
    assert sorted(row["run"] for row in rows) == expected
    assert sorted(row["message"] for row in rows) == expected
    assert {(row["setting.algorithm.x"], row["setting.n"]) for row in rows} == {("-1e-05", "-3")}


def test_the_command_writes_beside_the_sweep_and_prints_the_table(sweep: Path, capsys: pytest.CaptureFixture) -> None:
    compare.main([str(sweep)])
    assert "Written: " in capsys.readouterr().out
    assert (sweep / "compare.html").stat().st_size > 10_000
    assert len(read_csv(sweep / "compare.csv")) == 9


def test_loose_runs_are_written_to_the_current_folder(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    compare.main([str(sweep / "0"), str(sweep / "2"), "--no-html"])
    assert [file.name for file in (tmp_path / "here").iterdir()] == ["compare.csv"]
    compare.main([str(sweep / "0"), "--output", "new/folder"])
    assert (tmp_path / "here" / "new" / "folder" / "compare.html").is_file()
    assert not (sweep / "0" / "compare.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["{sweep}", "--rank-by", "acuracy"], "no such metric"),
        (["{sweep}", "--rows", "0"], "--rows: must be >= 1"),
        (["{sweep}", "--watch", "0"], "--watch: must be > 0"),
        (["{sweep}/nothing"], "no such folder"),
        (["{sweep}", "--output", "{sweep}/sweep.json/x"], "cannot be written"),
    ],
)
def test_mistakes_are_answered_before_anything_is_written(
    arguments: list[str], part: str, sweep: Path, fails: Callable[..., str]
) -> None:
    assert part in fails(compare.main, [argument.format(sweep=sweep) for argument in arguments])
    assert not (sweep / "compare.csv").exists()


def test_the_command_loads_neither_torch_nor_the_trackers_client(sweep: Path) -> None:
    code = (
        "import sys; from prefopt.compare import main; main(sys.argv[1:]); "
        "print([name for name in ('torch', 'transformers', 'wandb') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(sweep)], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


def watched(sweep: Path, monkeypatch: pytest.MonkeyPatch, events: list[Callable[[], None]]) -> int:
    """Watches the sweep; each nap runs the next event. Returns how many naps there were."""
    left = list(events)

    def nap(seconds: float) -> None:
        assert seconds == 0.5
        left.pop(0)()

    monkeypatch.setattr(compare.time, "sleep", nap)
    compare.main([str(sweep), "--watch", "0.5"])
    return len(events) - len(left)


def set_state(folder: Path, state: str) -> None:
    (folder / "status.json").write_text(json.dumps({"state": state, "message": ""}))


def test_watching_goes_on_until_no_run_can_move(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def begin_the_last() -> None:
        write_fake_run(sweep / "7", state="running", settings={"algorithm.beta": 0.7})

    events = [
        lambda: set_state(sweep / "6", "preempted"),
        lambda: None,
        begin_the_last,
        lambda: set_state(sweep / "7", "diverged"),
        lambda: pytest.fail("it should have ended"),
    ]
    assert watched(sweep, monkeypatch, events) == 4
    output = capsys.readouterr().out
    assert output.count("Ranked by") == 4  # not again while nothing has changed
    assert "1 diverged" in output
    assert read_csv(sweep / "compare.csv")["7"]["state"] == "diverged"


def test_ctrl_c_ends_watching_quietly(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    watched(sweep, monkeypatch, [interrupt])
    captured = capsys.readouterr()
    assert "the runs go on" in captured.out
    assert "Written: " in captured.out
    assert captured.err == ""


def test_watching_runs_that_have_all_ended_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fake_run(tmp_path / "runs" / "a")
    assert watched(tmp_path / "runs", monkeypatch, [lambda: pytest.fail("nothing to wait for")]) == 0


def test_the_benchmark_times_the_whole_command_and_writes_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    benchmark.main(["--runs", "4", "--events", "42", "--rounds", "1", "--write"])
    (written,) = tmp_path.glob("*/compare.json")
    content = json.loads(written.read_text(encoding="utf-8"))
    assert (content["runs"], content["events"], len(content["rounds"])) == (4, 42, 1)
    assert content["median_s"] == content["rounds"][0]["wall_s"] > 0
    assert content["peak_mib"] > 10
    assert content["command"] == "python -m benchmarks.compare --runs 4 --events 42 --rounds 1 --write"
    assert "compare 4 runs" in capsys.readouterr().out
