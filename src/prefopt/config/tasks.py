"""Tasks: what can be checked in an answer without a judge of taste."""

import re
from dataclasses import dataclass, field
from typing import Any

from prefopt.config.entries import read_entries
from prefopt.config.ranges import require, require_code
from prefopt.process.errors import UserError, shorten

SETTING = "evaluation.tasks"


@dataclass(frozen=True, kw_only=True)
class JsonSchemaTaskConfig:
    """Answers that must be JSON: parse rate, validity by a schema, and fields equal to those of the chosen answer.

    Attributes:
        name: By which reports tell it apart.
        schema: JSON Schema (2020-12) as a file; unset: answers need only parse.
    """

    name: str = "json_schema"
    schema: str | None = None


@dataclass(frozen=True, kw_only=True)
class LabelTaskConfig:
    """Answers that are one of some labels; the right one is the chosen answer.

    Attributes:
        name: By which reports tell it apart.
        labels: The labels; unset: those of the training data's chosen answers.
        out_of_scope: The label of prompts that belong to no other.
        pattern: Regular expression whose first group is the label in an answer, also in a chosen one; unset: the
            whole answer, without outer blanks.
    """

    name: str = "label"
    labels: list[str] = field(default_factory=list)
    out_of_scope: str | None = None
    pattern: str | None = None

    def __post_init__(self) -> None:
        where = f"{SETTING}: {self.name}:"
        _require_texts(f"{where} labels", self.labels)
        require(
            not self.labels or self.out_of_scope is None or self.out_of_scope in self.labels,
            f"{where} out_of_scope must be one of labels, found {shorten(repr(self.out_of_scope))}.",
        )
        if self.pattern is not None:
            try:
                groups = re.compile(self.pattern).groups
            except (re.error, OverflowError, RecursionError) as error:
                raise UserError(
                    f"{where} pattern {shorten(repr(self.pattern))} is no regular expression ({error})."
                ) from error
            require(
                groups > 0,
                f"{where} pattern {shorten(repr(self.pattern))} has no group; put the label in round brackets, as in "
                "'label: (.*)'.",
            )


@dataclass(frozen=True, kw_only=True)
class TextOverlapTaskConfig:
    """Answers that should read like the chosen one: chrF."""

    name: str = "text_overlap"


@dataclass(frozen=True, kw_only=True)
class StyleTaskConfig:
    """Answers in a style: a classifier of letters tells them from the rejected ones of training; words to avoid.

    Attributes:
        name: By which reports tell it apart.
        banned: Words or phrases that an answer must not have, as whole words, in upper and lower case alike.
        num_folds: Parts of the training prompts, of which the classifier is tried on each after learning the others.
    """

    name: str = "style"
    banned: list[str] = field(default_factory=list)
    num_folds: int = 5

    def __post_init__(self) -> None:
        where = f"{SETTING}: {self.name}:"
        _require_texts(f"{where} banned", self.banned)
        require(2 <= self.num_folds <= 20, f"{where} num_folds must be between 2 and 20, found {self.num_folds}.")


@dataclass(frozen=True, kw_only=True)
class CodeTaskConfig:
    """Answers that are Python code: whether it parses, and what a linter says. Nothing of it is run.

    Attributes:
        name: By which reports tell it apart.
        lint: Whether ruff, if it is installed, reads it.
    """

    name: str = "code"
    lint: bool = True


@dataclass(frozen=True, kw_only=True)
class CustomTaskConfig:
    """A function of the user's own, of prompt, answer and chosen answer, that returns a truth or a number.

    Attributes:
        name: By which reports tell it apart.
        function: `module:function`.
        higher_is_better: Which numbers are better.
    """

    name: str = "custom"
    function: str
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        require_code(f"{SETTING}: {self.name}: function", self.function)


TaskConfig = (
    JsonSchemaTaskConfig
    | LabelTaskConfig
    | TextOverlapTaskConfig
    | StyleTaskConfig
    | CodeTaskConfig
    | CustomTaskConfig
)
KINDS: dict[str, type[Any]] = {
    "json_schema": JsonSchemaTaskConfig,
    "label": LabelTaskConfig,
    "text_overlap": TextOverlapTaskConfig,
    "style": StyleTaskConfig,
    "code": CodeTaskConfig,
    "custom": CustomTaskConfig,
}


def _require_texts(key: str, values: list[str]) -> None:
    """Refuses a list that holds something else than texts, an empty text, or a text twice."""
    for place, value in enumerate(values):
        require(
            isinstance(value, str) and bool(value.strip()),
            f"{key} must be texts that are not empty, found {shorten(repr(value))}.",
        )
        require(value not in values[:place], f"{key}: {shorten(repr(value))} stands there twice; remove one of them.")


def kind_of(task: TaskConfig) -> str:
    """Returns the kind of a task, as the settings name it."""
    return next(kind for kind, config in KINDS.items() if type(task) is config)


def read_tasks(given: object) -> list[TaskConfig]:
    """Returns the tasks of `evaluation.tasks`.

    Raises:
        UserError: A table has an unknown key or a wrong value, or two tasks have one name.
    """
    tasks: list[TaskConfig] = read_entries(SETTING, given, KINDS)
    return tasks
