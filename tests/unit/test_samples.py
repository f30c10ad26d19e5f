"""Which answers a report shows first, and what stands beside them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefopt.config.contestants import read_contestants
from prefopt.evaluation.asked import Asked
from prefopt.evaluation.judged import Judged
from prefopt.evaluation.judging import Verdicts, WinRate
from prefopt.evaluation.material import Material, Split
from prefopt.evaluation.report import Report
from prefopt.evaluation.samples import Ranked, Samples, choose_samples, rank_prompts
from prefopt.evaluation.statistics import Estimate
from prefopt.process.errors import UserError
from prefopt.reports.render import render_report
from prefopt.reports.samples import describe_order, read_samples
from tests.unit.test_report_render import HOSTILE, dpo_report, visible

NUM = 6
ASKED = [Asked(f"a:{n}", f"p{n}", f"c{n}", rejected=f"r{n}") for n in range(NUM)]
ANSWERS = {name: [f"{name} {n}" for n in range(NUM)] for name in ("base", "tuned", "brief")}


def verdicts(forward: list[float], backward: list[float] | None = None) -> Verdicts:
    return Verdicts(np.array(forward, float), np.array(backward or forward, float), np.zeros(len(forward)))


def met(a: str, b: str, judge: str) -> WinRate:
    return WinRate(a, b, judge, Estimate(0.5))


def judged(**standings: Any) -> Judged:
    nan = float("nan")
    matches = {
        met("tuned", "base", "first"): verdicts([1, 1, -1, 0, 1, nan], [1, 1, -1, 0, -1, 1]),
        met("tuned", "brief", "first"): verdicts([1, 1, -1, -1, 1, 1]),
        met("brief", "base", "first"): verdicts([-1] * NUM),
        met("tuned", "base", "second"): verdicts([-1] * NUM),
    }
    return Judged(standings or {"first": None, "second": None}, [*matches], [*matches.values()])


def choose(most: int = NUM, **changes: Any) -> Samples:
    given = {"asked": ASKED, "answers": ANSWERS, "judged": judged(), "untuned": ["base", "brief"], **changes}
    return choose_samples(**given, most=most)


def prompts(found: Samples) -> list[str]:
    return [each["prompt"] for each in found.shown]


RANKED = [Ranked(1, 0), Ranked(1, 1), Ranked(1, 1), Ranked(1, 0), Ranked(3, 1), Ranked(1, 0)]


def test_lost_answers_come_first_those_lost_to_more_contestants_earlier_then_wrongly_ranked_pairs_then_others():
    found = choose(ranked=RANKED)
    assert prompts(found) == ["p2", "p3", "p1", "p4", "p0", "p5"]
    assert found.counts == {"prompts": 6, "lost": 2, "wrongly_ranked": 3}


def test_no_more_are_shown_than_asked_for_and_the_counts_are_of_all():
    found = choose(most=2, ranked=RANKED)
    assert prompts(found) == ["p2", "p3"]
    assert found.counts == {"prompts": 6, "lost": 2, "wrongly_ranked": 3}


def test_only_the_deciding_judge_and_contestants_without_tuning_say_what_is_lost():
    assert choose(untuned=["base"]).counts["lost"] == 1
    assert choose(judged=judged(second=None, first=None)).counts["lost"] == 6
    assert choose(judged=Judged()).counts == {"prompts": 6, "lost": 0, "wrongly_ranked": 0}


def test_each_judge_says_of_the_tuned_answer_what_both_orders_say():
    shown = {each["prompt"]: each for each in choose().shown}
    read = {
        prompt: [(each["judge"], each["b"], each["reading"]) for each in sample["readings"]]
        for prompt, sample in shown.items()
    }
    assert read["p4"] == [
        ("first", "base", "inconsistent under swap"),
        ("first", "brief", "win"),
        ("second", "base", "loss"),
    ]
    assert read["p5"][0] == ("first", "base", "no verdict")
    assert read["p3"][0] == ("first", "base", "tie")
    assert all(each["a"] == "tuned" for sample in shown.values() for each in sample["readings"])


def test_without_a_tuned_contestant_all_readings_are_shown_with_whose_answer_they_are_of():
    alone = Judged({"j": None}, [met("brief", "base", "j")], [verdicts([1] * NUM)])
    found = choose(judged=alone, answers={name: ANSWERS[name] for name in ("base", "brief")})
    report = Report.from_dict({**dpo_report(), "samples": found.shown})
    assert read_samples(report)[0].readings["j"][0].text == "brief: win against base"


def test_where_only_the_first_prompts_were_answered_only_these_are_shown():
    greedy = {name: texts[:2] for name, texts in ANSWERS.items()}
    found = choose(answers=greedy, judged=Judged(), ranked=RANKED)
    assert prompts(found) == ["p1", "p0"]
    assert found.counts == {"prompts": 2, "lost": 0, "wrongly_ranked": 1}


def test_data_and_the_rendered_prompt_stand_beside_the_answers():
    sample = choose(rendered=[f"<user>p{n}" for n in range(NUM)], ranked=RANKED).shown[0]
    texts = {"base": "base 2", "tuned": "tuned 2", "brief": "brief 2", "chosen": "c2", "rejected": "r2"}
    assert {key: sample[key] for key in texts} == texts
    assert sample["rendered"] == "<user>p2"
    assert sample["ranking"] == {"lost": 2, "wrong": 1, "pairs": 1}


class Pairs(dict[str, Any]):
    """A data set as far as it is looked at."""


class Scored:
    def __init__(self, margins: list[float]) -> None:
        self.margins = np.array(margins)


def test_the_pairs_of_an_answered_prompt_are_found_by_its_tokens_and_a_tie_is_wrong():
    held_out = Split(pairs=Pairs(prompt_ids=[[1, 2], [3], [1, 2], [4]]))
    material = Material(held_out, Split(), [], [[1, 2], [4], [9]], [], [])
    found = rank_prompts(material, Scored([0.5, -1.0, 0.0, 2.0]))  # type: ignore[arg-type]
    assert found == [Ranked(2, 1), Ranked(1, 0), Ranked(0, 0)]
    assert rank_prompts(material, None) == []


def page_of(samples: list[dict[str, Any]], folder: Path, **blocks: Any) -> tuple[str, str]:
    file = render_report(Report.from_dict({**dpo_report(), "samples": samples, **blocks}), [], [], folder)
    return file.read_text(), file.with_name("report.md").read_text()


def test_the_report_shows_readings_why_a_prompt_is_first_and_all_texts(tmp_path: Path):
    found = choose(most=3, rendered=[f"<user>p{n}" for n in range(NUM)], ranked=RANKED)
    html, markdown = page_of(found.shown, tmp_path, sample_counts=found.counts, judges={"first": None})
    shown = visible(html)
    for text in (shown, markdown):
        for said in ("lost to 2 of 2", "pair ranked wrongly", "loss against brief", "Rejected in the data", "tuned 2"):
            assert said in text
    assert "3 of 6 answered prompts: first those that the tuned model lost by the judge first (2)" in shown
    assert "&lt;user&gt;p2" in html
    assert shown.index("tuned 2") < shown.index("tuned 3") < shown.index("tuned 1")


def test_every_text_of_a_sample_is_escaped(tmp_path: Path):
    keys = ("prompt", "base", HOSTILE, "chosen", "rejected", "rendered")
    readings = [{"a": HOSTILE, "b": HOSTILE, "judge": HOSTILE, "reading": HOSTILE}]
    html, _ = page_of([{**dict.fromkeys(keys, HOSTILE), "readings": readings, "rendered": f"x{HOSTILE}"}], tmp_path)
    assert HOSTILE not in html
    assert "<script>" not in html


def test_samples_of_an_earlier_version_are_shown_as_they_were(tmp_path: Path):
    html, _ = page_of([{"prompt": "p", "base": "b", "tuned": "t", "chosen": None}], tmp_path)
    assert 'class="readings"' not in html
    assert 'class="remark' not in html
    assert describe_order(Report.from_dict(dpo_report())) == ""


def test_where_no_answer_of_the_tuned_model_was_judged_no_lost_ones_are_told():
    found = {
        "samples": [{"prompt": "p"}],
        "sample_counts": {"prompts": 24, "lost": 0, "wrongly_ranked": 0},
        "judges": {"voice": None},
    }
    others = {"a": "brief", "b": "base", "judge": "voice", "value": 0.5, "ci95": [0.4, 0.6], "n": 24}
    assert describe_order(Report.from_dict({**found, "win_rates": [others]})) == ""
    assert "lost by the judge voice (0)" in describe_order(
        Report.from_dict({**found, "win_rates": [{**others, "a": "tuned"}]})
    )


@pytest.mark.parametrize("name", ["chosen", "rejected", "readings", "prompt"])
def test_a_contestant_is_not_called_as_something_else_in_a_report(name: str):
    with pytest.raises(UserError, match="Give it another name"):
        read_contestants(["base", {"name": name, "system": "Be brief."}])
