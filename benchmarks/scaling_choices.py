"""Which plan a model gets on a number of GPUs: the assumptions of docs/scaling.md, its models, and the rule.

A plan is the stage, the pairs per forward, and whether activations are computed again. All plans that share a step of
`BATCH` pairs out evenly are tried, and one of those that fit is chosen by the time of its step.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product

from benchmarks.scaling_formulas import (
    GPUS_PER_NODE,
    Network,
    Pair,
    Plan,
    Stage,
    StepTime,
    compute_memory,
    compute_step_time,
)
from benchmarks.shapes import MODELS, ModelShape

PEAK = 989e12
"""Dense bf16 operations per second of an H100 SXM, from NVIDIA's data sheet."""
UTILISATION = 0.4
"""Share of the peak that is executed, assumed; what is computed again counts."""
RATE = UTILISATION * PEAK
USABLE = 0.9 * 80e9
"""Bytes of an 80 GB GPU that a plan may take; the rest is for CUDA, NCCL and fragmentation."""
FAST = Network(node=450e9, card=50e9, cards=8)
"""NVLink 4: 450 GB/s per direction. A 400 Gb/s card for each GPU."""
SLOW = Network(node=450e9, card=50e9, cards=1)
"""One 400 Gb/s card per node."""

PAIR = Pair(512, 512, 512)
"""For times. Memory is planned for the longest pairs that `MAX_LENGTH` allows."""
MAX_LENGTH = 1024
"""`data.max_length` by default: tokens of prompt + completion."""
BATCH = 128
PAIRS = 100_000
GPUS = (8, 16, 64)
TOLERANCE = 1.1
"""A lower stage is chosen if its step takes at most this much longer than the fastest one."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model of the tables.

    Attributes:
        name: Its size.
        shape: Its shape.
        full: Overrides for full fine-tuning in bf16.
        lora: Overrides for LoRA on a base in bf16.
    """

    name: str
    shape: ModelShape
    full: str
    lora: str


def _hub(path: str) -> tuple[str, str]:
    model = f"model=hf model.path={path}"
    return f"{model} trainer.precision=bf16", f"{model} model.dtype=bf16 trainer.precision=bf16 peft=lora"


ALL = (
    Model(
        "1B",
        MODELS["1B"],
        "model=llama3_2_1b trainer.precision=bf16",
        "model=llama3_2_1b model.dtype=bf16 trainer.precision=bf16 peft=lora",
    ),
    Model(
        "8B",
        MODELS["8B"],
        "model=llama3_1_8b model.dtype=fp32 trainer.precision=bf16",
        "model=llama3_1_8b trainer.precision=bf16 peft=lora",
    ),
    Model("13B", ModelShape(40, 5120, 40, 40, 128, 13824, 32000, False), *_hub("meta-llama/Llama-2-13b-hf")),
    Model("70B", ModelShape(80, 8192, 64, 8, 128, 28672, 128256, False), *_hub("meta-llama/Llama-3.1-70B-Instruct")),
)
"""Shapes of Llama 3.2, 3.1, 2 and 3.1. Those without a file in conf/model come by `model=hf`."""


@dataclass(frozen=True)
class Choice:
    """A plan that fits, the bytes that it takes, and the time of its step."""

    plan: Plan
    memory: float
    time: StepTime

    @property
    def overrides(self) -> str:
        """What is typed besides the model's overrides."""
        stage = name_stage(self.plan.stage)
        line = f"deepspeed={stage} trainer.batch_size={BATCH} trainer.per_device_batch_size={self.plan.pairs}"
        return f"{line} trainer.gradient_checkpointing=true" if self.plan.checkpointing else line

    @property
    def epoch_s(self) -> float:
        """Seconds for `PAIRS` pairs."""
        return PAIRS / BATCH * self.time.total

    def __str__(self) -> str:
        return f"`{name_stage(self.plan.stage)}`{', checkpointing' if self.plan.checkpointing else ''}"


def name_stage(stage: Stage) -> str:
    """The option of `deepspeed`."""
    return "none" if stage is None else f"zero{stage}"


def list_plans(shape: ModelShape, ranks: int, *, has_adapter: bool) -> Iterator[Plan]:
    """All ways to share a step of `BATCH` pairs out over `ranks` GPUs."""
    share, rest = divmod(BATCH, ranks)
    assert not rest, f"{BATCH} pairs cannot be shared by {ranks} ranks"
    stages: tuple[Stage, ...] = (None, 1, 2, 3)
    sizes = [size for size in range(1, share + 1) if share % size == 0]
    for stage, checkpointing, size in product(stages, (False, True), sizes):
        yield Plan(shape, has_adapter, stage, ranks, size, share // size, checkpointing)


@cache
def choose(shape: ModelShape, ranks: int, has_adapter: bool, network: Network = FAST) -> Choice | None:
    """The lowest stage whose step is nearly as fast as the fastest that fits; None if nothing fits.

    Of the same stage without checkpointing before with, and the most pairs per forward.
    """
    found = [
        Choice(plan, memory, compute_step_time(plan, PAIR, network, rate=RATE))
        for plan in list_plans(shape, ranks, has_adapter=has_adapter)
        if (memory := compute_memory(plan, max_length=MAX_LENGTH).peak) <= USABLE
    ]
    if not found:
        return None
    fastest = min(choice.time.total for choice in found)
    near = [choice for choice in found if choice.time.total <= TOLERANCE * fastest]
    return min(near, key=lambda c: (c.plan.stage or 0, c.plan.checkpointing, -c.plan.pairs))


def find_least(shape: ModelShape, ranks: int, *, has_adapter: bool) -> float:
    """Bytes of the plan that takes the least memory: stage 3, checkpointing, one pair."""
    return compute_memory(Plan(shape, has_adapter, 3, ranks, 1, 1, True), max_length=MAX_LENGTH).peak


def find_fewest_gpus(shape: ModelShape, *, has_adapter: bool) -> int:
    """The smallest number of whole nodes on which anything fits, in GPUs."""
    ranks = GPUS_PER_NODE
    while find_least(shape, ranks, has_adapter=has_adapter) > USABLE:
        ranks += GPUS_PER_NODE
    return ranks
