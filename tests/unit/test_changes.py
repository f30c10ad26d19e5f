"""What has changed between two attempts is named by its file; what was not recorded is not asked."""

from prefopt.tracking.changes import find_changed_input

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
            f"model.path=./base has changed since this run began ({name})"
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


def test_all_data_that_has_changed_is_named():
    before = {"data": {"sha256": {"train": "a", "held_out": "b", "neutral_texts": "c", "pairs": "d"}}}
    now = {"data": {"sha256": {"train": "a", "held_out": "x", "neutral_texts": "x"}}}
    assert find_changed_input(before, now) == (
        "the held-out data and evaluation.neutral_texts and evaluation.pairs have changed since this run began "
        "(other tokens)"
    )
