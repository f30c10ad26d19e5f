"""The page for whoever decides without reading a report: what was asked, how much better, how sure, what broke."""

import re
from dataclasses import dataclass, field
from math import ceil, floor
from pathlib import PurePath
from typing import Any

from prefopt.config.algorithms import rows_of
from prefopt.evaluation.checked import TaskResult
from prefopt.evaluation.gains import deciding_wins, hardest_win
from prefopt.evaluation.in_words import list_names
from prefopt.evaluation.judging import WinRate
from prefopt.evaluation.metrics import ACCURACY, BASE, REGRESSION, TUNED
from prefopt.evaluation.report import Report
from prefopt.evaluation.statistics import Estimate
from prefopt.reports.charts.balance import balance_chart
from prefopt.reports.charts.drawing import Figure, is_drawable
from prefopt.reports.numbers import count, duration, is_broken, is_measured, moment
from prefopt.reports.sections import headline

WORDS = {
    "ship": "The trained model's answers are shown to be better than those of every alternative that was tried.",
    "do_not_ship": "The trained model should not be used as it is.",
    "undecided": "It is not shown yet whether the trained model's answers are better than the alternatives.",
}
ROWS = {"preference": "pairs of a better and a worse answer", "sft": "example answers"}
JUDGES = {
    "rule": "fixed rules on how an answer is worded",
    "classifier": "a program that learned from the training data which wording is preferred",
    "reward_model": "a model made to score answers",
    "model": "a language model",
    "endpoint": "a language model on a server",
    "panel": "several judges, of which most must agree",
}
"""Kind of a judge -> what it is."""
MOST_REASONS, MOST_BROKEN, MOST_RIVALS = 3, 5, 5
PLAIN = {
    "Chosen answers became much less likely": "It became less likely to give even the good answers that it was shown.",
    "Not a finite number": "The model is broken: some of its numbers are not finite.",
    "The tuned model gives no numbers": "The model is broken: it gives no answers.",
    "The base gives n": "The model before training is broken, so nothing could be compared with it.",
}
"""Beginning of a finding that is written for those who train models -> the same for others."""
TERMS = {
    "Ranks held-out pairs better": "Of two answers by others, it tells the better one more often than before",
    "Held-out demonstrations became likelier": "It finds good answers by others likelier than before",
    "chosen from rejected": "better from worse",
    "the win rate over": "how often it beats",
    "preference accuracy": "telling the better of two answers",
    "the loss of demonstrations": "how likely it finds good answers",
    "Held-out data of": "Tests with",
    "held-out data": "tests",
    "held-out prompts": "questions",
    "held-out pairs": "pairs of answers",
    "held-out answers": "answers",
    "held-out": "test",
    " prompts": " questions",
}
"""Term of a reason or a finding -> plain words; the first ones are replaced first."""
KAPPA = re.compile(r" \(kappa [^)]*\)")
IN_DOUBT = "The judge {name} is not shown to tell chosen from rejected"
"""Beginning of the finding on a judge that may not be able to judge."""


@dataclass(frozen=True)
class Overview:
    """What the page shows; every text is a sentence or a few words.

    Attributes:
        name: Of the run.
        date: When it was measured; empty if that is not known.
        decision: Ship, Do not ship, or Undecided.
        level: The level of a finding that is as good or bad.
        sentence: The decision in a sentence.
        asked: What was asked, and of which data.
        compared: Name of a contestant -> what it is.
        judge: Who read the answers; empty if nobody did.
        better: How much better, the most important sentence first.
        figure: The same as a picture; None if no answers were judged.
        reasons: Why the decision is as it is.
        caveat: What it does not prove; empty if nothing is claimed.
        broke: Level and sentence of what was looked at beside the task.
        cost: What training took.
    """

    name: str
    date: str
    decision: str
    level: str
    sentence: str
    asked: list[str]
    compared: dict[str, str]
    judge: str
    better: list[str]
    figure: Figure | None
    reasons: list[str]
    caveat: str = ""
    broke: list[tuple[str, str]] = field(default_factory=list)
    cost: list[str] = field(default_factory=list)


def build_overview(report: Report) -> Overview:
    """Returns the content of the page from a report; what was not measured is said."""
    head, decision = headline(report), report.decision
    told = [text for text in (head.reason, *head.reasons) if text]
    more = [f"And {count(len(told) - MOST_REASONS)} more reasons in the full report."] if told[MOST_REASONS:] else []
    return Overview(
        name=str((report.run or {}).get("name") or "unnamed run"),
        date=moment(report.date) if report.date else "",
        decision=head.decision,
        level=head.level,
        sentence=WORDS[decision.word] if decision is not None else "No decision was made.",
        asked=_asked(report),
        compared=_compared(report),
        judge=_judge(report),
        better=_better(report),
        figure=_figure(report),
        reasons=[*map(_plain, told[:MOST_REASONS]), *more],
        caveat=head.caveat,
        broke=_broke(report),
        cost=_cost(report),
    )


def _asked(report: Report) -> list[str]:
    run = report.run or {}
    data = run.get("data") or {}
    num, rows = data.get("num_train"), ROWS.get(str(rows_of(run.get("algorithm"))), "examples")
    if num is None:
        found = ["Whose answers are better?"]
    else:
        trained = f"{count(num)} {rows} ({_file(data.get('train'))})"
        found = [f"Does the model answer better once it was trained on {trained}?"]
    where, best = _file(data.get("test" if report.test else "held_out")), hardest_win(report)
    answered = (report.sample_counts or {}).get("prompts")
    num_asked = answered if best is None else (best.estimate.n or 0) + best.num_unread
    if num_asked:
        found.append(f"Put to it: {_num(num_asked, 'question')} ({where}).")
    elif report.held_out.n:
        found.append(f"Tried on {_num(report.held_out.n, 'row')} ({where}).")
    return [*found, *_unseen(report.overlap or {})]


def _unseen(overlap: dict[str, Any]) -> list[str]:
    """Says whether training has seen the questions; nothing where it was not looked for."""
    counts = [overlap[key] for key in ("exact", "near") if overlap.get(key) is not None]
    if not counts:
        return []
    if not sum(counts):
        return ["Training had seen none of them."]
    whole = f" of all {count(overlap['prompts'])}" if overlap.get("prompts") else ""
    return [f"Training had seen {count(sum(counts))}{whole}, or nearly."]


def _file(named: object) -> str:
    """Returns a short name of some data: that of its file, or how many files there are."""
    if isinstance(named, str):
        return PurePath(named.rpartition(":")[2]).name or named
    return f"{count(len(named))} files" if isinstance(named, list | dict) else "as in the settings"


def _compared(report: Report) -> dict[str, str]:
    known = report.contestants or {BASE: {}, TUNED: {"is_untuned": False}}
    ordered = sorted(known, key=lambda name: name != TUNED)
    shown = {name: _describe(name, known[name]) for name in ordered[:MOST_RIVALS]}
    more = len(ordered) - len(shown)
    return shown | ({f"{count(more)} more": "in the full report"} if more else {})


def _describe(name: str, contestant: dict[str, Any]) -> str:
    """Says in a few words what a contestant is."""
    if name == TUNED:
        return "the trained model"
    if name == BASE:
        return "the model before training"
    model = contestant.get("model")
    who = {BASE: "the model before training", TUNED: "the trained model"}.get(str(model), f"another model ({model})")
    told = ["with written instructions"] if contestant.get("system") else []
    num = contestant.get("examples") or 0
    told += [f"shown {_num(num, 'example answer')} first"] if num else []
    return ", ".join([who, *told])


def _judge(report: Report) -> str:
    name, standing = next(iter((report.judges or {}).items()), (None, None))
    if name is None:
        return ""
    if standing is None:
        return f"Judged by {name}; nothing tells how well it judges."
    what = JUDGES.get(str(standing.facts.get("kind")), "a judge")
    return f"Judged by {name}: {what}. {_worth(name, standing.agreement, report)}"


def _worth(name: str, agreement: Estimate, report: Report) -> str:
    """Says how often a judge agrees with the data, and whether that shows that it can judge."""
    if not is_measured(agreement):
        return "It gave no verdict on pairs whose better answer is known, so nothing tells how well it judges."
    num, prompts = agreement.n, agreement.num_prompts
    share = f"{count(num)} of {_num(num, 'pair')}" if num and agreement.value == 1 else _of(agreement, "pair")
    of_few = f" (of {_num(prompts, 'question')})" if prompts is not None and prompts != num else ""
    ties = "" if agreement.value in (0, 1) else ", a tie counting half"
    agrees = f"It agrees with the data on {share}{of_few} whose better answer is known{ties}"
    is_in_doubt = any(each["finding"].startswith(IN_DOUBT.format(name=name)) for each in report.verdict or [])
    return f"{agrees}{'; that does not show that it can tell better answers from worse' if is_in_doubt else ''}."


def _better(report: Report) -> list[str]:
    best = hardest_win(report)
    found = []
    if best is not None:
        others = [each for each in deciding_wins(report) if each is not best]
        found += _tell_win(best, f"{best.b}, its strongest rival" if others else best.b)
        rates = [
            f"{_percent(each.estimate.value)} against {each.b}"
            for each in others[:MOST_RIVALS]
            if is_measured(each.estimate)
        ]
        found += [f"Counted like that, it has {list_names(rates)}."] if rates else []
    elif report.win_rates:  # no tuned model among the contestants
        judge = report.win_rates[0].judge
        wins = [each for each in report.win_rates if each.judge == judge][:MOST_RIVALS]
        found += [f"{each.a}: {text}" for each in wins for text in _tell_win(each, each.b)[:1]]
    else:
        found.append("Its answers were not judged against others.")
    tasks = {name: task for name, task in (report.tasks or {}).items() if name != REGRESSION}
    found += [text for name, task in tasks.items() if (text := _task(name, task))][:MOST_REASONS]
    return found + ([] if report.win_rates or tasks else _ranking(report))


def _tell_win(win: WinRate, rival: str) -> list[str]:
    """Says how many answers were better, as good, and worse than another's; then the win rate, and how sure it is."""
    num, ties, estimate = win.estimate.n or 0, win.num_ties, win.estimate
    unread = f" On {count(win.num_unread)} more the judge gave no verdict." if win.num_unread else ""
    if not num or not is_measured(estimate):
        return [f"The judge gave no verdict on its answers against those of {rival}."]
    better = round(estimate.value * num - ties / 2)
    were = "was" if better == 1 else "were"
    parts = [f"{count(better)} {were} better than those of {rival}", *([f"{count(ties)} as good"] if ties else [])]
    counts = f"Of {_num(num, 'answer')}, {', '.join(parts)} and {count(num - better - ties)} worse.{unread}"
    rate = f"That is {_percent(estimate.value)}{', a tie counting half' if ties else ''}"
    if not estimate.has_interval:
        return [counts, f"{rate}; so few answers do not tell how sure that is."]
    low, high = floor(100 * estimate.low + 1e-9), ceil(100 * estimate.high - 1e-9)  # never narrower than it is
    return [counts, f"{rate}; the truth most likely lies between {low} % and {high} %."]


def _task(name: str, task: TaskResult) -> str:
    """Says how well base and tuned do a task, over how many answers; empty if one was not measured."""
    base, tuned = (task.values.get(each, {}).get(task.main) for each in (BASE, TUNED))
    if not is_measured(base) or not is_measured(tuned):
        return ""
    main = task.main.replace("_", " ")
    write = _percent if task.is_share else "{:.3g}".format
    after, before = (
        write(each.value) + (f" over {_num(each.n, 'answer')}" if each.n else "") for each in (tuned, base)
    )
    return f"{name} ({main}): {after}, before training {before}."


def _ranking(report: Report) -> list[str]:
    base, tuned = (report.held_out.model(name).get(ACCURACY) for name in (BASE, TUNED))
    if not is_measured(tuned):
        return (
            ["Which of two answers it prefers is not known: its numbers are not finite."] if is_broken(tuned) else []
        )
    before = f", before training in {_percent(base.value)}" if is_measured(base) else ""
    pairs = _num(tuned.n, "pair") if tuned.n else "pairs"
    return [
        f"Shown {pairs} of a better and a worse answer, it tells which is which in {_percent(tuned.value)}{before}."
    ]


def _figure(report: Report) -> Figure | None:
    best = hardest_win(report)
    if best is None or not is_drawable(best.estimate.value):
        return None
    estimate = best.estimate
    bounds = (estimate.low, estimate.high) if estimate.has_interval else None
    words = f"{_of(estimate, 'answer')} are better than those of {best.b}, a tie counting half"
    chart = balance_chart(estimate.value, bounds, left="rival better", right="trained model better", description=words)
    caption = "Dot: measured. Bar: where the truth most likely lies. Middle: no difference, a tie counts half."
    return Figure(f"Trained model against {best.b}", caption, chart)


def _broke(report: Report) -> list[tuple[str, str]]:
    """Returns what was found beside the task, worst first, and how plain questions are answered."""
    verdict = report.verdict or []
    found = [each for each in verdict if each.get("harm") or (each["level"] == "bad" and not _is_marked(verdict))]
    shown = [(each["level"], _plain(each["finding"])) for each in found[:MOST_BROKEN]]
    if len(found) > MOST_BROKEN:
        shown.append(("info", f"And {count(len(found) - MOST_BROKEN)} more findings in the full report."))
    plain = (report.tasks or {}).get(REGRESSION)
    text = _regression(plain) if plain is not None else "Plain questions beside the task were not asked."
    return [*shown, ("info", text)] if text else shown


def _is_marked(verdict: list[dict[str, Any]]) -> bool:
    """Whether a verdict says which findings are about harm; those of earlier versions do not."""
    return any(each.get("harm") for each in verdict)


def _regression(task: TaskResult) -> str:
    base, tuned = (task.values.get(name, {}).get(task.main) for name in (BASE, TUNED))
    if not is_measured(base) or not is_measured(tuned):
        return ""
    num = _num(tuned.n, "plain question") if tuned.n else "plain questions"
    return f"Of {num} beside the task, {_percent(tuned.value)} are right; before training {_percent(base.value)}."


def _cost(report: Report) -> list[str]:
    throughput, provenance = report.throughput or {}, report.provenance or {}
    trained, machine = throughput.get("train_time_s"), provenance.get("hardware")
    found = []
    if trained:
        whole = sum((report.phases or {}).values())
        in_all = f"; {duration(whole)} with reading, checking and this comparison" if whole > trained else ""
        found.append(f"{duration(trained)} of training{in_all}.")
    else:
        found.append("No training time was recorded." if throughput else "Nothing was trained for this comparison.")
    ranks = provenance.get("world_size") or 1
    if machine:
        found.append(f"On {f'{count(ranks)} times ' if ranks > 1 else ''}{machine}.")
    return found


def _plain(sentence: str) -> str:
    """Returns a sentence of the report in plain words."""
    for start, plain in PLAIN.items():
        if sentence.startswith(start):
            return plain
    for term, plain in TERMS.items():
        sentence = sentence.replace(term, plain)
    return KAPPA.sub("", sentence)


def _num(num: int, what: str) -> str:
    """Returns how many of something there are: `1 question`, `1,200 questions`."""
    return f"{count(num)} {what}{'' if num == 1 else 's'}"


def _of(share: Estimate, what: str) -> str:
    """Returns a share with what it is of: `95 % of 132 pairs`."""
    return f"{_percent(share.value)} of {_num(share.n, what) if share.n else f'the {what}s'}"


def _percent(share: float) -> str:
    """Formats a share in percent, without claiming that none or all of them are."""
    if 0 < share < 0.005:
        return "less than 1 %"
    return "more than 99 %" if 0.995 < share < 1 else f"{round(100 * share)} %"
