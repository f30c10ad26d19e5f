"""Tags of rows (`data.tag`): read, folded, and told by the audit and the report."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefopt.config.algorithms import Kind
from prefopt.config.choices import CheckName
from prefopt.config.load import load_config
from prefopt.config.schema import DataConfig
from prefopt.data.audit.engine import run_checks
from prefopt.data.defects import record_key
from prefopt.data.loading import Splits, read_splits
from prefopt.data.tags import MAX_TAGS, UNTAGGED, fold_tags
from prefopt.evaluation.material import Material, Split, _tags_of
from prefopt.evaluation.measure import Measured
from prefopt.evaluation.metrics import ACCURACY, BASE, TUNED
from prefopt.evaluation.scoring import PairScores, Scores
from prefopt.evaluation.statistics import Bootstrap, Prompts
from prefopt.evaluation.summary import Summary
from prefopt.process.errors import UserError
from tests.audit_rows import pair, rows_of

PAIR = {"prompt": "p", "chosen": "y", "rejected": "n"}


def read(tmp_path: Path, *rows: dict[str, Any], kind: Kind = "preference", tag: str | None = "topic") -> Splits:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_splits(DataConfig(train=str(path), held_out_fraction=0, tag=tag), kind=kind, seed=0)


@pytest.mark.parametrize("kind", ["preference", "sft"])
def test_a_tag_is_kept_and_is_nothing_that_a_model_could_see(tmp_path: Path, kind: Kind) -> None:
    row = PAIR if kind == "preference" else {"completion": "c"}
    values = ["billing", 3, True, " padded ", None]
    rows = [{**row, "prompt": f"p{number}", "topic": value} for number, value in enumerate(values)]
    splits = read(tmp_path, *rows, {**row, "prompt": "last"}, kind=kind)
    assert [record.tag for record in splits.train] == ["billing", "3", "true", "padded", "", ""]
    assert splits.notes.read["train"].ignored_columns == {}
    plain = read(tmp_path, *rows, {**row, "prompt": "last"}, kind=kind, tag=None)
    assert [replace(record, tag="") for record in splits.train] == list(plain.train)
    assert [*map(record_key, splits.train)] == [*map(record_key, plain.train)]
    assert plain.notes.read["train"].ignored_columns == {"topic": 4}


def test_a_tag_that_no_row_has_is_refused_with_the_columns_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.tag=topic: no row of data.train has such a .*'theme'.*: name one"):
        read(tmp_path, {**PAIR, "theme": "x"})
    with pytest.raises(UserError, match=r"a.jsonl:1: data.tag: 'topic' must be text, .* found a list"):
        read(tmp_path, {**PAIR, "topic": ["x", "y"]})
    with pytest.raises(UserError, match=r"data.tag: must be the name of a column"):
        DataConfig(train="x.jsonl", tag="")


def test_a_file_of_broken_rows_is_not_said_to_lack_the_column(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("{broken\n")
    with pytest.raises(UserError, match=r"a.jsonl:1: invalid JSON"):
        read_splits(DataConfig(train=str(path), tag="topic"), kind="preference", seed=0)


def test_of_a_pair_of_two_rows_the_later_one_has_the_tag(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completion": str(label), "label": label, "topic": f"{label}"} for label in (True, False)]
    (record,) = read(tmp_path, *rows).train
    assert record.tag == "False"


def test_runs_without_tags_keep_their_names() -> None:
    names = [load_config(["data=files", "data.train=x.jsonl", *more]).run.name for more in ([], ["data.tag=topic"])]
    assert names[0] != names[1]
    assert load_config(["data=files", "data.train=x.jsonl", "data.tag=null"]).run.name == names[0]


@given(st.lists(st.integers(0, 60).map(lambda number: "" if number == 0 else f"t{number}")))
def test_the_most_frequent_tags_are_told_and_the_others_together(tags: list[str]) -> None:
    folded = fold_tags(tags)
    counts = Counter(tags)
    kept = {tag for tag, name in zip(tags, folded, strict=True) if name == (tag or UNTAGGED)}
    others = counts.keys() - kept
    assert len(kept) == (len(counts) if len(counts) <= MAX_TAGS + 1 else MAX_TAGS)
    assert all(counts[other] <= counts[tag] for other in others for tag in kept)
    assert {name for tag, name in zip(tags, folded, strict=True) if tag in others} <= {f"({len(others)} others)"}


def test_the_audit_names_the_rows_of_a_tag_in_which_a_finding_is_frequent() -> None:
    fine, same = ("yes", "no"), ("yes", "yes")
    tagged = [("billing", fine)] * 95 + [("billing", same)] * 5 + [("", same)] * 20 + [("", fine)] * 20
    rows = [
        replace(pair(f"question {line}", *sides, line), tag=tag) for line, (tag, sides) in enumerate(tagged, start=1)
    ]
    wanted = [CheckName.identical, CheckName.slices]
    finding = run_checks({"train": rows, "held_out": rows[:1]}, kind="preference", only=wanted)[CheckName.slices].found
    assert finding is not None
    assert rows_of(finding) == list(range(100, 120))
    assert finding.values == {
        "tags": [
            {"name": "billing", "rows": 100, "findings": {"identical": 0.05}},
            {"name": UNTAGGED, "rows": 40, "findings": {"identical": 0.5}},
        ],
        "num_tags": 2,
        "uneven": [{"check": "identical", "tag": UNTAGGED}],
    }
    assert finding.summary.startswith("2 tags, the largest has 71.4% of the training rows; identical is in 50.0% of")
    assert finding.remedy.startswith("Mend that tag")


def test_sources_and_tags_are_compared_side_by_side() -> None:
    rows = [replace(pair(line=line), slice="ab"[line % 2], tag="xyz"[line % 3]) for line in range(12)]
    finding = run_checks({"train": rows, "held_out": rows[:1]}, kind="preference", only=[CheckName.slices])
    found = finding[CheckName.slices].found
    assert found is not None
    assert [each["name"] for each in found.values["sources"]] == ["a", "b"]
    assert [each["rows"] for each in found.values["tags"]] == [4, 4, 4]
    assert found.summary.count("the largest has") == 2


def test_the_report_has_the_held_out_results_of_each_tag() -> None:
    tags = ["x", "y", "x", ""]
    records = [replace(pair(line=line), tag=tag) for line, tag in enumerate(tags)]
    held_out: Any = {"source": [record.source for record in reversed(records)]}
    examples: Any = SimpleNamespace(records=SimpleNamespace(held_out=records))
    assert _tags_of(held_out, examples, None) == []
    named = _tags_of(held_out, examples, "topic")
    assert named == ["topic=(none)", "topic=x", "topic=y", "topic=x"]
    margins = np.array([1.0, -1.0, 1.0, 1.0])
    scores = PairScores(Scores(margins, np.ones(4)), Scores(np.zeros(4), np.ones(4)))
    measured = Measured(scores, None, None, None, None, [], [])
    parts = ["a", "b", "a", "b"]
    split = Split(pairs=object(), pair_prompts=Prompts.all_different(4))
    material = Material(split, Split(), [], [], [], [], slices=parts, tags=named)
    summary = Summary({BASE: measured, TUNED: measured}, material, beta=None, bootstrap=Bootstrap(50, 0))
    found = {each["name"]: (each["n"], each[ACCURACY].value) for each in summary.slices()}
    assert found == {
        "a": (2, 1.0), "b": (2, 0.5), "topic=(none)": (1, 1.0), "topic=x": (2, 0.5), "topic=y": (1, 1.0),
    }  # fmt: skip
