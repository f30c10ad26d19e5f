"""Answers that should read like the chosen one, such as translations: chrF (Popović 2015)."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from prefopt.config.ranges import require
from prefopt.config.tasks import SETTING, TextOverlapTaskConfig
from prefopt.evaluation.tasks.task import Answered, Checked

if TYPE_CHECKING:
    from sacrebleu.metrics.chrf import CHRF

MAX_CHARACTERS = 50_000
"""Beginning of an answer that is compared."""


@dataclass(frozen=True)
class TextOverlapTask:
    """Compares answers with chosen ones by chrF, in [0, 100]: the overlap of sequences of 1 to 6 letters.

    `chrf` is that of each answer alone, which an interval needs; its mean weighs all answers alike. The details have
    the chrF of the corpus beside it, as papers report it: of all answers together, in which long ones weigh more.

    Attributes:
        name: By which reports tell it apart.
        chrf: sacrebleu's metric.
    """

    name: str
    chrf: "CHRF"

    @classmethod
    def build(cls, config: TextOverlapTaskConfig) -> "TextOverlapTask":
        """Loads sacrebleu.

        Raises:
            UserError: It is not installed.
        """
        require(
            find_spec("sacrebleu") is not None,
            f"{SETTING}: {config.name}: chrF is computed by sacrebleu, which is not installed. Try: "
            "pip install 'prefopt[judge]'",
        )
        from sacrebleu.metrics.chrf import CHRF

        return cls(config.name, CHRF())

    def check(self, answers: Sequence[Answered]) -> Checked:
        pairs = [(_text(each.answer), _text(each.chosen)) for each in answers if each.chosen is not None]
        scores = iter([self.chrf.sentence_score(answer, [chosen]).score for answer, chosen in pairs])
        values = np.array([np.nan if each.chosen is None else next(scores) for each in answers], float)
        details: dict[str, Any] = {
            "corpus_chrf": self._of_all(pairs) if pairs else None,
            "num_without_chosen": len(answers) - len(pairs),
            "num_cut": sum(len(each.answer) > MAX_CHARACTERS for each in answers),
            "signature": str(self.chrf.get_signature()) if pairs else None,
        }
        return Checked({"chrf": values}, {"chrf": True}, details, details["num_without_chosen"])

    def _of_all(self, pairs: Sequence[tuple[str, str]]) -> float:
        answers, chosen = zip(*pairs, strict=True)
        return float(self.chrf.corpus_score(list(answers), [list(chosen)]).score)


def _text(text: str | None) -> str:
    """Returns the beginning of a text, without what is no text in UTF-8."""
    return (text or "")[:MAX_CHARACTERS].encode("utf-8", "replace").decode()
