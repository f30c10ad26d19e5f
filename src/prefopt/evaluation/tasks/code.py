"""Answers that are Python code: whether it parses, and what a linter finds in it. Nothing of it is ever run."""

import ast
import json
import logging
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from prefopt.config.tasks import CodeTaskConfig
from prefopt.evaluation.statistics import Floats
from prefopt.evaluation.tasks.fences import find_blocks
from prefopt.evaluation.tasks.task import Answered, Checked
from prefopt.process.errors import first_line, shorten

MAX_CHARACTERS = 100_000
"""Longest code that is read; Python's parser has bounds of its own for nesting."""
MAX_LINTED = 20_000
"""Longest code that is linted: ruff's time grows with the square of the length of an odd line."""
PYTHON = frozenset({"", "python", "python3", "py", "pycon"})
"""What stands behind the fence of a block that is taken for Python."""
MAX_TOLD = 10
LIMIT_S = 60
"""Seconds that ruff gets for all answers; it reads a thousand in half a second."""
RUFF = (
    *(sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--ignore-noqa", "--exit-zero", "--quiet"),
    *(f"--target-version=py3{sys.version_info.minor}", "--select=E4,E7,E9,F", "--output-format=json", "."),
)
"""ruff's default rules, whatever settings the machine has and whatever comments an answer has."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CodeTask:
    """Checks that answers are Python.

    Of an answer with code fences, the Python blocks are its code; of any other, the whole text. `parses` is whether
    Python's own parser takes it; code without a statement does not count. `lint_findings` is how many things ruff
    finds, by its default rules, in code that parses.

    Attributes:
        config: Its settings.
    """

    config: CodeTaskConfig

    @property
    def name(self) -> str:
        return self.config.name

    def check(self, answers: Sequence[Answered]) -> Checked:
        codes = [find_code(answered.answer) for answered in answers]
        errors = [find_error(code) for code in codes]
        values: dict[str, Any] = {"parses": np.array([error is None for error in errors], bool)}
        details: dict[str, Any] = {
            "errors": dict(Counter(error for error in errors if error is not None).most_common(MAX_TOLD)),
            "num_fenced": sum(bool(find_blocks(answered.answer)) for answered in answers),
        }
        if self.config.lint:
            too_long = [error is None and len(code) > MAX_LINTED for code, error in zip(codes, errors, strict=True)]
            skipped = [error is not None or long for error, long in zip(errors, too_long, strict=True)]
            found = lint([None if skip else code for code, skip in zip(codes, skipped, strict=True)])
            if isinstance(found, str):
                logger.warning("evaluation: %s: code is not linted: %s", self.name, found)
                details["not_linted"] = found
            else:
                values["lint_findings"], rules = found
                details |= {"lint_rules": dict(rules.most_common(MAX_TOLD)), "num_too_long_to_lint": sum(too_long)}
        better = {"parses": True, "lint_findings": False}
        return Checked(values, {key: better[key] for key in values}, details)


def find_code(answer: str) -> str:
    """Returns the code of an answer: its Python blocks, or all of it if it has no fences."""
    blocks = find_blocks(answer)
    return "\n".join(block.content for block in blocks if block.language in PYTHON) if blocks else answer


def find_error(code: str) -> str | None:
    """Returns why a text is no Python code, without names and numbers of its own; None if it is."""
    if len(code) > MAX_CHARACTERS:
        return f"longer than {MAX_CHARACTERS:,} characters"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in the code
            module = ast.parse(code)
    except SyntaxError as error:
        return type(error).__name__
    except (RecursionError, MemoryError):
        return "nested too deeply"
    except ValueError:
        return "characters that code cannot have"
    return None if module.body else "no statement"


def lint(codes: Sequence[str | None]) -> tuple[Floats, Counter[str]] | str:
    """Counts ruff's findings in each code; all are read at once, since starting it takes longer than reading a code.

    Args:
        codes: Code that parses; None: has no findings, and NaN as their number.

    Returns:
        The number for each code, shape (codes,), and how often each rule was broken; or why nothing was linted.
    """
    if find_spec("ruff") is None:
        return "ruff is not installed (pip install ruff)"
    counts = np.array([np.nan if code is None else 0.0 for code in codes], float)
    rules: Counter[str] = Counter()
    try:
        with TemporaryDirectory(prefix="prefopt-lint-") as folder:
            for number, code in enumerate(codes):
                if code is not None:
                    (Path(folder) / f"{number}.py").write_bytes(code.encode("utf-8", "replace"))
            done = subprocess.run(
                RUFF, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT_S, check=True
            )
        findings = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return f"ruff took longer than {LIMIT_S} seconds"
    except subprocess.CalledProcessError as error:
        told = error.stderr.decode("utf-8", "replace").strip()
        return f"ruff failed ({shorten(told.splitlines()[0]) if told else f'exit code {error.returncode}'})"
    except (OSError, ValueError) as error:
        return f"ruff cannot be used ({first_line(error)})"
    for finding in findings:
        counts[int(Path(finding["filename"]).stem)] += 1
        rules[str(finding["code"])] += 1
    return counts, rules
