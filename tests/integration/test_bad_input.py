"""What users get wrong: one clear message, exit code 2, nothing half-written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from prefopt.cli import dispatch
from prefopt.evaluate import main as evaluate
from prefopt.process.errors import UserError
from prefopt.train import main as train

PAIR = {
    "prompt": [{"role": "user", "content": "When does it arrive?"}],
    "chosen": [{"role": "assistant", "content": "Friday."}],
    "rejected": [{"role": "assistant", "content": "The delivery is scheduled."}],
}


def pair(number: int, **changes: object) -> dict:
    return {**PAIR, "prompt": [{"role": "user", "content": f"Where is order {number}?"}], **changes}


BAD_FILES = {
    "empty file": ("", "empty"),
    "invalid JSON": (json.dumps(pair(1)) + "\n{oops\n", ":2"),
    "missing field": (json.dumps({k: v for k, v in PAIR.items() if k != "rejected"}) + "\n", "'rejected'"),
    "identical responses": (
        json.dumps(pair(1)) + "\n" + json.dumps(pair(2, rejected=PAIR["chosen"])) + "\n",
        "data.on_identical=skip",
    ),
    "empty response": (
        json.dumps(pair(1, chosen=[{"role": "assistant", "content": " "}])) + "\n",
        "data.on_empty=skip",
    ),
    "mixed formats": (
        json.dumps(pair(1)) + "\n" + json.dumps({"prompt": "p", "chosen": "a", "rejected": "b"}) + "\n",
        "one format",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused_before_anything_is_written(name, overrides, tmp_path, fails):
    text, expected = BAD_FILES[name]
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    message = fails(train, [*overrides, f"data.train={path}"])
    assert expected in message
    assert str(path) in message
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("data.train=nowhere.jsonl", "nowhere.jsonl"),
        ("algorithm.bta=1", "algorithm.beta"),
        ("++algorithm.bta=1", "algorithm.beta"),
        ("algorithm.beta=x", "algorithm.beta"),
        ("deepspeed=zero3", "torchrun"),
        ("data.max_length=4", "data.max_length"),
        ("model.path=./no/such/folder", "no such folder"),
        ("model.path=nobody/no-such-model", "nobody/no-such-model"),
        ("peft=qlora trainer.precision=bf16", "CUDA"),
        ("trainer.extra.no_such_field=1", "no such field"),
        ("trainer.extra.save_only_model=true", "cannot be resumed"),
        ("peft=lora peft.target_modules=[q_prj]", "cannot be trained"),
        ("model.attn_implementation=flash_attention_2", "cannot be loaded"),
        ("trainer.extra.enable_jit_checkpoint=true", "not available"),
        ("evaluation.neutral_texts=missing.jsonl", "evaluation.neutral_texts"),
        ("model.chat_template=missing.jinja", "model.chat_template"),
    ],
)
def test_a_bad_setting_is_refused_before_anything_is_written(change, expected, overrides, tmp_path, fails):
    assert expected in fails(train, [*overrides, *change.split()])
    assert not (tmp_path / "runs").exists()


def test_a_tokenizer_without_chat_template_is_refused_for_chat_data(overrides, tiny_model, tmp_path, fails):
    import shutil

    folder = tmp_path / "plain"
    shutil.copytree(tiny_model, folder)
    (folder / "chat_template.jinja").unlink()
    assert "model.chat_template" in fails(train, [*overrides, f"model.path={folder}"])
    assert not (tmp_path / "runs").exists()


def test_a_line_of_the_neutral_texts_that_holds_none_is_named(tmp_path):
    from prefopt.config.schema import EvaluationConfig
    from prefopt.evaluation.material import read_neutral_texts

    path = tmp_path / "neutral.jsonl"
    path.write_text('{"txt": "x"}\n')
    with pytest.raises(UserError, match=r"neutral.jsonl:1: 'text' must be text, found null. Each neutral text is"):
        read_neutral_texts(EvaluationConfig(neutral_texts=str(path)), None)


def test_bf16_is_refused_on_hardware_without_it(overrides, tmp_path, fails, monkeypatch):
    from prefopt.models import load

    monkeypatch.setattr(load, "has_bf16", lambda: False)
    assert "trainer.precision=fp32" in fails(train, [*overrides, "trainer.precision=bf16"])
    assert not (tmp_path / "runs").exists()


def test_a_run_directory_that_cannot_be_written_is_refused(overrides, tmp_path, fails):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in fails(train, [*overrides, f"run.root={tmp_path / 'file' / 'runs'}"])


def test_a_path_and_a_row_that_hold_markup_and_escape_sequences_are_shown_as_text(overrides, tmp_path, fails, capsys):
    folder = tmp_path / "[/] [red] \x1b[31m"
    folder.mkdir(parents=True)
    path = folder / "train.jsonl"
    rows = [pair(n, **{"\x1b]0;key [/b]": 1}) for n in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = "data.train='" + str(path) + "'"
    train([*overrides, named, "data.held_out=null", "trainer.max_steps=1", f"run.root='{folder}'"])
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert f"{folder}/test".replace("\x1b", "\ufffd") in said
    assert "]0;key [/b]' has a value in" in said
    path.write_text('{"prompt": "\x1b[31m"}\n')
    message = fails(train, [*overrides, named])
    assert "[/] [red] \ufffd[31m/train.jsonl" in message
    assert "\x1b" not in message


def test_pairs_that_were_trained_on_are_no_evaluation(overrides, tmp_path, fails):
    rows = [{"messages": pair(n)["prompt"] + PAIR["chosen"]} for n in range(4)]
    (tmp_path / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair(n)) + "\n" for n in range(4)))
    sft = ["algorithm=sft", f"data.train={tmp_path / 'sft.jsonl'}", "data.held_out=null"]
    message = fails(train, [*overrides, *sft, f"evaluation.pairs={tmp_path / 'pairs.jsonl'}"])
    assert "not held out" in message
    assert not (tmp_path / "runs").exists()


def test_evaluate_names_what_is_missing(tmp_path, fails):
    assert "run=" in fails(evaluate, ["evaluation.batch_size=1"])
    assert "no run of prefopt" in fails(evaluate, [f"run={tmp_path}"])


def test_the_package_runs_as_the_console_script_does():
    told = subprocess.run([sys.executable, "-m", "prefopt", "nosuch"], capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout) == (2, "")
    assert "nosuch: no such command. Commands: train, audit" in told.stderr


def test_an_unknown_command_lists_the_known_ones(fails):
    message = fails(dispatch, ["trian"])
    assert "Did you mean train?" in message
    assert "list, show, convert, sample, submit" in message


def test_skipping_is_counted_in_the_report(overrides, tmp_path):
    rows = [pair(n) for n in range(6)] + [pair(7, rejected=PAIR["chosen"])]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train([*overrides, f"data.train={path}", "data.on_identical=skip", "trainer.max_steps=1"])
    report = json.loads(Path(tmp_path / "runs" / "test" / "report" / "report.json").read_text())
    assert any("identical" in note and "1" in note for note in report["data"]["notes"])
    assert report["run"]["data"]["num_train"] == 6
