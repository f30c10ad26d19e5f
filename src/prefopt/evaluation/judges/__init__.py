"""Judges of answers, a module for each kind; `evaluation.judges` names those of a run."""

from collections.abc import Sequence

from prefopt.config.judges import (
    ClassifierJudgeConfig,
    EndpointJudgeConfig,
    JudgeConfig,
    ModelJudgeConfig,
    PanelJudgeConfig,
    RewardModelJudgeConfig,
    RuleJudgeConfig,
)
from prefopt.evaluation.judges.judge import Judge, JudgeContext


def build_judges(configs: Sequence[JudgeConfig], context: JudgeContext) -> list[Judge]:
    """Returns the judges of a run, in the order of `configs`; a panel gets the judges that it names.

    Raises:
        UserError: A judge cannot be built: its model, its package or its training data are missing.
    """
    built: dict[str, Judge] = {}
    for config in sorted(configs, key=lambda each: isinstance(each, PanelJudgeConfig)):
        built[config.name] = _build(config, context, built)
    return [built[config.name] for config in configs]


def check_judges(configs: Sequence[JudgeConfig], context: JudgeContext) -> None:
    """Finds what can be found of a judge that cannot be built, before a training whose answers it is to read.

    Raises:
        UserError: As for `build_judges`.
    """
    for config in configs:
        if isinstance(config, ClassifierJudgeConfig):
            from prefopt.evaluation.judges.classifier import ClassifierJudge

            ClassifierJudge.check(config, context.trained)
        elif not isinstance(config, PanelJudgeConfig):
            _build(config, context, {})


def _build(config: JudgeConfig, context: JudgeContext, built: dict[str, Judge]) -> Judge:
    # Each is imported only where it is used: some need packages of an extra.
    match config:
        case RuleJudgeConfig():
            from prefopt.evaluation.judges.rule import RuleJudge

            return RuleJudge(config)
        case ClassifierJudgeConfig():
            from prefopt.evaluation.judges.classifier import ClassifierJudge

            return ClassifierJudge.learn(config, context.trained, seed=context.config.run.seed)
        case RewardModelJudgeConfig():
            from prefopt.evaluation.judges.reward_model import RewardModelJudge

            return RewardModelJudge.load(config, context.config)
        case ModelJudgeConfig():
            from prefopt.evaluation.judges.model import ModelJudge

            return ModelJudge.load(config, context.config)
        case EndpointJudgeConfig():
            from prefopt.evaluation.judges.endpoint import EndpointJudge

            return EndpointJudge.connect(config, context.cache)
        case PanelJudgeConfig():
            from prefopt.evaluation.judges.panel import PanelJudge

            return PanelJudge(config, [built[name] for name in config.of])
