"""What of the judged answers goes to W&B: a table of them, bounded in size, and the win rates."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)

MOST_ROWS = 1000
MOST_CHARACTERS = 2000
"""Longest text of a cell; a longer one ends in `…`."""
BUDGET = 4_000_000
"""Characters of all texts of a table together, so that it is some megabytes at most."""
TUNED = "tuned"
OF_DATA = ("chosen", "rejected")


@dataclass(frozen=True)
class AnswersTable:
    """Columns and rows of a table."""

    columns: list[str]
    rows: list[list[str | None]]


def build_table(lines: Sequence[Mapping[str, Any]]) -> AnswersTable | None:
    """Returns the answers as a table: the prompt, each contestant's answer, those of the data, what each judge says.

    Says in the log what was cut. None if nothing was judged.

    Args:
        lines: Those of answers.jsonl.
    """
    if not lines:
        return None
    names = list(lines[0]["answers"])
    outcomes = lines[0]["outcomes"]
    wanted = [place for place, each in enumerate(outcomes) if each["a"] == TUNED] or list(range(len(outcomes)))
    heads = [f"{outcomes[place]['judge']}: {outcomes[place]['a']} against {outcomes[place]['b']}" for place in wanted]
    rows: list[list[str | None]] = []
    num_cut = used = 0
    for line in lines[:MOST_ROWS]:
        texts = [line["prompt"], *(line["answers"][name] for name in names), *(line.get(key) for key in OF_DATA)]
        used += sum(min(len(text), MOST_CHARACTERS) for text in texts if text is not None)
        if used > BUDGET:
            break
        num_cut += sum(text is not None and len(text) > MOST_CHARACTERS for text in texts)
        rows.append([*map(_shorten, texts), *(line["outcomes"][place]["reading"] for place in wanted)])
    if len(rows) < len(lines) or num_cut:
        logger.info(
            "W&B: the table of answers has %d of %d prompts, and %d of its texts are cut at %d characters; "
            "answers.jsonl has all",
            len(rows), len(lines), num_cut, MOST_CHARACTERS,
        )  # fmt: skip
    return AnswersTable(["prompt", *names, *OF_DATA, *heads], rows)


def _shorten(text: str | None) -> str | None:
    return text if text is None or len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 1]}…"


def summarise_wins(report: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the win rates of a report by their names in W&B's summary: `win_rates/<judge>/<a> against <b>`."""
    return {
        "/".join(["win_rates", _as_part(each["judge"]), _as_part(f"{each['a']} against {each['b']}")]): {
            "value": each["value"],
            "ci95": each["ci95"],
        }
        for each in report.get("win_rates") or []
    }


def _as_part(name: str) -> str:
    """Returns a name as one part of a key: W&B reads dots and slashes as levels."""
    return re.sub(r"[./\\]", "_", name)
