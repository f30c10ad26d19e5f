"""Public files as they are, through the command that a user would type: refused with advice, or run and counted."""

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from prefopt.train import main as train

ULTRAFEEDBACK = "ultrafeedback_1k_train.jsonl.gz"
ULTRAFEEDBACK_HELD_OUT = "ultrafeedback_200_eval.jsonl"
SHAREGPT_PAIRS = "llamafactory_dpo_en_demo.json.gz"
ALPACA = "llamafactory_alpaca_en_demo.json.gz"
TOOL_CALLS = "llamafactory_glaive_toolcall_en_demo.json.gz"
OPENAI_PAIRS = "orca_dpo_openai_format_validation.jsonl.gz"
STORIES = "stories260K_hf"

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_WITH_TOOLS = (
    "{% if tools %}{{ '<|im_start|>tools\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{{ m.content }}"
    "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture
def small(tmp_path: Path) -> list[str]:
    """A run of three steps and a short evaluation."""
    return [
        "data=files",
        "logger=none",
        f"run.root={tmp_path / 'runs'}",
        "run.name=test",
        "trainer.max_steps=3",
        "trainer.per_device_batch_size=2",
        "trainer.log_every=1",
        "evaluation.num_samples=2",
        "evaluation.num_shown_samples=1",
        "evaluation.max_new_tokens=8",
        "evaluation.max_train_examples=4",
        "evaluation.bootstrap_resamples=50",
        "evaluation.neutral_texts=null",
    ]


@pytest.fixture
def ultrafeedback(shared_file, small: list[str]) -> list[str]:
    """Training and held-out file as they were published."""
    return [
        *small,
        f"data.train={shared_file(ULTRAFEEDBACK)}",
        f"data.held_out={shared_file(ULTRAFEEDBACK_HELD_OUT)}",
        "data.max_length=512",
    ]


def finished(tmp_path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Report and metrics of the run, which must have got to its end."""
    folder = tmp_path / "runs" / "test"
    assert json.loads((folder / "status.json").read_text())["state"] == "done"
    assert (folder / "model" / "model.safetensors").exists()
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in metrics] == [1, 2, 3]
    return json.loads((folder / "report" / "report.json").read_text()), metrics


def counts(report: dict[str, Any]) -> dict[str, Any]:
    return report["data"]["counts"]


def test_ultrafeedback_is_refused_in_one_error_for_its_rows_and_one_for_its_tokens(ultrafeedback, fails, tmp_path):
    told = fails(train, ultrafeedback)
    assert f"{ULTRAFEEDBACK}:479: this row has an empty completion (so in 2 rows" in told
    assert f"{ULTRAFEEDBACK}:834" in told
    assert f"{ULTRAFEEDBACK}:307: this row has 'rejected' equal to 'chosen' (so in 4 rows" in told
    assert f"{ULTRAFEEDBACK_HELD_OUT}:44: this row has 'rejected' equal to 'chosen'" in told
    assert "data.on_bad=skip (or some of them: data.on_identical=skip data.on_empty=skip)" in told

    long = fails(train, [*ultrafeedback, "data.on_empty=skip", "data.on_identical=skip"])
    assert f"{ULTRAFEEDBACK}:2: the prompt has " in long
    assert "alone fills data.max_length=512 (so in " in long
    assert "data.on_long_prompt=skip" in long

    assert not (tmp_path / "runs").exists()


def test_ultrafeedback_runs_with_its_bad_rows_skipped_and_says_how_many(ultrafeedback, shared_file, tmp_path):
    # The first 50 held-out rows, for speed: the one identical pair is row 44.
    short = tmp_path / "held_out.jsonl"
    with shared_file(ULTRAFEEDBACK_HELD_OUT).open(encoding="utf-8") as lines:
        short.write_text("".join(islice(lines, 50)), encoding="utf-8")
    skip = ["data.on_bad=skip"]
    skip.append("reference=live")  # the store would score all pairs before the first step, which takes a minute
    command = [sys.executable, "-m", "prefopt.train", *ultrafeedback, f"data.held_out={short}", *skip]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    report, metrics = finished(tmp_path)
    assert metrics[0]["loss"] == pytest.approx(0.6931, abs=1e-4)
    read = counts(report)["read"]
    assert (read["train"]["num_rows"], read["held_out"]["num_rows"]) == (1000, 50)
    assert (read["train"]["num_identical_skipped"], read["train"]["num_empty_skipped"]) == (4, 2)
    assert (read["held_out"]["num_identical_skipped"], read["held_out"]["num_empty_skipped"]) == (1, 0)
    assert counts(report)["num_records"] == {"train": 994, "held_out": 49}
    assert counts(report)["num_overlap_skipped"] == 0
    for split, tokenized in counts(report)["tokenized"].items():
        assert tokenized["num_long_prompt_skipped"] > 0
        skipped = tokenized["num_long_prompt_skipped"] + tokenized["num_equal_skipped"]
        assert tokenized["num_kept"] == counts(report)["num_records"][split] - skipped
        assert tokenized["num_eos_lost"] >= tokenized["num_truncated"] > 0
    assert report["held_out"]["n"] == counts(report)["tokenized"]["held_out"]["num_kept"]

    # People see the counts twice: before training, and in the report.
    notes = report["data"]["notes"]
    assert "train: 4 pairs with chosen equal to rejected skipped (data.on_identical=skip)" in notes
    assert "train: 2 rows with an empty completion skipped (data.on_empty=skip)" in notes
    assert "held_out: 1 pair with chosen equal to rejected skipped (data.on_identical=skip)" in notes
    assert all(f"data: {note}" in shown for note in notes)


def test_sharegpt_pairs_are_read_as_they_are_and_split_by_prompt(shared_file, small, tmp_path):
    path = shared_file(SHAREGPT_PAIRS)
    train([*small, f"data.train={path}", "data.max_length=256", "data.on_long_prompt=skip"])
    report, metrics = finished(tmp_path)
    assert metrics[0]["loss"] == pytest.approx(0.6931, abs=1e-4)
    assert counts(report)["read"]["train"]["num_rows"] == 300
    assert counts(report)["read"]["train"]["num_duplicates"] == 5
    assert counts(report)["read"]["train"]["ignored_columns"] == {}
    # 295 prompts: a tenth of them is held out, with the repeats of each.
    records = counts(report)["num_records"]
    assert records["train"] + records["held_out"] == 300
    assert 30 <= records["held_out"] <= 35


def test_alpaca_demonstrations_train_the_answer_alone(shared_file, small, tmp_path):
    train([*small, "algorithm=sft", f"data.train={shared_file(ALPACA)}", "data.max_length=512"])
    report, metrics = finished(tmp_path)
    read = counts(report)["read"]["train"]
    assert {name: count for name, count in read.items() if count} == {"num_rows": 999, "num_duplicates": 14}
    # 985 prompts: a tenth of them is held out, with the repeats of each.
    records = counts(report)["num_records"]
    assert records["train"] + records["held_out"] == 999
    assert 98 <= records["held_out"] <= 98 + 14
    assert report["held_out"]["gain"]["loss"]["ci95"][1] < 0
    assert {"loss", "grad_norm", "mean_token_accuracy"} <= metrics[0].keys()


def test_tool_calls_need_a_template_that_knows_them(shared_file, small, fails, tmp_path):
    settings = [*small, "algorithm=sft", f"data.train={shared_file(TOOL_CALLS)}", "data.max_length=512"]
    # The shipped template writes the content of every message; a message that calls a tool has none.
    message = fails(train, settings)
    assert f"{TOOL_CALLS}:row 1: the row has tool calls, but the chat template leaves them out" in message
    assert "model.chat_template" in message
    assert not (tmp_path / "runs").exists()

    template = tmp_path / "tools.jinja"
    template.write_text(CHATML_WITH_TOOLS, encoding="utf-8")
    train([*settings, f"model.chat_template={template}", "data.on_long_prompt=skip"])
    report, _ = finished(tmp_path)
    assert counts(report)["read"]["train"]["num_rows"] == 300
    assert report["held_out"]["gain"]["loss"]["value"] < 0
    assert report["held_out"]["n"] == counts(report)["tokenized"]["held_out"]["num_kept"]


def test_openai_preference_rows_are_read_as_they_are(shared_file, small, tmp_path):
    path = shared_file(OPENAI_PAIRS)
    train([*small, f"data.train={path}", "data.max_length=256", "data.on_long_prompt=skip"])
    report, metrics = finished(tmp_path)
    assert metrics[0]["loss"] == pytest.approx(0.6931, abs=1e-4)
    assert counts(report)["read"]["train"]["num_rows"] == 284
    assert counts(report)["num_records"] == {"train": 256, "held_out": 28}
    assert report["samples"][0]["prompt"].startswith("system: ")


def test_a_model_without_chat_template_takes_messages_only_with_one_from_a_file(shared_file, small, fails, tmp_path):
    settings = [
        *small,
        "model=hf",
        f"model.path={shared_file(STORIES)}",
        f"data.train={shared_file(OPENAI_PAIRS)}",
        "data.max_length=512",
        "data.on_long_prompt=skip",
    ]
    message = fails(train, settings)
    assert f"{OPENAI_PAIRS}:1: the rows are messages" in message
    assert "Set model.chat_template" in message
    missing = fails(train, [*settings, "model.chat_template=missing.jinja"])
    assert "model.chat_template: no such file: missing.jinja" in missing
    assert not (tmp_path / "runs").exists()

    template = tmp_path / "chatml.jinja"
    template.write_text(CHATML, encoding="utf-8")
    train([*settings, f"model.chat_template={template}"])
    report, metrics = finished(tmp_path)
    assert metrics[0]["loss"] == pytest.approx(0.6931, abs=1e-4)
    # <|im_end|> is no end of sequence to this tokenizer, so every completion gets one, cut or not.
    tokenized = counts(report)["tokenized"]["held_out"]
    assert tokenized["num_eos_appended"] >= 2 * tokenized["num_kept"]
    saved = (tmp_path / "runs" / "test" / "model" / "chat_template.jinja").read_text(encoding="utf-8")
    assert saved == CHATML
