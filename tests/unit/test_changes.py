"""What has changed between two attempts is named by its file; what was not recorded is not asked."""

from transformers import AutoTokenizer

from prefopt.data.origin import describe_origin
from prefopt.process.paths import shipped
from prefopt.runs.changes import find_changed_input

NEW = {
    "path": "./base",
    "commit": None,
    "sha256": {"config.json": "c", "model.safetensors": "w", "base/config.json": "b"},
    "fingerprint": "f",
}


def changed(**files: str | None) -> dict:
    digests = {**NEW["sha256"], **files}
    return {
        **NEW,
        "sha256": {name: digest for name, digest in digests.items() if digest is not None},
        "fingerprint": "g",
    }


def test_the_same_files_have_not_changed():
    assert (
        find_changed_input(
            {"model": NEW, "data": {"sha256": {"train": "a"}}}, {"model": NEW, "data": {"sha256": {"train": "a"}}}
        )
        is None
    )
    assert find_changed_input({}, {"model": NEW}) is None


def test_files_that_were_changed_removed_or_added_are_named():
    for name, digest in {
        "config.json": "x",
        "base/config.json": "x",
        "model.safetensors": None,
        "new.bin": "n",
    }.items():
        assert find_changed_input({"model": NEW}, {"model": changed(**{name: digest})}) == (
            f"model.path=./base has changed since this run began ({name}). Put it back as it was"
        )


def test_many_files_are_counted():
    many = changed(**{f"model-{number}.safetensors": "n" for number in range(9)})
    assert "model-3.safetensors and 5 more files)" in find_changed_input({"model": NEW}, {"model": many})


def test_a_run_of_an_earlier_version_is_asked_for_the_weights_alone_that_it_recorded():
    earlier = {"path": "./base", "revision": None, "sha256": {"model.safetensors": "w"}}
    assert find_changed_input({"model": earlier}, {"model": NEW}) is None
    assert "(model.safetensors)" in find_changed_input(
        {"model": earlier}, {"model": changed(**{"model.safetensors": "x"})}
    )
    assert find_changed_input({"model": {"path": "org/name", "revision": None}}, {"model": NEW}) is None
    tokens = {"sha256": {"train": "a"}}
    assert find_changed_input({"data": tokens}, {"data": {"sha256": {"train": "a", "neutral_texts": "n"}}}) is None


def test_another_commit_of_the_hub_is_told_with_the_setting_that_names_the_old_one():
    before, now = {**NEW, "commit": "aaa"}, {**changed(**{"config.json": "x"}), "commit": "bbb"}
    assert "it was commit aaa, which model.revision=aaa names" in find_changed_input({"model": before}, {"model": now})
    assert find_changed_input({"model": before}, {"model": {**NEW, "commit": "bbb"}}) is None, "the same files"


ORIGIN = {"files": {"train": "f", "held_out": "h"}, "tokenizer": "t", "reader": "r"}
TOKENS = {"sha256": {"train": "a", "held_out": "b", "neutral_texts": "c", "pairs": "d"}}


def told(before: dict, now: dict, **attempt: object) -> str | None:
    """What is said of two attempts on data of different tokens; `attempt` is added to the second."""
    old = {"versions": {"prefopt": "1"}, "git_commit": "old", "data": {**TOKENS, **before}}
    tokens = {"sha256": {"train": "a", "held_out": "x"}}
    return find_changed_input(old, {**old, "data": {**tokens, **now}, **attempt})


ALL = "the held-out data and evaluation.neutral_texts and evaluation.pairs"


def test_all_data_whose_file_was_changed_are_named():
    assert told(ORIGIN, {**ORIGIN, "files": {"train": "f", "held_out": "new"}}, git_commit="new") == (
        f"{ALL} have changed since this run began (other tokens). Put it back as it was"
    )


def test_of_the_same_files_that_are_read_otherwise_nobody_says_that_they_have_changed():
    for attempt, how in (
        ({"versions": {"prefopt": "2"}, "git_commit": "new"}, " (prefopt 1 -> 2; commit old -> new)"),
        ({"git_commit": "new"}, " (commit old -> new)"),
        ({}, ""),
    ):
        assert told(ORIGIN, {**ORIGIN, "reader": "s"}, **attempt) == (
            f"{ALL} are as when this run began, but this version reads them otherwise{how}. "
            "Go on with the version that began it"
        )


def test_another_tokenizer_is_told_as_such():
    assert told(ORIGIN, {**ORIGIN, "tokenizer": "u"}).startswith(
        "the tokenizer or its chat template has changed since"
    )


def test_tokens_that_differ_though_all_is_as_it_was_are_laid_to_the_clock():
    assert "does the chat template write the date?" in told(ORIGIN, ORIGIN, git_commit="of another project")


def test_where_no_files_were_recorded_both_causes_are_told():
    for before in ({}, {**ORIGIN, "files": {"train": None}}):
        assert told(before, {**ORIGIN, "reader": "s"}, git_commit="new") == (
            f"{ALL} have changed since this run began (other tokens), or this version reads them otherwise "
            "(commit old -> new). Put it back as it was, go on with the version that began it"
        )
    assert told({"files": {"train": None}}, {"files": {"train": None}}).endswith(
        "(other tokens). Put it back as it was"
    )


def test_the_origin_of_data_is_the_content_of_all_their_files(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(str(shipped("assets/base_model")))
    (tmp_path / "set").mkdir()
    for name in ("a.jsonl", "b.jsonl", "set/c.arrow"):
        (tmp_path / name).write_text(name)
    specs = {"train": [f"{tmp_path}/*.jsonl"], "held_out": str(tmp_path / "set"), "pairs": "hub:a/b", "other": None}
    before = describe_origin(specs, tokenizer)
    assert before == describe_origin(specs, tokenizer)
    assert list(before["files"]) == ["train", "held_out", "pairs"]
    assert before["files"]["pairs"] is None
    (tmp_path / "set" / "c.arrow").write_text("x")
    after = describe_origin(specs, tokenizer)
    assert [name for name in before["files"] if before["files"][name] != after["files"][name]] == ["held_out"]
    tokenizer.chat_template = "x"
    assert describe_origin(specs, tokenizer)["tokenizer"] != before["tokenizer"]
