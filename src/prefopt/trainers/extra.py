"""`trainer.extra`: which further fields of TRL's configurations there are, what they take, and which are refused."""

import dataclasses
import difflib
import json
from collections.abc import Mapping
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from prefopt.errors import UserError, shorten

PREPARATION = (
    "packing",
    "packing_strategy",
    "eval_packing",
    "completion_only_loss",
    "assistant_only_loss",
    "truncation_mode",
    "eos_token",
    "pad_token",
    "dataset_text_field",
    "dataset_num_proc",
    "shuffle_dataset",
    "length_column_name",
    "chat_template_path",
)
UPLOADS = (
    "push_to_hub",
    "hub_model_id",
    "hub_strategy",
    "hub_token",
    "hub_private_repo",
    "hub_always_push",
    "hub_revision",
)
EVALUATION = (
    "eval_accumulation_steps",
    "eval_do_concat_batches",
    "eval_use_gather_object",
    "prediction_loss_only",
    "include_for_metrics",
    "batch_eval_metrics",
    "label_names",
    "bf16_full_eval",
    "fp16_full_eval",
    "precompute_ref_batch_size",
)
REPORTING = ("run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id")
REFUSED = {
    "enable_jit_checkpoint": "it saves mislabelled checkpoints under ZeRO and deadlocks under DDP",
    "padding_free": "TRL falls back to padding without it taking effect",
    "precompute_ref_log_probs": "its cache can return another setting's numbers; reference=store does the same safely",
    "load_best_model_at_end": "it looks for checkpoints under names that transformers gives them",
    "train_sampling_strategy": "trainer.batch_order groups pairs by length",
    "fp16": "its loss scaling starts with gradients that are not finite, which ends a run here; use bf16",
    "average_tokens_across_devices": "a step is a mean over the tokens of all ranks",
    "ignore_data_skip": "a resumed run would see rows again",
    "save_on_each_node": "all ranks see one run directory",
    "auto_find_batch_size": "batches are planned before the first step",
    "use_liger_kernel": "it is not tried beforehand; engine.kernels=liger installs the same layers, and tries them",
    "save_only_model": "such a checkpoint cannot be resumed",
    "dataloader_drop_last": "rows would be dropped without being counted",
    "dataloader_in_order": "the order of rows follows from run.seed alone",
    "dataloader_multiprocessing_context": "prefopt makes the loader, and does not read it",
    "data_seed": "run.seed decides the order of rows",
    "resume_from_checkpoint": "the same command goes on from the newest whole checkpoint of its run",
    "do_train": "it has no effect",
    "do_eval": "it has no effect; trainer.eval_every evaluates on the way",
    "do_predict": "it has no effect",
    "metric_for_best_model": "trainer.keep_best names the metric",
    "greater_is_better": "trainer.keep_best knows which metrics are better when lower",
    "model_init_kwargs": "prefopt loads the model; see the settings of model",
    "trust_remote_code": "it has no effect; model.trust_remote_code is read",
    "fsdp": "prefopt shards with deepspeed=zero1, zero2 or zero3",
    "fsdp_config": "prefopt shards with deepspeed=zero1, zero2 or zero3",
    "parallelism_config": "prefopt shards with deepspeed=zero1, zero2 or zero3",
    **dict.fromkeys(PREPARATION, "prefopt tokenises, so TRL would ignore it (see data, algorithm.loss_on)"),
    **dict.fromkeys(
        UPLOADS, "prefopt uploads no model; the run's folder model/ is what `hf upload <id> <folder>` takes"
    ),
    **dict.fromkeys(EVALUATION, "prefopt has an evaluation of its own, which does not read it (see evaluation)"),
    **dict.fromkeys(REPORTING, "it has no effect; see run.name and logger"),
}
"""Fields of TRL that do not do what they say, and why."""
WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    NoneType: "null",
    dict: "a dict",
}


def check_extra(kind: type[Any], extra: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Refuses fields that prefopt sets itself, that TRL has not, or that have no effect, and values of a wrong type.

    Args:
        kind: TRL's DPOConfig or SFTConfig.
        extra: `trainer.extra`.
        ours: What prefopt sets.

    Raises:
        UserError: With the field.
    """
    names = [field.name for field in dataclasses.fields(kind)]
    hints = get_type_hints(kind)
    for name, value in extra.items():
        if name in REFUSED:
            raise UserError(f"trainer.extra.{name}: not available, because {REFUSED[name]}.")
        if name in ours:
            raise UserError(f"trainer.extra.{name}: prefopt sets this field itself. Use its own setting.")
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"See the fields of TRL's {kind.__name__}."
            raise UserError(f"trainer.extra.{name}: {kind.__name__} has no such field. {hint}")
        if not _fits(value, hints[name]):
            found = shorten(repr(value))
            raise UserError(f"trainer.extra.{name}: must be {_describe(hints[name])}, found {found}.")


def _fits(value: Any, hint: Any) -> bool:
    """True for a value of the type that a dataclass declares; text where a dict may stand must be one in JSON."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if isinstance(value, str) and any((get_origin(each) or each) is dict for each in inner):
            return _is_json_object(value)
        if isinstance(value, str) and (choices := [each for each in inner if _is_enum(each)]):
            return _fits(value, choices[0])
        return any(_fits(value, each) for each in inner)
    if origin is Literal:
        return value in inner
    if origin is list:
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(item, inner[1]) for item in value.values())
    if hint is Any:
        return True
    if _is_enum(hint):
        return any(value == member.value for member in hint)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float)) if hint is float else isinstance(value, hint)


def _is_enum(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Enum)


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _describe(hint: Any) -> str:
    """The type in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        closed = [each for each in inner if _is_enum(each)]
        return " or ".join(dict.fromkeys(_describe(each) for each in closed or inner))
    if origin is Literal:
        return " or ".join(str(each).lower() for each in inner)
    if origin is list:
        return f"a list of {_describe(inner[0])}"
    if _is_enum(hint):
        return f"one of {', '.join(str(member.value) for member in hint)}"
    return WORDS.get(origin or hint, str(hint))
