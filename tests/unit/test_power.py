"""What held-out data can show, told before a run, and in docs/statistics.md."""

import logging
import re
from math import ceil

from datasets import Dataset

from prefopt.config.schema import EvaluationConfig
from prefopt.evaluation.power import USUAL_DISCORDANT, describe_power
from prefopt.evaluation.statistics import detectable_gain, needed_pairs
from tests.conftest import REPOSITORY


def pairs_of(*prompts: int) -> Dataset:
    return Dataset.from_dict({"prompt_ids": [[prompt] for prompt in prompts]})


def test_the_table_of_the_page_is_that_of_the_function() -> None:
    page = (REPOSITORY / "docs" / "statistics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) points \| ([\d,-]+) \| ([\d,]+) \| ([\d,]+) \|$", page, flags=re.MULTILINE)
    assert len(rows) == 4
    for gain, *numbers in rows:
        for discordant, number in zip((0.1, 0.3, 0.5), numbers, strict=True):
            needed = f"{ceil(needed_pairs(int(gain) / 100, discordant)):,}" if int(gain) / 100 <= discordant else "-"
            assert number == needed


def test_pairs_of_one_prompt_count_once() -> None:
    level, words = describe_power(pairs_of(*range(66), *range(66)), EvaluationConfig())
    points = 100 * (0.05 + detectable_gain(66, USUAL_DISCORDANT))
    assert level == logging.INFO
    assert words.startswith(
        f"held_out: 132 pairs of 66 prompts show gains in preference accuracy of about {points:.0f}"
    )


def test_too_few_prompts_and_none_at_all_are_warned_of() -> None:
    for held_out, words in (
        (pairs_of(*[1] * 40), "40 pairs of 1 prompt, and a report calls a gain shown from 30 prompts on"),
        (pairs_of(*range(29)), "29 pairs of 29 prompts, and"),
        (None, "nothing is held out"),
        (pairs_of(), "nothing is held out"),
    ):
        level, found = describe_power(held_out, EvaluationConfig())
        assert level == logging.WARNING
        assert words in found


def test_demonstrations_are_counted_by_their_prompts() -> None:
    rows = {"input_ids": [[1, 2, 3]] * 20 + [[4, 5, 6]] * 20, "labels": [[-100, 2, 3]] * 20 + [[-100, 5, 6]] * 20}
    level, words = describe_power(Dataset.from_dict(rows), EvaluationConfig())
    assert level == logging.WARNING
    assert "40 rows of 2 prompts" in words
