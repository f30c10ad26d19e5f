"""Which ZeRO stage, how many GPUs and which batch for 1B to 70B: the tables of docs/scaling.md, from formulas.

python -m benchmarks.scaling
python -m benchmarks.scaling --write

Arithmetic on `benchmarks.scaling_formulas`: nothing is run, and nothing is measured. `--write` replaces what stands
between the markers in docs/scaling.md.
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from itertools import product
from pathlib import Path

from benchmarks import one_card
from benchmarks.scaling_choices import (
    ALL,
    BATCH,
    FAST,
    GPUS,
    MAX_LENGTH,
    PAIR,
    PAIRS,
    RATE,
    SLOW,
    USABLE,
    Choice,
    Model,
    choose,
    find_fewest_gpus,
    find_least,
    name_stage,
)
from benchmarks.scaling_formulas import (
    BACKWARD_LAYERS,
    GPUS_PER_NODE,
    Plan,
    Stage,
    checkpoint_bytes,
    checkpoint_input_bytes,
    compute_states,
    count_gathers,
    count_parameters,
    layer_bytes,
    reference_flops,
    step_flops,
    store_bytes,
)

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
PACKAGES = {"torch": "torch", "transformers": "transformers", "TRL": "trl", "DeepSpeed": "deepspeed"}

HELD_OUT, TRAIN_SAMPLE = 10_000, 256
"""Pairs that the report scores: a tenth as many as trained, and `evaluation.max_train_examples`."""
STORAGE = 2e9
"""Bytes per second that shared storage takes and gives, assumed."""
HASHING = 1.7e9
"""Bytes per second of SHA-256 on a core: `hash_gib_per_s_and_rank` of results/x86_64-2cpu/checkpoints.json."""
SAVE_EVERY, KEPT = 100, 3
"""`trainer.save_every` by default; `trainer.keep_checkpoints` by default and the one that is being written."""
TOLD = 0.05
"""Share of the time that checkpoints may take."""


CHOICE_NOTES = (
    "- *pairs x forwards*: `trainer.per_device_batch_size`, and the forwards per step that follow from "
    f"`trainer.batch_size={BATCH}`.",
    f"- *GB per GPU*: at its largest, if all pairs had {2 * MAX_LENGTH:,} tokens. More than {USABLE / 1e9:.0f} of 80"
    " GB counts as not fitting.",
    "- *compute*, *network*, *waits*: seconds per optimizer step; *waits* is the part of the network that does not run"
    f" beside the computation. {FAST.cards} network cards per node.",
    f"- *minutes*: for {PAIRS:,} pairs, and for the reference pass before the first epoch.",
    "- *on 1 card per node*: what to choose then, and how much longer its step takes.",
    "",
    "What is typed is the model's overrides and those of the choice: `deepspeed=<stage>"
    f" trainer.batch_size={BATCH} trainer.per_device_batch_size=<pairs>`, and"
    " `trainer.gradient_checkpointing=true` where it says checkpointing.",
)
NETWORK_NOTES = (
    f"- *GB sent*: by each of {max(GPUS)} GPUs. `none`, `zero1`, `zero2`: per step (`zero2` sends two thirds of it"
    " again for every further forward of a step). `zero3`: per forward and backward.",
    "- *pairs to hide it*: pairs per GPU. `none`: in the last forward of a step. `zero3`: in each forward. `zero1`,"
    " `zero2`: nothing runs beside it, so pairs per step for which it adds a tenth. Without checkpointing, which adds"
    " a third to the computation.",
)


ONE_CARD_NOTES = (
    "Without sharding: tokens per forward (`trainer.tokens_per_device`) that fit into"
    f" {one_card.USABLE:.0%} of a card, in steps of {one_card.LONGEST:,}, the longest pair of"
    f" `data.max_length={MAX_LENGTH}`, at most {one_card.MOST:,}. *c*: with `trainer.gradient_checkpointing=true`,"
    f" where fewer than {one_card.ENOUGH:,} fit without; *-*: not one pair. All of it is computed.",
    "",
    "Full fine-tuning computes in bf16 from weights in fp32: 16 bytes per parameter with AdamW, 10 with"
    " `optim.name=adamw_bnb_8bit` (bitsandbytes; 16 still for embeddings). Weights in bf16 would take 6, but a step of"
    " 1e-6 is lost in them: prefopt refuses `model.dtype=bf16` with `peft=none`, and that row says what it takes.",
)


def describe_first_measurement() -> list[str]:
    """The formulas beside the only step whose memory was measured on a GPU."""
    told = []
    for has_fused_layers, layers in ((False, ""), (True, " with Liger's layers")):
        above, whole = one_card.predict_first_measurement(has_fused_layers=has_fused_layers)
        told.append(f"{above / 1e9:.1f} GB above the states and {whole / 2**30:.1f} GiB in all{layers}")
    return [
        "Against the one step that was measured on a GPU ([which](gpu.md#before-the-current-code): 1B, weights and"
        f" optimizer in bf16, 4 pairs of 1024/256) the formulas say {' and '.join(told)}; measured were 12.8 GB and"
        " 21.2 GiB, and 18.1 GiB."
    ]


def list_commands(card: int) -> list[str]:
    """What is typed for each model on one card."""
    rows = [[f"`{model}`", name, f"`{line}`"] for model, name, line in one_card.list_commands(card)]
    on_card, in_host = max(one_card.offload_bytes(shape, one_card.TYPED) for shape in one_card.SHAPES.values())
    files = "data=files data.train=pairs.jsonl"
    return [
        f"What is typed on one card of {card} GB after `python -m prefopt.train {files}`. *Offloaded* goes after"
        f" `torchrun --nproc-per-node 1 -m prefopt.train {files}`, and keeps 16 bytes per parameter in the memory of"
        f" the host (8B: {in_host / 1e9:.0f} GB, and at most {on_card / 1e9:.0f} GB on the card). A budget is a step's"
        f" size too, so no line asks for more than {one_card.TYPED:,}.",
        "",
        *_table(["model", "training", "overrides"], rows),
    ]


def tabulate_choices(has_adapter: bool) -> list[str]:
    """What to type for each model and number of GPUs."""
    rows = []
    for model, ranks in product(ALL, GPUS):
        choice = choose(model.shape, ranks, has_adapter)
        if choice is None:
            least = find_least(model.shape, ranks, has_adapter=has_adapter) / 1e9
            gpus = find_fewest_gpus(model.shape, has_adapter=has_adapter)
            why = f"does not fit: `zero3` takes {least:.0f} GB; from {gpus} GPUs on"
            rows.append([model.name, str(ranks), why, *["-"] * 7])
            continue
        reference_s = PAIRS * reference_flops(model.shape, PAIR) / (ranks * RATE)
        rows.append(
            [
                model.name,
                str(ranks),
                str(choice),
                _share(choice.plan),
                f"{choice.memory / 1e9:.0f}",
                _number(choice.time.compute),
                _number(choice.time.network),
                _number(choice.time.exposed),
                f"{_number(choice.epoch_s / 60)} + {_number(reference_s / 60)}",
                _on_slow_network(choice),
            ]
        )
    columns = ["model", "GPUs", "stage", "pairs x forwards", "GB per GPU"]
    return _table([*columns, "compute s", "network s", "waits s", "minutes", "on 1 card per node"], rows)


def _on_slow_network(choice: Choice) -> str:
    plan = choice.plan
    if plan.ranks <= GPUS_PER_NODE:
        return "-"
    other = choose(plan.shape, plan.ranks, plan.has_adapter, SLOW)
    assert other is not None, "what fits does not depend on the network"
    slower = other.time.total / choice.time.total
    same = other.plan == plan
    return f"{'the same' if same else f'{other}, {_share(other.plan)}'}; {slower:.1f} times as long"


def tabulate_commands() -> list[str]:
    """The overrides of each model."""
    rows = [[model.name, f"{count_parameters(model.shape):,}", f"`{model.full}`", f"`{model.lora}`"] for model in ALL]
    return _table(["model", "parameters", "full fine-tuning", "LoRA"], rows)


def show_command() -> list[str]:
    """A whole command: 8B, full, on two nodes."""
    model, ranks = ALL[1], 16
    choice = choose(model.shape, ranks, False)
    assert choice is not None
    nodes = f"--nnodes {ranks // GPUS_PER_NODE} --nproc-per-node {GPUS_PER_NODE}"
    launch = f"torchrun {nodes} --rdzv-backend c10d --rdzv-endpoint <first node>:29500"
    lines = [launch, "    -m prefopt.train data=files data.train=pairs.jsonl", f"    {model.full}"]
    return [f"    {line} \\" for line in lines] + [f"        {choice.overrides}"]


def tabulate_states() -> list[str]:
    """GB of model states per GPU."""
    rows = []
    for model, has_adapter in product(ALL, (False, True)):
        cells = []
        for stage in (None, 1, 2, 3):
            sizes = [compute_states(Plan(model.shape, has_adapter, stage, ranks)) for ranks in GPUS]
            cells.append(" / ".join(dict.fromkeys(map(_fit, sizes))))
        name = model.name
        if has_adapter:
            quantised = compute_states(Plan(model.shape, True, None, 1), is_quantised=True)
            name += f" LoRA (on 4 bits: {_number(quantised / 1e9)})"
        rows.append([name, *cells])
    return _table(["GB per GPU of 8 / 16 / 64", "`none`", "`zero1`", "`zero2`", "`zero3`"], rows)


def tabulate_activations() -> list[str]:
    """Activations per token and pair under DeepSpeed, full fine-tuning."""
    rows = []
    for model in ALL:
        shape, tokens = model.shape, 2 * MAX_LENGTH
        layer = layer_bytes(shape, has_adapter=False, has_autocast=False)
        inputs = checkpoint_input_bytes(shape, has_adapter=False, has_autocast=False)
        kept = {False: layer * shape.layers, True: inputs * shape.layers}
        pair = {again: tokens * (kept[again] + BACKWARD_LAYERS[again] * layer) for again in kept}
        head = 6 * shape.vocabulary * shape.hidden
        tokens_mb = [_number(size / 1e6) for size in kept.values()]
        rows.append([model.name, *tokens_mb, *(_number(size / 1e9) for size in pair.values()), _number(head / 1e9)])
    pairs = f"GB per pair of {2 * MAX_LENGTH:,} tokens"
    columns = ["model", "MB per token", "with checkpointing", pairs, "with checkpointing", "GB for the head"]
    return _table(columns, rows)


def tabulate_compute() -> list[str]:
    """Operations per pair."""
    rows = []
    for model in ALL:
        kinds = product((False, True), (False, True))
        flops = [step_flops(model.shape, PAIR, has_adapter=a, checkpointing=c) for a, c in kinds]
        told = [_number(count / 1e12) for count in (*flops, reference_flops(model.shape, PAIR))]
        rough = 6 * count_parameters(model.shape) * PAIR.tokens
        rows.append([model.name, *told, _number(rough / 1e12), _number(RATE / flops[0])])
    kinds_told = ["full", "with checkpointing", "LoRA", "with checkpointing", "reference, once"]
    return _table(["TFLOP per pair", *kinds_told, "6 N x tokens", "pairs per GPU and s, full"], rows)


def tabulate_network() -> list[str]:
    """What a rank sends, how long that takes, and the batch that hides it."""
    rows = []
    wanted: list[tuple[Model, Stage, bool]] = [(ALL[0], None, False), (ALL[0], 1, False)]
    wanted += [(model, stage, False) for model in ALL[1:3] for stage in (1, 3)]
    wanted += [(ALL[3], 3, False), (ALL[3], 3, True)]
    for model, stage, has_adapter in wanted:
        pair_s = step_flops(model.shape, PAIR, has_adapter=has_adapter, checkpointing=False) / RATE
        factor = {None: 1.5, 1: 10.0, 3: 1.0}[stage]
        plans = [Plan(model.shape, has_adapter, stage, ranks) for ranks in (min(GPUS), max(GPUS), max(GPUS))]
        networks = (FAST, FAST, SLOW)
        seconds = [plan.traffic / net.bandwidth(plan.ranks) for plan, net in zip(plans, networks, strict=True)]
        pairs = [str(math.ceil(factor * taken / pair_s)) for taken in seconds]
        name = f"{model.name}{' LoRA' if has_adapter else ''} `{name_stage(stage)}`{', `zero2`' if stage == 1 else ''}"
        sent = _number(plans[1].traffic / 1e9)
        rows.append([name, sent, " / ".join(map(_number, seconds)), _number(pair_s), " / ".join(pairs)])
    where = "1 node / 8 cards / 1 card"
    return _table(["", "GB sent", f"seconds: {where}", "compute s per pair", f"pairs to hide it: {where}"], rows)


def tabulate_limits() -> list[str]:
    """What breaks next, in numbers."""
    most = max(GPUS)
    rows: dict[str, list[str]] = {}
    for model in ALL:
        for name, told in _limits(model, most).items():
            rows.setdefault(name, []).append(told)
    return _table(["", *(model.name for model in ALL)], [[name, *cells] for name, cells in rows.items()])


def _limits(model: Model, ranks: int) -> dict[str, str]:
    """For one model on `ranks` GPUs."""
    shape, size, nodes = model.shape, count_parameters(model.shape), ranks // GPUS_PER_NODE
    choice = choose(shape, ranks, False)
    assert choice is not None, "every model fits on the most GPUs"
    report_s = 2 * (HELD_OUT + TRAIN_SAMPLE) * reference_flops(shape, PAIR) / RATE
    saved = checkpoint_bytes(choice.plan)
    write_s, step_s = saved / STORAGE, choice.time.total
    every = math.ceil(write_s * (1 - TOLD) / TOLD / step_s)
    third = Plan(shape, False, 3, ranks)
    slow_s, gathers = third.traffic / SLOW.bandwidth(ranks), count_gathers(third)
    is_whole = compute_states(Plan(shape, False, 2, ranks)) <= USABLE
    reads = nodes * 2 * size / STORAGE, GPUS_PER_NODE * 4 * size / 1e9
    others = [_number(value) if is_whole else "-" for value in reads]
    pair_s = step_flops(shape, PAIR, has_adapter=False, checkpointing=True) / RATE
    return {
        "report: GB on one GPU, full (fp32) / LoRA (bf16)": f"{_fit(4 * size)} / {_fit(2 * size)}",
        f"report: minutes on one GPU, {HELD_OUT:,} held-out pairs": _number(report_s / 60),
        f"... in training times of {PAIRS:,} pairs on {ranks} GPUs": _number(report_s / choice.epoch_s),
        "checkpoint: GB": _number(saved / 1e9),
        f"... seconds at {STORAGE / 1e9:.0f} GB/s": _number(write_s),
        f"... share of the time, one in {SAVE_EVERY} steps": f"{write_s / (write_s + SAVE_EVERY * step_s):.0%}",
        f"... steps between two for {TOLD:.0%} of the time": f"{every:,}",
        f"... GB on disk, {KEPT} of them": _number(KEPT * saved / 1e9),
        "... minutes to convert it for another number of ranks": _number(4 * 12 * size / STORAGE / 60),
        f"start: seconds to read the weights, `zero3` / other stages on {nodes} nodes": (
            f"{_number(2 * size / STORAGE)} / {others[0]}"
        ),
        "... GB of host memory of a node, `zero3` / other stages": f"{_number(2 * size / 1e9)} / {others[1]}",
        f"... seconds of SHA-256 over the weights, once, at {HASHING / 1e9} GB/s": _number(2 * size / HASHING),
        f"reference store: GB for {PAIRS:,} pairs, read by every rank": _number(PAIRS * store_bytes(PAIR) / 1e9),
        "`zero3` on 1 card per node: network s per forward and backward": _number(slow_s),
        "... the same with hpZ / GB per GPU that it takes": (
            f"{_number(slow_s * gathers / (gathers + 1))} / {_number(2 * size / GPUS_PER_NODE / 1e9)}"
        ),
        "... compute s per pair, with checkpointing": _number(pair_s),
    }


def render() -> str:
    """The tables as Markdown, always the same."""
    parts = [
        ["## What to choose", "", "Full fine-tuning:", ""],
        tabulate_choices(has_adapter=False),
        ["", "LoRA, r=16 on all linear layers, base in bf16:", ""],
        tabulate_choices(has_adapter=True),
        ["", *CHOICE_NOTES, ""],
        tabulate_commands(),
        ["", "8B, all weights, on two nodes (the same line on each):", "", *show_command()],
        ["", "## One card", "", *ONE_CARD_NOTES, ""],
        _table(
            ["model", "training", "GB of states", *(f"{card} GB" for card in one_card.CARDS)],
            one_card.tabulate_recipes(),
        ),
        ["", *describe_first_measurement(), ""],
        list_commands(80),
        ["", "## Memory", "", f"Model states; bold: more than the {USABLE / 1e9:.0f} GB of a plan.", ""],
        tabulate_states(),
        ["", "Activations under DeepSpeed, full fine-tuning; they come on top, as do the head's buffers:", ""],
        tabulate_activations(),
        ["", "## Compute", "", f"Prompt, chosen and rejected of {PAIR.prompt} tokens each, the prompt once:", ""],
        tabulate_compute(),
        ["", "## Network", "", *NETWORK_NOTES, ""],
        tabulate_network(),
        ["", "## What would break next", "", f"Full fine-tuning, on {max(GPUS)} GPUs; bold: does not fit.", ""],
        tabulate_limits(),
    ]
    return "\n".join(line for part in parts for line in part)


def stamp() -> str:
    """The command, its date, and the versions whose code the formulas follow."""
    versions = ", ".join(f"{name} {version(package).split('+')[0]}" for name, package in PACKAGES.items())
    return f"Computed on {time.strftime('%Y-%m-%d')} by `python -m benchmarks.scaling --write` for {versions}."


def replace_tables(page: str, tables: str) -> str:
    """The page with other tables between its markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{PAGE}: the markers {BEGIN} and {END} are missing")
    return f"{before}{begin}\n{tables}\n{end}{after}"


def main(argv: Sequence[str]) -> None:
    """Prints the tables, or writes them into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="replace the tables in docs/scaling.md")
    options = parser.parse_args(argv)
    tables = f"{stamp()}\n\n{render()}"
    if not options.write:
        print(tables)
        return
    PAGE.write_text(replace_tables(PAGE.read_text(encoding="utf-8"), tables), encoding="utf-8")
    print(f"written: {PAGE}")


def _share(plan: Plan) -> str:
    return f"{plan.pairs} x {plan.forwards}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _number(value: float) -> str:
    """Two significant digits, more where there are more before the point."""
    if value == 0:
        return "0"
    digits = max(0, 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def _fit(size: float) -> str:
    """GB, bold if that is more than a GPU takes."""
    told = _number(size / 1e9)
    return told if size <= USABLE else f"**{told}**"


if __name__ == "__main__":
    main(sys.argv[1:])
