"""Converts a DeepSpeed checkpoint to its universal form, which another number of ranks can load.

ZeRO divides the optimizer's state among the ranks, so a checkpoint fits only the number of ranks that wrote it.
DeepSpeed's `ds_to_universal` writes that state parameter by parameter, and an engine with
`checkpoint: {load_universal: true}` divides it anew. Rank 0 makes the folder, all ranks wait, and then train from it:

    make_universal(checkpoint, folder)
    load_universal(trainer)
    trainer.train(resume_from_checkpoint=str(folder))

The ZeRO stage cannot change: stages 1 and 2 write other files than stage 3. A checkpoint with adapters holds no frozen
parameters; they come from the base model, as always. The new ranks draw random numbers from the seed of the run: the
random states that the old ranks saved belong to another division of the batches, so the folder leaves them out.
"""

import argparse
import contextlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prefopt.distributed.unpickling import data_only, written_as_data
from prefopt.process.errors import UserError
from prefopt.storage.reading import read_text

if TYPE_CHECKING:
    from accelerate.optimizer import AcceleratedOptimizer
    from transformers import Trainer

LATEST = "latest"
"""File in which DeepSpeed names the folder of the state, `global_step<n>`."""
SUFFIX = "_universal"
CARRIED = ("trainer_state.json", "scheduler.pt")
"""Files of a checkpoint that transformers reads besides DeepSpeed's state, from which weights and adapters come."""


def make_universal(checkpoint: Path, folder: Path) -> None:
    """Writes `folder`, from which another number of ranks can resume `checkpoint`; after an error it does not exist.

    Works in one process, needs no process group, and prints nothing. It takes as much disk space as `global_step<n>`,
    and 12 bytes more per trained parameter while it works, in a sibling of `folder` that ends in `.partial`; in
    memory, one rank's part. It takes minutes for billions of parameters, so the other ranks must wait without timeout.

    DeepSpeed unpickles the checkpoint's files, here and when it loads the result; here only data may be unpickled.

    Args:
        checkpoint: A folder that transformers' Trainer wrote under ZeRO: `global_step<n>` and `latest`.
        folder: The folder to write, for `Trainer.train(resume_from_checkpoint=...)`; replaced if it exists.

    Raises:
        UserError: The optimizer is not Adam, or its parameter groups have different learning rates.
    """
    tag = _read_tag(checkpoint)
    partial = folder.with_name(f"{folder.name}.partial")
    for leftover in (partial, folder):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with data_only(), written_as_data():
            _convert(checkpoint / tag, partial / f"{tag}{SUFFIX}")
            _mend_globals(partial / f"{tag}{SUFFIX}" / "zero" / "optimizer_state.pt", checkpoint)
        for name in CARRIED:
            shutil.copy2(checkpoint / name, partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    partial.rename(folder)


def find_bad_tag(checkpoint: Path) -> str | None:
    """Says why the folder that DeepSpeed would load does not belong to this checkpoint; None if it does."""
    tag = _read_tag(checkpoint)
    if tag in ("", ".", "..") or Path(tag).name != tag:
        return f"{LATEST} names {tag!r}, which is no folder of this checkpoint"
    return None


def _read_tag(checkpoint: Path) -> str:
    return read_text(checkpoint / LATEST, errors="replace").strip()


def load_universal(trainer: "Trainer") -> None:
    """Makes the trainer's next `train(resume_from_checkpoint=...)` load the universal form. All ranks call it first.

    Checkpoints that the trainer saves later have DeepSpeed's usual form.
    """
    config = trainer.accelerator.state.deepspeed_plugin.deepspeed_config
    config.setdefault("checkpoint", {})["load_universal"] = True  # read when train() builds the engine
    trainer.add_callback(SeparateSteps())


class SeparateSteps(TrainerCallback):  # type: ignore[misc]
    """Gives each part of the optimizer its own step counter, on the device where the optimizer computes.

    Stage 3 loads one tensor as the step of all sub-groups (`load_hp_checkpoint_state_from_checkpoint_dir_stage3`), and
    torch's AdamW counts in place: with k sub-groups each step would count k times, and Adam's bias correction would be
    wrong. All stages load the step to the CPU, where a fused or capturable AdamW does not accept it.
    """

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: "AcceleratedOptimizer",
        **kwargs: object,
    ) -> None:
        adam = optimizer.optimizer.optimizer  # torch's, in DeepSpeed's ZeRO optimizer, in accelerate's wrapper
        on_device = adam.defaults.get("fused") or adam.defaults.get("capturable")
        for parameter, values in adam.state.items():
            if torch.is_tensor(values.get("step")):
                device = parameter.device if on_device else values["step"].device
                values["step"] = values["step"].to(device, copy=True)


def _convert(source: Path, target: Path) -> None:
    """Runs DeepSpeed's own conversion, one file after the other in this process."""
    from deepspeed.checkpoint import ds_to_universal

    arguments = argparse.Namespace(
        input_folder=str(source),
        output_folder=str(target),
        num_extract_workers=1,  # more would fork a process that holds a process group
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,  # stages 1 and 2 write no universal_checkpoint_info without tensor parallelism
    )
    try:
        with (
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            ds_to_universal.main(arguments)
    except KeyError as error:
        raise UserError(
            f"{source.parent}: its optimizer keeps no {error}, and only Adam's state (exp_avg, exp_avg_sq) can go to "
            "another number of ranks. Start the number of ranks that wrote it."
        ) from error


def _mend_globals(path: Path, checkpoint: Path) -> None:
    """Corrects and shrinks stage 3's file of the values that are not stored per parameter.

    Stage 3 gives the hyper-parameters of the first group to every group: weight decay would reach the parameters that
    are to have none. A hyper-parameter that the file does not hold keeps the value of the newly built optimizer, so
    those that differ between groups are left out. The file also holds rank 0's part of the optimizer, which every rank
    would load and not use; it is removed.
    """
    from deepspeed.checkpoint.constants import FP32_FLAT_GROUPS, OPTIMIZER_STATE_DICT, PARAM_GROUPS

    kept = torch.load(path, map_location="cpu", weights_only=True)
    if OPTIMIZER_STATE_DICT not in kept:
        return  # stages 1 and 2 load group by group
    adam = kept[OPTIMIZER_STATE_DICT]
    groups = adam[PARAM_GROUPS]
    shared = {key: value for key, value in groups[0].items() if all(group[key] == value for group in groups)}
    if "lr" not in shared:
        raise UserError(
            f"{checkpoint}: its parameter groups have learning rates of their own, and DeepSpeed's stage 3 restores "
            "one for all. Start the number of ranks that wrote it."
        )
    adam[PARAM_GROUPS] = kept[PARAM_GROUPS] = [shared | {"params": []} for _ in groups]
    adam["state"] = {index: {"step": values["step"]} for index, values in adam["state"].items()}
    kept[FP32_FLAT_GROUPS] = []
    torch.save(kept, path)
