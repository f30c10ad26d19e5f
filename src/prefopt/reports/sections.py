"""What the report says, independent of the output format: the decisive sentence and the tables."""

from dataclasses import dataclass, field
from typing import Any

from prefopt.config.algorithms import rows_of
from prefopt.evaluation.metrics import CHANGE, NUMBER, PERCENT, POINTS, RATIO, Unit
from prefopt.reports.numbers import NOT_APPLICABLE, Cell, cell, count, is_measured

Block = dict[str, Any]

DECISIONS = {"ship": ("Ship", "good"), "do_not_ship": ("Do not ship", "bad"), "undecided": ("Undecided", "warning")}
"""Decision -> (words, level)."""


@dataclass(frozen=True)
class Headline:
    """The decision, the finding that decided against (if one did) and the decisive number."""

    decision: str
    level: str
    reason: str | None
    sentence: str


@dataclass(frozen=True)
class Row:
    label: str
    cells: list[Cell]
    hint: str = ""

    @property
    def num(self) -> str:
        """The n of its cells, once where they agree: `132`, or `440 / 132`."""
        return " / ".join(dict.fromkeys(cell.num for cell in self.cells if cell.num))


@dataclass(frozen=True)
class Table:
    columns: list[str]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Metric:
    """A row of a table: `key` in the report, and how it is called, explained and written."""

    key: str
    label: str
    hint: str
    unit: Unit = NUMBER
    change: Unit = CHANGE
    of_base: bool = True


HELD_OUT = (
    Metric("preference_accuracy", "Preference accuracy", "chosen has the higher average log-prob", PERCENT, POINTS),
    Metric("mean_margin", "Mean margin", "average log-prob, chosen - rejected, nats per token"),
    Metric("reward_accuracy", "Reward accuracy", "chosen has the higher reward", PERCENT, POINTS, of_base=False),
    Metric("reward_margin", "Reward margin", "reward, chosen - rejected", of_base=False),
)
PREFERENCE_LOSS = Metric("loss", "Loss", "preference loss; lower is better")
TOKEN_LOSS = Metric("loss", "Loss per token", "nats; lower is better")
PERPLEXITY = Metric("perplexity", "Perplexity", "of the held-out completions; lower is better")

DRIFT = (
    Metric("perplexity", "Neutral perplexity", "of text that has nothing to do with the task", change=RATIO),
    Metric("response_length", "Response length", "tokens"),
    Metric("finished", "Ended by itself", "share of responses not cut at the limit", PERCENT, POINTS),
    Metric("repetition", "Repetition", "share of 4-grams seen before in the same response", PERCENT, POINTS),
)
DIVERGENCE = (
    Metric("kl_per_token", "KL per token", "divergence from base, nats; 0 = unchanged", of_base=False),
    Metric("kl_per_response", "KL per response", "divergence from base, nats; 0 = unchanged", of_base=False),
)
LIKELIHOOD = (
    Metric("chosen", "Chosen", "change of log-prob per token, tuned - base", CHANGE),
    Metric("rejected", "Rejected", "change of log-prob per token, tuned - base", CHANGE),
    Metric("chosen_fell", "Chosen fell", "share of pairs", PERCENT),
)


def block(report: Block, *keys: str) -> Block:
    """The nested block at `keys`, empty where it is absent or None."""
    for key in keys:
        report = report.get(key) or {}
    return report


def headline(report: Block) -> Headline:
    """The decision in one plain sentence with its decisive number."""
    words, level = DECISIONS.get(report.get("decision") or "", ("No decision", "info"))
    return Headline(words, level, _reason(report), _preference_sentence(report) or _loss_sentence(report))


def _reason(report: Block) -> str | None:
    wanted = {"do_not_ship": "bad", "undecided": "warning"}.get(report.get("decision") or "")
    findings = (f["finding"] for f in report.get("verdict") or [] if f["level"] == wanted)
    return next(findings, None)


def _preference_sentence(report: Block) -> str | None:
    base, tuned = (block(report, "held_out", model).get("preference_accuracy") for model in ("base", "tuned"))
    if not is_measured(tuned):
        return None
    shown = cell(tuned, PERCENT)
    pairs = f"{shown.num} held-out pairs" if shown.num else "the held-out pairs"
    gain = _gain(block(report, "held_out", "gain").get("preference_accuracy"), base, tuned, POINTS)
    return f"Tuned prefers the chosen answer on {shown.value} of {pairs}{_ci(shown)}{_against(base, gain, PERCENT)}."


def _loss_sentence(report: Block) -> str:
    base, tuned = (block(report, "held_out", model).get("loss") for model in ("base", "tuned"))
    if not is_measured(tuned):
        return "Nothing was measured on held-out data, so nothing can be said about the benefit."
    shown = cell(tuned, NUMBER)
    rows = f"{shown.num} held-out examples" if shown.num else "the held-out examples"
    gain = _gain(block(report, "held_out", "gain").get("loss"), base, tuned, CHANGE)
    return f"Tuned has a loss of {shown.value} per token on {rows}{_ci(shown)}{_against(base, gain, NUMBER)}."


def _gain(gain: Block | None, base: Block | None, tuned: Block | None, unit: Unit) -> Cell | None:
    if is_measured(gain):
        return cell(gain, unit)
    if base is None or tuned is None or not is_measured(base):
        return None
    return cell({"value": tuned["value"] - base["value"]}, unit)


def _against(base: Block | None, gain: Cell | None, unit: Unit) -> str:
    if gain is None:
        return "; the base model was not measured"
    return f", base {cell(base, unit).value}: {gain.value}{_ci(gain)}"


def _ci(shown: Cell) -> str:
    return f" (95 % CI {shown.interval})" if shown.interval else ""


def held_out_table(report: Block) -> Table | None:
    """Base against tuned on the held-out data, or None if nothing was measured."""
    held_out = block(report, "held_out")
    base, tuned, gain = (block(held_out, key) for key in ("base", "tuned", "gain"))
    loss = {"sft": TOKEN_LOSS}.get(str(rows_of(block(report, "run").get("algorithm"))), PREFERENCE_LOSS)
    metrics = (*HELD_OUT, loss, PERPLEXITY)
    rows = [
        Row(
            metric.label,
            [_base(base, metric), cell(tuned.get(metric.key), metric.unit), _change(gain, metric)],
            metric.hint,
        )
        for metric in metrics
        if is_measured(tuned.get(metric.key)) or is_measured(base.get(metric.key))
    ]
    if not rows:
        return None
    notes = [note for note in (_sign_test(gain), _baselines(held_out), _ties(held_out)) if note]
    return _without_empty_columns(Table(["Base", "Tuned", "Change"], rows, notes))


def _base(base: Block, metric: Metric) -> Cell:
    return cell(base.get(metric.key), metric.unit) if metric.of_base else NOT_APPLICABLE


def _change(gain: Block, metric: Metric) -> Cell:
    return cell(gain[metric.key], metric.change) if is_measured(gain.get(metric.key)) else NOT_APPLICABLE


def _sign_test(gain: Block) -> str | None:
    p_value = gain.get("p_value")
    return f"Sign test of the change in preference accuracy: p = {p_value:.2g}." if p_value is not None else None


def _baselines(held_out: Block) -> str | None:
    rules = {"longer_wins": "the longer answer", "shorter_wins": "the shorter answer"}
    baselines = block(held_out, "baselines")
    known = [
        f"always picking {words} is right on {cell(baselines[key], PERCENT).text}"
        for key, words in rules.items()
        if is_measured(baselines.get(key))
    ]
    return f"Without any model: {', '.join(known)}." if known else None


def _ties(held_out: Block) -> str | None:
    ties = block(held_out, "ties")
    known = [f"{model} {count(ties[model])}" for model in ("base", "tuned") if ties.get(model) is not None]
    total = f" of {count(held_out['n'])} pairs" if held_out.get("n") else ""
    return f"Ties: {', '.join(known)}{total}." if known else None


def overfitting_table(report: Block) -> Table | None:
    """Train against held-out accuracy and their gap, or None if it was not measured."""
    overfitting = block(report, "overfitting")
    rows = [
        _gap_row(overfitting[metric.key], metric) for metric in (*HELD_OUT, TOKEN_LOSS) if overfitting.get(metric.key)
    ]
    return Table(["Train", "Held-out", "Gap"], rows) if rows else None


def _gap_row(values: Block, metric: Metric) -> Row:
    train, held_out, gap = values.get("train"), values.get("held_out"), values.get("gap")
    if isinstance(gap, float):
        gap = {"value": gap}
    return Row(
        metric.label,
        [cell(train, metric.unit), cell(held_out, metric.unit), cell(gap, metric.change)],
        metric.hint,
    )


def drift_table(report: Block) -> Table | None:
    """How far the tuned model moved from the base, or None if it was not measured."""
    drift = block(report, "drift")
    rows = [_divergence_row(drift[metric.key], metric) for metric in DIVERGENCE if drift.get(metric.key) is not None]
    rows += [_drift_row(block(drift, metric.key), metric) for metric in DRIFT if drift.get(metric.key)]
    return _without_empty_columns(Table(["Base", "Tuned", "Change"], rows)) if rows else None


def _divergence_row(values: Block, metric: Metric) -> Row:
    """The row says how many answers were cut: what they hold beyond the limit is not in a sum over them."""
    label, hint, num_cut = metric.label, metric.hint, values.get("num_cut")
    if num_cut:
        label = f"KL/response, {count(num_cut)} cut"  # no longer than the longest of the others: a terminal is narrow
        hint += f"; {count(num_cut)} of {count(values['n'])} were cut at {count(values['cut_at'])} tokens: whole, more"
    return Row(label, [NOT_APPLICABLE, cell(values, NUMBER), NOT_APPLICABLE], hint)


def _without_empty_columns(table: Table) -> Table:
    used = [i for i in range(len(table.columns)) if any(row.cells[i] != NOT_APPLICABLE for row in table.rows)]
    rows = [Row(row.label, [row.cells[i] for i in used], row.hint) for row in table.rows]
    return Table([table.columns[i] for i in used], rows, table.notes)


def _drift_row(values: Block, metric: Metric) -> Row:
    ratio = values.get("ratio")
    change = cell(ratio, metric.change) if is_measured(ratio) else NOT_APPLICABLE
    return Row(
        metric.label,
        [cell(values.get("base"), metric.unit), cell(values.get("tuned"), metric.unit), change],
        metric.hint,
    )


def likelihood_table(report: Block) -> Table | None:
    """How training moved the log-probs of both completions, or None if it was not measured."""
    likelihood = block(report, "likelihood")
    rows = [
        Row(metric.label, [cell(likelihood[metric.key], metric.unit)], metric.hint)
        for metric in LIKELIHOOD
        if likelihood.get(metric.key) is not None
    ]
    return Table(["Held-out"], rows) if rows else None
