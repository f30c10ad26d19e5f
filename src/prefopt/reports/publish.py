"""Writes the report of an evaluation into the folder of its run."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

from prefopt.evaluation.evidence import seal_report
from prefopt.evaluation.report import Report
from prefopt.evaluation.run import Evaluation
from prefopt.process import phases
from prefopt.reports.render import json_ready, render_report
from prefopt.runs.directory import RunDirectory, RunTakenOverError
from prefopt.runs.files import read_report
from prefopt.storage.files import write_text

logger = logging.getLogger(__name__)

PAIRS = "pairs.jsonl"
"""File in `report/` with one line per held-out pair; with it `prefopt compare` compares runs pair by pair."""

ANSWERS = "answers.jsonl"
"""File in `report/` with one line per answered prompt: what each contestant wrote, and who won by which judge."""


@phases.of("report")
def publish(evaluation: Evaluation, run: RunDirectory, folder: Path | None = None) -> Report:
    """Writes the report of an evaluation, and returns it with its phases. Rank 0 only.

    Args:
        evaluation: The results for the run.
        run: Folder of the run.
        folder: Where the report goes; None: `report/` of the run.

    Raises:
        RunTakenOverError: Another process uses the run's folder now, so what was measured may not be what is there.
    """
    if run.find_intruder() is not None:
        raise RunTakenOverError(run.path)
    write(evaluation, folder or run.report, lambda: read_phases(run))
    return evaluation.report


def write(evaluation: Evaluation, folder: Path, read_phases: Callable[[], dict[str, float]] | None = None) -> None:
    """Writes the report of an evaluation, and the measurements of each pair and each answered prompt."""
    _tell_replaced(evaluation.report, folder)
    render_report(evaluation.report, evaluation.records, evaluation.pairs, folder, read_phases)
    write_text(
        folder / PAIRS, "".join(f"{json.dumps(json_ready(pair), allow_nan=False)}\n" for pair in evaluation.pairs)
    )
    if evaluation.answers:
        write_text(folder / ANSWERS, "".join(f"{json.dumps(line)}\n" for line in evaluation.answers))
    else:
        (folder / ANSWERS).unlink(missing_ok=True)  # of an earlier measurement
    seal_report(folder)


def _tell_replaced(report: Report, folder: Path) -> None:
    """Warns if answers that judges had read are replaced by a report without judges."""
    before, _ = read_report(folder / "report.json")
    judges = (before or {}).get("judges")
    if judges and not report.judges:
        logger.warning(
            "evaluation: %s: its report in which answers were judged (%s) is replaced by one without judges: an "
            "evaluation takes the run's own settings. To keep judging, give evaluation.judges and "
            "evaluation.contestants again",
            folder, ", ".join(judges),
        )  # fmt: skip


def read_phases(run: RunDirectory) -> dict[str, float]:
    """Returns the seconds per part of the run until now; in a later evaluation, those of the training command."""
    phases.save()
    found: dict[str, float] = run.read_work().get("phases", {})
    return found
