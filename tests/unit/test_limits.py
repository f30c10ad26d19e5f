"""Prompts that leave no room for an answer are refused, and what is said to help does."""

import shlex

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from prefopt.config.load import load_config
from prefopt.evaluation.material import UNJUDGED, UNSAMPLED, _choose_answered, read_questions
from prefopt.models.limits import Limits
from prefopt.process.errors import UserError
from prefopt.process.paths import shipped

SMALL = Limits("a model", context=40, num_tokens=None)


def refusal(prompts: list[list[int]], max_new_tokens: int, without: str = "") -> str:
    with pytest.raises(UserError) as error:
        SMALL.check_answers(prompts, max_new_tokens, without)
    return str(error.value)


def test_each_way_out_is_named_only_where_it_is_one() -> None:
    short, long = [1] * 10, [1] * 30
    both = refusal([short, short, long], 20, "evaluation.num_samples=0")
    assert both.endswith(
        "Set evaluation.max_new_tokens=10 (shorter answers), or data.max_length=20 data.on_long_prompt=skip (no "
        "longer prompts), or evaluation.num_samples=0 (no answers)."
    )
    assert refusal([long], 20).endswith("Set evaluation.max_new_tokens=10 (shorter answers).")
    assert refusal([[1] * 40], 20).endswith("Use shorter prompts, or a model that reads more.")
    SMALL.check_answers([[1] * 20], 20)


@pytest.mark.parametrize(("is_judged", "without"), [(True, UNJUDGED), (False, UNSAMPLED)])
def test_what_is_said_to_leave_all_answers_out_does(is_judged: bool, without: str) -> None:
    rows = Dataset.from_dict({"prompt_ids": [[1], [2]], "source": ["a:1", "a:2"]})
    also = [] if is_judged else ["evaluation.judges=[]", "evaluation.contestants=[base,tuned]"]
    config = load_config(["+experiment=dpo_brand_voice", *also, *shlex.split(without)])
    settings = config.evaluation
    assert len(_choose_answered(rows, config, are_judged=bool(settings.judges or settings.tasks))) == 0
    assert settings.contestants == ["base", "tuned"]


def test_judged_answers_are_asked_for_whatever_the_number_of_samples() -> None:
    rows = Dataset.from_dict({"prompt_ids": [[1], [2]], "source": ["a:1", "a:2"]})
    config = load_config(["+experiment=dpo_brand_voice", UNSAMPLED])
    assert len(_choose_answered(rows, config, are_judged=True)) == 2


def test_a_regression_suite_that_does_not_fit_names_its_own_setting() -> None:
    tokenizer = AutoTokenizer.from_pretrained(shipped("assets/base_model"))
    with pytest.raises(UserError, match=r"evaluation.regression=.*evaluation.regression=null$"):
        read_questions(load_config([]), tokenizer, SMALL)
    assert read_questions(load_config(["evaluation.regression=null"]), tokenizer, SMALL) == []
    assert read_questions(load_config([]), tokenizer, None)
