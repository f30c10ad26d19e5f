"""Measures contestants on the same material, one model in memory at a time."""

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from prefopt.config.contestants import BASE, SETTING, TUNED
from prefopt.config.schema import TrainConfig
from prefopt.data.ragged import PairTable
from prefopt.distributed.group import on_main
from prefopt.evaluation.contestants import Contestant
from prefopt.evaluation.material import REGRESSION_TOKENS, Material
from prefopt.evaluation.plain_answers import MOST_EMPTY
from prefopt.evaluation.rivals import Rival
from prefopt.evaluation.sampling import Answer, NoNumbersError, Question, generate
from prefopt.evaluation.scoring import PairScores, ScoredSequence, Scorer, Scores, completion
from prefopt.models.load import load_model, load_tokenizer, straight_to_device
from prefopt.models.reference import ReferenceStore, open_store
from prefopt.process import phases
from prefopt.process.errors import UserError
from prefopt.process.pace import Pace
from prefopt.process.paths import cache_folder

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
LARGEST_SEED = 2**31
"""Servers take seeds of 32 bits."""


@dataclass(frozen=True)
class Measured:
    """Results of one model on the material; None or empty for a part that the material lacks.

    A model that gives no numbers has no answers.
    """

    held_out_pairs: PairScores | None
    train_pairs: PairScores | None
    held_out_rows: Scores | None
    train_rows: Scores | None
    neutral: Scores | None
    samples: list[Answer]
    shown: list[Answer]
    regression: list[str] = field(default_factory=list)
    answers_of: dict[str, Scores] = field(default_factory=dict)
    """Name of a contestant -> this model's scores of that contestant's `samples`."""
    failure: NoNumbersError | None = None
    """Why it has no answers, if so."""


def measure_contestants(
    contestants: Sequence[Contestant], config: TrainConfig, tokenizer: "PreTrainedTokenizerBase", material: Material
) -> tuple[dict[str, Measured], dict[str, list[Answer]], dict[str, UserError]]:
    """Measures contestants one after another, one model in memory at a time, and lets the rivals answer.

    One that fails, such as one whose server is down, is told of and left out: what was measured is not lost.

    The base of an adapter is not loaded again: the adapter is disabled.

    Args:
        contestants: In the order of measurement; the base comes last, because it scores the answers of the others.
        config: Configuration of the run, with the settings of this evaluation.
        tokenizer: Tokenizer of the policy.
        material: The data to measure on.

    Returns:
        Name of a contestant -> its results; name of a contestant or rival -> its answers to the prompts; and name of
        one that has none -> why.
    """
    measured: dict[str, Measured] = {}
    answers: dict[str, list[Answer]] = {}
    failures: dict[str, UserError] = {}
    written: dict[str, list[ScoredSequence]] = {}
    model = scorer = None
    for contestant in contestants:
        is_below_adapter = contestant.is_base and hasattr(model, "disable_adapter")
        if scorer is None or not is_below_adapter:
            model = scorer = None
            release_memory()
            model = contestant.load(config)
            scorer = Scorer.of(model, config, tokenizer.pad_token_id)
        logger.info("evaluation: the %s model", contestant.name)
        store = open_store(config) if contestant.is_base and material.has_pairs else None
        asked = contestant.material or material
        with scorer.model.disable_adapter() if is_below_adapter else nullcontext():
            found = measure(scorer, contestant.tokenizer or tokenizer, asked, config, store)
            own = [completion(p, a.ids) for p, a in zip(asked.prompts, found.samples, strict=not found.failure)]
            read = written if contestant.is_base else {contestant.name: own}
            scores = {name: score_own(scorer, answers) for name, answers in read.items() if answers}
            for rival in material.rivals:
                if rival.runs_on == contestant.name:
                    let_answer(rival, partial(_sample, scorer, tokenizer, config), answers, failures)
        written[contestant.name] = own
        measured[contestant.name] = replace(found, answers_of=scores)
        if found.failure is not None:
            failures[contestant.name] = found.failure
            logger.warning("evaluation: %s does not answer, and is left out. %s", contestant.name, found.failure)
        else:
            answers[contestant.name] = found.samples
    model = scorer = None
    for rival in material.rivals:
        if rival.runs_on is None:
            release_memory()
            let_answer(rival, partial(answer_elsewhere, config=config), answers, failures)
    names = dict.fromkeys([BASE, *measured, *(rival.name for rival in material.rivals)])
    failed = {name: failures[name] for name in names if name in failures}
    return measured, {name: answers[name] for name in names if name in answers}, failed


def let_answer(
    rival: Rival,
    ask: Callable[[Rival], list[Answer]],
    answers: dict[str, list[Answer]],
    failures: dict[str, UserError],
) -> None:
    """Adds a rival's answers to `answers`; or tells why it has none, and adds that to `failures`."""
    logger.info("evaluation: %s answers", rival.name)
    try:
        found = ask(rival)
        # A tuned model that says nothing has not failed to compete: a finding says what it is.
        answers[rival.name] = found if rival.name == TUNED else require_answers(rival, found)
    except UserError as error:
        failures[rival.name] = error
        logger.warning("evaluation: %s does not answer, and is left out. %s", rival.name, error)


@phases.of("sampling")
def _sample(scorer: Scorer, tokenizer: "PreTrainedTokenizerBase", config: TrainConfig, rival: Rival) -> list[Answer]:
    """Returns the answers of a rival that is one of the measured models with a prompt."""
    return answer(scorer, tokenizer, rival.prompts, config)


def require_answers(rival: Rival, answers: list[Answer]) -> list[Answer]:
    """Returns a rival's answers, if most prompts have one: to win against silence shows nothing.

    Raises:
        UserError: More than `MOST_EMPTY` of them are empty.
    """
    num_empty, num = sum(not each.text.strip() for each in answers), len(answers)
    if num_empty > MOST_EMPTY * num:
        raise UserError(
            f"{SETTING}: {rival.name}: gave no answer to {num_empty} of {num} prompts: it says nothing, refuses, or "
            "is cut before its first word. Look at what it is told; a larger evaluation.max_new_tokens helps a model "
            "that thinks before it answers."
        )
    if num_empty:
        logger.warning("evaluation: %s gave no answer to %d of %d prompts", rival.name, num_empty, num)
    return answers


@phases.of("scoring_of_samples")
def score_own(scorer: Scorer, own: list[ScoredSequence]) -> Scores:
    """Scores a contestant's own answers."""
    return scorer.score(own)


def release_memory() -> None:
    """Frees unused models on host and device; needed because trainers hold their models in reference cycles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measure(
    scorer: Scorer,
    tokenizer: "PreTrainedTokenizerBase",
    material: Material,
    config: TrainConfig,
    store: ReferenceStore | None = None,
) -> Measured:
    """Scores the material and answers its prompts with one model; log-probs of pairs that `store` has are reused."""

    def score_pairs(pairs: "Dataset | None") -> PairScores | None:
        if pairs is None or not len(pairs):
            return None
        table = PairTable.of(pairs)
        if store is None:
            return PairScores.of(table.trained(scorer.score_pairs(table)))
        pace = Pace("evaluation: pairs", len(table), logger)
        try:
            logps, usage = store.complete(table, scorer.iterate_pairs, on_progress=pace.reach)
        except UserError as error:
            logger.warning("evaluation: goes on without the store. %s", error)
            return PairScores.of(table.trained(scorer.score_pairs(table)))
        logger.info("evaluation: %s", usage)
        return PairScores.of_stored(table, logps)

    def score_rows(rows: Sequence[ScoredSequence] | None) -> Scores | None:
        return None if rows is None else scorer.score(rows)

    with phases.of("held_out"):
        held_out = score_pairs(material.held_out.pairs), score_rows(material.held_out.rows)
    with phases.of("train"):
        train = score_pairs(material.train.pairs), score_rows(material.train.rows)
    with phases.of("neutral_texts"):
        neutral = score_rows(material.neutral or None)
    scored = Measured(held_out[0], train[0], held_out[1], train[1], neutral, [], [])
    try:
        with phases.of("sampling"):
            samples = answer(scorer, tokenizer, material.prompts, config)
            greedy = [] if material.are_judged else answer(scorer, tokenizer, material.prompts, config, greedy=True)
            shown = (samples if material.are_judged else greedy)[: config.evaluation.num_shown_samples]
        with phases.of("regression"):
            kept = answer_questions(scorer, tokenizer, [ids for _, ids in material.questions])
    except NoNumbersError as error:
        return replace(scored, failure=error)
    return replace(scored, samples=samples, shown=shown, regression=kept)


def answer_questions(
    scorer: Scorer, tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[Sequence[int]]
) -> list[str]:
    """Returns the likeliest answers to the questions of the regression suite."""
    found = generate(scorer, tokenizer, [Question(ids) for ids in prompts], max_new_tokens=REGRESSION_TOKENS)
    return [str(tokenizer.decode(each.ids, skip_special_tokens=True)).strip() for each in found]


def answer(
    scorer: Scorer,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Sequence[int]],
    config: TrainConfig,
    *,
    greedy: bool = False,
) -> list[Answer]:
    """Returns an answer to each prompt: sampled, for metrics and judges; or greedy ones to the first few, to read."""
    settings = config.evaluation
    if greedy:
        questions = [Question(prompt) for prompt in prompts[: settings.num_shown_samples]]
    else:
        questions = [Question(prompt, seed) for seed, prompt in zip(seeds(config.run.seed), prompts, strict=False)]
    found = generate(scorer, tokenizer, questions, max_new_tokens=settings.max_new_tokens)
    texts = (str(tokenizer.decode(answer.ids, skip_special_tokens=True)).strip() for answer in found)
    return [replace(answer, text=text) for answer, text in zip(found, texts, strict=True)]


def answer_elsewhere(rival: Rival, config: TrainConfig) -> list[Answer]:
    """Returns the answers of a rival with a model of its own, or behind an endpoint.

    Raises:
        UserError: The model cannot be loaded or gives no numbers, or its server cannot be reached.
    """
    if rival.model is None:
        with phases.of("sampling"):
            return on_main(lambda: _ask(rival, config))
    tokenizer = load_tokenizer(rival.model)
    model = load_model(rival.model, placement=straight_to_device())
    scorer = Scorer.of(model, config, tokenizer.pad_token_id)
    with phases.of("sampling"):
        return answer(scorer, tokenizer, rival.prompts, config)


def _ask(rival: Rival, config: TrainConfig) -> list[Answer]:
    """Returns the answers of a model behind an endpoint; they have no token ids."""
    from prefopt.evaluation.endpoint import Endpoint  # needs the package openai

    wanted = rival.config
    assert wanted.endpoint is not None
    assert wanted.model is not None
    endpoint = Endpoint(
        f"{SETTING}: {wanted.name}:",
        url=wanted.endpoint,
        model=wanted.model,
        cache=cache_folder() / "replies",
        key_env=wanted.key_env,
        max_requests=wanted.max_requests,
    )
    own = [seed % LARGEST_SEED for seed, _ in zip(seeds(config.run.seed), rival.messages, strict=False)]
    replies = endpoint.chat(rival.messages, max_tokens=config.evaluation.max_new_tokens, temperature=1.0, seed=own)
    return [Answer([], reply.finished, reply.text.strip()) for reply in replies]


def seeds(seed: int) -> Iterator[int]:
    """Yields a sampling seed per prompt, the same for all contestants, so that answers differ only by the model."""
    rng = np.random.default_rng(seed)
    while True:
        yield int(rng.integers(2**63))
