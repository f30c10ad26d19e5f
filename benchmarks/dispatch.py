"""How many operations the host asks for in one DPO step, by TRL and by prefopt: what bounds small steps on a GPU.

Counted on the CPU, below autograd, in forward, loss, metrics and backward of one batch. prefopt computes as on a GPU:
the variable-length form, with a stand-in for the kernel that counts as one operation forward and one backward, as
scaled-dot-product attention does. TRL has its reference log-probs in the batch (`precompute_ref_log_probs`). With
`fused`, RMSNorm, rotary embedding and SwiGLU are stand-ins of one operation each way, as Liger's kernels are.

    python -m benchmarks.dispatch --write

Views launch nothing on a GPU, but take the host's time; they are counted apart. `item` reads a number from the
device, `nonzero` asks how many there are: for both the host waits. On a GPU TRL's head selects positions by a mask
(`compact`), which it does not on the CPU; here it does.
"""

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.llama import modeling_llama
from trl.trainer import utils as trl_utils

from benchmarks.dpo_step import _quiet
from benchmarks.results import write_results
from benchmarks.shapes import MODELS, PAIRS
from benchmarks.variants import OURS, Contest
from prefopt.models.shared_prefix import SharedPrefix, attention

PACKAGES = ("torch", "transformers", "trl")
MODEL = "small"
TRL = "trl_precompute"
aten = torch.ops.aten
VIEWS = {aten._unsafe_view}
"""Views that do not say so."""
WAITS = {"item": {aten._local_scalar_dense}, "nonzero": {aten.nonzero}}
COPIES = {aten.clone, aten.copy_, aten._to_copy, aten.cat, aten.index_select, aten.index}


@dataclass(frozen=True, slots=True)
class Count:
    """Operations of a step.

    Attributes:
        variant: Who computes, and whether with fused layers.
        dispatched: All that reach a device's implementation.
        operations: Those without views.
        per_layer: Operations without views that one more layer adds.
        copies: Of these, how many move data without computing.
        item: Numbers that are read.
        nonzero: Masks whose true places are asked for.
    """

    variant: str
    dispatched: int
    operations: int
    per_layer: float
    copies: int
    item: int
    nonzero: int


class Counting(TorchDispatchMode):
    """Counts the operations of a block by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Any] = Counter()
        self.num_views = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.overloadpacket] += 1
        self.num_views += func.is_view or func.overloadpacket in VIEWS
        if func.overloadpacket in (aten.index, aten.index_put, aten.index_put_):  # by a mask: it asks first
            self.calls[aten.nonzero] += any(index is not None and index.dtype is torch.bool for index in args[1])
        return func(*args, **kwargs or {})


def stand_in(name: str, num_gradients: int) -> Callable[..., Any]:
    """An operation that returns zeros of its first inputs' shapes: one call forward, one backward."""

    def forward(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        return [torch.zeros_like(tensor) for tensor in tensors[:num_gradients]]

    def backward(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        return [torch.zeros_like(tensor) for tensor in tensors]

    there = torch.library.custom_op(f"benchmark::{name}", forward, mutates_args=())
    back = torch.library.custom_op(f"benchmark::{name}_backward", backward, mutates_args=())

    class Operation(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *tensors: torch.Tensor) -> Any:
            ctx.save_for_backward(*tensors)
            made = there(list(tensors))
            return made[0] if num_gradients == 1 else tuple(made)

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> Any:
            return tuple(back(list(ctx.saved_tensors)))

    return Operation.apply


ATTENTION, NORM = stand_in("attention", 1), stand_in("rms_norm", 1)
ROTARY, SWIGLU = stand_in("rotary", 2), stand_in("swiglu", 1)


@contextmanager
def fused_layers() -> Iterator[None]:
    """Llama's norms, rotary embedding and gated activation as one operation each."""

    def rotate(query: Any, key: Any, cos: Any, sin: Any, unsqueeze_dim: int = 1) -> Any:
        return ROTARY(query, key)

    def feed_forward(module: Any, x: Any) -> Any:
        return module.down_proj(SWIGLU(module.gate_proj(x), module.up_proj(x)))

    with (
        mock.patch.object(modeling_llama.LlamaRMSNorm, "forward", lambda module, x: NORM(x, module.weight)),
        mock.patch.object(modeling_llama, "apply_rotary_pos_emb", rotate),
        mock.patch.object(modeling_llama.LlamaMLP, "forward", feed_forward),
    ):
        yield


def count_step(num_layers: int, pairs: str, num_pairs: int, *, name: str, is_fused: bool, folder: str) -> Counting:
    """Counts the operations of one step of a variant on a model with so many layers."""
    shape = MODELS[MODEL]
    model = type(shape)(**{**asdict(shape), "layers": num_layers}).build(torch.device("cpu"), torch.float32)
    contest = Contest(model, folder)
    batches = PAIRS[pairs].build(shape.vocabulary, num_pairs)[:1]
    rows, _ = contest.add_reference(batches)
    variant = contest.variants[name]
    engine = SharedPrefix(variant.trainer.model, form="varlen") if name == OURS else None
    batch = contest.collate(name, rows[name][0])
    try:
        with (
            mock.patch.object(attention, "_torch_varlen", lambda query, key, value, *_: ATTENTION(query, key, value)),
            mock.patch.object(trl_utils, "_use_triton", return_value=True),
            fused_layers() if is_fused else nullcontext(),
        ):
            variant.differentiate(batch)  # the first one also makes the gradients' memory
            for parameter in contest.policy.parameters():
                parameter.grad = None
            with Counting() as counting:
                variant.differentiate(batch)
    finally:
        if engine is not None:
            engine.remove()
    return counting


def count(pairs: str, num_pairs: int, *, name: str, is_fused: bool, folder: str) -> Count:
    """Counts a step on the model's own number of layers, and on twice as many for the difference."""
    layers = MODELS[MODEL].layers
    how = {"name": name, "is_fused": is_fused, "folder": folder}
    once, twice = (count_step(number, pairs, num_pairs, **how) for number in (layers, 2 * layers))

    def operations(counting: Counting) -> int:
        return sum(counting.calls.values()) - counting.num_views - counting.calls[aten.nonzero]

    calls = once.calls
    return Count(
        variant=f"{name}, fused layers" if is_fused else name,
        dispatched=sum(calls.values()) - calls[aten.nonzero],
        operations=operations(once),
        per_layer=(operations(twice) - operations(once)) / layers,
        copies=sum(calls[operation] for operation in COPIES),
        item=sum(calls[operation] for operation in WAITS["item"]),
        nonzero=sum(calls[operation] for operation in WAITS["nonzero"]),
    )


def print_counts(counts: list[Count], title: str, console: Console) -> None:
    """Prints a line for each variant; ratios are to TRL's operations without fused layers."""
    table = Table(title=title)
    columns = ("operations", "/ TRL", "per layer", "copies", "views too", "item", "nonzero")
    for column in ("variant", *columns):
        table.add_column(column, justify="left" if column == "variant" else "right")
    baseline = counts[0].operations
    for row in counts:
        table.add_row(
            row.variant,
            f"{row.operations:,}",
            f"{row.operations / baseline:.2f}",
            f"{row.per_layer:.0f}",
            str(row.copies),
            f"{row.dispatched:,}",
            str(row.item),
            str(row.nonzero),
        )
    console.print(table)


def main(argv: list[str]) -> None:
    """Counts, prints, and writes if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", default="256/96", choices=PAIRS, help="shape of the pairs, prompt/answer")
    parser.add_argument("--batch-pairs", type=int, default=4)
    parser.add_argument("--write", action="store_true", help="write results/<machine>/dispatch.json")
    args = parser.parse_args(argv)
    _quiet()
    with tempfile.TemporaryDirectory() as folder:
        counts = [
            count(args.pairs, args.batch_pairs, name=name, is_fused=is_fused, folder=folder)
            for is_fused in (False, True)
            for name in (TRL, OURS)
        ]
    layers = MODELS[MODEL].layers
    title = f"one step, {args.batch_pairs} pairs of {args.pairs}, Llama of {layers} layers"
    console = Console(soft_wrap=True, width=120)
    print_counts(counts, title, console)
    if args.write:
        content = {"pairs": args.pairs, "batch_pairs": args.batch_pairs, "layers": layers}
        content["counts"] = [asdict(row) for row in counts]
        console.print(f"written: {write_results('dispatch', content, packages=PACKAGES, argv=argv)}")


if __name__ == "__main__":
    main(sys.argv[1:])
