"""The schemas of the algorithms: their settings and everything else about them that does not need torch.

The parts that need torch (TRL's trainer, its arguments, and prefopt's changes of it) are in `prefopt.algorithms`, in
the module of the same name. To add an algorithm, add a member of `AlgorithmName` and a schema here, a module there,
and a file in `conf/algorithm/`.
"""

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from omegaconf import MISSING

from prefopt.config.choices import (
    F_DIVERGENCE_LOSS_TYPES,
    LOSS_TYPES,
    WHOLE_BATCH_LOSSES,
    FDivergence,
    LossOn,
    PeftMethod,
    ReferenceMode,
    SFTLoss,
)
from prefopt.config.ranges import require, require_code
from prefopt.process.errors import shorten

if TYPE_CHECKING:
    from prefopt.config.schema import TrainConfig

Kind = Literal["preference", "sft"]
"""Kind of a data row: a preference pair, or a demonstration."""


class AlgorithmName(Enum):
    sft = "sft"
    dpo = "dpo"


@dataclass(kw_only=True)
class AlgorithmConfig:
    """What is optimised. `algorithm=sft` and `algorithm=dpo` have their own fields.

    Attributes:
        rows: Kind of rows that it trains on.
        has_reference: Whether its loss compares the policy with a reference model.
        learning_rates: Defaults of `optim.learning_rate`: for all weights, and for adapters.
        held_out_metrics: TRL's names of the metrics in held-out evaluations during training.
        own_fields: Fields of TRL's configuration that `trainer.extra` accepts for this algorithm only, each with the
            reason that the error gives for other algorithms.
    """

    rows: ClassVar[Kind]
    has_reference: ClassVar[bool]
    learning_rates: ClassVar[tuple[float, float]]
    held_out_metrics: ClassVar[tuple[str, ...]]
    own_fields: ClassVar[dict[str, str]]

    name: AlgorithmName = MISSING
    """Set by the choice of `algorithm`."""

    @property
    def trains_pairs(self) -> bool:
        """Whether it trains on preference pairs."""
        return self.rows == "preference"

    @property
    def trained_tokens(self) -> LossOn:
        """Which tokens of a row are trained."""
        return LossOn.completions

    @property
    def reward_scale(self) -> float | None:
        """Factor that turns the log-ratio of policy and reference into a reward; None if there are no rewards."""
        return None

    @property
    def whole_batch_losses(self) -> list[str]:
        """The chosen losses that depend on all rows of a forward, so that they change with the division of a step."""
        return []

    def check(self, config: "TrainConfig") -> None:
        """Checks the other settings for this algorithm.

        Raises:
            UserError: A setting does not fit; the message names the settings to change.
        """

    def settings_that_are_read(self) -> dict[str, bool]:
        """Returns, for each setting that has an effect only with others of the algorithm, whether it has one."""
        return {}


@dataclass(kw_only=True)
class SFTAlgorithmConfig(AlgorithmConfig):
    """Supervised fine-tuning through TRL's SFTTrainer."""

    rows = "sft"
    has_reference = False
    learning_rates = (2e-5, 2e-4)
    held_out_metrics = ("loss", "mean_token_accuracy")
    own_fields: ClassVar[dict[str, str]] = {"pad_to_multiple_of": "prefopt pads pairs itself"}

    name: AlgorithmName = AlgorithmName.sft
    """Set by the choice of `algorithm`."""
    loss_type: SFTLoss = SFTLoss.nll
    """nll: cross-entropy. dft: dynamic fine-tuning (arXiv 2508.05629)."""
    loss_on: LossOn = LossOn.completions
    """Train on the assistant's tokens only, or on all tokens. Rows of plain `text` always train on all tokens."""

    @property
    def trained_tokens(self) -> LossOn:
        return self.loss_on


@dataclass(kw_only=True)
class DPOAlgorithmConfig(AlgorithmConfig):
    """Direct preference optimisation (arXiv 2305.18290) and its relatives through TRL's DPOTrainer."""

    rows = "preference"
    has_reference = True
    learning_rates = (1e-6, 1e-5)
    held_out_metrics = (
        "loss", "preference_accuracy", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins",
        "logps/chosen", "logps/rejected",
    )  # fmt: skip
    own_fields: ClassVar[dict[str, str]] = {"disable_dropout": "TRL leaves dropout on in SFT"}

    name: AlgorithmName = AlgorithmName.dpo
    """Set by the choice of `algorithm`."""
    loss_type: Any = "sigmoid"
    """One of TRL's losses, or a list of them (summed with `loss_weights`)."""
    loss_function: str | None = None
    """A loss of your own instead of TRL's: `module:function`, from the log-probs of pairs to a loss each. See
    docs/api.md."""
    loss_weights: list[float] | None = None
    """One weight per loss; default 1 for each."""
    beta: float = 0.1
    """Strength of the pull to the reference, > 0: a higher value keeps the policy closer. For IPO this is tau."""
    label_smoothing: float = 0.0
    """Assumed share of flipped labels, in [0, 0.5); used by `robust`, `exo_pair`, `aot` and `aot_unpaired`."""
    ld_alpha: float | None = None
    """LD-DPO: weight in [0, 1] of the tokens beyond the shorter completion's length. Unset: 1."""
    f_divergence_type: FDivergence = FDivergence.reverse_kl
    """Divergence that regularises the policy (f-DPO)."""
    f_alpha_divergence_coef: float = 0.5
    """Alpha of `alpha_divergence`."""
    use_weighting: bool = False
    """WPO: weight each pair by the policy's probability of it."""
    discopop_tau: float = 0.05
    """Temperature of the `discopop` loss."""
    sync_ref_model: bool = False
    """TR-DPO: update the reference with the policy during training."""
    ref_model_mixup_alpha: float = 0.6
    """TR-DPO: share of the policy in the updated reference, in [0, 1]."""
    ref_model_sync_steps: int = 512
    """TR-DPO: optimizer steps between two updates of the reference."""

    @property
    def loss_types(self) -> list[str]:
        """`loss_type` as a list."""
        return [self.loss_type] if isinstance(self.loss_type, str) else list(self.loss_type)

    @property
    def reward_scale(self) -> float | None:
        return self.beta

    @property
    def whole_batch_losses(self) -> list[str]:
        return sorted(set(self.loss_types) & WHOLE_BATCH_LOSSES)

    def __post_init__(self) -> None:
        found = shorten(repr(self.loss_type))
        require(
            isinstance(self.loss_type, str | list), f"algorithm.loss_type: must be a loss or a list, found {found}."
        )
        for loss_type in self.loss_types:
            require(
                loss_type in LOSS_TYPES,
                f"algorithm.loss_type: unknown loss {shorten(repr(loss_type))}. Allowed: {', '.join(LOSS_TYPES)}.",
            )
        if self.loss_function is not None:
            require_code("algorithm.loss_function", self.loss_function)
        require(
            0 <= self.label_smoothing < 0.5,
            f"algorithm.label_smoothing: must be in [0, 0.5), found {self.label_smoothing}.",
        )
        require(
            self.ld_alpha is None or 0 <= self.ld_alpha <= 1,
            f"algorithm.ld_alpha: must be in [0, 1], found {self.ld_alpha}.",
        )
        for name in ("discopop_tau", "beta"):
            require(getattr(self, name) > 0, f"algorithm.{name}: must be > 0, found {getattr(self, name)}.")
        alpha, steps = self.ref_model_mixup_alpha, self.ref_model_sync_steps
        require(0 <= alpha <= 1, f"algorithm.ref_model_mixup_alpha: must be in [0, 1], found {alpha}.")
        require(steps >= 1, f"algorithm.ref_model_sync_steps: must be >= 1, found {steps}.")
        self._check_combinations()

    def _check_combinations(self) -> None:
        losses = self.loss_types
        weights = self.loss_weights
        require(
            weights is None or len(weights) == len(losses),
            f"algorithm.loss_weights: {len(weights or [])} weights for {len(losses)} losses ({', '.join(losses)}).",
        )
        require(
            "exo_pair" not in losses or self.label_smoothing > 0,
            "algorithm.loss_type=exo_pair needs algorithm.label_smoothing > 0 (its paper: 0.001).",
        )
        plain = self.f_divergence_type is FDivergence.reverse_kl
        bad = [loss for loss in losses if loss not in F_DIVERGENCE_LOSS_TYPES]
        require(
            plain or not bad,
            f"algorithm.f_divergence_type={self.f_divergence_type.name} has no form for {', '.join(bad)}. "
            f"Use reverse_kl, or a loss of {', '.join(sorted(F_DIVERGENCE_LOSS_TYPES))}.",
        )
        sorting = [loss for loss in losses if loss in ("aot", "aot_unpaired")]
        require(
            not (self.use_weighting and sorting),
            f"algorithm.use_weighting=true cannot go with {', '.join(sorting)}: these losses sort the pairs.",
        )

    def check(self, config: "TrainConfig") -> None:
        require(bool(self.loss_types), "algorithm.loss_type: needs at least one loss, found an empty list.")
        require(
            not (self.sync_ref_model and config.peft.method is not PeftMethod.none),
            "algorithm.sync_ref_model=true needs a reference of its own; with adapters there is none. Set peft=none.",
        )
        require(
            not self.sync_ref_model or config.reference.mode is ReferenceMode.live,
            f"algorithm.sync_ref_model=true with reference={config.reference.mode.name}: a reference that moves "
            "has to be computed in every step. Set reference=live.",
        )
        require(
            self.loss_function is None or config.reference.mode is not ReferenceMode.live,
            f"algorithm.loss_function={self.loss_function} with reference=live: TRL computes the reference inside "
            "its own losses then. Set reference=store, or reference=none for a reference of zeros.",
        )
        dropout = config.peft.dropout
        require(
            dropout == 0 or not config.trainer.extra.get("disable_dropout", True),
            f"peft.dropout={dropout} has no effect in DPO, since TRL turns dropout off. "
            "Set it to 0, or trainer.extra.disable_dropout=false.",
        )

    def settings_that_are_read(self) -> dict[str, bool]:
        smooths = bool(set(self.loss_types) & {"robust", "exo_pair", "aot", "aot_unpaired"})
        is_trls = self.loss_function is None
        return {
            **dict.fromkeys(("loss_type", "loss_weights", "ld_alpha", "f_divergence_type", "use_weighting"), is_trls),
            "label_smoothing": smooths,
            "discopop_tau": "discopop" in self.loss_types,
            "f_alpha_divergence_coef": self.f_divergence_type is FDivergence.alpha_divergence,
            "ref_model_mixup_alpha": self.sync_ref_model,
            "ref_model_sync_steps": self.sync_ref_model,
        }


ALGORITHMS: dict[str, type[AlgorithmConfig]] = {
    schema.name.value: schema for schema in (DPOAlgorithmConfig, SFTAlgorithmConfig)
}
"""The schema of each option of the group `algorithm`."""


def rows_of(algorithm: object) -> Kind | None:
    """Returns the kind of rows that an algorithm trains on, by its name in reports; None for any other value."""
    return ALGORITHMS[algorithm].rows if isinstance(algorithm, str) and algorithm in ALGORITHMS else None
