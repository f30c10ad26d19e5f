"""The content of a report, independent of the output format: the headline and the tables."""

from dataclasses import dataclass, field
from math import isfinite

from prefopt.evaluation.gains import hardest_win
from prefopt.evaluation.in_words import list_names
from prefopt.evaluation.judging import WinRate
from prefopt.evaluation.metrics import (
    ACCURACY,
    BASE,
    CHANGE,
    DRIFT,
    HELD_OUT,
    LIKELIHOOD,
    LONGER_WINS,
    LOSS,
    NUMBER,
    PERCENT,
    POINTS,
    RATIO,
    SHORTER_WINS,
    TUNED,
    WIN_RATE,
    Better,
    Metric,
    Unit,
    metrics_of,
)
from prefopt.evaluation.report import AnswersEstimate, Estimates, Gap, HeldOut, Report
from prefopt.evaluation.statistics import FEWEST_PROMPTS, Estimate
from prefopt.reports.audit_glossary import title_of
from prefopt.reports.numbers import NOT_APPLICABLE, NOT_FINITE, Cell, cell, count, is_broken, is_measured

DECISIONS = {"ship": ("Ship", "good"), "do_not_ship": ("Do not ship", "bad"), "undecided": ("Undecided", "warning")}
"""Decision -> (words, level)."""


@dataclass(frozen=True)
class Headline:
    """The decision in words.

    Attributes:
        decision: Ship, Do not ship, or Undecided.
        level: The level of a finding that is as good or bad.
        reason: The most important reason.
        sentence: A sentence with the main number.
        reasons: The other reasons.
        would_decide: What it takes to decide.
        caveat: What the decision does not prove.
    """

    decision: str
    level: str
    reason: str | None
    sentence: str
    reasons: tuple[str, ...] = ()
    would_decide: tuple[str, ...] = ()
    caveat: str = ""


@dataclass(frozen=True)
class Row:
    label: str
    cells: list[Cell]
    hint: str = ""

    @property
    def num(self) -> str:
        """The n of its cells, written once if they agree: `132`, or `440 / 132`."""
        return " / ".join(dict.fromkeys(cell.n for cell in self.cells if cell.num))


@dataclass(frozen=True)
class Table:
    columns: list[str]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class AuditRow:
    check: str
    level: str
    count: str
    share: str
    summary: str


@dataclass(frozen=True)
class AuditTable:
    """What the audit found in the data before training, without the checks that found nothing."""

    sentence: str
    findings: list[AuditRow]


def audit_table(report: Report) -> AuditTable | None:
    """Returns the findings of the audit, worst first, or None if the data were not audited."""
    if not report.audit:
        return None
    checks, gate = report.audit["checks"], report.audit["gate"]
    found = [check for check in checks if check["level"] != "ok"]
    rows = [
        AuditRow(title_of(each["check"]), each["level"], count(each["count"]), f"{each['share']:.2%}", each["summary"])
        for each in found
    ]
    was_off = "; the gate was off, so nothing could stop the run" if gate == "off" else ""
    told = f"{len(found)} of {len(checks)} checks found something in {count(report.audit['rows'])} rows"
    return AuditTable(f"{told} (data/gate={gate}{was_off}).", rows)


def headline(report: Report) -> Headline:
    """Returns the decision, its reasons, and one plain sentence with the main number."""
    data = "test" if report.test else "held-out"
    sentence = (
        _deciding_sentence(report)
        or _preference_sentence(report.held_out, data)
        or _loss_sentence(report.held_out, data)
        or _answers_sentence(report, data)
    )
    decision = report.decision
    if decision is None:
        return Headline("No decision", "info", None, sentence)
    words, level = DECISIONS[decision.word]
    reasons = decision.reasons or _earlier_reasons(decision.word, report)
    first, *others = reasons or (None,)
    return Headline(words, level, first, sentence, tuple(others), decision.would_decide, decision.caveat)


def _earlier_reasons(word: str, report: Report) -> tuple[str, ...]:
    """The reason in a report of an earlier version, whose decision was the word alone."""
    wanted = {"do_not_ship": "bad", "undecided": "warning"}.get(word)
    return tuple(found["finding"] for found in report.verdict or [] if found["level"] == wanted)[:1]


def _preference_sentence(held_out: HeldOut, data: str) -> str | None:
    base, tuned = (held_out.model(name).get(ACCURACY) for name in (BASE, TUNED))
    if not is_measured(tuned):
        return None
    shown = cell(tuned, PERCENT)
    pairs = _held_out(shown, f"{data} pairs")
    gain = _gain(held_out.gain.get(ACCURACY), base, tuned, POINTS)
    return f"Tuned prefers the chosen answer on {shown.value} of {pairs}{_ci(shown)}{_against(base, gain, PERCENT)}."


def _deciding_sentence(report: Report) -> str | None:
    """Says by how much a task earned the word; None if a judge did, of whose win rate others tell, or if none did."""
    decided_by = () if report.decision is None else report.decision.decided_by
    if not decided_by or WIN_RATE in decided_by:
        return None
    shown = [each for each in report.verdict or [] if each.get("of_gain") == decided_by[0]]
    return f"{str(shown[0]['finding']).rstrip('.')}: {shown[0]['evidence']}." if shown else None


def _answers_sentence(report: Report, data: str) -> str:
    """Says how often the answers won against the best contestant without tuning, or else what was answered."""
    win, answers = hardest_win(report), report.answers or {}
    if win is not None and is_measured(win.estimate):
        shown = cell(win.estimate, PERCENT)
        how_often = f"Tuned wins against {win.b} on {shown.value} of {_held_out(shown, f'{data} prompts')}{_ci(shown)}"
        return f"{how_often}, ties counted half (judge: {win.judge})."
    if answers:
        num = max(found.get("n") or 0 for found in answers.values())
        prompts = f"{count(num)} {data} prompt{'' if num == 1 else 's'}"
        return f"{list_names(answers)} answered {prompts}; {_why_nobody_won(report, win)}."
    if any(is_broken(report.held_out.model(TUNED).get(key)) for key in (ACCURACY, LOSS)):
        return f"Tuned gives numbers that are not finite on {data} data, so nothing can be said about the benefit."
    return f"Nothing was measured on {data} data, so nothing can be said about the benefit."


def _why_nobody_won(report: Report, win: WinRate | None) -> str:
    """Says why there is no win rate of the tuned model by the judge that decides."""
    if win is not None:
        others = any(is_measured(each.estimate) for each in report.win_rates or [])
        return f"the judge {win.judge} gave no verdict{', and another one does not decide' if others else ''}"
    if report.win_rates:
        return f"{TUNED} did not compete, so only the others were judged"
    return "who won was not measured"


def _loss_sentence(held_out: HeldOut, data: str) -> str | None:
    base, tuned = (held_out.model(name).get(LOSS) for name in (BASE, TUNED))
    if not is_measured(tuned):
        return None
    shown = cell(tuned, NUMBER)
    rows = _held_out(shown, f"{data} examples")
    gain = _gain(held_out.gain.get(LOSS), base, tuned, CHANGE)
    return f"Tuned has a loss of {shown.value} per token on {rows}{_ci(shown)}{_against(base, gain, NUMBER)}."


def _held_out(shown: Cell, rows: str) -> str:
    """`132 held-out pairs`, `132 held-out pairs of 66 prompts`, or `the held-out pairs`."""
    return shown.n.replace(str(shown.num), f"{shown.num} {rows}", 1) if shown.num else f"the {rows}"


def _gain(gain: Estimate | None, base: Estimate | None, tuned: Estimate, unit: Unit) -> Cell | None:
    if is_measured(gain):
        return cell(gain, unit)
    return cell(Estimate(tuned.value - base.value), unit) if is_measured(base) else None


def _against(base: Estimate | None, gain: Cell | None, unit: Unit) -> str:
    if gain is None:
        return f"; the base model {'gives numbers that are not finite' if is_broken(base) else 'was not measured'}"
    return f", base {cell(base, unit).value}: {gain.value}{_ci(gain)}"


def _ci(shown: Cell) -> str:
    return f" (95 % CI {shown.interval})" if shown.interval else ""


def held_out_table(report: Report) -> Table | None:
    """Returns the table of base against tuned on the held-out data, or None if nothing was measured."""
    held_out = report.held_out
    base, tuned, gain = held_out.model(BASE), held_out.model(TUNED), held_out.gain
    rows = [
        Row(
            metric.name,
            [
                NOT_APPLICABLE if metric.is_relative else cell(base.get(metric.report_key), metric.unit),
                cell(tuned.get(metric.report_key), metric.unit),
                _change(gain.get(metric.report_key), metric),
            ],
            metric.note,
        )
        for metric in metrics_of(HELD_OUT, TUNED)
        if any(
            is_measured(each) or is_broken(each) for each in (model.get(metric.report_key) for model in (tuned, base))
        )
    ]
    if not rows:
        return None
    notes = [_p_value(held_out.p_value), _baselines(held_out), _ties(held_out), _without_interval(rows)]
    return _without_empty_columns(Table(["Base", "Tuned", "Change"], rows, [note for note in notes if note]))


def _change(gain: Estimate | None, metric: Metric) -> Cell:
    return cell(gain, metric.change_unit) if is_measured(gain) or is_broken(gain) else NOT_APPLICABLE


def _without_interval(rows: list[Row]) -> str | None:
    """Says why some means have no interval; None if all have one."""
    names = [row.label for row in rows if any(cell.num and not cell.interval for cell in row.cells)]
    why = f"fewer than {FEWEST_PROMPTS} prompts, or answers that hardly differ, are too little for one"
    return f"No interval for {', '.join(names)}: {why}." if names else None


def _p_value(p_value: float | None) -> str | None:
    is_known = p_value is not None and isfinite(p_value)
    return f"The change in preference accuracy: p = {p_value:.2g}, two-sided." if is_known else None


def _baselines(held_out: HeldOut) -> str | None:
    rules = {LONGER_WINS: "the longer answer", SHORTER_WINS: "the shorter answer"}
    baselines = held_out.baselines or {}
    known = [
        f"always picking {words} is right on {cell(baselines[key], PERCENT).text}"
        for key, words in rules.items()
        if is_measured(baselines.get(key))
    ]
    return f"Without any model: {', '.join(known)}." if known else None


def _ties(held_out: HeldOut) -> str | None:
    ties = held_out.ties or {}
    known = [f"{name} {NOT_FINITE.value if num is None else count(num)}" for name, num in ties.items()]
    total = f" of {count(held_out.n)} pairs" if held_out.n else ""
    return f"Ties: {', '.join(known)}{total}." if known else None


def slices_table(report: Report) -> Table | None:
    """Returns the table of the held-out metrics of each part of a mixture; None if there are fewer than two parts."""
    slices = report.slices or []
    rows = [
        Row(
            str(found["name"]),
            [
                cell(found["base"].get(metric.report_key), metric.unit),
                cell(found.get(metric.report_key), metric.unit),
                _change(found["gain"].get(metric.report_key), metric),
            ],
            metric.name,
        )
        for found in slices
        for metric in metrics_of(HELD_OUT, TUNED)
        if metric.report_key in (ACCURACY, LOSS) and found.get(metric.report_key) is not None
    ]
    return Table(["Base", "Tuned", "Change"], rows) if len(slices) > 1 and rows else None


def overfitting_table(report: Report) -> Table | None:
    """Returns the table of train against held-out metrics and their gap, or None if they were not measured."""
    overfitting = report.overfitting
    rows = [
        _gap_row(overfitting[metric.report_key], metric)
        for metric in metrics_of(HELD_OUT, TUNED)
        if overfitting.get(metric.report_key)
    ]
    return Table(["Train", "Held-out", "Gap"], rows) if rows else None


def _gap_row(values: Gap, metric: Metric) -> Row:
    found = (values.get(key) for key in ("train", "held_out", "gap"))
    train, held_out, gap = (Estimate(entry) if isinstance(entry, float) else entry for entry in found)
    return Row(
        metric.name,
        [cell(train, metric.unit), cell(held_out, metric.unit), cell(gap, metric.change_unit)],
        f"{metric.note}; gap: held-out - train" if metric.better is Better.lower else metric.note,
    )


def drift_table(report: Report) -> Table | None:
    """Returns the table of how far the tuned model moved from the base, or None if it was not measured."""
    measured = [(metric, report.drift.get(metric.report_key)) for metric in metrics_of(DRIFT)]
    rows = [_divergence_row(found, metric) for metric, found in measured if isinstance(found, Estimate)]
    rows += [
        _drift_row(found, metric) for metric, found in measured if isinstance(found, dict) and metric.path[-1] == TUNED
    ]
    note = _without_interval(rows)
    return _without_empty_columns(Table(["Base", "Tuned", "Change"], rows, [note] if note else [])) if rows else None


def _divergence_row(found: Estimate, metric: Metric) -> Row:
    """Row of a metric against the base; says how many answers were cut, because sums miss the part after the cut."""
    label, hint = metric.name, metric.note
    if isinstance(found, AnswersEstimate) and found.num_cut and found.n and found.cut_at:
        num_cut = count(found.num_cut)
        label = f"{metric.label}, {num_cut} cut"  # as short as the other labels: a terminal is narrow
        hint += f"; {num_cut} of {count(found.n)} were cut at {count(found.cut_at)} tokens: whole, more"
    return Row(label, [NOT_APPLICABLE, cell(found, NUMBER), NOT_APPLICABLE], hint)


def _without_empty_columns(table: Table) -> Table:
    used = [i for i in range(len(table.columns)) if any(row.cells[i] != NOT_APPLICABLE for row in table.rows)]
    rows = [Row(row.label, [row.cells[i] for i in used], row.hint) for row in table.rows]
    return Table([table.columns[i] for i in used], rows, table.notes)


def _drift_row(values: Estimates, metric: Metric) -> Row:
    ratio = values.get("ratio")
    change = cell(ratio, RATIO) if is_measured(ratio) else NOT_APPLICABLE
    base, tuned = (cell(values.get(model), metric.unit) for model in (BASE, TUNED))
    return Row(metric.name, [base, tuned, change], metric.note)


def likelihood_table(report: Report) -> Table | None:
    """Returns the table of how training moved the log-probs of both completions, or None if it was not measured."""
    likelihood = report.likelihood or {}
    rows = [
        Row(metric.name, [cell(likelihood[metric.report_key], metric.unit)], metric.note)
        for metric in metrics_of(LIKELIHOOD)
        if metric.report_key in likelihood
    ]
    return Table(["Held-out"], rows) if rows else None
