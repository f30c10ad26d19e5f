"""Parameters, bytes, operations and traffic of a DPO step, from the shape of a Llama. Arithmetic; nothing is measured.

What is read in code is read in DeepSpeed 0.19.8, TRL 1.16.0, transformers 5.23.0 and torch 2.13.0. Bytes are
those of tensors, sizes in GB are powers of ten. n: ranks; N: parameters; P, C, R: tokens of prompt, chosen, rejected.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from benchmarks.shapes import ModelShape

GPUS_PER_NODE = 8
LORA_RANK = 16
"""`peft.r` by default; adapters on all linear layers of the blocks."""
BUCKET = 50_000_000
"""Elements; `prefopt.distributed.deepspeed.BUCKET_ELEMENTS`."""
LIVE = 1_000_000_000
"""Elements that ZeRO-3 keeps gathered (stage3_max_live_parameters), and updates at once (sub_group_size)."""
PREFETCH = 50_000_000
"""Elements that ZeRO-3 gathers ahead (stage3_prefetch_bucket_size)."""
HEAD_TILE = 4096 * 32768
"""Logits that TRL's head has in memory at once."""
BACKWARD_LAYERS = {False: 1.0, True: 1.5}
"""With checkpointing, the layers' worth of activations in memory beside what is stored while one layer goes backward.

A bound: torch's allocations on the CPU are 0.6 and 1.35 layers.
"""

NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes per 4-bit weight: a byte of scale for 64 weights, and 4 bytes for the scales of 256 such blocks (QLoRA)."""

Stage = int | None


@dataclass(frozen=True, slots=True)
class Pair:
    """Tokens of a preference pair."""

    prompt: int
    chosen: int
    rejected: int

    @property
    def tokens(self) -> int:
        """What is computed: the prompt once."""
        return self.prompt + self.chosen + self.rejected

    @property
    def scored(self) -> int:
        """Positions that go through the head."""
        return self.chosen + self.rejected

    @property
    def keys(self) -> float:
        """Pairs of query and key: a token sees its segment up to itself, and a completion the whole prompt."""
        own = sum(length**2 / 2 for length in (self.prompt, self.chosen, self.rejected))
        return own + self.prompt * self.scored


@dataclass(frozen=True, slots=True)
class Network:
    """Bytes per second and direction, nominal.

    Attributes:
        node: Of a GPU to the others of its node.
        card: Of one network card.
        cards: Network cards of a node; each carries a ring, so what enters a node is divided among them.
    """

    node: float
    card: float
    cards: int

    def bandwidth(self, ranks: int) -> float:
        """At which a ring collective over `ranks` sends a rank's bytes."""
        return self.node if ranks <= GPUS_PER_NODE else min(self.node, self.card * self.cards)


@dataclass(frozen=True)
class Plan:
    """One way to train a model.

    Attributes:
        shape: Of the model.
        has_adapter: LoRA on a base in bf16, else full fine-tuning of weights in fp32; computed in bf16.
        stage: ZeRO stage; None: DDP.
        ranks: GPUs.
        pairs: Pairs per GPU and forward.
        forwards: Forwards per GPU and optimizer step.
        checkpointing: Activations of a layer are computed again in the backward.
    """

    shape: ModelShape
    has_adapter: bool
    stage: Stage
    ranks: int
    pairs: int = 1
    forwards: int = 1
    checkpointing: bool = False

    @property
    def trained(self) -> int:
        return count_adapters(self.shape) if self.has_adapter else count_parameters(self.shape)

    @property
    def has_autocast(self) -> bool:
        """DDP computes in bf16 from the weights that it trains; DeepSpeed holds bf16 weights."""
        return self.stage is None

    @cached_property
    def traffic(self) -> float:
        """Bytes that a rank sends per optimizer step over rings."""
        once, per_forward = traffic_per_step(self)
        return once + self.forwards * per_forward


def count_block_linear(shape: ModelShape) -> int:
    """Weights of the linear layers of all blocks."""
    return shape.layers * sum(inputs * outputs for inputs, outputs in _linear_layers(shape))


def count_parameters(shape: ModelShape) -> int:
    """All parameters: embeddings, head unless tied, linear layers, two norms a layer and one at the end."""
    embeddings = shape.vocabulary * shape.hidden * (1 if shape.is_tied else 2)
    return embeddings + count_block_linear(shape) + (2 * shape.layers + 1) * shape.hidden


def count_adapters(shape: ModelShape, rank: int = LORA_RANK) -> int:
    """Parameters of LoRA adapters on all linear layers of the blocks."""
    return shape.layers * rank * sum(inputs + outputs for inputs, outputs in _linear_layers(shape))


def state_bytes(stage: Stage, ranks: int, *, bf16: bool) -> dict[str, float]:
    """Bytes per trained parameter of a rank when the last gradient of a step is there.

    `bf16` under DDP is autocast over weights of fp32. DeepSpeed holds weights and gradients in bf16 then, and its
    share of the weights in fp32 as well; in fp32 it holds that copy, too, where it is no more precise (stages 1, 2: a
    clone; 3: the partition that Adam updates).
    """
    n = ranks
    low = 2.0 if bf16 else 4.0
    if stage is None:
        return {"weights": 4.0, "gradients": 4.0, "master": 0.0, "adam": 8.0}
    return {
        "weights": low / n if stage == 3 else low,
        "gradients": low / n if stage >= 2 else low,
        "master": 4.0 / n,
        "adam": 8.0 / n,
    }


def layer_bytes(shape: ModelShape, *, has_adapter: bool, has_autocast: bool, has_fused_layers: bool = False) -> float:
    """Bytes per token that a layer keeps for its backward.

    Exact for transformers' Llama with flash attention: two inputs of a norm in fp32, their results, the inputs of the
    linear layers, query, key, value and result of attention, four tensors of the MLP. Frozen norms keep no result.
    Under autocast the residual is fp32, and every linear layer casts its input for itself. Liger's norms keep their
    input as it is and nothing else, its MLP three tensors (read in liger-kernel 0.8.5).
    """
    h, q, kv = shape.hidden, shape.heads * shape.head_size, shape.key_heads * shape.head_size
    inner = 4 * q + 4 * kv + 4 * shape.heads + 8 * shape.intermediate + 8
    if has_fused_layers:
        assert not has_adapter, "counted for full fine-tuning without autocast alone"
        assert not has_autocast, "counted for full fine-tuning without autocast alone"
        return inner - 2 * shape.intermediate + 8 * h
    if not has_adapter:
        return inner + (26 if has_autocast else 16) * h
    return inner + 12 * h + 14 * LORA_RANK + (6 * h + 2 * q if has_autocast else 0)


def checkpoint_input_bytes(shape: ModelShape, *, has_adapter: bool, has_autocast: bool) -> float:
    """Bytes per token and layer that remain with gradient checkpointing: the layer's input."""
    return (4 if has_autocast and not has_adapter else 2) * shape.hidden


@dataclass(frozen=True)
class Memory:
    """Bytes of a rank.

    Attributes:
        states: Weights, gradients, master weights, Adam, of base and adapters.
        buckets: Of the reduction.
        stored: Activations at the end of the forward, and under autocast the weights cast to bf16.
        backward: The larger one of the head's buffers and of a layer going backward.
        gathered: Whole weights under ZeRO-3.
        update: Temporaries of the optimizer, when the activations are gone: AdamW's square roots, and under DeepSpeed
            the gradient in fp32, in stage 3 of a part of its share at a time.
    """

    states: float
    buckets: float
    stored: float
    backward: float
    gathered: float
    update: float

    @property
    def peak(self) -> float:
        return self.states + self.buckets + max(self.stored + self.backward + self.gathered, self.update)


def compute_states(plan: Plan, *, is_quantised: bool = False) -> float:
    """Bytes of weights, gradients, master weights and Adam on a rank; an adapter's base is frozen, in bf16 or 4-bit.

    With `is_quantised` the linear layers of the blocks are in NF4, and the rest in bf16.
    """
    states = sum(state_bytes(plan.stage, plan.ranks, bf16=True).values()) * plan.trained
    if not plan.has_adapter:
        return states
    assert not is_quantised or plan.stage != 3, "4-bit weights cannot be partitioned"
    base = 2.0 * count_parameters(plan.shape)
    if is_quantised:
        base += (NF4 - 2) * count_block_linear(plan.shape)
    return states + (base / plan.ranks if plan.stage == 3 else base)


def compute_memory(plan: Plan, *, max_length: int) -> Memory:
    """Memory of a rank at its largest, if all pairs have the most tokens there can be: 2 x `max_length`, no prompt."""
    trained = plan.trained
    tokens = 2 * max_length * plan.pairs
    stored, backward = activation_bytes(plan, tokens)
    share = trained / plan.ranks
    return Memory(
        states=compute_states(plan),
        buckets=4 * trained if plan.stage is None else 2 * 2 * BUCKET,
        stored=stored,
        backward=backward,
        gathered=2 * min(count_parameters(plan.shape), LIVE + PREFETCH) if plan.stage == 3 else 0,
        update={None: 4 * trained, 3: 8 * min(share, LIVE)}.get(plan.stage, 6 * share),
    )


def activation_bytes(plan: Plan, tokens: int, *, has_fused_layers: bool = False) -> tuple[float, float]:
    """Bytes for `tokens` in a forward: what is stored at its end, and what the backward adds at most."""
    shape, mode = plan.shape, {"has_adapter": plan.has_adapter, "has_autocast": plan.has_autocast}
    layer = layer_bytes(shape, **mode, has_fused_layers=has_fused_layers)
    stored = tokens * shape.layers * (checkpoint_input_bytes(shape, **mode) if plan.checkpointing else layer)
    is_full = not plan.has_adapter
    if is_full and plan.has_autocast:
        stored += 2 * count_block_linear(shape)
    head = 6 * shape.hidden * tokens + 2 * HEAD_TILE  # hidden states in bf16, their gradient in fp32
    if is_full:  # the gradient of the head in fp32, then in the type of the weights
        head += (4 if plan.has_autocast else 6) * shape.vocabulary * shape.hidden
    return stored, max(head, BACKWARD_LAYERS[plan.checkpointing] * layer * tokens)


def gathered_keys_bytes(shape: ModelShape, prompt_tokens: int) -> float:
    """Bytes that the variable-length form keeps besides: keys and values of a prompt, once for each completion."""
    return shape.layers * 2 * 4 * shape.key_heads * shape.head_size * prompt_tokens


def forward_flops(shape: ModelShape, pair: Pair) -> Mapping[str, float]:
    """Operations of a forward: 2 per weight and token, 4 x head size per head, query and key; only scored logits."""
    return {
        "linear": 2 * count_block_linear(shape) * pair.tokens,
        "attention": 4 * shape.layers * shape.heads * shape.head_size * pair.keys,
        "head": 2 * shape.hidden * shape.vocabulary * pair.scored,
    }


def step_flops(shape: ModelShape, pair: Pair, *, has_adapter: bool, checkpointing: bool) -> float:
    """Operations that are executed per pair: forward, backward, and what is computed again.

    A frozen linear layer needs the gradient of its input alone. TRL's head computes its logits again in the backward.
    """
    linear, attention, head = forward_flops(shape, pair).values()
    again = linear + attention if checkpointing else 0
    if not has_adapter:
        return 3 * (linear + attention) + 4 * head + again
    adapters = (8 if checkpointing else 6) * count_adapters(shape) * pair.tokens
    return 2 * linear + 3 * attention + 3 * head + again + adapters


def reference_flops(shape: ModelShape, pair: Pair) -> float:
    """Operations per pair of scoring it once without gradients."""
    return sum(forward_flops(shape, pair).values())


def count_gathers(plan: Plan) -> int:
    """How often ZeRO-3 gathers the weights per forward and backward.

    Checkpointing adds none for full fine-tuning, as a layer stays gathered from its second forward to its backward
    (its weights are used again within `LIVE` elements). Frozen weights are released in between.
    """
    return 3 if plan.has_adapter and plan.checkpointing else 2


def traffic_per_step(plan: Plan) -> tuple[float, float]:
    """Bytes that a rank sends once per optimizer step, and per forward and backward.

    Over a ring an all-reduce of S bytes sends 2 S (n - 1) / n, a reduce-scatter and an all-gather half of it. DDP
    all-reduces gradients of fp32 once per step. DeepSpeed's stages 1 and 2 all-reduce buckets of bf16 gradients too
    (use_multi_rank_bucket_allreduce) and keep their share, stage 1 once per step, stage 2 after every backward; both
    gather the updated weights. Stage 3 gathers weights and reduce-scatters gradients in every forward and backward.
    """
    ring = (plan.ranks - 1) / plan.ranks
    trained = plan.trained * ring
    if plan.stage is None:
        return 2 * 4 * trained, 0.0
    if plan.stage == 3:
        everything = (count_parameters(plan.shape) + (plan.trained if plan.has_adapter else 0)) * ring
        return 0.0, count_gathers(plan) * 2 * everything + 2 * trained
    reduced, gathered = 2 * 2 * trained, 2 * trained
    return (reduced + gathered, 0.0) if plan.stage == 1 else (gathered, reduced)


@dataclass(frozen=True)
class StepTime:
    """Seconds of an optimizer step.

    Attributes:
        compute: At the assumed rate.
        network: Of all collectives.
        exposed: Of these, what does not run beside the computation.
    """

    compute: float
    network: float
    exposed: float

    @property
    def total(self) -> float:
        return self.compute + self.exposed


def compute_step_time(plan: Plan, pair: Pair, network: Network, *, rate: float) -> StepTime:
    """Time of a step if the GPU executes `rate` operations per second and the network keeps its nominal bandwidth.

    DDP reduces beside the last backward, two thirds of a forward and backward. Stages 1 and 2 wait, since overlap_comm
    is off by default. Stage 3 overlaps.
    """
    flops = step_flops(plan.shape, pair, has_adapter=plan.has_adapter, checkpointing=plan.checkpointing)
    one = plan.pairs * flops / rate
    once, per_forward = (size / network.bandwidth(plan.ranks) for size in traffic_per_step(plan))
    if plan.stage == 3:
        exposed = plan.forwards * max(0.0, per_forward - one)
    else:
        exposed = max(0.0, once - 2 / 3 * one) if plan.stage is None else once + plan.forwards * per_forward
    return StepTime(plan.forwards * one, once + plan.forwards * per_forward, exposed)


def checkpoint_bytes(plan: Plan) -> float:
    """Bytes of a checkpoint of full fine-tuning.

    DDP: weights and Adam in fp32. ZeRO: Adam and master weights in fp32, the weights in bf16 in Hugging Face's format,
    and in stages 1 and 2 once more in DeepSpeed's.
    """
    assert not plan.has_adapter, "a checkpoint of adapters is small"
    return {None: 12, 1: 16, 2: 16, 3: 14}[plan.stage] * plan.trained


def store_bytes(pair: Pair) -> int:
    """Bytes of a pair in the reference store: a log-prob in fp32 per token, a key and a length per completion."""
    return 4 * pair.scored + 2 * (16 + 4)


def _linear_layers(shape: ModelShape) -> list[tuple[int, int]]:
    """Inputs and outputs of the linear layers of a block."""
    h, q, kv, inner = (
        shape.hidden,
        shape.heads * shape.head_size,
        shape.key_heads * shape.head_size,
        shape.intermediate,
    )
    return [(h, q), (h, kv), (h, kv), (q, h), (h, inner), (h, inner), (inner, h)]
