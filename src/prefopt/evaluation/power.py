"""What held-out data can show, told before the time and the money for a run are spent."""

import logging
from typing import TYPE_CHECKING

from prefopt.config.schema import EvaluationConfig
from prefopt.evaluation.material import number_prompts, prompt_of, to_rows
from prefopt.evaluation.statistics import detectable_gain

if TYPE_CHECKING:
    from datasets import Dataset

USUAL_DISCORDANT = 0.3
"""Share of held-out pairs that only one of base and tuned ranks right, as long as it is not known."""


def describe_power(held_out: "Dataset | None", settings: EvaluationConfig) -> tuple[int, str]:
    """Returns a sentence on what the held-out data can show, and its level of logging.

    Pairs of one prompt count as one here: how alike they are is not known before the run.

    Args:
        held_out: Tokenised pairs or demonstrations; None or empty if there are none.
        settings: Of the evaluation.
    """
    n = len(held_out or ())
    if held_out is None or not n:
        return (
            logging.WARNING,
            "held_out: nothing is held out, so the report will not tell whether the run was worth it.",
        )
    is_pairs = "prompt_ids" in held_out.column_names
    ids = held_out["prompt_ids"] if is_pairs else [prompt_of(row) for row in to_rows(held_out)]
    num, rows = number_prompts(ids).num, "pairs" if is_pairs else "rows"
    found = f"held_out: {n:,} {rows} of {num:,} {'prompt' if num == 1 else 'prompts'}"
    if num < settings.min_prompts:
        more = "Name a larger data.held_out, or raise data.held_out_fraction."
        return (
            logging.WARNING,
            f"{found}, and a report calls a gain shown from {settings.min_prompts} prompts on. {more}",
        )
    if not is_pairs:
        return logging.INFO, f"{found}."
    points = 100 * (settings.min_gain + detectable_gain(num, USUAL_DISCORDANT))
    least = f"to be more than {100 * settings.min_gain:g}"
    if_so = f"80 % power, if base and tuned disagree on {USUAL_DISCORDANT:.0%} of the pairs"
    shown = f"gains in preference accuracy of about {points:.0f} points or more {least}"
    return logging.INFO, f"{found} show {shown} ({if_so})."
