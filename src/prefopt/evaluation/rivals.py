"""Contestants that only answer: the base with a prompt, other models, models behind an endpoint."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from prefopt.config.contestants import BASE, SETTING, TUNED, ContestantConfig, read_contestants
from prefopt.config.schema import ModelConfig, TrainConfig
from prefopt.data.messages import Message
from prefopt.data.records import Record
from prefopt.data.rendering import NoChatTemplateError
from prefopt.evaluation.prompting import Prefix, as_messages, encode_prompts
from prefopt.models.limits import Limits
from prefopt.models.load import load_tokenizer, naming
from prefopt.process.errors import UserError
from prefopt.process.paths import is_local, resolve

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rival:
    """A contestant that is compared by its answers alone.

    Attributes:
        config: Its settings.
        model: The model that answers; None: the run's own, or one behind an endpoint.
        is_untuned: Whether it is what one would do instead of tuning: any but the tuned model with a prompt, or
            another run.
        prompts: Token ids of what it is asked, of each prompt; empty behind an endpoint.
        messages: The same as messages, behind an endpoint.
    """

    config: ContestantConfig
    model: ModelConfig | None
    is_untuned: bool = True
    prompts: Sequence[Sequence[int]] = ()
    messages: Sequence[list[Message]] = ()

    @property
    def name(self) -> str:
        """By which reports tell it apart."""
        return self.config.name

    def describe(self) -> dict[str, Any]:
        """Returns its entry among the `contestants` of report.json."""
        return {
            "model": self.config.model or BASE,
            "endpoint": self.config.endpoint,
            "system": self.config.system,
            "examples": self.config.num_examples if self.config.examples is not None else 0,
            "is_untuned": self.is_untuned,
            "is_prompted": self.config.is_prompted,
        }

    @property
    def runs_on(self) -> str | None:
        """`base` or `tuned` if one of the run's models answers; else None."""
        if self.model is not None or self.config.endpoint is not None:
            return None
        return self.config.model or BASE


def build_rivals(
    config: TrainConfig, records: Sequence[Record], tokenizer: "PreTrainedTokenizerBase", limits: Limits | None
) -> list[Rival]:
    """Returns the contestants beside the base and the tuned model, with what each is asked.

    Args:
        config: The settings of the run and of this evaluation.
        records: Of which the prompts are asked.
        tokenizer: Of the run's models.
        limits: Of the run's models; None if they were not looked up.

    Raises:
        UserError: A model or a file is missing, a prompt with what stands before it leaves no room for an answer, or
            `base` or `tuned` names another model than the run's.
    """
    wanted = read_contestants(config.evaluation.contestants)
    for each in wanted:
        if each.name in (BASE, TUNED) and each.model not in (None, each.name):
            raise UserError(
                f"{SETTING}: {each.name}: names the model {each.model}, and the run's {each.name} is its own. Give "
                f"the other model another name, such as {{name: other, model: {each.model}}}."
            )
    rivals = [each for each in wanted if each.name not in (BASE, TUNED)]
    return [build_rival(each, config, records, tokenizer, limits) for each in rivals]


def build_rival(
    wanted: ContestantConfig,
    config: TrainConfig,
    records: Sequence[Record],
    tokenizer: "PreTrainedTokenizerBase",
    limits: Limits | None,
) -> Rival:
    prefix = Prefix.of(wanted)
    if wanted.endpoint is not None:
        return Rival(wanted, None, messages=[as_messages(record, prefix) for record in records])
    model, is_run = find_model(wanted, config.model)
    if model is not None:
        with naming(f"{SETTING}: {wanted.name}:"):
            tokenizer, limits = load_tokenizer(model), Limits.of(model)
    try:
        prompts = encode_prompts(records, prefix, tokenizer, config.data)
    except NoChatTemplateError as error:
        if model is None:
            raise
        raise UserError(
            f"{SETTING}: {wanted.name}: the prompts are messages, and the tokenizer of {model.path} has no chat "
            "template. A contestant with a model of its own answers by its own template: put one into its folder as "
            "chat_template.jinja (a model of the hub: download it to a folder first), or leave the contestant out."
        ) from error
    if limits is not None:
        _require_room(wanted, prompts, limits, config.evaluation.max_new_tokens)
    is_untuned = not is_run and TUNED not in (wanted.name, wanted.model)
    return Rival(wanted, model, is_untuned=is_untuned, prompts=prompts)


def find_model(wanted: ContestantConfig, own: ModelConfig) -> tuple[ModelConfig | None, bool]:
    """Returns the settings of the model that a contestant names, None for the run's own; and whether it is a run's."""
    if wanted.model in (None, BASE, TUNED):
        return None, False
    assert wanted.model is not None
    path, folder = wanted.model, resolve(wanted.model)
    is_run = is_local(path) and (folder / "config.yaml").is_file()
    if is_run:
        path = str(folder / "model")
        if not (folder / "model").is_dir():
            raise UserError(f"{SETTING}: {wanted.name}: {folder} is a run without a final model. Finish it first.")
    return replace(own, path=path, revision=None, resize_embeddings=False, chat_template=None), is_run


def _require_room(
    wanted: ContestantConfig, prompts: Sequence[Sequence[int]], limits: Limits, max_new_tokens: int
) -> None:
    longest = max(map(len, prompts), default=0)
    if limits.context is None or longest + max_new_tokens <= limits.context:
        return
    shorter = "a shorter system prompt or fewer examples" if wanted.is_prompted else "shorter prompts"
    raise UserError(
        f"{SETTING}: {wanted.name}: its longest prompt has {longest} tokens, and {limits.model} reads at most "
        f"{limits.context}, which leaves no room for evaluation.max_new_tokens={max_new_tokens}. Give {shorter}, or a "
        "smaller evaluation.max_new_tokens."
    )
