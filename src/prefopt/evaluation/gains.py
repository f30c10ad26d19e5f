"""The gains of a tuned model over its base that a report measures, with what else would explain them."""

from dataclasses import replace
from math import ceil

from prefopt.config.schema import EvaluationConfig
from prefopt.data.intervals import Z_95
from prefopt.evaluation.decision import Gain
from prefopt.evaluation.metrics import ACCURACY, LOSS, TUNED
from prefopt.evaluation.report import HeldOut
from prefopt.evaluation.statistics import Z_80, Estimate, detectable_gain

MORE = "more prompts in data.held_out, or a larger data.held_out_fraction"


def find_gains(held_out: HeldOut, settings: EvaluationConfig) -> list[Gain]:
    """Returns the gains in ranking and in loss, as far as they were measured."""
    found = (_find_ranking(held_out, settings), _find_likelier(held_out, settings))
    return [gain for gain in found if gain is not None]


def _find_ranking(held_out: HeldOut, settings: EvaluationConfig) -> Gain | None:
    """The gain in preference accuracy, with what else would explain it."""
    gain, tuned = held_out.gain.get(ACCURACY), held_out.model(TUNED).get(ACCURACY)
    if gain is None or tuned is None:
        return None
    rules = [name for name, rule in (held_out.baselines or {}).items() if rule.value >= tuned.value]
    obstacles = [f"A rule without a model does as well: {name.replace('_', ' ')}." for name in rules]
    if tuned.value < 0.5:
        obstacles.append("It ranks fewer than half of the held-out pairs right: chance would do better.")
    return Gain(
        ACCURACY,
        "preference accuracy",
        "Ranks held-out pairs better",
        gain,
        settings.min_gain,
        obstacles=tuple(obstacles),
        remedy=_needed_prompts(gain, held_out, settings),
    )


def _needed_prompts(gain: Estimate, held_out: HeldOut, settings: EvaluationConfig) -> str:
    """Says how many held-out prompts would show the measured gain; empty in reports of earlier versions."""
    num, discordant, effective_n = gain.num_prompts, held_out.discordant, held_out.effective_n
    if num is None or discordant is None or effective_n is None:
        return ""
    if num < settings.min_prompts:
        return f"At least {settings.min_prompts} held-out prompts instead of {num}: {MORE}."
    per_prompt = effective_n / num
    over = gain.value - settings.min_gain
    if over <= 0:
        shown = 100 * (settings.min_gain + detectable_gain(effective_n, discordant))
        least = f"more than {100 * settings.min_gain:g} points"
        return f"A larger gain: of about {shown:.0f} points or more, these {num} prompts show that it is {least}."
    spread = max(discordant - gain.value**2, 1 / effective_n)
    needed = max(ceil((Z_95 + Z_80) ** 2 * spread / over**2 / per_prompt), num + 1)
    return f"About {needed:,} held-out prompts instead of {num:,}, if the true gain is the measured one: {MORE}."


def _find_likelier(held_out: HeldOut, settings: EvaluationConfig) -> Gain | None:
    """The gain in the loss of demonstrations."""
    change = held_out.gain.get(LOSS)
    if change is None:
        return None
    turned = replace(change, value=-change.value, low=-change.high, high=-change.low)
    remedy = f"Lower loss on more held-out prompts than {change.num_prompts or change.n}: {MORE}."
    sentence = "Held-out demonstrations became likelier"
    return Gain(LOSS, "the loss of demonstrations", sentence, turned, settings.min_loss_gain, remedy=remedy)
