"""Python in answers: found within fences, parsed, linted, and never run."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prefopt.config.tasks import CodeTaskConfig
from prefopt.evaluation.tasks import code as module
from prefopt.evaluation.tasks.code import CodeTask, find_code, find_error, lint
from prefopt.evaluation.tasks.fences import find_blocks
from prefopt.evaluation.tasks.task import Answered, Checked


def check(*answers: str, lint: bool = True) -> Checked:
    return CodeTask(CodeTaskConfig(lint=lint)).check([Answered("p", answer, None) for answer in answers])


def test_fenced_blocks_are_found_with_their_language() -> None:
    text = "Run this:\n```Python title\nx = 1\n```\nor\n```\ny\n```\n  ```sh\nls"
    found = find_blocks(text)
    assert [(each.language, each.content, each.is_closed) for each in found] == [
        ("python", "x = 1\n", True),
        ("", "y\n", True),
        ("sh", "ls", False),
    ]


def test_code_is_the_python_blocks_or_the_whole_answer() -> None:
    assert find_code("x = 1") == "x = 1"
    assert find_code("So:\n```python\nx = 1\n```\nThen `pip`:\n```sh\npip install x\n```") == "x = 1\n"
    assert find_error(find_code("```sh\nls\n```")) == "no statement"


@pytest.mark.parametrize(
    ("code", "parses"),
    [("x = 1", True), ("def f(:\n  pass", False), ("", False), ("# only a comment", False), ("  x = 1", False),
     ("print 'x'", False), ("match x:\n  case 1: pass", True), ('x = "\\d"', True)],
)  # fmt: skip
def test_what_parses_is_what_python_compiles(code: str, parses: bool, recwarn: pytest.WarningsRecorder) -> None:
    assert (find_error(code) is None) is parses
    assert not recwarn.list


def test_fenced_answers_and_errors_are_counted() -> None:
    found = check("```python\nx = 1\n```", "x = ", "y = 2", "I cannot do that.", lint=False)
    assert found.values["parses"].tolist() == [True, False, True, False]
    assert found.details == {"errors": {"SyntaxError": 2}, "num_fenced": 1}
    assert list(found.higher_is_better) == ["parses"]


def test_findings_are_those_of_ruff_alone_on_each_code() -> None:
    codes = ["import os\n", "x = 1\n", "def f():\n    y = 3  # noqa\n    return z\n", "# ruff: noqa\nimport sys\n"]
    found = check(*codes, "broken(")
    expected = []
    for code in codes:
        command = [sys.executable, "-m", "ruff", "check", "--isolated", "--ignore-noqa", "--output-format=json", "-"]
        done = subprocess.run(command, input=code, capture_output=True, text=True, check=False)
        expected.append(len(json.loads(done.stdout)))
    assert expected == [1, 0, 2, 1]
    assert found.values["lint_findings"][:4].tolist() == expected
    assert math.isnan(found.values["lint_findings"][4])
    assert found.details["lint_rules"] == {"F401": 2, "F841": 1, "F821": 1}


def test_code_that_this_python_parses_is_no_error_to_ruff() -> None:
    found = check("try:\n    pass\nexcept* ValueError:\n    pass\n")
    assert found.values["parses"].all()
    assert found.values["lint_findings"].tolist() == [0]


def test_without_ruff_code_is_parsed_and_the_reason_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    found = check("x = 1")
    assert list(found.values) == ["parses"]
    assert "ruff is not installed" in found.details["not_linted"]
    assert "ruff is not installed" in caplog.text


@pytest.mark.parametrize(
    ("script", "told"),
    [("import time; time.sleep(60)", "longer than"), ("raise SystemExit('bad disk')", "bad disk"),
     ("print('no json')", "cannot be used")],
)  # fmt: skip
def test_a_linter_that_hangs_or_fails_costs_its_numbers_only(
    script: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RUFF", (sys.executable, "-c", script))
    monkeypatch.setattr(module, "LIMIT_S", 1 if "sleep" in script else 30)
    found = lint(["x = 1"])
    assert isinstance(found, str)
    assert told in found


def test_code_is_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    found = check(f"open({str(mark)!r}, 'w')\n", "import antigravity_of_nobody\n", "raise SystemExit\n")
    assert found.values["parses"].all()
    assert not mark.exists()


N = 90_000
HOSTILE = [
    "", "\0", "x = '\ud800'", "(" * N, "-" * N + "1", "a" + ".b" * (N // 2), "1" + "+1" * (N // 2),
    "f" + "()" * (N // 2), "not " * (N // 4) + "1", "lambda:" * (N // 7) + "1", "1 if 1 else " * (N // 12) + "1",
    "9" * N, "f'" + "{" * N, "".join(" " * depth + "if 1:\n" for depth in range(400)), "a=" * (N // 2) + "1",
    "if 1:\n pass\n" + "elif 1:\n pass\n" * (N // 15), "@a\n" * (N // 3), "```\n" * (N // 4), "```" * N,
    "x" * 5_000_000, "\\\n" * (N // 2),
]  # fmt: skip


def test_hostile_answers_neither_crash_nor_take_long() -> None:
    start = time.perf_counter()
    found = check(*HOSTILE)
    assert time.perf_counter() - start < 30
    assert len(found.values["parses"]) == len(found.values["lint_findings"]) == len(HOSTILE)
