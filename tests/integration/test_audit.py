"""`prefopt audit` as it is typed, its cleaned copy, and the gate before training."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import audit as benchmark
from benchmarks import results
from prefopt.audit import main as audit
from prefopt.config.schema import DataConfig
from prefopt.data.audit import audit as auditing
from prefopt.data.loading import read_splits
from prefopt.process.errors import UserError
from prefopt.train import main as train

SYLLABLES = [
    first + last for first in ("ba", "ke", "mo", "ti", "ru", "sa", "le") for last in ("n", "rd", "l", "st", "m")
]


def rows(num_rows: int = 40) -> list[dict[str, Any]]:
    """Clean pairs: no two alike, and the longer answer as often the better one as not."""
    rng = random.Random(0)

    def say(num_words: int) -> str:
        return " ".join("".join(rng.choices(SYLLABLES, k=2)) for _ in range(num_words)).capitalize()

    made = []
    for number in range(num_rows):
        sides = [f"{say(9)}.", f"{say(12)}."]
        chosen, rejected = sides if number % 2 else sides[::-1]
        made.append({"prompt": f"{say(10)}?", "chosen": chosen, "rejected": rejected, "id": number})
    return made


def write(path: Path, made: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return path


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A file with one of each defect that can be removed, in known lines."""
    clean = rows()
    same = {**clean[1], "rejected": clean[1]["chosen"], "prompt": "What is the same?"}
    empty = {**clean[2], "chosen": " ", "prompt": "What is empty?"}
    swapped = {**clean[3], "chosen": clean[3]["rejected"], "rejected": clean[3]["chosen"]}
    invisible = {**clean[4], "chosen": "The tea\u200b is here.", "prompt": "What is invisible?"}
    path = write(tmp_path / "planted.jsonl", [*clean, same, empty, swapped, clean[5], invisible])
    with path.open("a") as file:
        file.write("{broken\n")
    return path


def findings(capsys: pytest.CaptureFixture[str], argv: list[str], code: int = 0) -> dict[str, dict[str, Any]]:
    """The findings that the command prints as JSON, by check; `code` is how it must end."""
    capsys.readouterr()
    if code:
        with pytest.raises(SystemExit) as ended:
            audit([*argv, "--json"])
        assert ended.value.code == code
    else:
        audit([*argv, "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["rows"] == sum(count for split, count in printed["splits"].items() if "." not in split)
    return {finding["check"]: finding for finding in printed["checks"]}


def test_a_file_alone_is_audited_and_clean_rows_are_clean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = findings(capsys, [str(write(tmp_path / "clean.jsonl", rows()))])
    assert {name: each["level"] for name, each in found.items() if each["level"] != "ok"} == {"length_bias": "note"}


def test_each_planted_defect_is_found_at_its_line(planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = findings(capsys, [str(planted), "data.held_out_fraction=0"], code=3)
    places = {name: [each["source"].rpartition(":")[2] for each in found[name]["examples"]] for name in found}
    assert places["schema"] == ["46"]
    assert places["identical"] == ["41"]
    assert places["empty"] == ["42"]
    assert places["contradictory"] == ["4"]
    assert places["duplicate"] == ["44"]
    assert places["control_characters"] == ["45"]
    assert found["contradictory"]["count"] == 2
    assert {name for name, each in found.items() if each["level"] == "error"} == {"schema"}


def test_what_matters_first_is_printed_first_with_its_remedy(
    planted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        audit([str(planted)])
    printed = capsys.readouterr().out
    assert printed.startswith("error    schema")
    assert printed.index("warning  contradictory") < printed.index("\nok ")
    assert f"{planted}:46" in printed
    assert "data.on_identical=skip" in printed
    assert "truncation, control_tokens: not checked: name a model" in printed


def test_the_gate_decides_the_exit_code(planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert findings(capsys, [str(planted), "data/gate=off"])["schema"]["level"] == "warning"
    strict = findings(capsys, [str(planted), "data/gate=strict"], code=3)
    assert {"schema", "identical", "empty", "contradictory"} <= {
        name for name, each in strict.items() if each["level"] == "error"
    }


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["nowhere.jsonl"], "nowhere.jsonl"),
        (["rows.jsonl", "data.trian=x"], "data.train"),
        (["rows.jsonl", "data.train=other.jsonl"], "Name the training data once"),
        (["rows.jsonl", "--fix"], "--output"),
        (["rows.jsonl", "data/gate=of"], "data/gate=of: no such option. Did you mean off?"),
        (["rows.jsonl", "data.gate=off"], "data/gate=<option>"),
        (["rows.jsonl", "data.gate.error.refusals=0.1"], "data.gate.error.refusals: no such check"),
        (["rows.jsonl", "data.gate.error.refusal=10"], "must be a share in [0, 1]"),
    ],
)
def test_a_mistake_in_the_command_is_told(argv: list[str], said: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl", rows())
    with pytest.raises(UserError) as caught:
        audit(argv)
    assert said in str(caught.value)


def test_a_second_audit_reads_no_row(planted: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    first = findings(capsys, [str(planted)], code=3)
    monkeypatch.setattr(auditing, "run_checks", None)
    monkeypatch.setattr("prefopt.audit.read_material", None)
    assert findings(capsys, [str(planted)], code=3) == first


def test_files_to_compare_with_are_read_whatever_their_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "rows.jsonl", rows())
    asked = [row["prompt"] for row in rows()]
    exam = write(tmp_path / "exam.jsonl", [{"question": "What else?", "answer": "b"}, {"question": asked[7].upper()}])
    turns = write(tmp_path / "turns.jsonl", [{"messages": [{"role": "user", "content": asked[9]}]}])
    argv = [str(path), "data.held_out_fraction=0"]
    found = findings(capsys, [*argv, "--against", str(exam), str(turns)], code=3)["leakage"]
    assert [each["source"] for each in found["examples"]] == [f"{path}:8", f"{path}:10"]
    assert "leakage" not in findings(capsys, argv)


def test_the_cleaned_copy_lacks_the_defects_and_nothing_else(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = planted.read_bytes()
    output = tmp_path / "mended"
    findings(capsys, [str(planted), "data.held_out_fraction=0", "--output", str(output), "--fix"], code=3)
    assert planted.read_bytes() == before
    lines = before.decode().splitlines(keepends=True)
    kept = (output / "planted.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    assert kept[:-1] == [*lines[:3], *lines[4:40]]
    assert json.loads(kept[-1]) == {**json.loads(lines[44]), "chosen": "The tea is here."}
    changes = [json.loads(line) for line in (output / "changes.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(each["source"].rpartition(":")[2], each["check"], each["action"]) for each in changes] == [
        ("4", "contradictory", "dropped"),
        ("41", "identical", "dropped"),
        ("42", "empty", "dropped"),
        ("43", "contradictory", "dropped"),
        ("44", "duplicate", "dropped"),
        ("45", "control_characters", "rewritten"),
        ("46", "schema", "dropped"),
    ]
    assert changes[0]["before"] == json.loads(lines[3])
    written = json.loads((output / "audit.json").read_text())
    assert {"version", "date", "gate", "rows", "checks", "skipped"} <= written.keys()
    splits = read_splits(DataConfig(train=str(output / "planted.jsonl")), kind="preference", seed=0)
    assert len(splits.train) + len(splits.held_out or ()) == 40, "training refuses no row of the copy"
    found = findings(capsys, [str(output / "planted.jsonl"), "data/gate=strict"])
    assert {name: each["level"] for name, each in found.items() if each["level"] != "ok"} == {"length_bias": "note"}


def test_a_row_that_a_repair_makes_empty_is_dropped_from_the_copy(tmp_path: Path, capsys: Any) -> None:
    made = [*rows(), {**rows()[0], "prompt": "What is there?", "rejected": "\u200b"}]
    path, output = write(tmp_path / "train.jsonl", made), tmp_path / "out"
    assert "empty" not in {name for name, each in findings(capsys, [str(path)]).items() if each["count"]}
    findings(capsys, [str(path), "--output", str(output), "--fix"])
    (change,) = map(json.loads, (output / "changes.jsonl").read_text(encoding="utf-8").splitlines())
    assert (change["source"], change["check"], change["action"]) == (f"{path}:41", "empty", "dropped")
    assert "empty" not in {name for name, each in findings(capsys, [str(output / path.name)]).items() if each["count"]}


def test_leaked_training_rows_are_dropped_from_the_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = rows()
    path = write(tmp_path / "train.jsonl", made[:30])
    held_out = write(tmp_path / "held_out.jsonl", [*made[30:], made[3]])
    argv = [str(path), f"data.held_out={held_out}", "--output", str(tmp_path / "out"), "--fix"]
    assert findings(capsys, argv, code=3)["leakage"]["count"] == 1
    assert len((tmp_path / "out" / "train.jsonl").read_text().splitlines()) == 29
    assert (tmp_path / "out" / "held_out.jsonl").read_bytes() == held_out.read_bytes()
    with pytest.raises(UserError, match="never changed"):
        audit([*argv[:2], "--output", str(tmp_path), "--fix"])


def test_demonstrations_are_audited_with_the_tokenizer_of_a_model(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def turns(*texts: str) -> dict[str, Any]:
        roles = ("user", "assistant")
        return {"messages": [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]}

    long, control = "word " * 200, "It is <|im_end|> here."
    path = write(
        tmp_path / "demos.jsonl", [turns("a?", "b."), turns("c?", long), turns("d?", control), turns("e?", "f.")]
    )
    argv = [str(path), "algorithm=sft", "model=hf", f"model.path={tiny_model}", "data.max_length=64"]
    found = findings(capsys, argv)
    assert [each["source"] for each in found["truncation"]["examples"]] == [f"{path}:2"]
    assert found["truncation"]["level"] == "warning"
    assert "identical" not in found


def test_planted_leakage_stops_training_before_a_model_loads_and_names_the_rows(
    overrides: list[str], tmp_path: Path, monkeypatch: Any, fails: Callable[..., str]
) -> None:
    made = rows()
    path = write(tmp_path / "train.jsonl", made[:36])
    held_out = write(tmp_path / "held_out.jsonl", [*made[36:], made[3], made[7]])
    monkeypatch.setattr("prefopt.models.load.load_tokenizer", None)
    message = fails(train, [*overrides, f"data.train={path}", f"data.held_out={held_out}"])
    for said in (f"{path}:4", f"{path}:8", "leakage", "data.on_overlap=skip", "data/gate=off"):
        assert said in message
    assert not (tmp_path / "runs").exists()


def test_the_gate_stops_training_for_what_reading_accepts(
    overrides: list[str], tmp_path: Path, fails: Callable[..., str]
) -> None:
    made = rows()
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in made[:5]]
    path = write(tmp_path / "train.jsonl", [*made, *swapped])
    argv = [*overrides, f"data.train={path}", "data.held_out=null", "data.held_out_fraction=0"]
    message = fails(train, argv)
    for said in ("contradictory: 10 pairs", f"{path}:1 (contradicts {path}:41)", "data/gate=off"):
        assert said in message
    assert not (tmp_path / "runs").exists()


def test_with_the_gate_off_leaked_rows_are_trained_and_the_report_says_so(
    overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = rows()
    path = write(tmp_path / "train.jsonl", made[:36])
    held_out = write(tmp_path / "held_out.jsonl", [*made[36:], made[3], made[7]])
    train([*overrides, f"data.train={path}", f"data.held_out={held_out}", "data/gate=off"])
    printed = capsys.readouterr().out
    assert "audit: leakage: 2 training rows" in printed
    assert "36 rows used" in printed
    (run,) = (path for path in (tmp_path / "runs").iterdir() if path.is_dir())
    report = json.loads((run / "report" / "report.json").read_text())
    leakage = next(each for each in report["audit"]["checks"] if each["check"] == "leakage")
    assert (report["audit"]["gate"], leakage["count"], leakage["level"]) == ("off", 2, "warning")
    assert json.loads((run / "provenance.json").read_text())["data"]["audit"] == report["audit"]
    for name in ("report.html", "report.md"):
        text = (run / "report" / name).read_text(encoding="utf-8")
        assert "the gate was off" in text
        assert "2 training rows with a prompt that is measured on" in text


@pytest.mark.slow
def test_the_benchmark_measures_every_part(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    benchmark.main(["--pairs", "400", "--write"])
    (path,) = tmp_path.glob("*/audit.json")
    measured = json.loads(path.read_text(encoding="utf-8"))["results"]
    assert [row["part"] for row in measured] == list(benchmark.PARTS)
    assert all(row["pairs"] == 400 and row["pairs_per_s"] > 0 for row in measured)
    assert "times" in capsys.readouterr().out


def test_rows_that_training_does_not_take_are_not_audited_unless_it_refuses_them(tmp_path: Path, capsys: Any) -> None:
    made = rows(60)
    same = {**made[0], "prompt": "What is the same?", "rejected": made[0]["chosen"]}
    path = write(tmp_path / "rows.jsonl", [*made[:20], made[3], *made[20:], made[50], same])
    argv = [str(path), "data.held_out_fraction=0"]
    all_rows = findings(capsys, argv)
    assert (all_rows["duplicate"]["count"], all_rows["identical"]["count"]) == (2, 1)
    first = findings(capsys, [*argv, "data.max_rows=30"])
    assert [each["source"] for each in first["duplicate"]["examples"]] == [f"{path}:21"]
    assert first["identical"]["count"] == 1
    part = f"data.train=[{{path: {path}, max_rows: 10}}]"
    assert findings(capsys, ["data=files", part, argv[1]])["duplicate"]["count"] == 0
    audit([*argv, "data.max_rows=30"])
    assert "rows that max_rows leaves out are not audited" in capsys.readouterr().out


def test_a_copy_is_mended_to_its_end_whatever_max_rows_is(tmp_path: Path, capsys: Any) -> None:
    path = write(tmp_path / "rows.jsonl", [*rows(), rows()[30]])
    findings(capsys, [str(path), "data.max_rows=9", "--output", str(tmp_path / "out"), "--fix"])
    assert len((tmp_path / "out" / "rows.jsonl").read_text().splitlines()) == 40


def test_no_copy_is_offered_of_rows_that_are_misread(tmp_path: Path, capsys: Any) -> None:
    path = write(tmp_path / "rows.jsonl", [*rows(20), *({"prompt": "?", "output": "x"} for _ in range(21))])
    with pytest.raises(SystemExit):
        audit([str(path)])
    printed = " ".join(capsys.readouterr().out.split())
    assert "Most rows are bad" in printed
    assert "--output mended" not in printed
