"""Tasks that check answers, a module for each kind; `evaluation.tasks` names those of a run."""

from collections.abc import Sequence

from prefopt.config.ranges import require
from prefopt.config.tasks import (
    SETTING,
    CodeTaskConfig,
    CustomTaskConfig,
    JsonSchemaTaskConfig,
    LabelTaskConfig,
    StyleTaskConfig,
    TaskConfig,
    TextOverlapTaskConfig,
)
from prefopt.evaluation.tasks.task import Task, TaskContext


def build_tasks(configs: Sequence[TaskConfig], context: TaskContext) -> list[Task]:
    """Returns the tasks of a run, in the order of `configs`.

    Raises:
        UserError: A task cannot be built: its schema, its labels, its function or its package are missing or wrong.
    """
    return [_build(config, context) for config in configs]


def check_tasks(configs: Sequence[TaskConfig], context: TaskContext, chosen: Sequence[str | None]) -> None:
    """Finds what can be found of a task that cannot be built, or cannot check, before anything is answered.

    Args:
        configs: The settings of the tasks.
        context: What they are built from; nothing is learned here.
        chosen: The answer in the data to each prompt that will be answered; None where there is none.

    Raises:
        UserError: As for `build_tasks`; or a task compares answers with chosen ones, and there are none.
    """
    for config in configs:
        if isinstance(config, LabelTaskConfig | TextOverlapTaskConfig) and chosen:
            require(
                any((text or "").strip() for text in chosen),
                f"{SETTING}: {config.name}: compares answers with the chosen ones, and the held-out prompts have "
                "none. Give held-out rows with 'chosen' or 'completion', or leave the task out.",
            )
        match config:
            case LabelTaskConfig():
                from prefopt.evaluation.tasks.label import LabelTask

                LabelTask.check_labels(config, context, chosen)
            case StyleTaskConfig():
                from prefopt.evaluation.tasks.style import StyleTask

                StyleTask.check_pairs(config, context)
            case _:
                _build(config, context)


def _build(config: TaskConfig, context: TaskContext) -> Task:
    # Each is imported only where it is used: some need packages of an extra.
    match config:
        case JsonSchemaTaskConfig():
            from prefopt.evaluation.tasks.json_schema import JsonSchemaTask

            return JsonSchemaTask.load(config)
        case LabelTaskConfig():
            from prefopt.evaluation.tasks.label import LabelTask

            return LabelTask.learn(config, context)
        case TextOverlapTaskConfig():
            from prefopt.evaluation.tasks.text_overlap import TextOverlapTask

            return TextOverlapTask.build(config)
        case StyleTaskConfig():
            from prefopt.evaluation.tasks.style import StyleTask

            return StyleTask.learn(config, context)
        case CodeTaskConfig():
            from prefopt.evaluation.tasks.code import CodeTask

            return CodeTask(config)
        case CustomTaskConfig():
            from prefopt.evaluation.tasks.custom import CustomTask

            return CustomTask.load(config)
