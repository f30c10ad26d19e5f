"""What an audit says of reading: rows that are no pairs, rows that training leaves out, files that were misread."""

import html
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefopt.audit import main as audit
from tests.integration.test_audit import findings, rows, write


def shown(capsys: pytest.CaptureFixture[str], argv: list[str], code: int = 0) -> str:
    """What the command prints, as one line."""
    capsys.readouterr()
    if code:
        with pytest.raises(SystemExit) as ended:
            audit(argv)
        assert ended.value.code == code
    else:
        audit(argv)
    return " ".join(capsys.readouterr().out.split())


def answers(*labels: bool) -> list[dict[str, Any]]:
    return [{"prompt": "Hi?", "completion": f"Answer {n}.", "label": label} for n, label in enumerate(labels)]


def test_answers_of_which_no_pair_can_be_made_are_an_error_with_their_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "kto.jsonl", answers(True, True, True))
    found = findings(capsys, [str(path)], code=3)["schema"]
    assert (found["level"], found["count"], found["share"]) == ("error", 3, 1.0)
    assert "no row of data.train can be used; 3 rows skipped: an answer with a label" in found["summary"]


def test_a_reason_is_told_once_and_the_other_rows_point_to_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [{"question": "Hi?", "better": "a", "worse": "b"}] * 3
    path = write(tmp_path / "other.jsonl", [*asked, {"prompt": "Hi?", "chosen": 5, "rejected": "b"}])
    found = findings(capsys, [str(path)], code=3)["schema"]
    assert found["remedy"].startswith(
        "Try 'data.columns={prompt: question, chosen: better, rejected: worse}'. Most rows"
    )
    first, other, *later = found["examples"]
    assert "data.columns={prompt: question, chosen: better, rejected: worse}" in first["detail"]
    assert "found a number" in other["detail"]
    assert [(each["source"], each["detail"]) for each in later] == [
        (f"{path}:2", f"as {path}:1"),
        (f"{path}:3", f"as {path}:1"),
    ]


def test_what_reading_counts_is_told_by_the_audit_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "kto.jsonl", [*answers(True, False, True), *[{**row, "id": 3} for row in answers(True)]])
    argv = [str(path), "--output", str(tmp_path / "out")]
    first = shown(capsys, argv)
    for said in (
        "train: 1 pair joined of two rows:",
        "train: 2 rows skipped: an answer",
        "column 'id' has a value in 1",
    ):
        assert f"reading {said}" in first or said in first
    assert shown(capsys, argv) == first, "the second audit takes it from the cache"
    told = json.loads((tmp_path / "out" / "audit.json").read_text())["remarks"]
    assert len(told) == 3
    page = html.unescape((tmp_path / "out" / "audit.html").read_text())
    assert all(remark.removeprefix("train: ") in page for remark in told)


def test_rows_that_training_leaves_out_are_a_note_without_the_remedy_that_is_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "some.jsonl", [*rows(), {"prompt": "Hi?"}])
    assert findings(capsys, [str(path)], code=3)["schema"]["level"] == "error"
    found = findings(capsys, [str(path), "data.on_bad=skip"])["schema"]
    assert (found["level"], found["count"]) == ("note", 1)
    assert "(data.on_bad=skip)" in found["summary"]
    assert "data.on_bad" not in found["remedy"]


@pytest.mark.parametrize("setting", [[], ["data.on_bad=skip"]])
def test_a_misread_file_gets_the_remedy_of_the_refusal_and_none_that_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: list[str]
) -> None:
    path = write(tmp_path / "most.jsonl", [*rows(6), *[{"prompt": "Hi?", "answer": str(n)} for n in range(7)]])
    found = findings(capsys, [str(path), *setting], code=3)["schema"]
    assert found["level"] == "error"
    assert "see algorithm, data.format, data.columns" in found["remedy"]
    assert "--fix" not in found["remedy"]
    assert "data.on_bad" not in found["remedy"]


def test_a_mapped_column_that_no_row_has_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [str(write(tmp_path / "pairs.jsonl", rows(6))), "data.columns={system: nosuch}"]
    assert "reading train: no row has a column 'nosuch' to be read as 'system'" in shown(capsys, argv)


def test_conversations_for_a_model_without_a_chat_template_are_refused_once_as_training_does(
    tmp_path: Path, tiny_model: Path, fails: Callable[..., str]
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "base", ignore=shutil.ignore_patterns("chat_template.jinja"))
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    turns = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hi!"}]
    path = write(tmp_path / "chats.jsonl", [{"messages": turns}] * 3)
    message = fails(audit, [str(path), "algorithm=sft", "model=hf", f"model.path={model}"])
    assert message.startswith(f"error: {path}:1: the rows are messages, but the tokenizer of")
    assert message.count(str(path)) == 1
    plain = write(tmp_path / "plain.jsonl", rows(6))
    audit([str(plain), "model=hf", f"model.path={model}"])


def test_rows_that_a_limit_leaves_out_of_training_are_said_not_to_be_audited(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "pairs.jsonl", rows(6))
    said = "rows that max_rows leaves out are not audited, but for those that training refuses"
    assert f"{said} 4 rows (" in shown(capsys, [str(path), "data.max_rows=4"])
    part = f"data.train=[{{path: {path}, max_rows: 3}}]"
    assert f"{said} 3 rows (" in shown(capsys, ["data=files", part])


@pytest.mark.parametrize("name", ["date=2026-01-01/p.jsonl", "model=x/[a] b, {c}.jsonl", "+x/it's $HOME.jsonl"])
def test_a_file_may_have_any_name_and_the_suggested_command_works_as_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).parent.mkdir()
    write(Path(name), [*rows(6), {"prompt": "Hi?"}])
    write(tmp_path / "b=c.jsonl", rows(12)[6:])
    printed = shown(capsys, [name, "b=c.jsonl"], code=3)
    command = printed.partition("A copy without what can be mended: ")[2]
    assert shown(capsys, shlex.split(command)[2:], code=3)
    assert len((tmp_path / "mended" / Path(name).name).read_text().splitlines()) == 6
