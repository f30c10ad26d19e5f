"""Tasks as the settings name them: read, built in their order, and checked by one form."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from prefopt.config.tasks import KINDS, kind_of, read_tasks
from prefopt.evaluation.asked import Asked
from prefopt.evaluation.checked import check_answers
from prefopt.evaluation.judges.judge import LabelledPair
from prefopt.evaluation.statistics import Bootstrap
from prefopt.evaluation.tasks import build_tasks, check_tasks
from prefopt.evaluation.tasks.task import Answered, TaskContext, quotable
from prefopt.process.errors import UserError

pytest.importorskip("sklearn")
pytest.importorskip("sacrebleu")

CONTEXT = TaskContext([LabelledPair(f"ask {n}", "ab"[n % 2], f"no {n}") for n in range(40)], seed=0)


def test_every_kind_is_built_in_the_order_of_the_settings_and_keeps_the_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_task_of_a_test.py").write_text("def check(prompt, answer, chosen):\n    return len(answer)\n")
    monkeypatch.chdir(tmp_path)
    custom = {"kind": "custom", "function": "own_task_of_a_test:check", "higher_is_better": False}
    given = [custom, *(kind for kind in KINDS if kind != "custom"), {"kind": "json_schema", "name": "again"}]
    assert [kind_of(config) for config in read_tasks(given)][:2] == ["custom", "json_schema"]
    tasks = build_tasks(read_tasks(given), CONTEXT)
    assert [task.name for task in tasks] == [
        "custom", "json_schema", "label", "text_overlap", "style", "code", "again"
    ]  # fmt: skip
    answers = [Answered("p", "a", "a"), Answered("q", '{"x": 1}', None), Answered("r", "", "b")]
    for task in tasks:
        for asked in (answers, answers[:1], []):
            found = task.check(asked)
            main = next(iter(found.values))
            assert main in found.higher_is_better, task.name
            assert found.higher_is_better.keys() <= found.values.keys()
            assert all(values.shape == (len(asked),) for values in found.values.values())
            assert all(values.dtype in (np.dtype(bool), np.dtype(float)) for values in found.values.values())
            json.dumps(dict(found.details), allow_nan=False)


def test_two_tasks_of_one_name_are_refused() -> None:
    with pytest.raises(UserError, match="two entries have the name 'code'"):
        read_tasks(["code", {"kind": "code", "lint": False}])


def test_what_is_quoted_of_answers_is_short_and_can_be_written() -> None:
    assert quotable("plain") == "plain"
    quoted = quotable("\0\ud800" + "x" * 10_000)
    assert len(quoted) < 150
    assert "\0" not in quoted
    quoted.encode()


@pytest.mark.parametrize(
    ("given", "chosen", "told"),
    [
        ({"kind": "json_schema", "schema": "gone.json"}, ["{}"], "gone.json"),
        ({"kind": "json_schema", "schema": "odd.json"}, ["{}"], "is no JSON Schema"),
        ({"kind": "custom", "function": "no_such_module_of_anyone:f"}, ["a"], "cannot be imported"),
        ("text_overlap", [None, " "], "the held-out prompts have none"),
        ("label", [None], "the held-out prompts have none"),
        ("label", ["A", None], "no chosen answer of the held-out prompts is a label; the first one begins 'A'"),
    ],
)
def test_what_can_be_found_before_anything_is_answered_is_refused(
    given: object, chosen: list[str | None], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "odd.json").write_text('{"type": 3}')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(told)):
        check_tasks(read_tasks([given]), CONTEXT, chosen)


def test_a_style_that_cannot_be_learned_is_refused_without_learning() -> None:
    few = TaskContext(CONTEXT.trained[:3], seed=0)
    with pytest.raises(UserError, match="the style cannot be learned: it needs 20 training pairs"):
        check_tasks(read_tasks(["style"]), few, ["a"])
    check_tasks(read_tasks([{"kind": "style", "banned": ["regarding"]}]), few, ["a"])
    check_tasks(read_tasks(["style", "label", "text_overlap", "code", "json_schema"]), CONTEXT, ["a", None])


def test_a_task_that_fails_is_told_of_and_the_others_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "failing_task_of_a_test.py").write_text(
        "def check(prompt, answer, chosen):\n    return float('nan') if answer == 'odd' else 1.0\n"
    )
    monkeypatch.chdir(tmp_path)
    given = [{"kind": "custom", "name": "mine", "function": "failing_task_of_a_test:check"}, "json_schema"]
    answers = {"base": ["{}"], "tuned": ["odd"]}
    found, failures = check_answers(given, [Asked("a:1", "prompt", "{}")], answers, [], Bootstrap(50, 0))
    assert [*found] == ["json_schema"]
    assert "failing_task_of_a_test:check: returned nan for answer 0" in failures["mine"]
