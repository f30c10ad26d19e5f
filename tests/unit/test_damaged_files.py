"""Whatever lies in one folder of many, the others are shown: pipes, deep nesting, values of a wrong kind."""

import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest

from prefopt import compare, status
from prefopt.comparison.settings import from_typed
from prefopt.process.errors import UserError
from prefopt.runs.directory import RunDirectory
from prefopt.runs.find import find_groups
from prefopt.runs.jobs import read_last_attempt
from prefopt.runs.lock import RunLock
from prefopt.runs.read import find_log
from prefopt.runs.settings import read_config
from prefopt.storage.files import read_end, read_object
from prefopt.storage.lock_file import Holder, lock_path, read_lock
from prefopt.storage.reading import MAX_DEPTH, parse_json, parse_yaml, read_file
from tests.fake_runs import write_fake_run
from tests.run_states import write_sweep

DEEP = {levels: "[" * levels for levels in (MAX_DEPTH + 1, 900, 5_000, 100_000)}
BOMB = "a: &a {x: 1, y: 2}\n" + "".join(f"{b}: &{b} {{x: *{a}, y: *{a}}}\n" for a, b in zip("abc", "bcd", strict=True))
ODD_VALUES = (
    *("!!int ''", "!!float ''", "!!bool x", "!!timestamp x", "2026-13-45"),
    *("!!python/name:os.system ''", "9" * 5_000),
)
FILES = (
    "config.yaml",
    "status.json",
    "metrics.jsonl",
    "provenance.json",
    "report/report.json",
    "report/pairs.jsonl",
    "slurm/jobs.jsonl",
    "slurm/attempts.jsonl",
)


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


def shown(capsys: pytest.CaptureFixture[str], folder: Path) -> tuple[dict[str, dict[str, str]], str]:
    """What both commands show of a folder: the states by name, and the text of the comparison."""
    with suppress(SystemExit):  # a run needs a person
        status.main(["--json", str(folder)])
    view = json.loads(capsys.readouterr().out)
    compare.main([str(folder), "--output", str(folder / "out")])
    return {run["name"]: run for group in view["groups"] for run in group["runs"]}, capsys.readouterr().out


@pytest.mark.parametrize(
    "text", [*DEEP.values(), *map(nested, DEEP), '{"a": ' * 5_000, '{"a": ' * 200 + "1" + "}" * 200]
)
def test_text_that_is_nested_too_deeply_is_an_error_of_value_and_no_crash(text: str) -> None:
    for parse in (parse_json, parse_yaml):
        for given in (text, text.encode()):
            with pytest.raises(ValueError, match=r"nested more than|Expecting|not YAML"):
                parse(given)
    assert from_typed(text) == text


@pytest.mark.parametrize(
    "text", ["- " * 5_000 + "a", "? " * 5_000 + "a", "".join(f"{' ' * n}a:\n" for n in range(300))]
)
def test_yaml_may_nest_without_brackets_too(text: str) -> None:
    with pytest.raises(ValueError, match="nested more than"):
        parse_yaml(text)


def test_many_lists_side_by_side_are_not_deep() -> None:
    assert parse_json(json.dumps([[]] * 5_000)) == parse_yaml("[" + "[], " * 4_999 + "[]]") == [[]] * 5_000
    whole = nested(MAX_DEPTH)
    assert parse_json(whole) == parse_yaml(whole)


@pytest.mark.parametrize("text", [BOMB, "a: &a [*a]", "\x00", *(f"a: {value}" for value in ODD_VALUES)])
def test_yaml_that_holds_no_plain_values_is_an_error_of_value(text: str) -> None:
    with pytest.raises(ValueError):
        parse_yaml(text)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir])
def test_only_files_are_opened(make: object, tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    make(path)  # type: ignore[operator]
    with pytest.raises(OSError):
        read_file(path)
    with pytest.raises(UserError, match=r"status\.json: cannot be read \((a pipe or a device|Is a directory)"):
        read_object(path, "Remove it.")
    assert read_end(path, 10) == (b"", True)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("content", [DEEP[5_000], DEEP[100_000], '{"a": ' * 5_000, nested(900), BOMB, None])
def test_a_damaged_file_takes_no_other_run_with_it(
    file: str, content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_fake_run(tmp_path / "good", accuracy=0.8)
    bad = write_fake_run(tmp_path / "bad", state="done" if "report" in file else "failed", margins=[0.1] * 5)
    (bad / file).parent.mkdir(exist_ok=True)
    (bad / file).unlink(missing_ok=True)
    if content is None:
        os.mkfifo(bad / file)
    else:
        (bad / file).write_text(content + "\n")
    states, text = shown(capsys, tmp_path)
    assert states["good"]["state"] == "done"
    assert "80.0" in text
    assert "bad" in text
    if file == "status.json":
        assert states["bad"]["state"] == "damaged"
    named = ["status.json", "config.yaml", "report/report.json", "metrics.jsonl", "report/pairs.jsonl"]
    if file in named and content is not None:
        assert f"{file} " in " ".join(text.split()), "the comparison names the file"


@pytest.mark.parametrize("content", [DEEP[5_000], DEEP[100_000], "{}", '{"format": 1, "points": 3}'])
def test_a_sweep_whose_plan_is_damaged_is_named_and_the_rest_of_the_folder_shown(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_fake_run(tmp_path / "good", accuracy=0.8)
    for sweep, point in (("whole", "a"), ("broken", "b")):
        write_fake_run(write_sweep(tmp_path / sweep, point) / point)
    (tmp_path / "broken" / "sweep.json").write_text(content)
    states, text = shown(capsys, tmp_path)
    assert {"good", "a", "broken", "b"} <= states.keys()
    assert states["broken"]["state"] == "damaged"
    assert "sweep.json" in states["broken"]["why"]
    assert "sweep.json" in text
    with pytest.raises(UserError, match=r"sweep\.json: (damaged|of another version)"):
        find_groups([tmp_path / "broken"])


@pytest.mark.parametrize("pid", [10**30, -1, 0, "1", True, None])
def test_a_lock_with_an_impossible_process_is_one_that_prefopt_did_not_write(pid: object, tmp_path: Path) -> None:
    holder = Holder.of_this_process()
    lock_path(tmp_path / "run").write_text(json.dumps({**vars(holder), "pid": pid}))
    found = read_lock(tmp_path / "run")
    assert found is not None
    assert found.who in ("an unnamed process", f"process {pid} on host {socket.gethostname()}")


@pytest.mark.parametrize("content", [DEEP[5_000], DEEP[100_000], None])
def test_a_damaged_lock_counts_as_that_of_an_unnamed_process(content: str | None, tmp_path: Path) -> None:
    path = lock_path(tmp_path / "run")
    if content is None:
        os.mkfifo(path)
    else:
        path.write_text(content)
    assert read_lock(tmp_path / "run").who == "an unnamed process"  # type: ignore[union-attr]
    lock = RunDirectory(tmp_path / "run").path
    with pytest.raises(UserError, match=r"in use by an unnamed process .* or remove"):
        RunLock(lock).acquire()
    os.utime(path, (time.time() - 3600,) * 2)
    with RunLock(lock):
        assert path.is_file()


@pytest.mark.parametrize("log", ["a\0b", "\ud800", "x" * 5_000])
def test_a_log_whose_name_no_file_can_have_is_not_there(log: str, tmp_path: Path) -> None:
    run = write_fake_run(tmp_path / "run", state="failed")
    (run / "slurm").mkdir()
    (run / "slurm" / "jobs.jsonl").write_text(json.dumps({"job": "12", "log": log}) + "\n")
    ((place,),) = (group.places for group in find_groups([run]))
    assert place.job is not None
    assert find_log(place) is None


@pytest.mark.parametrize("line", [{"ended": 5}, {"why": ["x"]}, {"to_step": "3"}, {"next": None}])
def test_an_attempt_of_wrong_values_is_none(line: dict[str, object], tmp_path: Path) -> None:
    run = write_fake_run(tmp_path / "run", state="failed")
    texts = dict.fromkeys(("job", "ended", "state", "next", "why"), "x")
    whole = {**texts, **dict.fromkeys(("from_step", "to_step", "code"), 1)}
    (run / "slurm").mkdir()
    (run / "slurm" / "attempts.jsonl").write_text(json.dumps(whole) + "\n")
    assert read_last_attempt(RunDirectory(run)) is not None
    (run / "slurm" / "attempts.jsonl").write_text(json.dumps({**whole, **line}) + "\n")
    assert read_last_attempt(RunDirectory(run)) is None


@pytest.mark.parametrize(
    "text",
    [
        "data:\n  x: [{1: a, b: c}]\n",
        "data:\n  x: " + "9" * 400,
        "run:\n  seed: [1, 2]\n",
        "run:\n  seed: {a: b}\n",
        "run: 3\n",
        "1: 2\nnull: 3\n",
        "? [a, b]\n: 1\n",
        "a: !!set {x, y}\n",
        "a: !!binary AAAA\n",
        "a: .nan\n",
        "trainer:\n  max_steps: " + "9" * 5_000 + "\n",
    ],
)
def test_settings_of_any_kind_are_compared(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("good", "other", "bad"):
        write_fake_run(tmp_path / name, state="running" if name == "bad" else "done")
    for name in ("other", "bad"):
        (tmp_path / name / "config.yaml").write_text(text)
    states, _ = shown(capsys, tmp_path)
    assert states["good"]["state"] == "done"


@pytest.mark.parametrize("text", [DEEP[100_000], BOMB, "a: !!int ''"])
def test_a_damaged_configuration_is_refused_with_the_way_out(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml: is damaged .* Write it anew"):
        read_config(tmp_path / "config.yaml")
