"""Tasks that check answers, a module for each kind; `evaluation.tasks` names those of a run."""

from collections.abc import Sequence

from prefopt.config.tasks import (
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
