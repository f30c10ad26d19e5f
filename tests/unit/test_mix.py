"""Mixtures: which rows of each part are used, and how often each is seen in an epoch."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefopt.config.load import differences, fingerprint, load_config
from prefopt.config.mixture import parts_of, paths_of
from prefopt.config.schema import DataConfig
from prefopt.data.loading import Splits, read_pairs, read_splits
from prefopt.data.sources import digest_files
from prefopt.evaluation.material import Material, Split
from prefopt.evaluation.measure import Measured
from prefopt.evaluation.metrics import ACCURACY, BASE, MARGIN, TUNED
from prefopt.evaluation.report import Report
from prefopt.evaluation.scoring import PairScores, Scores
from prefopt.evaluation.statistics import Bootstrap, Prompts, share
from prefopt.evaluation.summary import Summary
from prefopt.process.errors import UserError
from prefopt.reports.sections import slices_table


def rows(name: str, num_prompts: int = 20, per_prompt: int = 2) -> list[dict[str, str]]:
    return [
        {"prompt": f"{name} {p}", "chosen": f"good {r}", "rejected": "bad"}
        for p in range(num_prompts)
        for r in range(per_prompt)
    ]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    found = {}
    for name in ("chat", "style"):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows(name)))
        found[name] = str(path)
    return found


def read(train: Any, **settings: Any) -> Splits:
    return read_splits(DataConfig(train=train, **{"held_out_fraction": 0, **settings}), kind="preference", seed=0)


def seen(splits: Splits) -> Counter[str]:
    return Counter(record.slice for record in splits.train)


@pytest.mark.parametrize(("weight", "num_rows"), [(0.5, 20), (1, 40), (1.5, 60), (2, 80), (0.25, 10)])
def test_a_part_is_seen_as_often_as_its_weight_says(files: dict[str, str], weight: float, num_rows: int) -> None:
    splits = read([{"path": files["chat"], "weight": weight}, files["style"]])
    assert seen(splits) == {"chat": num_rows, "style": 40}
    times = Counter(record.source for record in splits.train if record.slice == "chat")
    assert set(times.values()) <= {int(weight), int(weight) + 1}


def test_a_part_whose_weight_and_limit_are_null_is_used_once_and_whole(files: dict[str, str]) -> None:
    splits = read([{"path": files["chat"], "weight": None, "max_rows": None, "name": None}])
    assert len(splits.train) == len(read([{"path": files["chat"]}]).train)


def test_a_broken_weight_takes_whole_prompts(files: dict[str, str]) -> None:
    splits = read([{"path": files["chat"], "weight": 0.5}])
    assert set(Counter(record.prompt for record in splits.train).values()) == {2}


@pytest.mark.parametrize("part", [{"weight": 0.5}, {"max_rows": 15}])
def test_what_is_chosen_depends_on_the_seed_but_not_on_the_order_on_disk(tmp_path: Path, part: dict[str, Any]) -> None:
    def chosen(order: list[dict[str, str]], seed: int) -> set[tuple[Any, Any]]:
        path = tmp_path / "a.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in order))
        train = read([{"path": str(path), **part}], shuffle_seed=seed).train
        return {(record.prompt, record.chosen) for record in train}  # type: ignore[union-attr]

    mixed = rows("a")
    random.Random(1).shuffle(mixed)
    assert chosen(rows("a"), 5) == chosen(mixed, 5) != chosen(mixed, 6)


def test_without_a_seed_the_first_rows_are_kept(files: dict[str, str]) -> None:
    assert [record.source for record in read(files["chat"], max_rows=3).train] == [
        f"{files['chat']}:{line}" for line in (1, 2, 3)
    ]
    both = read([{"path": files["chat"], "max_rows": 2}, {"path": files["style"], "max_rows": 3}], max_rows=4)
    assert seen(both) == {"chat": 2, "style": 2}
    assert read(files["chat"], max_rows=10**6).train == read(files["chat"]).train


def test_held_out_rows_are_never_repeated_and_share_no_prompt_with_training(files: dict[str, str]) -> None:
    parts = [{"path": files["chat"], "weight": 3}, {"path": files["style"], "weight": 0.5}]
    splits = read(parts, held_out_fraction=0.3)
    held_out = splits.held_out or []
    assert set(Counter(record.source for record in held_out).values()) == {1}
    assert not {record.prompt for record in held_out} & {record.prompt for record in splits.train}
    once = read([files["chat"], files["style"]], held_out_fraction=0.3)
    assert [record.source for record in held_out] == [record.source for record in once.held_out or []]
    notes = splits.notes.slices
    assert notes["train"]["chat"].num_records == seen(splits)["chat"]
    assert sum(each.num_records for each in notes["held_out"].values()) == len(held_out)
    assert any("part 'chat'" in line and "weight 3" in line for line in splits.notes.lines())


@pytest.mark.parametrize("held_out", [None, "held_out", "mixture"])
def test_a_mixture_that_is_measured_later_has_its_own_parts_and_limits(
    files: dict[str, str], tmp_path: Path, held_out: str | None
) -> None:
    paths = {}
    for name in ("own", "other", "more"):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows(name)))
        paths[name] = str(path)
    own = {None: None, "held_out": paths["own"], "mixture": [{"path": paths["own"], "name": "own"}]}[held_out]
    config = DataConfig(train=files["chat"], held_out=own)
    measured = [{"path": paths["other"], "max_rows": 3}, {"path": paths["more"]}]
    splits = read_splits(config, kind="preference", seed=0, measured=measured)
    assert Counter(record.slice for record in splits.held_out or []) == {"other": 3, "more": len(rows("more"))}
    assert splits.notes.slices["held_out"]["other"].num_records == 3
    pairs = read_pairs(DataConfig(train=measured), splits.train).train
    assert Counter(record.slice for record in pairs) == {"other": 3, "more": len(rows("more"))}


def test_the_simple_forms_have_no_parts(files: dict[str, str]) -> None:
    splits = read([files["chat"], files["style"]])
    assert seen(splits) == {"": 80}
    assert splits.notes.slices == {}


def test_names_are_those_of_the_files_and_differ() -> None:
    spec = [{"path": "a/chat.jsonl.gz"}, {"path": "b/chat.jsonl"}, "hub:me/set:train", "x/*.jsonl", {"path": "y.csv"}]
    assert [part.name for part in parts_of(spec, "data.train")] == ["a/chat", "b/chat", "me/set:train", "x", "y"]
    assert paths_of(spec) == ["a/chat.jsonl.gz", "b/chat.jsonl", "hub:me/set:train", "x/*.jsonl", "y.csv"]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([{"path": "a", "wieght": 2}], "data.train: a part has no key wieght; .* Did you mean weight"),
        ([{"weight": 2}], "a part needs a path"),
        ([{"path": "a", "weight": 0}], "data.train: a: weight must be above 0"),
        ([{"path": "a", "weight": "2"}], "weight must be above 0"),
        ([{"path": "a", "max_rows": 0}], "max_rows must be >= 1"),
        ([{"path": "a", "name": "x"}, {"path": "b", "name": "x"}], "two parts have the name 'x'"),
    ],
)
def test_a_wrong_part_is_told_before_anything_is_read(train: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        DataConfig(train=train)


def test_settings_without_effect_are_refused() -> None:
    with pytest.raises(UserError, match=r"data.held_out: a: weight=2: rows are weighted in data.train only"):
        DataConfig(train="a", held_out=[{"path": "a", "weight": 2}])
    with pytest.raises(UserError, match=r"data.shuffle_seed=1 has no effect"):
        DataConfig(train="a", shuffle_seed=1)


def test_a_mixture_is_typed_on_the_command_line_and_is_part_of_the_identity() -> None:
    line = "data.train=[{path: chat.jsonl, weight: 0.5}, {path: style.jsonl, name: style, max_rows: 1000}]"
    config = load_config(["data=files", line])
    assert [(part.name, part.weight, part.max_rows) for part in parts_of(config.data.train, "data.train")] == [
        ("chat", 0.5, None),
        ("style", 1.0, 1000),
    ]
    other = load_config(["data=files", line.replace("0.5", "2")])
    same = load_config(["data=files", line.replace("chat.jsonl", "./chat.jsonl")])
    assert fingerprint(config) != fingerprint(other)
    assert differences(config, other)
    assert not differences(config, same), "two spellings of a path are one"


def test_the_digest_of_a_mixture_is_that_of_its_files(files: dict[str, str]) -> None:
    simple = [files["chat"], files["style"]]
    assert digest_files([{"path": path, "weight": 2} for path in simple]) == digest_files(simple)


def test_metrics_of_a_part_are_those_of_its_pairs_alone() -> None:
    def scored(margins: list[float]) -> Measured:
        chosen = Scores(np.array(margins), np.ones(len(margins)))
        rejected = Scores(np.zeros(len(margins)), np.ones(len(margins)))
        return Measured(PairScores(chosen, rejected), None, None, None, None, [], [])

    base, tuned = [1.0, -1, -1, -1, 1, -1], [1.0, 2, 3, -1, 1, -2]
    slices = ["a", "b", "a", "b", "a", "b"]
    prompts = Prompts.all_different(6)
    material = Material(Split(pairs=object(), pair_prompts=prompts), Split(), [], [], [], [], slices)
    measured = {TUNED: scored(tuned), BASE: scored(base)}
    found = Summary(measured, material, beta=None, bootstrap=Bootstrap(50, 0)).slices()
    assert [(each["name"], each["n"]) for each in found] == [("a", 3), ("b", 3)]
    assert found[0][ACCURACY] == share(np.array([True, True, True]))
    assert found[1][MARGIN].num_prompts == 3, "the prompts of other parts are not counted"
    assert found[1]["base"][ACCURACY].value == 0
    assert found[1]["gain"][ACCURACY].value == pytest.approx(1 / 3)

    report = Report(slices=found)
    again = Report.from_dict(json.loads(json.dumps(report.to_dict())))
    table = slices_table(again)
    assert table is not None
    assert [row.label for row in table.rows] == ["a", "b"]
    assert slices_table(Report(slices=found[:1])) is None
    assert "slices" not in Report().to_dict()


def test_parts_may_have_formats_of_their_own(files: dict[str, str], tmp_path: Path) -> None:
    other = tmp_path / "swift.jsonl"
    turns = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "yes"}]
    other.write_text(json.dumps({"messages": turns, "rejected_response": "no"}) + "\n")
    assert seen(read([{"path": files["chat"]}, {"path": str(other)}])) == {"chat": 40, "swift": 1}
    implicit = tmp_path / "implicit.jsonl"
    implicit.write_text(json.dumps({"chosen": "Q? It is so.", "rejected": "Q? It is not."}) + "\n")
    with pytest.raises(UserError, match="give those of all parts a column 'prompt'"):
        read([{"path": files["chat"]}, {"path": str(implicit)}])
