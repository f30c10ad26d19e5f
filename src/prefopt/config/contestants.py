"""Contestants: the models, with or without a prompt, whose answers an evaluation compares."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath

from prefopt.config.entries import read_table
from prefopt.config.ranges import require, require_url, require_variable
from prefopt.process.errors import shorten

BASE, TUNED = "base", "tuned"
SETTING = "evaluation.contestants"
TAKEN = ("prompt", "chosen", "rejected", "rendered", "readings", "ranking")
"""Names of what stands beside the contestants' answers in a report."""


@dataclass(frozen=True, kw_only=True)
class ContestantConfig:
    """A model that answers the held-out prompts.

    Attributes:
        name: By which reports tell it apart.
        model: A folder of a model, an adapter or a run, or an id on the hub; of an endpoint, the model's name there.
            `base` and `tuned` are the run's. Unset: the base.
        endpoint: URL of an OpenAI-compatible server that answers instead, such as http://127.0.0.1:8000/v1.
        key_env: Environment variable that holds the endpoint's key; unset: none is sent.
        system: What the model is told before each prompt: the text, or a file (.txt, .md) that holds it.
        examples: JSONL file of examples, each with `prompt` and `completion` (or `chosen`), shown before each prompt.
        num_examples: How many of them are shown, the first ones.
        max_requests: Most requests to the endpoint in one evaluation; answers that were kept cost none.
    """

    name: str
    model: str | None = None
    endpoint: str | None = None
    key_env: str | None = None
    system: str | None = None
    examples: str | None = None
    num_examples: int = 4
    max_requests: int = 2000

    def __post_init__(self) -> None:
        where = f"{SETTING}: {self.name}:"
        require(self.name.strip() != "", f"{SETTING}: a contestant's name must not be empty.")
        require(self.name not in TAKEN, f"{where} in reports this names another thing. Give it another name.")
        require(self.num_examples >= 1, f"{where} num_examples must be >= 1, found {self.num_examples}.")
        require(self.max_requests >= 1, f"{where} max_requests must be >= 1, found {self.max_requests}.")
        require(
            self.endpoint is None or self.model not in (None, BASE, TUNED),
            f"{where} an endpoint needs model, the model's name there.",
        )
        if self.endpoint is not None:
            require_url(f"{where} endpoint", self.endpoint)
        if self.key_env is not None:
            require_variable(f"{where} key_env", self.key_env)
        require(
            self.endpoint is not None or self.key_env is None,
            f"{where} key_env is the key of an endpoint. Leave it out.",
        )

    @property
    def is_prompted(self) -> bool:
        """Whether the model is told something before each prompt."""
        return self.system is not None or self.examples is not None

    @property
    def is_tuned(self) -> bool:
        """Whether this is the run's tuned model, as it is."""
        return self.name == TUNED


def read_contestants(given: object) -> list[ContestantConfig]:
    """Returns the contestants of `evaluation.contestants`: `base`, `tuned`, folders, or tables with these keys.

    Raises:
        UserError: A table has an unknown key or a wrong value, or two contestants have one name.
    """
    items = given if isinstance(given, list | tuple) else [given]
    found = [_read(item) for item in items]
    names = [each.name for each in found]
    twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
    require(
        twice is None, f"{SETTING}: two contestants have the name '{twice}'. Give each a name: {{name: ..., ...}}."
    )
    return found


def _read(item: object) -> ContestantConfig:
    if isinstance(item, str) and item.strip():
        is_own = item in (BASE, TUNED)
        return ContestantConfig(name=item if is_own else PurePath(item).name, model=item)
    require(
        isinstance(item, Mapping),
        f"{SETTING}: a contestant is base, tuned, a folder, or a table {{name: ...}}, found {shorten(str(item))}.",
    )
    assert isinstance(item, Mapping)
    table = read_table(f"{SETTING}: {item.get('name', 'an entry')}:", item, ContestantConfig)
    is_own = table.name in (BASE, TUNED)
    require(
        not is_own or not (table.is_prompted or table.endpoint),
        f"{SETTING}: {table.name} is the model as it is. Give the one with a prompt another name.",
    )
    return table
