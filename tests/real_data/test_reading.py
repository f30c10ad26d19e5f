"""Reading and tokenizing public files as they are: the counts are those of the tables in their notes."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from prefopt.config.choices import DataFormat, LossOn, OnBadRow, OnLongCompletion
from prefopt.config.schema import DataConfig
from prefopt.data.bad_rows import BadRows, require_usable
from prefopt.data.defects import drop_defects
from prefopt.data.reading import ReadResult, read_records
from prefopt.data.split import find_overlap, prompt_key
from prefopt.data.tokenize import tokenize_pairs, tokenize_sft
from prefopt.process.errors import UserError

DEFAULT_FOLDER = Path(__file__).resolve().parents[2].parent / "shared" / "data"
FOLDER = Path(os.environ.get("PREFOPT_SHARED_DATA", DEFAULT_FOLDER))

ULTRAFEEDBACK = "ultrafeedback_1k_train.jsonl.gz"
CHATML = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools>\n{% endif %}"
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}"
    "</s>\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)


def path_of(name: str) -> str:
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"{path} is absent; set PREFOPT_SHARED_DATA to the folder of public data extracts")
    return str(path)


def read(name: str, kind: str = "preference") -> ReadResult:
    return read_records(path_of(name), format=DataFormat.auto, kind=kind)  # type: ignore[arg-type]


def load_tokenizer() -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(path_of("stories260K_hf"))


@pytest.mark.parametrize(
    ("name", "rows", "empty", "identical", "duplicates"),
    [
        (ULTRAFEEDBACK, 1000, 2, 4, 0),
        ("ultrafeedback_200_eval.jsonl", 200, 0, 1, 0),
        ("orca_dpo_openai_format_validation.jsonl.gz", 284, 0, 0, 0),
        ("llamafactory_dpo_en_demo.json.gz", 300, 0, 0, 5),
    ],
)
def test_preference_files_have_the_defects_of_the_table(
    name: str, rows: int, empty: int, identical: int, duplicates: int
) -> None:
    result = read(name)
    kept = drop_defects(
        result.records, BadRows("data.train", DataConfig(train=name, on_bad=OnBadRow.skip)), result.notes
    )
    notes = result.notes
    counted = (notes.num_rows, notes.num_empty_skipped, notes.num_identical_skipped, notes.num_duplicates)
    assert counted == (rows, empty, identical, duplicates)
    assert len(kept) == rows - empty - identical
    assert len({prompt_key(record) for record in result.records}) == rows - duplicates


def test_the_first_identical_pair_is_named_with_the_setting_that_skips_it() -> None:
    result = read(ULTRAFEEDBACK)
    bad = BadRows("data.train", DataConfig(train=ULTRAFEEDBACK, on_empty=OnBadRow.skip))
    drop_defects(result.records, bad, result.notes)
    with pytest.raises(UserError, match=r"ultrafeedback_1k_train.jsonl.gz:307: .* in 4 rows, .*data.on_identical"):
        require_usable(bad)


def test_ultrafeedback_train_and_eval_share_no_prompt() -> None:
    assert find_overlap(read(ULTRAFEEDBACK).records, read("ultrafeedback_200_eval.jsonl").records) == []


def test_columns_that_nothing_reads_are_counted() -> None:
    notes = read(ULTRAFEEDBACK).notes
    assert (notes.ignored_columns, notes.num_metadata_scores) == ({"source_index": 1000}, 1000)
    assert read("llamafactory_dpo_en_demo.json.gz").notes.ignored_columns == {}


def test_alpaca_rows_become_questions_and_answers() -> None:
    records: list[Any] = read("llamafactory_alpaca_en_demo.json.gz", "sft").records
    assert len(records) == 999
    assert records[0].prompt == [{"role": "user", "content": "Describe a process of making crepes."}]
    assert records[0].completion[0]["content"].startswith("Making crepes is an easy")


def test_tool_call_conversations_keep_calls_results_and_tools() -> None:
    records: list[Any] = read("llamafactory_glaive_toolcall_en_demo.json.gz", "sft").records
    assert len(records) == 300
    roles = [message["role"] for message in records[0].messages]
    assert roles == ["user", "assistant", "user", "assistant", "tool", "assistant", "user", "assistant"]
    call = records[0].messages[3]["tool_calls"][0]["function"]
    assert (call["name"], call["arguments"]["ingredients"][0]) == ("search_recipes", "chicken")
    assert records[0].tools[0]["function"]["name"] == "search_recipes"


def test_two_outputs_and_a_label_are_pairs() -> None:
    result = read("llmbar_natural.json")
    rows = json.loads(Path(path_of("llmbar_natural.json")).read_text(encoding="utf-8"))
    assert [(record.chosen, record.rejected) for record in result.records] == [
        (row[f"output_{row['label']}"], row[f"output_{3 - row['label']}"]) for row in rows
    ]
    assert (len(result.records), result.notes.ignored_columns) == (100, {})


@pytest.mark.parametrize("name", ["banking77_test.csv", "mt_bench_questions.jsonl"])
def test_files_without_preferences_are_refused_by_the_missing_field(name: str) -> None:
    with pytest.raises(UserError, match=r"field 'chosen' is missing; found '"):
        read(name)


SETTINGS: dict[str, Any] = {
    "on_long_prompt": OnBadRow.skip,
    "on_long_completion": OnLongCompletion.truncate,
    "on_extra_eos": OnBadRow.skip,
}


def test_cuts_and_skips_at_512_tokens_add_up() -> None:
    records: list[Any] = read(ULTRAFEEDBACK).records
    tokenizer = load_tokenizer()
    with pytest.raises(UserError, match=r":227: .* end-of-sequence token </s> 3 times"):
        tokenize_pairs(records, tokenizer, max_length=10**6, **SETTINGS | {"on_extra_eos": OnBadRow.refuse})
    result = tokenize_pairs(records, tokenizer, max_length=512, **SETTINGS)
    notes = result.notes
    assert notes.num_extra_eos_skipped == 4
    skipped = notes.num_long_prompt_skipped + notes.num_equal_skipped + notes.num_extra_eos_skipped
    assert notes.num_kept + skipped == 1000
    lengths = [
        (len(row["prompt_ids"]), len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])))
        for row in result.dataset
    ]
    assert all(prompt < 512 and total <= 512 for prompt, total in lengths)
    assert notes.num_truncated > 0


def test_real_pairs_have_the_ids_of_trl() -> None:
    trl = pytest.importorskip("trl")
    from types import SimpleNamespace

    from datasets import Dataset

    records: list[Any] = read(ULTRAFEEDBACK).records
    tokenizer = load_tokenizer()
    ours = tokenize_pairs(records, tokenizer, max_length=10**6, **SETTINGS).dataset
    kept = set(ours["source"])
    rows = [
        {"prompt": record.prompt, "chosen": record.chosen, "rejected": record.rejected}
        for record in records
        if record.source in kept
    ]
    args = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start")
    stub = SimpleNamespace(_tokenizer=tokenizer)
    theirs = trl.DPOTrainer._prepare_dataset(stub, Dataset.from_list(rows), tokenizer, args, "train")
    for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
        assert list(ours[name]) == list(theirs[name])


def test_the_loss_of_real_conversations_is_on_what_the_assistant_says() -> None:
    tokenizer = load_tokenizer()
    tokenizer.chat_template = CHATML
    records: list[Any] = read("llamafactory_glaive_toolcall_en_demo.json.gz", "sft").records
    result = tokenize_sft(records, tokenizer, max_length=10**6, loss_on=LossOn.completions, **SETTINGS)
    by_source = {record.source: record for record in records}
    assert result.notes.num_kept == len(records)
    for row in result.dataset:
        trained = tokenizer.decode([label for label in row["labels"] if label != -100])
        said = [
            message.get("content", "")
            + (json.dumps(message["tool_calls"], ensure_ascii=False) if "tool_calls" in message else "")
            for message in by_source[row["source"]].messages
            if message["role"] == "assistant"
        ]
        # Blanks aside: this tokenizer puts one of its own before text that follows a special token.
        assert "".join(trained.split()) == "".join("".join(f"{text}</s>" for text in said).split())
