"""The page for whoever decides: plain words, right numbers, and nothing claimed that was not measured."""

import re
from pathlib import Path
from typing import Any

import pytest

from prefopt.evaluation import findings, not_finite, task_findings, win_findings
from prefopt.evaluation.decision import Finding
from prefopt.evaluation.report import Report
from prefopt.reports.overview import PLAIN, Overview, build_overview
from prefopt.reports.render import render_report
from tests.unit.test_report_render import HOSTILE, dpo_report, sft_report, visible
from tests.unit.test_win_findings import CONTESTANTS, judge, standing, win
from tests.unit.test_win_findings import judged as of_wins

JARGON = re.compile(
    r"\b(KL|DPO|SFT|perplexity|log-probs?|nats?|CI|p =|win rate|held[- ]out|kappa|epochs?|likelihood|tokens?)\b"
)


def judged(**changes: Any) -> dict[str, Any]:
    found = dpo_report() | {
        "contestants": CONTESTANTS,
        "judges": {"rule": {**standing(0.8), "facts": {"kind": "rule"}}, "other": standing(0.9)},
        "win_rates": [
            win("base", 0.9, 0.8),
            win("guide", 0.7, 0.6, n=40, ties=4, unread=2),
            {**win("guide", 0.1, 0.0), "judge": "other"},
        ],
        "decision": {"word": "ship", "reasons": ["Its answers win."], "would_decide": [], "caveat": "No proof."},
        "overlap": {"prompts": 42, "exact": 0, "near": 0},
        "phases": {"training": 27.2, "evaluation": 60.0},
    }
    return found | changes


def page(found: dict[str, Any]) -> Overview:
    return build_overview(Report.from_dict(found))


def text_of(found: dict[str, Any], folder: Path) -> str:
    html = render_report(Report.from_dict(found), [], [], folder).with_name("summary.html").read_text()
    return visible(html.partition("</style>")[2])


def test_the_answers_are_counted_against_the_strongest_rival_by_the_judge_that_decides() -> None:
    shown = page(judged())
    assert shown.better == [
        "Of 40 answers, 26 were better than those of guide, its strongest rival, 4 as good and 10 worse. "
        "On 2 more the judge gave no verdict.",
        "That is 70 %, a tie counting half; the truth most likely lies between 60 % and 80 %.",
        "Counted like that, it has 90 % against base.",
    ]
    assert shown.figure is not None
    assert "70 % of 40 answers are better than those of guide" in shown.figure.svg


def test_the_picture_has_its_dot_and_its_bar_where_the_numbers_are() -> None:
    figure = page(judged()).figure
    assert figure is not None
    (dot,) = re.findall(r'<circle class="value" cx="([\d.]+)"', figure.svg)
    (bar,) = re.findall(r'<line x1="([\d.]+)" y1="[\d.]+" x2="([\d.]+)" y2="[\d.]+" class="interval"', figure.svg)
    (half,) = re.findall(r'<line x1="([\d.]+)"[^>]*class="mark"', figure.svg)
    left, width = 12.0, 436.0
    assert float(half) == pytest.approx(left + 0.5 * width, abs=0.1)
    assert float(dot) == pytest.approx(left + 0.7 * width, abs=0.1)
    assert [float(end) for end in bar] == pytest.approx([left + 0.6 * width, left + 0.8 * width], abs=0.1)


def test_what_was_asked_and_compared_is_said_in_words() -> None:
    shown = page(judged())
    assert "pairs of a better and a worse answer (" in shown.asked[0]
    assert "42 questions" in shown.asked[1]
    assert shown.asked[2] == "Training had seen none of them."
    assert shown.compared == {
        "tuned": "the trained model",
        "base": "the model before training",
        "guide": "the model before training, with written instructions",
    }
    assert shown.judge == (
        "Judged by rule: fixed rules on how an answer is worded. "
        "It agrees with the data on 90 % of 132 pairs whose better answer is known, a tie counting half."
    )


NOTHING = {"value": None, "ci95": [None, None], "n": 0, "n_prompts": 0}


def worth(agreement: dict[str, Any]) -> str:
    """What the page says of how well the judge judges."""
    judges = {"rule": {**standing(0.8), "agreement": agreement, "facts": {"kind": "rule"}}}
    return page(judged(judges=judges)).judge.partition(" is worded. ")[2]


def test_how_well_a_judge_judges_is_told_of_the_pairs_that_it_read() -> None:
    right = {"value": 1.0, "ci95": [0.6, 1.0], "n": 5, "n_prompts": 5}
    assert worth(right) == "It agrees with the data on 5 of 5 pairs whose better answer is known."
    assert worth({**right, "n": 30, "n_prompts": 1}) == (
        "It agrees with the data on 30 of 30 pairs (of 1 question) whose better answer is known."
    )
    assert worth(NOTHING) == (
        "It gave no verdict on pairs whose better answer is known, so nothing tells how well it judges."
    )


def test_a_judge_that_is_not_shown_to_judge_is_told_with_that_doubt() -> None:
    weak = standing(1.0, 0.2)
    _, found = judge(of_wins(win("base", 0.8), judges={"rule": weak}))
    told = page(judged(judges={"rule": {**weak, "agreement": {**weak["agreement"], "n": 5}}}, verdict=found)).judge
    assert told.endswith(
        "on 5 of 5 pairs (of 132 questions) whose better answer is known; "
        "that does not show that it can tell better answers from worse."
    )


def test_a_rival_of_whose_answers_nothing_was_read_gets_no_number() -> None:
    unread = {**win("guide", 0.5), **NOTHING, "unread": 40, "ties": 0}
    told = page(judged(win_rates=[win("base", 0.9, 0.8), {**unread, "b": "brief"}, unread])).better
    assert told[0].startswith("The judge gave no verdict on its answers")
    assert told[1:] == ["Counted like that, it has 90 % against base."]


def test_single_answers_and_questions_are_told_as_one() -> None:
    one = {**win("base", 0.5), "n": 1, "n_prompts": 1, "ties": 0, "value": 1.0, "ci95": [0.1, 1.0]}
    shown = page(judged(win_rates=[one]))
    assert shown.better[0] == "Of 1 answer, 1 was better than those of base and 0 worse."
    assert "Put to it: 1 question (" in shown.asked[1]


@pytest.mark.parametrize(
    ("is_share", "said"),
    [
        (True, "c (points): 75 % over 40 answers, before training 50 % over 38 answers."),
        (False, "c (points): 0.75 over 40 answers, before training 0.5 over 38 answers."),
    ],
)
def test_a_task_is_told_with_the_answers_behind_it(is_share: bool, said: str) -> None:
    values = {
        name: {"values": {"points": {"value": value, "n": num}}}
        for name, value, num in (("base", 0.5, 38), ("tuned", 0.75, 40))
    }
    assert said in page(judged(tasks={"c": {"main": "points", "is_share": is_share, "contestants": values}})).better


@pytest.mark.parametrize(
    ("overlap", "said"),
    [
        ({"prompts": 42, "exact": 3, "near": 2}, ["Training had seen 5 of all 42, or nearly."]),
        ({"prompts": 42, "exact": 0, "near": None}, ["Training had seen none of them."]),
        (None, []),
    ],
)
def test_that_training_has_not_seen_the_questions_is_said_only_where_it_was_looked_for(overlap, said) -> None:
    assert page(judged(overlap=overlap)).asked[2:] == said


@pytest.mark.parametrize(
    "wins",
    [
        [],
        [win("base", 0.6, 0.49)],
        [win("base", 0.6, 0.53)],
        [win("base", 0.9, 0.8, n=5, n_prompts=5)],
        [win("base", 0.9, 0.8)],
    ],
)
@pytest.mark.parametrize("accuracy", [0.5, 0.97])
def test_reasons_are_told_in_plain_words(wins: list[dict[str, Any]], accuracy: float) -> None:
    measured = of_wins(*wins, judges=None if wins else {})
    measured["held_out"]["tuned"]["preference_accuracy"]["value"] = accuracy
    decision, _ = judge(measured)
    reasons = page(judged(decision=decision.to_dict())).reasons
    assert reasons
    assert not JARGON.findall(" ".join(reasons)), reasons


@pytest.mark.parametrize(("word", "level"), [("ship", "good"), ("do_not_ship", "bad"), ("undecided", "warning")])
def test_the_word_is_the_reports(word: str, level: str, tmp_path: Path) -> None:
    decision = {"word": word, "reasons": [f"Reason {number}." for number in range(5)], "would_decide": []}
    shown = page(judged(decision=decision))
    assert shown.level == level
    assert shown.reasons == ["Reason 0.", "Reason 1.", "Reason 2.", "And 2 more reasons in the full report."]
    text = text_of(judged(decision=decision), tmp_path)
    assert shown.decision in text
    assert "Reason 2." in text


def test_harm_is_told_worst_first_with_the_plain_questions_and_bounded() -> None:
    verdict = [Finding("bad", f"Harm {number}.", "e", is_harm=True).to_dict() for number in range(7)]
    verdict += [Finding("warning", "No harm.", "e").to_dict()]
    values = {
        name: {"values": {"passes": {"value": value, "n": 50}}} for name, value in (("base", 0.5), ("tuned", 0.4))
    }
    task = {"main": "passes", "is_share": True, "contestants": values}
    shown = page(judged(verdict=verdict, tasks={"regression": task})).broke
    assert shown == [
        *(("bad", f"Harm {number}.") for number in range(5)),
        ("info", "And 2 more findings in the full report."),
        ("info", "Of 50 plain questions beside the task, 40 % are right; before training 50 %."),
    ]
    assert page(judged(verdict=[])).broke == [("info", "Plain questions beside the task were not asked.")]


def test_which_findings_are_of_harm_is_written_in_the_report() -> None:
    assert Finding("bad", "f", "e", is_harm=True).to_dict()["harm"] is True
    assert "harm" not in Finding("bad", "f", "e").to_dict()


def test_an_earlier_report_that_does_not_mark_harm_shows_what_is_bad() -> None:
    verdict = [{"level": "bad", "finding": "Ruined."}, {"level": "warning", "finding": "Perhaps."}]
    assert page(judged(verdict=verdict)).broke[0] == ("bad", "Ruined.")


def test_the_cost_is_what_the_run_knows() -> None:
    shown = page(judged()).cost
    assert shown == [
        "27.2 s of training; 1 min 27 s with reading, checking and this comparison.",
        "On CPU, 8 threads, x86_64.",
    ]
    many = judged(provenance={"hardware": "NVIDIA H100", "world_size": 8})
    assert page(many).cost[1] == "On 8 times NVIDIA H100."


def test_where_nothing_was_judged_it_is_said_and_ranking_is_told_in_words() -> None:
    shown = page(dpo_report())
    assert shown.figure is None
    assert shown.judge == ""
    assert shown.better[0] == "Its answers were not judged against others."
    assert (
        "pairs of a better and a worse answer, it tells which is which in 95 %, before training in 51 %"
        in shown.better[1]
    )


@pytest.mark.parametrize("found", [dpo_report(), sft_report(), {"format": 1}, judged(judges={"rule": None})])
def test_every_report_has_the_page_in_plain_words(found: dict[str, Any], tmp_path: Path) -> None:
    found = {**found, "verdict": [], "decision": None}
    text = text_of(found, tmp_path)
    assert "How much better" in text
    assert not JARGON.findall(re.sub(r"\S+\.jsonl", "", text))


def test_texts_of_a_run_are_escaped_and_the_page_runs_nothing(tmp_path: Path) -> None:
    found = judged(run={"name": HOSTILE, "data": {"train": HOSTILE, "held_out": HOSTILE, "num_train": 3}})
    found["win_rates"] = [win(HOSTILE, 0.7, 0.6)]
    found["contestants"] = {HOSTILE: {"model": HOSTILE, "is_untuned": True}}
    found["verdict"] = [{"level": "bad", "finding": HOSTILE, "evidence": HOSTILE, "harm": True}]
    found["decision"] = {"word": "ship", "reasons": [HOSTILE], "caveat": HOSTILE}
    found["provenance"] = {"hardware": HOSTILE}
    html = render_report(Report.from_dict(found), [], [], tmp_path).with_name("summary.html").read_text()
    assert "<script" not in html
    assert HOSTILE not in html


def test_findings_that_have_plain_words_exist() -> None:
    source = "".join(
        Path(str(module.__file__)).read_text() for module in (findings, not_finite, task_findings, win_findings)
    )
    assert all(start in source for start in PLAIN)


@pytest.mark.parametrize(
    ("value", "shown"), [(0.004, "less than 1"), (0.0, "0"), (0.999, "more than 99"), (1.0, "100"), (0.555, "56")]
)
def test_no_share_is_rounded_to_none_or_all(value: float, shown: str) -> None:
    found = page(judged(win_rates=[win("base", value, n=200, ties=0)]))
    assert found.better[1].startswith(f"That is {shown} %")
