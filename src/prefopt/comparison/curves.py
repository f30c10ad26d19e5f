"""The curves that a comparison shows."""

from dataclasses import dataclass

from prefopt.comparison.metrics import HELD_OUT

TRAIN = "train"


@dataclass(frozen=True, slots=True)
class CurveKind:
    """A kind of curve in a comparison: the metric `name` in the log lines of one `split`."""

    split: str
    name: str
    title: str
    hint: str
    is_share: bool = False
    of_algorithm: bool = False
    """Whether values depend on the algorithm, so that each algorithm needs a chart of its own."""

    @property
    def key(self) -> str:
        return f"{self.split}:{self.name}"


CURVES = (
    CurveKind(HELD_OUT, "preference_accuracy", "Held-out preference accuracy", "share of pairs", is_share=True),
    CurveKind(HELD_OUT, "loss", "Held-out loss", "lower is better", of_algorithm=True),
    CurveKind(TRAIN, "loss", "Training loss", "lower is better", of_algorithm=True),
    CurveKind(TRAIN, "rewards/margins", "Training reward margin", "chosen - rejected; scales with beta"),
    CurveKind(HELD_OUT, "logps/chosen", "Held-out log-prob of chosen answers", "sum over the answer"),
    CurveKind(TRAIN, "grad_norm", "Gradient norm", "before clipping"),
)
