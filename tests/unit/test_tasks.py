"""Tasks as the settings name them: read, built in their order, and checked by one form."""

import json
from pathlib import Path

import numpy as np
import pytest

from prefopt.config.tasks import KINDS, kind_of, read_tasks
from prefopt.evaluation.judges.judge import LabelledPair
from prefopt.evaluation.tasks import build_tasks
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
