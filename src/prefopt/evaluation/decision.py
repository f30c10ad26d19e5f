"""The decision on a tuned model: evidence in, a word with its reasons out.

`ship` has to be earned: it takes a gain in what the model writes, not in how it ranks answers that others wrote, and
nothing that speaks against it. What would decide an undecided case stands beside it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, Literal

from prefopt.evaluation.statistics import Estimate

Level = Literal["good", "info", "warning", "bad"]
Word = Literal["ship", "do_not_ship", "undecided"]
LEVELS: tuple[Level, ...] = ("bad", "warning", "good", "info")
"""Levels of findings, worst first."""


JUDGED = (
    "Its answers to held-out prompts beside those of the base with its best prompt, read by a judge: "
    "'evaluation.contestants=[base,tuned,{name: prompted, system: <file>}]' 'evaluation.judges=[classifier]', or "
    "people who do not see which is whose."
)
"""What a gain in ranking alone takes to become a decision."""
NO_DATA = ("Nothing was measured on held-out data.", "Held-out data: set data.held_out, or data.held_out_fraction.")
"""Why there are no gains where there is nothing to measure on, and what would change that."""
EARLIER_SHIP = "An earlier version of prefopt said ship, for a gain in ranking alone; its answers were not judged."


@dataclass(frozen=True)
class Finding:
    """Something that the numbers of a report say.

    Attributes:
        level: How good or bad it is.
        finding: What was found, in a sentence.
        evidence: The numbers behind it.
        is_severe: Whether the model is not to be shipped before it is resolved, although it may be fine.
        remedy: What would resolve it, or decide; empty if nothing does.
        is_harm: Whether it is about what the tuning may have broken beside the task.
        of_gain: Key of the gain that it shows; empty if it shows none.
    """

    level: Level
    finding: str
    evidence: str
    is_severe: bool = False
    remedy: str = ""
    is_harm: bool = False
    of_gain: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Returns the entry of `verdict` in report.json."""
        marks = {name: True for name, is_set in (("severe", self.is_severe), ("harm", self.is_harm)) if is_set}
        shown = {"of_gain": self.of_gain} if self.of_gain else {}
        return {"level": self.level, "finding": self.finding, "evidence": self.evidence, **marks, **shown}


@dataclass(frozen=True)
class Gain:
    """A measured gain of the tuned model over its base.

    Attributes:
        metric: Key of the metric.
        name: Its name in a sentence: "preference accuracy".
        sentence: What is said once it is shown: "Ranks held-out pairs better".
        estimate: The gain, turned so that above 0 is better.
        least: The interval must lie above this.
        is_of_answers: Whether it is one of judged answers or of a task: only such a gain decides.
        obstacles: Why it would not count even so: a rule without a model does as well, or it is below chance.
        remedy: What would show it, if its interval does not.
        caveat: What it does not prove, as it follows `It does not prove`; empty if it decides nothing.
    """

    metric: str
    name: str
    sentence: str
    estimate: Estimate
    least: float
    is_of_answers: bool = False
    obstacles: tuple[str, ...] = ()
    remedy: str = ""
    caveat: str = ""

    def is_shown(self, min_prompts: int) -> bool:
        """Whether it is large enough beyond doubt, on enough prompts, and nothing simpler explains it."""
        return self.has_prompts(min_prompts) and self.estimate.low > self.least and not self.obstacles

    def has_prompts(self, min_prompts: int) -> bool:
        found = self.estimate.n if self.estimate.num_prompts is None else self.estimate.num_prompts
        return (found or 0) >= min_prompts


@dataclass(frozen=True)
class Decision:
    """What a report decides.

    Attributes:
        word: `ship`: a gain of its answers is shown, nothing is ruined, and no severe finding is unresolved.
            `do_not_ship`: a finding is bad, such as a ruined or measurably worse model. `undecided`: otherwise.
        reasons: Sentences, the most important first.
        would_decide: What an undecided case takes to be decided.
        caveat: What `ship` does not prove, in a sentence; empty otherwise.
        decided_by: Keys of the gains that earned `ship`; none otherwise.
    """

    word: Word
    reasons: tuple[str, ...] = ()
    would_decide: tuple[str, ...] = ()
    caveat: str = ""
    decided_by: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        written = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {key: value for key, value in written.items() if key not in ("caveat", "decided_by") or value}

    @classmethod
    def from_written(cls, written: object) -> "Decision | None":
        """Reads the entry of report.json; that of earlier versions was the word alone. None for anything else.

        Earlier versions said `ship` for a gain in ranking alone, which decides nothing here.
        """
        if written == "ship":
            return cls("undecided", (EARLIER_SHIP,))
        found = {"word": written} if isinstance(written, str) else written
        if not isinstance(found, dict) or found.get("word") not in ("ship", "do_not_ship", "undecided"):
            return None
        texts = {key: found.get(key) for key in ("reasons", "would_decide", "decided_by")}
        lists = {key: tuple(map(str, value)) for key, value in texts.items() if isinstance(value, list)}
        caveat = found.get("caveat")
        return cls(found["word"], **lists, caveat=caveat if isinstance(caveat, str) else "")


def decide(
    gains: Sequence[Gain],
    findings: Sequence[Finding],
    min_prompts: int,
    lack: tuple[str, str] = NO_DATA,
) -> Decision:
    """Returns the decision that the evidence earns.

    Args:
        gains: All measured gains.
        findings: All findings.
        min_prompts: Held-out prompts that a gain takes to be shown (`evaluation.min_prompts`).
        lack: Why there are no gains, if so, and what would change that.
    """
    bad = [finding.finding for finding in findings if finding.level == "bad"]
    if bad:
        return Decision("do_not_ship", tuple(bad))
    severe = [finding for finding in findings if finding.is_severe]
    shown = [gain for gain in gains if gain.is_shown(min_prompts)]
    of_answers = [gain for gain in shown if gain.is_of_answers]
    are_judged = any(gain.is_of_answers for gain in gains)
    if of_answers and not severe:
        doubts = dict.fromkeys(gain.caveat for gain in of_answers if gain.caveat)
        return Decision(
            "ship",
            tuple(f"{gain.sentence}." for gain in of_answers),
            caveat=f"It does not prove {'; nor '.join(doubts)}." if doubts else "",
            decided_by=tuple(gain.metric for gain in of_answers),
        )
    reasons = [finding.finding for finding in severe]
    wanted = [finding.remedy for finding in findings if finding.remedy]
    for gain in gains:
        if gain in shown:
            reasons.append(f"{gain.sentence}{'' if are_judged else '; its answers were not judged'}.")
        else:
            reasons += _why_not_shown(gain, min_prompts)
            wanted += [gain.remedy] if gain.remedy else []
    if not gains:
        reasons.append(lack[0])
        wanted.append(lack[1])
    if not are_judged and (shown or not wanted):
        wanted.append(JUDGED)
    return Decision("undecided", tuple(dict.fromkeys(reasons)), tuple(dict.fromkeys(wanted)))


def _why_not_shown(gain: Gain, min_prompts: int) -> list[str]:
    estimate = gain.estimate
    if not gain.has_prompts(min_prompts):
        found = estimate.num_prompts if estimate.num_prompts is not None else estimate.n or 0
        if not found:
            return [f"Nothing tells {gain.name}.", *gain.obstacles]
        prompts = "1 prompt" if found == 1 else f"{found} prompts"
        return [f"Held-out data of {prompts} are too few to judge by; {min_prompts} are the least."]
    if not isfinite(estimate.value):
        return [f"The gain in {gain.name} is not a finite number.", *gain.obstacles]
    if estimate.low > gain.least:
        return list(gain.obstacles)
    if estimate.low > 0:
        return [f"A gain in {gain.name} is there, but it may be too small to matter.", *gain.obstacles]
    why = "it is not there, or there are too few held-out prompts to see it"
    return [f"No gain in {gain.name} is shown: {why}.", *gain.obstacles]
