"""Judges: what reads two answers to a prompt and says which is better."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

from prefopt.config.entries import read_entries
from prefopt.config.ranges import require, require_at_most, require_code, require_url, require_variable
from prefopt.process.errors import UserError, shorten

SETTING = "evaluation.judges"
FEWEST_IN_PANEL = 3
MAX_CONCURRENCY = 256


@dataclass(frozen=True, kw_only=True)
class RuleJudgeConfig:
    """Scores an answer by regular expressions, or by code of the user's own.

    A search that takes longer than seconds, as `(a+)+b` does, ends the evaluation with an error that names it.

    Attributes:
        name: By which reports tell it apart.
        patterns: Regular expressions, one point for each match in the answer; or with other points, of which those
            below 0 count against it: as a table, or in the list as `{pattern: ..., points: ...}`, which can be typed.
        function: `module:function` of prompt and answer that returns a number, instead of patterns.
        ignore_case: Whether patterns match in upper and lower case alike.
        tie_within: Answers whose scores differ by at most this are a tie.
    """

    name: str = "rule"
    patterns: dict[str, float] | list[Any] = field(default_factory=list)
    function: str | None = None
    ignore_case: bool = True
    tie_within: float = 0.0

    def __post_init__(self) -> None:
        where = f"{SETTING}: {self.name}:"
        require(bool(self.patterns) != (self.function is not None), f"{where} give either patterns or function.")
        require(self.tie_within >= 0, f"{where} tie_within must be >= 0, found {self.tie_within}.")
        seen: set[str] = set()
        for pattern, points in self._weighted:
            is_number = isinstance(points, int | float) and not isinstance(points, bool)
            require(
                isinstance(pattern, str) and is_number,
                f"{where} a pattern is a text, or {{pattern: ..., points: ...}}; found {_shown(pattern, points)}.",
            )
            require(abs(points) < inf, f"{where} points must be a finite number, found {_shown(pattern, points)}.")
            require(
                pattern not in seen,
                f"{where} the pattern {shorten(repr(pattern))} is named twice. Name it once, with the points of both: "
                "{pattern: ..., points: ...}.",
            )
            seen.add(pattern)
            try:
                re.compile(pattern)
            except (re.error, OverflowError, RecursionError) as error:
                raise UserError(
                    f"{where} {shorten(repr(pattern))} is no regular expression ({error}). To find these very "
                    f"characters, write {shorten(re.escape(pattern))}"
                ) from error
        if self.function is not None:
            require_code(f"{where} function", self.function)

    @property
    def weights(self) -> dict[str, float]:
        """The patterns with their points."""
        return dict(self._weighted)

    @property
    def _weighted(self) -> list[tuple[Any, Any]]:
        """The patterns with their points, as they were given."""
        given = self.patterns
        return [_with_points(each) for each in given] if isinstance(given, list) else list(given.items())


def _shown(pattern: object, points: object) -> str:
    return shorten(str(pattern) if points is None else f"{{{pattern!r}: {points!r}}}")


def _with_points(item: Any) -> tuple[Any, Any]:
    """Returns an item of a list of patterns with its points."""
    if isinstance(item, str):
        return item, 1.0
    is_table = isinstance(item, Mapping) and set(item) == {"pattern", "points"}
    return (item["pattern"], item["points"]) if is_table else (repr(item), None)  # which is refused with the others


@dataclass(frozen=True, kw_only=True)
class ClassifierJudgeConfig:
    """A classifier of words and letters that learned from the training pairs which answers are chosen.

    Attributes:
        name: By which reports tell it apart.
        num_folds: Parts of the training prompts, of which it is tried on each after learning from the others.
        tie_within: Answers whose probabilities of being chosen differ by at most this are a tie.
    """

    name: str = "classifier"
    num_folds: int = 5
    tie_within: float = 0.02

    def __post_init__(self) -> None:
        where = f"{SETTING}: {self.name}:"
        require(2 <= self.num_folds <= 20, f"{where} num_folds must be between 2 and 20, found {self.num_folds}.")
        require(0 <= self.tie_within < 1, f"{where} tie_within must be in [0, 1), found {self.tie_within}.")


@dataclass(frozen=True, kw_only=True)
class RewardModelJudgeConfig:
    """A sequence-classification model with one output, which scores a prompt with an answer.

    Attributes:
        name: By which reports tell it apart.
        model: Its folder, or its id on the hub.
        revision: Its revision on the hub.
        tie_within: Answers whose scores differ by at most this are a tie.
    """

    name: str = "reward_model"
    model: str
    revision: str | None = None
    tie_within: float = 0.0

    def __post_init__(self) -> None:
        require(self.tie_within >= 0, f"{SETTING}: {self.name}: tie_within must be >= 0, found {self.tie_within}.")


@dataclass(frozen=True, kw_only=True)
class ModelJudgeConfig:
    """A causal language model on this machine, which reads both answers; its verdict is the likelier of A and B.

    Attributes:
        name: By which reports tell it apart.
        model: Its folder, or its id on the hub.
        revision: Its revision on the hub.
        rubric: What it is asked: the text, or a file (.txt, .md), with {prompt}, {a} and {b}. Unset: prefopt's own.
        tie_within: Probabilities of A and B that differ by at most this are a tie.
    """

    name: str = "model"
    model: str
    revision: str | None = None
    rubric: str | None = None
    tie_within: float = 0.0

    def __post_init__(self) -> None:
        require(
            0 <= self.tie_within < 1, f"{SETTING}: {self.name}: tie_within must be in [0, 1), found {self.tie_within}."
        )


@dataclass(frozen=True, kw_only=True)
class EndpointJudgeConfig:
    """A language model behind an OpenAI-compatible server, which reads both answers and writes its verdict.

    It needs the package openai: pip install 'prefopt[judge]'.

    Attributes:
        name: By which reports tell it apart.
        endpoint: URL of the server, such as http://127.0.0.1:8000/v1.
        model: The model's name there.
        key_env: Environment variable that holds the key; unset: none is sent.
        rubric: What it is asked: the text, or a file (.txt, .md), with {prompt}, {a} and {b}, which must ask for the
            verdict [[A]], [[B]], or [[C]] for a tie. Unset: prefopt's own.
        max_new_tokens: Most tokens of a reply, the reasons before the verdict included.
        max_requests: Most requests that are sent in one evaluation, repeated ones included; what the cache has costs
            none.
        concurrency: Requests that are under way at once.
    """

    name: str = "endpoint"
    endpoint: str
    model: str
    key_env: str | None = None
    rubric: str | None = None
    max_new_tokens: int = 1024
    max_requests: int = 2000
    concurrency: int = 16

    def __post_init__(self) -> None:
        where = f"{SETTING}: {self.name}:"
        require_url(f"{where} endpoint", self.endpoint)
        if self.key_env is not None:
            require_variable(f"{where} key_env", self.key_env)
        for name in ("max_new_tokens", "max_requests", "concurrency"):
            require(getattr(self, name) >= 1, f"{where} {name} must be >= 1, found {getattr(self, name)}.")
        require_at_most(f"{where} concurrency", self.concurrency, MAX_CONCURRENCY, "each is a thread")


@dataclass(frozen=True, kw_only=True)
class PanelJudgeConfig:
    """The majority of other judges; where most of them have no verdict, it has none.

    Attributes:
        name: By which reports tell it apart.
        of: Names of the judges, at least three different ones; each must be in `evaluation.judges` too.
    """

    name: str = "panel"
    of: list[str]

    def __post_init__(self) -> None:
        where = f"{SETTING}: {self.name}:"
        names = [name for name in self.of if isinstance(name, str)]
        is_right = len(set(names)) == len(self.of) >= FEWEST_IN_PANEL
        require(is_right, f"{where} of must name {FEWEST_IN_PANEL} different judges or more, found {self.of}.")


JudgeConfig = (
    RuleJudgeConfig
    | ClassifierJudgeConfig
    | RewardModelJudgeConfig
    | ModelJudgeConfig
    | EndpointJudgeConfig
    | PanelJudgeConfig
)
KINDS: dict[str, type[Any]] = {
    "rule": RuleJudgeConfig,
    "classifier": ClassifierJudgeConfig,
    "reward_model": RewardModelJudgeConfig,
    "model": ModelJudgeConfig,
    "endpoint": EndpointJudgeConfig,
    "panel": PanelJudgeConfig,
}


def read_judges(given: object) -> list[JudgeConfig]:
    """Returns the judges of `evaluation.judges`, the deciding one first.

    Raises:
        UserError: A table has an unknown key or a wrong value, two judges have one name, or a panel names none.
    """
    judges: list[JudgeConfig] = read_entries(SETTING, given, KINDS)
    names = [judge.name for judge in judges if not isinstance(judge, PanelJudgeConfig)]
    for judge in judges:
        unknown = [name for name in judge.of if name not in names] if isinstance(judge, PanelJudgeConfig) else []
        if unknown:
            known = ", ".join(names) or "none beside panels"
            raise UserError(
                f"{SETTING}: {judge.name}: no judge is called {shorten(repr(unknown[0]))}. Judges: {known}."
            )
    return judges


def read_deciding_judge(given: object) -> list[JudgeConfig]:
    """Returns the first judge of `evaluation.judges`, by which pairs are made, and the judges that it names.

    Raises:
        UserError: There is none, or it would have to learn from pairs, which are only to be made.
    """
    judges = read_judges(given)
    require(bool(judges), f"{SETTING}: required, such as '{SETTING}=[{{kind: rule, patterns: [...]}}]'.")
    first = judges[0]
    named = [judge for judge in judges if isinstance(first, PanelJudgeConfig) and judge.name in first.of]
    for judge in (first, *named):
        require(
            not isinstance(judge, ClassifierJudgeConfig),
            f"{SETTING}: {judge.name}: learns from pairs, and these are only to be made. Put another judge first.",
        )
    return [first, *named]
