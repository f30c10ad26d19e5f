"""Compares models by their answers where no training run is: two models, or a plain base with and without a prompt."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from prefopt.config.contestants import BASE, SETTING, TUNED, read_contestants
from prefopt.config.gate import GateConfig
from prefopt.config.schema import TrainConfig
from prefopt.data.loading import read_splits
from prefopt.data.records import Record
from prefopt.data.sources import digest_files
from prefopt.data.split import prompt_keys
from prefopt.evaluation.asked import Asked, labelled_pairs, read_trained
from prefopt.evaluation.checked import check_answers
from prefopt.evaluation.findings import assess
from prefopt.evaluation.gains import hardest_win
from prefopt.evaluation.judged import judge_all, slice_wins
from prefopt.evaluation.material import sample_rows
from prefopt.evaluation.measure import answer_elsewhere
from prefopt.evaluation.metrics import WIN_RATE
from prefopt.evaluation.report import HeldOut, Report
from prefopt.evaluation.rivals import Rival, build_rival
from prefopt.evaluation.run import Evaluation
from prefopt.evaluation.samples import choose_samples
from prefopt.evaluation.statistics import Bootstrap
from prefopt.models.fingerprint import describe_model
from prefopt.models.limits import Limits
from prefopt.models.load import load_tokenizer
from prefopt.process import phases
from prefopt.process.errors import UserError

logger = logging.getLogger(__name__)


def evaluate_contestants(config: TrainConfig, data: object, *, has_training: bool) -> Evaluation:
    """Lets the contestants answer the prompts of some data, and the judges read the answers.

    Args:
        config: The settings; `model` is the base.
        data: The files with the prompts, in the same forms as `data.held_out`.
        has_training: Whether `data.train` names training data, from which a classifier may learn.

    Raises:
        UserError: The data, a model or a judge cannot be used.
    """
    records = _read(config, data)
    pairs = labelled_pairs(records)
    rows = sample_rows(len(pairs), config.evaluation.num_judged, config.run.seed)
    labelled = [pairs[row] for row in rows.tolist()]
    trained = read_trained(_read(config, config.data.train), config.run.seed) if has_training else []
    chosen = _choose(records, config)
    rivals = _build(config, chosen)
    answers = {rival.name: [each.text for each in answer_elsewhere(rival, config)] for rival in rivals}
    asked = [Asked.of(record) for record in chosen]
    with phases.of("judging"):
        judged = judge_all(config, asked, answers, labelled, trained)
        bootstrap = Bootstrap(config.evaluation.bootstrap_resamples, config.run.seed)
        tasks = check_answers(config.evaluation.tasks, asked, answers, trained, bootstrap)
    untuned = [rival.name for rival in rivals if rival.is_untuned]
    samples = choose_samples(asked, answers, judged, untuned, most=config.evaluation.num_shown_samples)
    report = Report(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        run={"name": config.run.name, "model": config.model.path, "seed": config.run.seed, "data": {"held_out": data}},
        measured_on={"data.held_out": data},
        held_out=HeldOut(len(records), {}),
        contestants={rival.name: rival.describe() for rival in rivals},
        win_rates=list(judged.win_rates) or None,
        judges=dict(judged.standings) or None,
        judge_digests=dict(judged.digests) or None,
        failures=dict(judged.failures) or None,
        tasks=tasks or None,
        samples=samples.shown,
        sample_counts=samples.counts,
        provenance=_describe_origin(config, data, rivals),
    )
    hardest = hardest_win(report)
    if hardest is not None and hardest.estimate.n:
        report.held_out.models[TUNED] = {WIN_RATE: hardest.estimate}
        slices = slice_wins(judged, asked, hardest, config.data.tag, config.run.seed)
        report.answer_slices = slices.to_dict()
    report.decision, findings = assess(report, config.evaluation)
    report.verdict = [finding.to_dict() for finding in findings]
    return Evaluation(report, [], [], judged.per_prompt(asked, answers))


def _read(config: TrainConfig, data: object) -> Sequence[Record]:
    """Reads all records of some files."""
    alone = replace(config.data, train=data, held_out=None, test=None, held_out_fraction=0.0, gate=GateConfig.off())
    splits = read_splits(alone, kind=config.algorithm.rows, seed=config.run.seed)
    for line in splits.notes.lines():
        logger.info("data: %s", line)
    return splits.train


def _choose(records: Sequence[Record], config: TrainConfig) -> list[Record]:
    """Chooses the records whose prompts are answered, each prompt once."""
    first: dict[bytes, Record] = {}
    for record in records:
        first.setdefault(next(iter(prompt_keys(record))), record)
    distinct = list(first.values())
    rows = sample_rows(len(distinct), config.evaluation.num_judged, config.run.seed)
    return [distinct[row] for row in rows.tolist()]


def _build(config: TrainConfig, records: Sequence[Record]) -> list[Rival]:
    """Returns all contestants, each with a model of its own.

    Raises:
        UserError: One names the tuned model of a run, and there is no run.
    """
    tokenizer, limits = load_tokenizer(config.model), Limits.of(config.model)
    rivals = []
    for wanted in read_contestants(config.evaluation.contestants):
        if wanted.model == TUNED:
            raise UserError(
                f"{SETTING}: {wanted.name}: there is no run whose model is the tuned one. Give run=<folder>, or "
                "{name: tuned, model: <folder>} in place of tuned."
            )
        rival = build_rival(wanted, config, records, tokenizer, limits)
        rivals.append(replace(rival, model=config.model) if rival.runs_on == BASE else rival)
    return rivals


def _describe_origin(config: TrainConfig, data: object, rivals: Sequence[Rival]) -> dict[str, Any]:
    models = {rival.name: describe_model(rival.model) for rival in rivals if rival.model is not None}
    return {"data": {"files": {"held_out": digest_files(data)}}, "models": models, "seed": config.run.seed}
