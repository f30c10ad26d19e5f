"""Saves weights that DeepSpeed ZeRO-3 has partitioned, in the format of `save_pretrained`, one shard at a time."""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub import StateDictSplit, split_torch_state_dict_into_shards
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from prefopt.process.ranks import is_main

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

MAX_SHARD_BYTES = 5 * 10**9
FILES = "model{suffix}.safetensors"

Tensors = dict[str, torch.Tensor]
Stream = Iterator[torch.Tensor]


def save_partitioned(
    model: "PreTrainedModel | PeftModel", folder: Path, *, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Writes the files that `model.save_pretrained(folder)` of the unpartitioned model would write. All ranks call it.

    Rank 0 holds one shard and one parameter in memory at a time; all adapters of a PeftModel; or all weights of a
    model for which `find_obstacle` returns a reason.

    Args:
        model: A PreTrainedModel or a PeftModel, unwrapped. Weights that are not partitioned are written as they are.
        folder: Files get their final names in it; if writing fails, the caller must deal with them.
        max_shard_bytes: Size at which a full model's file is split; a larger parameter gets a file of its own.

    Raises:
        OSError, SafetensorError: A file cannot be written. Only rank 0 raises, after it has taken part in every
            gather; the other ranks return.
    """
    sources = _find_sources(model)
    if isinstance(model, PeftModel):
        chosen = _choose_adapters(model, sources)
        _stream(_distinct(chosen), lambda stream: model.save_pretrained(folder, state_dict=_collect(chosen, stream)))
        return
    plan = _plan(model, sources)
    if plan.obstacle is None:
        split = split_torch_state_dict_into_shards(
            plan.outlines, filename_pattern=FILES, max_shard_size=max_shard_bytes
        )
        in_order = [plan.sources[key] for keys in split.filename_to_tensors.values() for key in keys]
        _stream(in_order, lambda stream: _write_shards(model, folder, split, stream))
        return
    if is_main():
        logger.warning("save: rank 0 holds all weights of the model in memory, because %s", plan.obstacle)
    _stream(
        _distinct(sources),
        lambda stream: model.save_pretrained(
            folder, state_dict=_collect(sources, stream), max_shard_size=max_shard_bytes
        ),
    )


def find_obstacle(model: "PreTrainedModel | PeftModel") -> str | None:
    """Says why rank 0 must hold all weights of a model to write it; None if one shard at a time is enough."""
    return None if isinstance(model, PeftModel) else _plan(model, _find_sources(model)).obstacle


@dataclass
class _Plan:
    """The content of a full model's files.

    Attributes:
        outlines: For each key in the files, a tensor without data of the shape and dtype to write.
        sources: For each key in the files, the parameter or buffer to gather.
        obstacle: Why some keys have no such source; None if all have one.
    """

    outlines: Tensors
    sources: Tensors
    obstacle: str | None


def _plan(model: "PreTrainedModel", sources: Tensors) -> _Plan:
    """Lets transformers drop, rename and convert tensors without data, and finds the source of each result."""
    conversions = getattr(model, "_weight_conversions", None)
    if conversions is not None:  # loading under ZeRO-3 also lists unused ones, and saving would revert them
        model._weight_conversions = [conversion for conversion in conversions if conversion.was_used()]
    ignored = model._keys_to_ignore_on_save or ()
    kept = {key: _outline(source) for key, source in sources.items() if key not in ignored}
    kept = remove_tied_weights_from_state_dict(kept, model)
    origins = {id(outline): key for key, outline in kept.items()}
    outlines = revert_weight_conversion(model, kept)
    made = [key for key, outline in outlines.items() if id(outline) not in origins]
    if made:
        return _Plan(
            outlines,
            sources={},
            obstacle=f"{len(made)} weights in its files, such as {made[0]}, are not parameters of it: "
            "transformers computes them from several, or parts of one",
        )
    return _Plan(outlines, {key: sources[origins[id(outline)]] for key, outline in outlines.items()}, obstacle=None)


def _choose_adapters(model: PeftModel, sources: Tensors) -> Tensors:
    """The part of a PeftModel's state dict that PEFT writes."""
    outlines = {key: _outline(source) for key, source in sources.items()}
    keys = {id(outline): key for key, outline in outlines.items()}
    written = [
        outline
        for name in model.peft_config
        for outline in get_peft_model_state_dict(model, state_dict=outlines, adapter_name=name).values()
    ]
    return {key: sources[key] for key in (keys[id(outline)] for outline in written)}


def _find_sources(model: "PreTrainedModel | PeftModel") -> Tensors:
    """The state dict of a model with the parameters themselves as values, since these carry ZeRO-3's attributes."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {key: parameters.get(key, value) for key, value in model.state_dict().items()}


def _outline(source: torch.Tensor) -> torch.Tensor:
    return torch.empty(getattr(source, "ds_shape", source.shape), dtype=source.dtype, device="meta")


def _stream(sources: list[torch.Tensor], write: Callable[[Stream], None]) -> None:
    """Gathers tensors one after the other; rank 0 writes them."""
    stream = _gather(sources)
    try:
        if is_main():
            write(stream)
    finally:
        for _ in stream:  # also when writing has failed: other ranks wait for rank 0 in every gather
            pass


def _gather(sources: list[torch.Tensor]) -> Stream:
    """Yields gathered tensors, one at a time; all ranks must exhaust it."""
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters, ZeroParamStatus

    for source in sources:
        # A parameter that every rank holds whole, as ZeRO-3 keeps small ones, would be partitioned on exit.
        is_whole = getattr(source, "ds_status", ZeroParamStatus.AVAILABLE) is ZeroParamStatus.AVAILABLE
        with GatheredParameters([source], enabled=not is_whole):
            yield source.detach()


def _distinct(sources: Tensors) -> list[torch.Tensor]:
    return list({id(source): source for source in sources.values()}.values())


def _collect(sources: Tensors, stream: Stream) -> Tensors:
    """All tensors by key, on the CPU, from a stream of the distinct ones; tied weights stay one tensor."""
    whole = {id(source): tensor.cpu() for source, tensor in zip(_distinct(sources), stream, strict=True)}
    return {key: whole[id(source)] for key, source in sources.items()}


def _write_shards(model: "PreTrainedModel", folder: Path, split: StateDictSplit, stream: Stream) -> None:
    model.save_pretrained(folder, state_dict={})  # configurations and remote code; no weights, so no file for them
    for name, keys in split.filename_to_tensors.items():
        _write_shard(folder / name, keys, stream)
    if split.is_sharded:
        num_parameters = sum(_outline(parameter).numel() for parameter in model.parameters())
        index = {
            "metadata": {"total_parameters": num_parameters, **split.metadata},
            "weight_map": split.tensor_to_filename,
        }
        path = folder / f"{FILES.format(suffix='')}.index.json"
        path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_shard(path: Path, keys: list[str], stream: Stream) -> None:
    """Writes the next tensors of the stream; a function of its own, so that they are freed before the next shard."""
    shard = {key: tensor.cpu().contiguous() for key, tensor in zip(keys, stream, strict=False)}
    save_file(shard, path, metadata={"format": "pt"})
