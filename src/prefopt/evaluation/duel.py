"""Compares models by their answers where no training run is: two models, or a plain base with and without a prompt.

What a run measures of its models is measured here too, as far as it can be: drift needs the weights of `base` and
`tuned` on this machine, and one vocabulary.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from prefopt.config.contestants import BASE, SETTING, TUNED, read_contestants
from prefopt.config.gate import GateConfig
from prefopt.config.ranges import require
from prefopt.config.schema import ModelConfig, TrainConfig
from prefopt.data.loading import read_splits
from prefopt.data.records import Record
from prefopt.data.sources import digest_files
from prefopt.data.split import prompt_keys
from prefopt.evaluation.asked import Asked, read_trained
from prefopt.evaluation.contestants import Contestant
from prefopt.evaluation.evidence import digest_model, gather
from prefopt.evaluation.in_words import list_names
from prefopt.evaluation.material import (
    Material,
    Split,
    check_readers,
    choose_labelled,
    read_neutral_texts,
    read_questions,
    sample_rows,
)
from prefopt.evaluation.measure import Measured, measure_contestants
from prefopt.evaluation.outcome import read_answers
from prefopt.evaluation.overlap import measure_overlap
from prefopt.evaluation.regression import Question
from prefopt.evaluation.report import Estimates, HeldOut, Report
from prefopt.evaluation.rivals import Rival, build_rival, find_model
from prefopt.evaluation.run import Evaluation
from prefopt.evaluation.samples import choose_samples
from prefopt.evaluation.statistics import Bootstrap, Estimate
from prefopt.evaluation.summary import Summary
from prefopt.models.fingerprint import describe_model
from prefopt.models.limits import Limits
from prefopt.models.load import check_hardware, load_tokenizer
from prefopt.process import phases
from prefopt.process.errors import UserError
from prefopt.process.paths import resolve

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def evaluate_contestants(config: TrainConfig, *, setting: str, has_training: bool) -> Evaluation:
    """Lets the contestants answer the prompts of `data.held_out`, and the judges read the answers.

    Args:
        config: The settings; `model` is the base.
        setting: Under which the user named the data: `data.held_out` or `data.test`.
        has_training: Whether `data.train` names training data, from which a classifier may learn.

    Raises:
        UserError: The data, a model or a judge cannot be used, there are no contestants, or a setting has no meaning
            without a run.
    """
    _require_measurable(config)
    check_hardware(config)
    records = _read(config, config.data.held_out, "held_out")
    known = _read(config, config.data.train, "train") if has_training else []
    trained = read_trained(known, config.run.seed)
    duel = _Duel.of(config, _choose(records, config))
    check_readers(config, trained, duel.material.asked)
    overlap = measure_overlap(known, records, config.data) if has_training else None
    material = replace(duel.material, labelled=choose_labelled(records, config), overlap=overlap)
    measured, answers, failures = measure_contestants(duel.measured, duel.config, duel.tokenizer, material)
    with phases.of("judging"):
        outcome = read_answers(config, material, measured, answers, failures, trained)
    untuned = [rival.name for rival in duel.contestants if rival.is_untuned]
    samples = choose_samples(
        material.asked,
        outcome.answers,
        outcome.judged,
        untuned,
        most=config.evaluation.num_shown_samples,
        rendered=[str(duel.tokenizer.decode(ids)) for ids in material.prompts],
    )
    report = Report(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        run=_describe_comparison(duel, setting, len(records)),
        measured_on={setting: config.data.held_out},
        held_out=HeldOut(len(records), {}),
        drift=_measure_drift(measured, material, duel.config),
        overlap=overlap,
        samples=samples.shown,
        sample_counts=samples.counts,
        contestants={rival.name: rival.describe() for rival in duel.contestants},
        evidence=_gather(duel),
        provenance=_describe_origin(duel, has_training=has_training),
    )
    outcome.conclude(report, config)
    return Evaluation(report, [], [], outcome.lines)


def _require_measurable(config: TrainConfig) -> None:
    """Refuses what would compare nothing, and settings that only a run has."""
    settings = config.evaluation
    require(
        bool(settings.contestants),
        f"{SETTING}: names nobody who answers. Write '{SETTING}=[base,{{name: tuned, model: <folder>}}]'.",
    )
    require(
        settings.pairs is None,
        f"evaluation.pairs={settings.pairs}: has a meaning for an SFT run alone, which is given as run=<folder>. "
        "Without a run, judges are tried on the pairs of data.held_out: name the pairs there, and leave "
        "evaluation.pairs out.",
    )


def _read(config: TrainConfig, data: object, split: str) -> Sequence[Record]:
    """Reads all records of some files, and says what happened to their rows under the name of their split.

    Raises:
        UserError: They cannot be used.
    """
    alone = replace(config.data, train=data, held_out=None, test=None, held_out_fraction=0.0, gate=GateConfig.off())
    try:
        splits = read_splits(alone, kind=config.algorithm.rows, seed=config.run.seed)
    except UserError as error:
        raise UserError(str(error).replace("data.train", f"data.{split}")) from error
    for line in splits.notes.lines():
        logger.info("data: %s", f"{split}{line.removeprefix('train')}" if line.startswith("train:") else line)
    return splits.train


def _choose(records: Sequence[Record], config: TrainConfig) -> list[Record]:
    """Chooses the records whose prompts are answered, each prompt once."""
    first: dict[bytes, Record] = {}
    for record in records:
        first.setdefault(next(iter(prompt_keys(record))), record)
    distinct = list(first.values())
    rows = sample_rows(len(distinct), config.evaluation.num_judged, config.run.seed)
    return [distinct[row] for row in rows.tolist()]


@dataclass(frozen=True)
class _Duel:
    """Who meets whom.

    Attributes:
        config: The settings; `model` is the model that answers as `base`.
        contestants: All of them, in the order in which they were named.
        measured: Of these, the models that are measured as a run's are: `tuned` where it can be, and then `base`.
        material: What they are asked, with the other contestants as its rivals.
        tokenizer: The base's.
    """

    config: TrainConfig
    contestants: Sequence[Rival]
    measured: Sequence[Contestant]
    material: Material
    tokenizer: "PreTrainedTokenizerBase"

    @classmethod
    def of(cls, config: TrainConfig, records: Sequence[Record]) -> "_Duel":
        """Finds all models, and what each is asked.

        Raises:
            UserError: A model or a file is missing, a prompt leaves no room for an answer, or a contestant is the
                tuned model of a run, and there is no run.
        """
        config = replace(config, model=_find_base(config))
        tokenizer, limits = load_tokenizer(config.model), Limits.of(config.model)
        limits.check_tokenizer(tokenizer, config.model)
        wanted = read_contestants(config.evaluation.contestants)
        found = {each.name: build_rival(each, config, records, tokenizer, limits) for each in wanted}
        base, tuned = found.get(BASE), found.get(TUNED)
        material = Material(
            Split(),
            Split(),
            [],
            prompts=[] if base is None else [[*ids] for ids in base.prompts],
            asked=[Asked.of(record) for record in records],
            neutral=read_neutral_texts(config.evaluation, tokenizer, limits.context),
            questions=_questions(config, tokenizer, limits),
            are_judged=True,
        )
        measured = [Contestant(BASE, model=config.model)] if base is not None else []
        if measured and tuned is not None and tuned.model is not None:
            measured = [*_as_measured(tuned, tuned.model, config, material, tokenizer), *measured]
        names = {each.name for each in measured}
        rivals = [rival for rival in found.values() if rival.name not in names]
        if base is None:
            rivals = [replace(each, model=config.model) if each.runs_on == BASE else each for each in rivals]
        return cls(config, list(found.values()), measured, replace(material, rivals=rivals), tokenizer)


def _find_base(config: TrainConfig) -> ModelConfig:
    """Returns the model that answers as `base`: that of the settings, unless the contestant names another.

    Raises:
        UserError: A contestant is the tuned model of a run, and there is no run.
    """
    found = config.model
    for wanted in read_contestants(config.evaluation.contestants):
        if wanted.model == TUNED:
            raise UserError(
                f"{SETTING}: {wanted.name}: there is no run whose model is the tuned one. Give run=<folder>, or "
                "{name: tuned, model: <folder>} in place of tuned."
            )
        if wanted.name == BASE:
            found = find_model(wanted, config.model)[0] or found
    return found


def _questions(
    config: TrainConfig, tokenizer: "PreTrainedTokenizerBase", limits: Limits
) -> Sequence[tuple[Question, Sequence[int]]]:
    """Returns the regression suite as a model is asked it; nothing where answers are neither judged nor checked."""
    are_read = config.evaluation.judges or config.evaluation.tasks
    return read_questions(config, tokenizer, limits) if are_read else []


def _as_measured(
    tuned: Rival, model: ModelConfig, config: TrainConfig, material: Material, tokenizer: "PreTrainedTokenizerBase"
) -> list[Contestant]:
    """Returns the tuned model as one that is measured beside the base; nothing if its tokens are not the base's."""
    own = load_tokenizer(model)
    if own.get_vocab() != tokenizer.get_vocab():
        logger.warning("evaluation: tuned has another vocabulary than base, so its drift from it cannot be measured")
        return []
    questions = _questions(config, own, Limits.of(model))
    asked = replace(material, prompts=[[*ids] for ids in tuned.prompts], questions=questions)
    return [Contestant(TUNED, model=model, tokenizer=own, material=asked)]


def _measure_drift(
    measured: Mapping[str, Measured], material: Material, config: TrainConfig
) -> dict[str, Estimate | Estimates]:
    """Returns how far the tuned model is from the base; nothing where not both were measured."""
    if BASE not in measured or TUNED not in measured:
        return {}
    bootstrap = Bootstrap(config.evaluation.bootstrap_resamples, config.run.seed)
    return Summary(measured, material, beta=None, bootstrap=bootstrap).drift()


def _describe_comparison(duel: _Duel, setting: str, num: int) -> dict[str, Any]:
    """Returns what the head of the report names: the models, and the data."""
    models = {rival.name: rival.config.model for rival in duel.contestants}
    others = [name for name in models if name != TUNED]
    config, split = duel.config, setting.partition(".")[2]
    return {
        "name": f"{models.get(TUNED) or TUNED} against {list_names(others)}" if TUNED in models else ", ".join(others),
        "tuned": models.get(TUNED),
        "model": config.model.path,
        "seed": config.run.seed,
        "data": {split: config.data.held_out, f"num_{split}": num},
    }


def _gather(duel: _Duel) -> dict[str, str | None]:
    """Returns the evidence as a run's report has it; of a tuned model without a manifest, the digest of its files."""
    tuned = next((rival.model for rival in duel.contestants if rival.name == TUNED), None) or duel.config.model
    found = gather(duel.config, resolve(tuned.path))
    return found if found["model"] is not None else {**found, "model": digest_model(tuned)}


def _describe_origin(duel: _Duel, *, has_training: bool) -> dict[str, Any]:
    """Returns the digests of all files that were read: the data's, and those of each model on this machine."""
    config = duel.config
    models = {rival.name: rival.model or config.model for rival in duel.contestants if rival.config.endpoint is None}
    files = {"held_out": config.data.held_out, **({"train": config.data.train} if has_training else {})}
    return {
        "data": {"files": {name: digest_files(spec) for name, spec in files.items()}},
        "models": {name: describe_model(model) for name, model in models.items()},
        "seed": config.run.seed,
    }
