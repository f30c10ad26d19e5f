"""The settings that an unknown name may mean: names in other programs, last parts of dotted names, typos."""

import difflib
from collections.abc import Iterable, Sequence

LIKE = 0.75
"""Least similarity of two names, in [0, 1], for one to be a typo of the other."""
NEARLY_AS_LIKE = 0.1
"""Names whose similarity is lower than that of the best one by more than this are left out."""
MAX_NAME = 200
"""Most characters in the name of a setting, a group or an option."""
ALIASES = {
    "adapter": ("peft.method",),
    "base_model": ("model.path",),
    "batch": ("trainer.per_device_batch_size", "trainer.batch_size"),
    "batch_size": ("trainer.per_device_batch_size", "trainer.batch_size"),
    "betas": ("optim.adam_beta1", "optim.adam_beta2"),
    "bf16": ("trainer.precision",),
    "bs": ("trainer.per_device_batch_size", "trainer.batch_size"),
    "checkpointing_steps": ("trainer.save_every",),
    "cutoff_len": ("data.max_length",),
    "dataset": ("data.train",),
    "dataset_name": ("data.train",),
    "dev_file": ("data.held_out",),
    "epoch": ("trainer.num_epochs",),
    "epochs": ("trainer.num_epochs",),
    "eps": ("optim.adam_epsilon",),
    "eval_batch_size": ("evaluation.batch_size",),
    "eval_dataset": ("data.held_out",),
    "eval_file": ("data.held_out",),
    "eval_steps": ("trainer.eval_every",),
    "finetuning_type": ("peft.method",),
    "fp16": ("trainer.precision",),
    "global_batch_size": ("trainer.batch_size",),
    "grad_accum": ("trainer.gradient_accumulation_steps",),
    "grad_clip": ("optim.max_grad_norm",),
    "gradient_accumulation": ("trainer.gradient_accumulation_steps",),
    "label_smoothing_factor": ("algorithm.label_smoothing",),
    "load_in_4bit": ("peft.method",),
    "logging_steps": ("trainer.log_every",),
    "lora_alpha": ("peft.alpha",),
    "lora_dropout": ("peft.dropout",),
    "lora_r": ("peft.r",),
    "lora_rank": ("peft.r",),
    "lora_target": ("peft.target_modules",),
    "lora_target_modules": ("peft.target_modules",),
    "loss": ("algorithm.loss_type",),
    "lr": ("optim.learning_rate",),
    "lr_scheduler": ("optim.scheduler",),
    "lr_scheduler_type": ("optim.scheduler",),
    "max_len": ("data.max_length",),
    "max_prompt_length": ("data.max_length",),
    "max_seq_len": ("data.max_length",),
    "max_seq_length": ("data.max_length",),
    "max_tokens": ("data.max_length", "evaluation.max_new_tokens"),
    "micro_batch_size": ("trainer.per_device_batch_size",),
    "model_id": ("model.path",),
    "model_max_length": ("data.max_length",),
    "model_name": ("model.path",),
    "model_name_or_path": ("model.path",),
    "n_epochs": ("trainer.num_epochs",),
    "name_or_path": ("model.path",),
    "num_train_epochs": ("trainer.num_epochs",),
    "optimizer": ("optim.name",),
    "out_dir": ("run.root", "run.name"),
    "output_dir": ("run.root", "run.name"),
    "per_device_eval_batch_size": ("evaluation.batch_size",),
    "per_device_train_batch_size": ("trainer.per_device_batch_size",),
    "pref_beta": ("algorithm.beta",),
    "pretrained_model_name_or_path": ("model.path",),
    "random_seed": ("run.seed",),
    "rank": ("peft.r",),
    "report_to": ("logger.name",),
    "rpo_alpha": ("algorithm.loss_weights",),
    "run_name": ("run.name",),
    "save_dir": ("run.root", "run.name"),
    "save_steps": ("trainer.save_every",),
    "save_total_limit": ("trainer.keep_checkpoints",),
    "sequence_len": ("data.max_length",),
    "steps": ("trainer.max_steps",),
    "target_modules": ("peft.target_modules",),
    "test_file": ("data.test",),
    "test_size": ("data.held_out_fraction",),
    "torch_dtype": ("model.dtype",),
    "train_batch_size": ("trainer.per_device_batch_size", "trainer.batch_size"),
    "train_dataset": ("data.train",),
    "train_file": ("data.train",),
    "training_steps": ("trainer.max_steps",),
    "val_file": ("data.held_out",),
    "val_size": ("data.held_out_fraction",),
    "valid_file": ("data.held_out",),
    "validation_file": ("data.held_out",),
    "wandb_entity": ("logger.entity",),
    "wandb_project": ("logger.project",),
    "warmup": ("optim.warmup_ratio",),
    "warmup_steps": ("optim.warmup_ratio",),
    "wd": ("optim.weight_decay",),
}


def called(word: str, settings: Sequence[str]) -> list[str]:
    """The settings whose full or last name is `word`, else those that other programs call so; dashes count as `_`."""
    word = word.lower().replace("-", "_")
    own = [name for name in settings if word in (name, name.rpartition(".")[2])]
    return own or [name for name in ALIASES.get(word, ()) if name in settings]


def slipped(word: str, settings: Sequence[str]) -> list[str]:
    """The settings of whose last name, or of a word in it, `word` is probably a typo."""
    parts = {part: None for name in settings for part in _parts(name)}
    meant = nearest(word.lower().replace("-", "_"), parts, LIKE)[:1]
    return [name for name in settings if meant and meant[0] in _parts(name)]


def mistyped(key: str, known: Iterable[str]) -> list[str]:
    """The dotted name of which `key` is probably a typo: group and name are each similar; empty if none is."""
    group, _, name = key.rpartition(".")

    def likeness(other: str) -> float:
        other_group, _, other_name = other.rpartition(".")
        parts = ((group, other_group), (name, other_name))
        return min(difflib.SequenceMatcher(None, *part).ratio() for part in parts)

    if len(name) > MAX_NAME:
        return []
    best = max(known, key=likeness)
    return [best] if likeness(best) >= LIKE else []


def nearest(word: str, known: Iterable[str], like: float = 0.6) -> list[str]:
    """The names in `known` that a word probably means: the most similar first, ties by name.

    Args:
        word: What was typed.
        known: The existing names.
        like: Least similarity, in [0, 1].
    """
    matcher = difflib.SequenceMatcher()
    matcher.set_seq2(word)
    likeness = {}
    for name in known:
        matcher.set_seq1(name)
        likeness[name] = matcher.ratio() if matcher.quick_ratio() >= like else 0.0
    least = max(like, max(likeness.values(), default=0.0) - NEARLY_AS_LIKE)
    return sorted(
        (name for name, ratio in likeness.items() if ratio >= least), key=lambda name: (-likeness[name], name)
    )


def _parts(name: str) -> list[str]:
    last = name.rpartition(".")[2]
    return [last, *last.split("_")]
