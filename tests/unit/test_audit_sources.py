"""Margins of scores, and findings by source: counted by hand."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from prefopt.config.choices import CheckName
from prefopt.config.gate import GateConfig
from prefopt.data.audit import slices
from prefopt.data.audit.audit import as_entry
from prefopt.data.audit.engine import Outcome, run_checks
from prefopt.data.audit.finding import Finding
from prefopt.data.records import PreferencePair
from tests.audit_rows import found, pair, rows_of, run


def scored(*margins: float | None) -> list[PreferencePair]:
    return [replace(pair(line=line), margin=margin) for line, margin in enumerate(margins, start=1)]


def test_pairs_whose_scores_hardly_differ_or_contradict_the_label_are_found_the_worst_first() -> None:
    rows = scored(2.0, -0.5, 2.0, 0.0, 0.1, None, 0.11, -3.0, 2.0, 2.0)
    finding = found("score_margin", rows)
    assert rows_of(finding) == [1, 3, 4, 7]
    assert (finding.num_rows, finding.share) == (9, 4 / 9)
    assert [finding.values[name] for name in ("below", "ties", "unscored")] == [2, 2, 1]
    assert [example.source for example in finding.examples] == [f"rows.jsonl:{line}" for line in (8, 2, 4, 5)]
    assert finding.examples[0].detail == "chosen is scored 3 below rejected"
    assert sum(finding.values["margins"]["counts"]) == 9
    assert Finding.of(as_entry(CheckName.score_margin, finding), GateConfig()).level == "warning"
    parts = found("score_margin", rows, chunk_rows=3)
    assert (parts.summary, parts.examples, rows_of(parts)) == (finding.summary, finding.examples, rows_of(finding))


def test_the_margin_that_is_advised_leaves_out_the_pairs_that_are_told_and_no_other() -> None:
    rows = scored(1.0, 2.0, 4.0, 0.1, 0.1001, -1.0, 2.0, 0.2)
    finding = found("score_margin", rows)
    least = float(finding.remedy.partition("data.min_margin=")[2].partition(" ")[0])
    assert [row for row, each in enumerate(rows) if (each.margin or 0) < least] == rows_of(finding)


def test_scores_that_are_swapped_for_most_pairs_are_said_to_be() -> None:
    assert "swapped" in found("score_margin", scored(-1.0, -2.0, 1.0)).remedy


def test_no_setting_is_advised_that_would_refuse_rows_without_scores() -> None:
    assert "data.min_margin" not in found("score_margin", scored(1.0, 0.0, None)).remedy


def test_of_scores_that_are_all_equal_all_are_ties() -> None:
    assert found("score_margin", scored(0.0, 0.0)).share == 1


def test_rows_without_scores_are_not_judged() -> None:
    told = run("score_margin", scored(None, None))
    assert isinstance(told, str)
    assert "score_chosen" in told


def sourced(parts: dict[str, Sequence[tuple[str, str]]]) -> list[PreferencePair]:
    sides = [(name, *each) for name, part in parts.items() for each in part]
    return [
        replace(pair(f"question {line}", chosen, rejected, line), slice=name)
        for line, (name, chosen, rejected) in enumerate(sides, start=1)
    ]


def audit_sources(rows: Sequence[PreferencePair]) -> Outcome:
    wanted = [CheckName.identical, CheckName.empty, CheckName.slices]
    return run_checks({"train": rows, "held_out": rows[:1]}, kind="preference", only=wanted)[CheckName.slices]


def test_a_finding_that_is_frequent_in_one_source_names_its_rows_there() -> None:
    fine, same, empty = ("yes", "no"), ("yes", "yes"), ("yes", "")
    rows = sourced({"clean": [fine] * 88 + [same, empty] * 6, "bad": [same] * 20 + [fine] * 14 + [empty] * 6})
    finding = audit_sources(rows).found
    assert finding is not None
    assert rows_of(finding) == list(range(100, 120))
    assert finding.share == 20 / 140
    assert finding.values["uneven"] == [{"check": "identical", "source": "bad"}]
    by_name = {each["name"]: each for each in finding.values["sources"]}
    assert by_name["bad"] == {"name": "bad", "rows": 40, "findings": {"identical": 0.5, "empty": 0.15}}
    assert by_name["clean"]["findings"] == {"identical": 0.06, "empty": 0.06}
    assert "identical is in 50.0% of bad, in 6.0% of the others" in finding.summary


def test_sources_that_are_alike_are_counted_and_nothing_is_found() -> None:
    finding = audit_sources(sourced({name: [("yes", "no")] * 9 + [("yes", "yes")] for name in "abc"})).found
    assert finding is not None
    assert (finding.count, finding.share, finding.remedy) == (0, 0, "")
    assert [each["rows"] for each in finding.values["sources"]] == [10, 10, 10]


def test_few_rows_are_no_evidence_against_a_source() -> None:
    finding = audit_sources(sourced({"a": [("yes", "no")] * 500, "b": [("yes", "no")] * 9 + [("yes", "yes")]})).found
    assert finding is not None
    assert finding.count == 0


def test_files_are_sources_where_parts_have_no_names() -> None:
    rows = [replace(pair(line=line), source=f"{'ab'[line % 2]}.jsonl:{line}") for line in range(10)]
    finding = audit_sources(rows).found
    assert finding is not None
    assert {each["name"] for each in finding.values["sources"]} == {"a.jsonl", "b.jsonl"}
    assert audit_sources(rows[::2]) == Outcome(None, slices.ONE_SOURCE)


@pytest.mark.parametrize("name", ["score_margin", "slices"])
def test_chunks_of_any_size_give_the_same_finding(name: str) -> None:
    rows = [replace(pair(line=n), slice="ab"[n % 3 == 0], margin=n % 7 - 2.0) for n in range(100)]
    whole, parts = found(name, rows), found(name, rows, chunk_rows=7)
    assert (whole.summary, whole.values) == (parts.summary, parts.values)
