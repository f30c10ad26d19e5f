"""Rows that cannot be used: one error tells all of them, or all are left out and counted."""

import json
from pathlib import Path
from typing import Any

import pytest

from prefopt.config.choices import OnBadRow
from prefopt.config.load import fingerprint, load_config
from prefopt.config.schema import DataConfig
from prefopt.data.bad_rows import MAX_CLASSES, BadRows, require_usable
from prefopt.data.loading import Splits, read_splits
from prefopt.data.token_splits import load_tokenized
from prefopt.process.errors import UserError
from tests.unit.test_tokenize import build_tokenizer

GOOD = [{"prompt": f"Question {n}?", "chosen": f"Yes {n}.", "rejected": "No."} for n in range(20)]
SKIP = OnBadRow.skip
BAD_LINES = {
    "broken": '{"prompt": "x", "chosen": ',
    "no object": "[1]",
    "missing": '{"prompt": "x", "chosen": "y"}',
    "not text": '{"prompt": "x", "chosen": 5, "rejected": "n"}',
    "repeated": '{"prompt": "x", "prompt": "z", "chosen": "y", "rejected": "n"}',
    "empty": '{"prompt": "e", "chosen": "", "rejected": "n"}',
    "identical": '{"prompt": "i", "chosen": "same", "rejected": "same"}',
    "messages": json.dumps(
        {
            "prompt": [{"role": "user", "content": "x"}],
            "chosen": [{"role": "assistant", "content": "y"}],
            "rejected": [{"role": "assistant", "content": "n"}],
        }
    ),
}


def write(path: Path, rows: list[Any], bad: list[str] = []) -> str:  # noqa: B006
    path.write_text("".join(f"{line}\n" for line in [*map(json.dumps, rows), *bad]), encoding="utf-8")
    return str(path)


def read(train: str, kind: str = "preference", **settings: Any) -> Splits:
    return read_splits(DataConfig(train=train, **settings), kind=kind, seed=0)  # type: ignore[arg-type]


def refusal(train: str, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(train, **settings)
    return str(caught.value)


def test_one_error_tells_every_defect_of_all_files(tmp_path: Path) -> None:
    train = write(tmp_path / "a.jsonl", GOOD, list(BAD_LINES.values()))
    held_out = write(tmp_path / "b.jsonl", [{**GOOD[0], "prompt": "other"}, GOOD[3]], [BAD_LINES["empty"]])
    told = refusal(train, held_out=held_out)
    for number in range(21, 29):
        assert f"a.jsonl:{number}" in told
    assert "b.jsonl:3: this row has an empty completion" in told
    assert "a.jsonl:4: this training row has the same prompt as the held-out row" in told
    assert told.startswith("data: 10 of 31 rows cannot be used")
    for setting in ("data.on_bad=skip", "data.on_empty=skip", "data.on_identical=skip", "data.on_overlap=skip"):
        assert setting in told


def test_the_setting_that_the_error_names_reads_the_rest_and_counts_each_kind(tmp_path: Path) -> None:
    train = write(tmp_path / "a.jsonl", GOOD, list(BAD_LINES.values()))
    held_out = write(tmp_path / "b.jsonl", [{**GOOD[0], "prompt": "other"}, GOOD[3]], [BAD_LINES["empty"]])
    splits = read(train, held_out=held_out, on_bad=SKIP)
    assert [record.prompt for record in splits.train] == [row["prompt"] for row in GOOD if row != GOOD[3]]
    notes = splits.notes.read["train"]
    counts = (notes.num_unreadable_skipped, notes.num_other_shape_skipped, notes.num_empty_skipped)
    assert (*counts, notes.num_identical_skipped, splits.notes.num_overlap_skipped) == (5, 1, 1, 1, 1)
    assert notes.num_rows == 28
    assert "a.jsonl:21: invalid JSON" in notes.first_unreadable
    assert any("5 rows skipped that cannot be read, first" in line for line in splits.notes.lines())


@pytest.mark.parametrize("name", BAD_LINES)
def test_each_defect_alone_is_refused_by_its_place_and_skipped_on_request(tmp_path: Path, name: str) -> None:
    train = write(tmp_path / "a.jsonl", GOOD, [BAD_LINES[name]])
    assert refusal(train).startswith(f"{train}:21: ")
    assert len(read(train, on_bad=SKIP, held_out_fraction=0).train) == len(GOOD)


def test_a_switch_of_its_own_wins_over_on_bad(tmp_path: Path) -> None:
    train = write(tmp_path / "a.jsonl", GOOD, [BAD_LINES["empty"], BAD_LINES["identical"]])
    assert "a.jsonl:21" in refusal(train, on_bad=SKIP, on_empty=OnBadRow.refuse)
    told = refusal(train, on_bad=OnBadRow.refuse, on_empty=SKIP)
    assert "a.jsonl:22" in told
    assert "a.jsonl:21" not in told


@pytest.mark.parametrize("name", ["missing", "broken", "empty"])
def test_a_file_of_mostly_bad_rows_is_told_to_be_misread(tmp_path: Path, name: str) -> None:
    train = write(tmp_path / "a.jsonl", GOOD, [BAD_LINES[name]] * 21)
    assert "would leave out 21 of 41 rows, such as" in refusal(train, on_bad=SKIP)
    assert "data.on_bad=skip" not in refusal(train), "no remedy that would be refused"


def test_a_table_goes_on_after_a_row_with_a_cell_too_few(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,chosen,rejected\na,b,c\nd,e\nf,g,h\n")
    assert refusal(str(path)).startswith(f"{path}:row 2: the header has 3 columns, this row has 2.")
    assert [record.prompt for record in read(str(path), on_bad=SKIP, held_out_fraction=0).train] == ["a", "f"]


def test_answers_to_avoid_are_left_out_of_demonstrations(tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{n}", "completion": f"A{n}", "label": n % 3 > 0} for n in range(9)]
    train = write(tmp_path / "a.jsonl", rows)
    assert "(so in 3 rows, also" in refusal(train, kind="sft")
    splits = read(train, kind="sft", on_bad=SKIP, held_out_fraction=0)
    assert [record.prompt for record in splits.train] == [f"Q{n}" for n in range(9) if n % 3]
    assert splits.notes.read["train"].num_unwanted_skipped == 3


@pytest.mark.parametrize(
    "question",
    ["it's (not", 'a "quoted" (cut', "long enough to be cut at the end. " * 3 + "(1", "\n" * 99 + "x"],
    ids=["bracket", "quote", "cut", "escape"],
)
def test_texts_of_the_data_do_not_make_two_classes_of_one_defect(question: str, tmp_path: Path) -> None:
    transcripts = [
        {"chosen": f"Human: {text}?\n\nAssistant: Yes.", "rejected": f"Human: {text}?\n\nAssistant: No."}
        for text in ("plain", question, "(whole)")
    ]
    config = DataConfig(train=write(tmp_path / "rows.jsonl", transcripts), held_out_fraction=0.0, as_chat=True)
    with pytest.raises(UserError, match=r"^[^ ]*rows.jsonl:1: .*so in 3 rows"):
        read_splits(config, kind="preference", seed=0)


def test_memory_is_bounded_however_many_rows_are_bad() -> None:
    bad = BadRows("data.train", DataConfig(train="a.jsonl"))
    for number in range(1000):
        bad.add(f"a.jsonl:{number}", "x" * (number % 50))
    assert len(bad.refused()) <= MAX_CLASSES + 1
    assert sum(each.count for each in bad.refused()) == 1000
    assert all(len(each.places) <= 4 for each in bad.refused())
    with pytest.raises(UserError, match="1,000 of 0 rows"):
        require_usable(bad)


def tokenized(train: str, **settings: Any) -> Splits:
    config = DataConfig(train=train, held_out_fraction=0.3, **settings)
    splits = read_splits(config, kind="preference", seed=0)
    load_tokenized(splits, build_tokenizer(), config)
    return splits


def test_defects_of_tokens_are_told_together_too(tmp_path: Path) -> None:
    eos = build_tokenizer().eos_token
    train = write(
        tmp_path / "a.jsonl",
        [*GOOD, {**GOOD[0], "chosen": f"a{eos}b"}, {**GOOD[1], "prompt": "Question 1? " * 50}, GOOD[2]],
    )
    with pytest.raises(UserError) as caught:
        tokenized(train, max_length=60)
    told = str(caught.value)
    assert f"a.jsonl:21: a completion has the end-of-sequence token {eos}" in told
    assert "a.jsonl:22: the prompt has" in told
    assert "data.on_bad=skip (or some of them: data.on_" in told
    notes = tokenized(train, max_length=60, on_bad=SKIP).notes.tokenized
    assert sum(each.num_extra_eos_skipped for each in notes.values()) == 1
    assert sum(each.num_long_prompt_skipped for each in notes.values()) == 1


def test_a_chat_that_the_template_refuses_is_one_bad_row_of_its_chunk(tmp_path: Path) -> None:
    def pair(number: int, role: str = "user") -> dict[str, Any]:
        said = [[{"role": "assistant", "content": text}] for text in ("yes", "no")]
        prompt = [{"role": role, "content": f"Q{number}"}, *([{"role": "user", "content": "x"}] * (role != "user"))]
        return {"prompt": prompt, "chosen": said[0], "rejected": said[1]}

    train = write(tmp_path / "a.jsonl", [pair(n, "system" if n == 4 else "user") for n in range(9)])
    tokenizer = build_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ m.role }}: {{ m.content }}\n{% endfor %}"
    )
    for on_bad, fails in ((None, True), (SKIP, False)):
        config = DataConfig(train=train, held_out_fraction=0, on_bad=on_bad)
        splits = read_splits(config, kind="preference", seed=0)
        if fails:
            with pytest.raises(UserError, match=r"a.jsonl:5: the chat template refuses this row: no system"):
                load_tokenized(splits, tokenizer, config)
        else:
            table = load_tokenized(splits, tokenizer, config).train
            assert [int(source.rpartition(":")[2]) for source in table["source"]] == [1, 2, 3, 4, 6, 7, 8, 9]
            assert splits.notes.tokenized["train"].num_unreadable_skipped == 1


def test_runs_are_named_as_before_the_setting_existed() -> None:
    unset, refuse = load_config(["+experiment=dpo_brand_voice"]), ["data.on_empty=refuse", "data.on_overlap=refuse"]
    assert fingerprint(unset) == fingerprint(load_config(["+experiment=dpo_brand_voice", *refuse]))
    assert fingerprint(unset) != fingerprint(load_config(["+experiment=dpo_brand_voice", "data.on_bad=skip"]))


def test_counts_of_more_defects_than_are_told_apart_do_not_depend_on_blocks() -> None:
    words = [f"defect {chr(97 + number)}" for number in range(MAX_CLASSES + 3)]
    rows = [*enumerate(words), *enumerate(reversed(words), start=20), *enumerate(words[:2], start=40)]
    one, merged = (BadRows("data.train", DataConfig(train="x")) for _ in range(2))
    for number, word in rows:
        one.add(f"a:{number}", word)
    for start in range(0, len(rows), 11):
        block = merged.empty()
        for number, word in rows[start : start + 11]:
            block.add(f"a:{number}", word)
        merged.merge(block)
    told = {each.found: each.count for each in merged.refused()}
    assert told == {each.found: each.count for each in one.refused()}
    assert told.pop(words[MAX_CLASSES]) == 6
    assert f"{words[MAX_CLASSES]} (and other defects, in 6 rows, also a:9, " in " ".join(map(str, merged.refused()))
    assert told == {word: 3 if word in words[:2] else 2 for word in words[:MAX_CLASSES]}
