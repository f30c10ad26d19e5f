"""The tables of judged answers: who wins against whom, and what the judges are worth."""

from math import isfinite

from prefopt.evaluation.judging import Standing, WinRate
from prefopt.evaluation.metrics import NUMBER, PERCENT
from prefopt.evaluation.report import Report
from prefopt.evaluation.statistics import Estimate
from prefopt.reports.numbers import NOT_APPLICABLE, Cell, cell
from prefopt.reports.sections import Row, Table


def wins_table(report: Report) -> Table | None:
    """Returns the win rates, a row for each two contestants and judge; None if no answers were judged."""
    wins = report.win_rates or []
    if not wins:
        return None
    rows = [
        Row(
            f"{found.a} against {found.b}",
            [cell(found.estimate, PERCENT), _further(found.matched), _further(found.adjusted)],
            _hint(found),
        )
        for found in wins
    ]
    notes = [
        "A tie counts half: 50 % is no difference. A judge that sees two answers at once saw them in both orders; "
        "where it then says another thing, it is a tie.",
        "Adjusted: at no difference in length, by a regression; this is not AlpacaEval's length-controlled win rate.",
    ]
    return Table(["Win rate", "Of equal length", "Adjusted for length"], rows, notes)


def _further(estimate: Estimate | None) -> Cell:
    return NOT_APPLICABLE if estimate is None else cell(estimate, PERCENT)


def _hint(found: WinRate) -> str:
    parts = [f"judge: {found.judge}", f"{found.num_ties} {'tie' if found.num_ties == 1 else 'ties'}"]
    parts += [f"{found.num_unread} without a verdict"] if found.num_unread else []
    parts += [f"same verdict in both orders {found.consistency:.0%}"] if found.consistency < 1 else []
    return ", ".join(parts)


def judges_table(report: Report) -> Table | None:
    """Returns how each judge reads held-out pairs whose better answer is known; None if there were no judges."""
    rows = [_judge_row(name, standing) for name, standing in (report.judges or {}).items() if standing is not None]
    if not rows:
        return None
    notes = ["Read on held-out pairs: chance has a kappa of 0. The first judge is the one that decides."]
    return Table(["Kappa", "Agreement", "Same in both orders", "First slot", "Longer"], rows, notes)


def _judge_row(name: str, standing: Standing) -> Row:
    shares = (standing.consistency, standing.first_slot)
    cells = [cell(standing.kappa, NUMBER), cell(standing.agreement, PERCENT)]
    cells += [Cell(f"{each:.0%}") if isfinite(each) else NOT_APPLICABLE for each in shares]
    length = standing.length_coefficient
    cells.append(Cell(f"{length:+.2f}") if isfinite(length) else NOT_APPLICABLE)
    return Row(name, cells, _learned(standing))


def _learned(standing: Standing) -> str:
    """What a judge says of itself, in a few words."""
    kind, model = standing.facts.get("kind"), standing.facts.get("model")
    return ", ".join(str(each) for each in (kind, model) if each)
