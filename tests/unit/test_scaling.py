"""The formulas of docs/scaling.md against closed forms, torch, PEFT and measurements; the page against the command."""

import itertools
import json
import math
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from trl.kernels import chunked_logprob
from trl.trainer import utils as trl_utils

from benchmarks import cost, scaling, scaling_choices, zero_memory
from benchmarks import scaling_formulas as formulas
from benchmarks.scaling_formulas import Network, Pair, Plan
from benchmarks.shapes import MODELS, ModelShape
from prefopt.config.choices import PeftMethod, Precision, WeightsDtype
from prefopt.config.load import load_config
from prefopt.config.schema import DataConfig, DeepSpeedConfig, EvaluationConfig, PeftConfig, TrainerConfig
from prefopt.config.step_size import StepSize
from prefopt.distributed import deepspeed
from prefopt.models import shards

SHAPES = {model.name: model.shape for model in scaling_choices.ALL}
LLAMA_2_7B = ModelShape(32, 4096, 32, 32, 128, 11008, 32000, False)
TINY = ModelShape(3, 64, 4, 2, 16, 176, 100, False)
RESULTS = Path(scaling.__file__).parent / "results" / "x86_64-2cpu"
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PAIR = Pair(512, 512, 512)
NETWORK = Network(node=450e9, card=50e9, cards=8)


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [
        (SHAPES["1B"], 1_235_814_400),
        (SHAPES["8B"], 8_030_261_248),
        (SHAPES["13B"], 13_015_864_320),
        (SHAPES["70B"], 70_553_706_496),
        (LLAMA_2_7B, 6_738_415_616),
    ],
)
def test_parameters_of_known_models_are_counted_right(shape, parameters):
    assert formulas.count_parameters(shape) == parameters


def test_parameters_of_8b_by_hand():
    block = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096
    assert formulas.count_parameters(MODELS["8B"]) == 2 * 128256 * 4096 + 32 * block + 4096


@pytest.mark.parametrize("is_tied", [False, True])
def test_counts_are_those_of_a_model_that_is_built(is_tied):
    shape = ModelShape(3, 64, 4, 2, 16, 176, 100, is_tied)
    model = shape.build(torch.device("cpu"), torch.float32)
    assert formulas.count_parameters(shape) == sum(parameter.numel() for parameter in model.parameters())
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=5, target_modules=MODULES))
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    assert formulas.count_adapters(shape, rank=5) == trained


def test_adapters_of_8b():
    assert formulas.count_adapters(MODELS["8B"]) == 41_943_040


@pytest.mark.parametrize("ranks", [1, 2, 8, 64])
@pytest.mark.parametrize("stage", [None, 1, 2, 3])
def test_states_are_those_of_the_measured_benchmark(stage, ranks):
    expected = zero_memory.expected_bytes(stage, ranks)
    assert sum(formulas.state_bytes(stage, ranks, bf16=False).values()) == pytest.approx(expected["backward"])
    assert sum(formulas.state_bytes(stage, ranks, bf16=True).values()) == pytest.approx(expected["bf16_mixed"])


def test_states_in_fp32_are_those_that_were_measured():
    results = json.loads((RESULTS / "zero_memory.json").read_text(encoding="utf-8"))["results"]
    assert {row["ranks"] for row in results} == {2, 4}
    for row in results:
        found = row["backward"]
        told = formulas.state_bytes(row["stage"], row["ranks"], bf16=False)
        assert sum(told.values()) == pytest.approx(found["measured"], rel=0.02)
        for name, size in told.items():  # weights of stage 3: the head is still gathered
            assert size == pytest.approx(found["by_category"][name], abs=0.1)


@pytest.mark.parametrize(
    ("stage", "ranks", "bytes_per_parameter"),
    [(None, 8, 16), (1, 8, 4 + 12 / 8), (2, 16, 2 + 14 / 16), (3, 64, 16 / 64)],
)
def test_full_fine_tuning_holds_these_bytes_per_parameter(stage, ranks, bytes_per_parameter):
    plan = Plan(MODELS["8B"], False, stage, ranks)
    assert formulas.compute_states(plan) == pytest.approx(bytes_per_parameter * 8_030_261_248)


def test_lora_holds_its_base_and_trains_its_adapters():
    base, adapters = 2 * 70_553_706_496, 207_093_760
    shape = MODELS["8B"]
    assert formulas.count_adapters(SHAPES["70B"]) == adapters
    for stage, expected in ((None, base + 16 * adapters), (2, base + (2 + 14 / 8) * adapters)):
        assert formulas.compute_states(Plan(SHAPES["70B"], True, stage, 8)) == pytest.approx(expected)
    assert formulas.compute_states(Plan(SHAPES["70B"], True, 3, 8)) == pytest.approx((base + 16 * adapters) / 8)
    quantised = formulas.compute_states(Plan(shape, True, 1, 8), is_quantised=True)
    in_blocks = formulas.count_block_linear(shape)
    rest = 2 * (8_030_261_248 - in_blocks) + (4 + 12 / 8) * 41_943_040
    assert quantised == pytest.approx(in_blocks * (4 + 0.127) / 8 + rest, rel=1e-4), "4.127 bits: QLoRA's own number"


def count_saved(shape: ModelShape, tokens: int, *, has_adapter: bool, has_autocast: bool) -> int:
    """Bytes of the distinct storages that a forward of the backbone keeps for its backward, parameters left out."""
    dtype = torch.float32 if has_autocast and not has_adapter else torch.bfloat16
    model = shape.build(torch.device("cpu"), dtype)
    if has_adapter:
        config = LoraConfig(task_type="CAUSAL_LM", r=formulas.LORA_RANK, target_modules=MODULES)
        adapted = get_peft_model(model, config, autocast_adapter_dtype=has_autocast)
        adapted.enable_input_require_grads()
        model = adapted.base_model.model
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=has_autocast),
    ):
        states = model.model(torch.ones(1, tokens, dtype=torch.long), use_cache=False).last_hidden_state
    assert states.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("key_heads", [2, 4])
@pytest.mark.parametrize("has_autocast", [False, True])
@pytest.mark.parametrize("has_adapter", [False, True])
def test_a_layer_keeps_these_bytes_per_token(has_adapter, has_autocast, key_heads):
    """Differences of numbers of tokens and of layers: what is left is neither weights cast to bf16 nor embeddings."""
    mode = {"has_adapter": has_adapter, "has_autocast": has_autocast}
    shapes = [ModelShape(layers, 64, 4, key_heads, 16, 176, 100, False) for layers in (2, 3)]
    fewer, more = ([count_saved(shape, tokens, **mode) for tokens in (64, 128)] for shape in shapes)
    found = ((more[1] - more[0]) - (fewer[1] - fewer[0])) / 64
    assert formulas.layer_bytes(shapes[0], **mode) == pytest.approx(found)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_peak_of_a_backward_is_bounded_and_the_bound_is_close(checkpointing):
    shape, tokens = ModelShape(6, 128, 4, 4, 32, 344, 100, False), 512
    mode = {"has_adapter": False, "has_autocast": False}
    model = shape.build(torch.device("cpu"), torch.bfloat16).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    ids = torch.ones(1, tokens, dtype=torch.long)

    def step() -> None:
        model.model(ids, use_cache=False).last_hidden_state.float().mean().backward()

    found = cost.measure_peak(step, torch.device("cpu")) / tokens
    layer = formulas.layer_bytes(shape, **mode)
    kept = formulas.checkpoint_input_bytes(shape, **mode) if checkpointing else layer
    told = shape.layers * kept + formulas.BACKWARD_LAYERS[checkpointing] * layer
    assert 0.8 * told < found <= told


def test_no_pair_has_more_tokens_than_memory_is_planned_for():
    rng = random.Random(0)
    for _ in range(1000):
        prompt = rng.randint(0, 1023)
        pair = Pair(prompt, rng.randint(1, 1024 - prompt), rng.randint(1, 1024 - prompt))
        assert pair.tokens <= 2 * scaling_choices.MAX_LENGTH
        assert pair.scored <= 2 * scaling_choices.MAX_LENGTH


def test_memory_of_8b_by_hand():
    memory = formulas.compute_memory(Plan(MODELS["8B"], False, 2, 8, pairs=2, checkpointing=True), max_length=1024)
    tokens, parameters, layer = 2 * 2048, 8_030_261_248, 16 * 4096 + 4 * 4096 + 4 * 1024 + 8 * 14336 + 4 * 32 + 8
    head = tokens * 6 * 4096 + 2 * 4096 * 32768 + 6 * 128256 * 4096
    assert memory.states == pytest.approx((2 + 14 / 8) * parameters)
    assert memory.stored == tokens * 32 * 2 * 4096
    assert memory.backward == max(head, 1.5 * layer * tokens) == head
    assert (memory.gathered, memory.update) == (0, pytest.approx(6 / 8 * parameters))
    assert memory.update > memory.stored + head
    assert memory.peak == pytest.approx(memory.states + 200e6 + memory.update)
    larger = formulas.compute_memory(Plan(MODELS["8B"], False, 2, 8, pairs=2), max_length=1024)
    assert larger.stored == tokens * 32 * layer
    assert larger.peak == pytest.approx(memory.states + 200e6 + larger.stored + head)


def test_zero3_gathers_at_most_a_billion_parameters_and_updates_as_many_at_once():
    memory = formulas.compute_memory(Plan(SHAPES["70B"], False, 3, 64, checkpointing=True), max_length=1024)
    assert memory.gathered == 2 * 1.05e9
    assert memory.update == 8e9
    small = formulas.compute_memory(Plan(MODELS["0.5B"], False, 3, 8), max_length=1024)
    assert small.gathered == 2 * formulas.count_parameters(MODELS["0.5B"])


def test_ddp_in_bf16_keeps_fp32_weights_their_casts_and_a_second_copy_of_the_gradients():
    shape = MODELS["1B"]
    memory = formulas.compute_memory(Plan(shape, False, None, 8), max_length=1024)
    assert memory.states + memory.buckets == 20 * 1_235_814_400
    casts = memory.stored - 2048 * 16 * formulas.layer_bytes(shape, has_adapter=False, has_autocast=True)
    assert casts == pytest.approx(2 * formulas.count_block_linear(shape))


def test_the_head_has_the_tiles_of_trl():
    assert formulas.HEAD_TILE == chunked_logprob.TOKEN_CHUNK_SIZE * trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE


def test_useful_operations_are_those_of_the_benchmark():
    model, pair = TINY.build(torch.device("cpu"), torch.float32), Pair(30, 7, 12)
    expected = cost.count_useful_flops(model, [(pair.prompt, pair.chosen, pair.rejected)])
    assert 3 * formulas.reference_flops(TINY, pair) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["1B", "8B", "13B", "70B"])
def test_operations_are_about_6_8_4_6_and_2_per_parameter_and_token(name):
    rough = formulas.count_parameters(SHAPES[name]) * PAIR.tokens
    for has_adapter, checkpointing, factor in ((False, False, 6), (False, True, 8), (True, False, 4), (True, True, 6)):
        exact = formulas.step_flops(SHAPES[name], PAIR, has_adapter=has_adapter, checkpointing=checkpointing)
        assert exact == pytest.approx(factor * rough, rel=0.1)
    assert formulas.reference_flops(SHAPES[name], PAIR) == pytest.approx(2 * rough, rel=0.1)


def test_operations_of_8b_by_hand():
    linear, attention, head = formulas.forward_flops(MODELS["8B"], PAIR).values()
    assert linear == 2 * 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336) * 1536
    assert attention == 4 * 32 * 4096 * (3 * 512 * 512 / 2 + 2 * 512 * 512)
    assert head == 2 * 4096 * 128256 * 1024
    full = formulas.step_flops(MODELS["8B"], PAIR, has_adapter=False, checkpointing=False)
    again = formulas.step_flops(MODELS["8B"], PAIR, has_adapter=False, checkpointing=True)
    assert full == 3 * (linear + attention) + 4 * head, "TRL's head computes its logits twice"
    assert again - full == linear + attention


@pytest.mark.parametrize(
    ("stage", "forwards", "bytes_per_parameter"),
    [(None, 1, 8), (None, 4, 8), (1, 1, 6), (1, 4, 6), (2, 1, 6), (2, 4, 4 * 4 + 2), (3, 1, 6), (3, 4, 24)],
)
def test_a_step_sends_these_bytes_per_parameter(stage, forwards, bytes_per_parameter):
    for ranks in (8, 64):
        plan = Plan(MODELS["8B"], False, stage, ranks, 1, forwards)
        assert plan.traffic == pytest.approx(bytes_per_parameter * 8_030_261_248 * (ranks - 1) / ranks)


def test_lora_sends_adapters_and_under_zero3_the_base():
    shape, adapters, base = MODELS["8B"], 41_943_040, 8_030_261_248
    assert Plan(shape, True, None, 8).traffic == pytest.approx(8 * adapters * 7 / 8)
    assert Plan(shape, True, 2, 8).traffic == pytest.approx(6 * adapters * 7 / 8)
    for checkpointing, gathers in ((False, 2), (True, 3)):
        expected = (gathers * 2 * (base + adapters) + 2 * adapters) * 7 / 8
        assert Plan(shape, True, 3, 8, checkpointing=checkpointing).traffic == pytest.approx(expected)


def test_the_cards_of_a_node_share_what_enters_it():
    assert NETWORK.bandwidth(8) == 450e9
    assert NETWORK.bandwidth(16) == 400e9
    assert Network(node=450e9, card=50e9, cards=1).bandwidth(16) == 50e9
    assert Network(node=300e9, card=50e9, cards=8).bandwidth(16) == 300e9


def test_what_runs_beside_the_computation_is_not_waited_for():
    def time(stage: int | None, pairs: int, network: Network = NETWORK):
        return formulas.compute_step_time(Plan(MODELS["8B"], False, stage, 64, pairs, 2), PAIR, network, rate=400e12)

    slow = Network(node=450e9, card=50e9, cards=1)
    assert time(3, 8).exposed == 0
    assert time(1, 8).exposed == time(1, 8).network > 0
    assert time(None, 8).exposed == 0
    assert time(3, 1, slow).exposed == pytest.approx(time(3, 1, slow).network - time(3, 1, slow).compute)
    backward = 2 / 3 * time(None, 1, slow).compute / 2
    assert time(None, 1, slow).exposed == pytest.approx(time(None, 1, slow).network - backward)


def test_deepspeed_does_by_default_what_the_formulas_say(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    zero_config = pytest.importorskip("deepspeed.runtime.zero.config").DeepSpeedZeroConfig
    for stage in (1, 2, 3):
        settings = deepspeed.build_deepspeed(DeepSpeedConfig(stage=stage))["zero_optimization"]
        filled = zero_config(**settings)
        assert filled.overlap_comm is (stage == 3), "stages 1 and 2 wait for the reduction"
        assert filled.reduce_scatter, "with the next one: buckets are all-reduced"
        assert filled.use_multi_rank_bucket_allreduce
        assert filled.reduce_bucket_size == formulas.BUCKET
        assert (filled.max_live_parameters, filled.max_reuse_distance) == (formulas.LIVE, formulas.LIVE)
        assert (filled.sub_group_size, filled.prefetch_bucket_size) == (formulas.LIVE, formulas.PREFETCH)
        assert filled.zero_hpz_partition_size == 1


def test_the_assumptions_are_prefopts_defaults():
    assert DataConfig().max_length == scaling_choices.MAX_LENGTH
    assert TrainerConfig().save_every == scaling.SAVE_EVERY
    assert TrainerConfig().keep_checkpoints + 1 == scaling.KEPT
    assert EvaluationConfig().max_train_examples == scaling.TRAIN_SAMPLE
    assert PeftConfig().r == formulas.LORA_RANK


@pytest.mark.parametrize(("stage", "factor"), [(None, 12), (1, 16), (2, 16), (3, 14)])
def test_a_checkpoint_has_these_bytes_per_parameter(stage, factor):
    assert formulas.checkpoint_bytes(Plan(MODELS["8B"], False, stage, 64)) == factor * 8_030_261_248


def test_a_record_of_the_store_has_these_bytes():
    shard = shards.Shard()
    shard.keys = [np.zeros((1, 2, shards.KEY_BYTES), np.uint8)]
    shard.records = [torch.zeros(length).numpy() for length in (PAIR.chosen, PAIR.rejected)]
    content = shard.content()
    assert sum(content[name].nbytes for name in ("keys", "lengths", "logps")) == formulas.store_bytes(PAIR)


def list_choices() -> list[tuple[str, scaling_choices.Choice]]:
    """Every choice of the page with its model's overrides, once."""
    found = {}
    models = itertools.product(scaling_choices.ALL, (False, True))
    for (model, has_adapter), ranks in itertools.product(models, scaling_choices.GPUS):
        for network in (scaling_choices.FAST, scaling_choices.SLOW):
            choice = scaling_choices.choose(model.shape, ranks, has_adapter, network)
            if choice is not None:
                found[choice.plan] = (model.lora if has_adapter else model.full, choice)
    return list(found.values())


@pytest.mark.parametrize(("overrides", "choice"), list_choices())
def test_what_is_to_be_typed_composes_to_the_plan(overrides, choice, monkeypatch):
    plan = choice.plan
    for key, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": plan.ranks}.items():
        monkeypatch.setenv(key, str(value))
    config = load_config([*overrides.split(), *choice.overrides.split()])
    size = StepSize.of(config, None)
    assert (size.per_device, size.accumulation, size.num_ranks) == (plan.pairs, plan.forwards, plan.ranks)
    assert size.total == scaling_choices.BATCH
    assert config.deepspeed.stage == plan.stage
    assert config.trainer.gradient_checkpointing == plan.checkpointing
    assert config.trainer.precision is Precision.bf16
    assert config.peft.method is (PeftMethod.lora if plan.has_adapter else PeftMethod.none)
    assert config.model.dtype is (WeightsDtype.bf16 if plan.has_adapter else WeightsDtype.fp32)


@pytest.mark.parametrize("network", [scaling_choices.FAST, scaling_choices.SLOW])
def test_a_choice_fits_and_no_other_that_fits_is_much_faster(network):
    shape = MODELS["8B"]
    choice = scaling_choices.choose(shape, 16, False, network)
    assert choice.memory <= scaling_choices.USABLE
    for plan in scaling_choices.list_plans(shape, 16, has_adapter=False):
        time = formulas.compute_step_time(plan, scaling_choices.PAIR, network, rate=scaling_choices.RATE)
        fits = formulas.compute_memory(plan, max_length=scaling_choices.MAX_LENGTH).peak <= scaling_choices.USABLE
        assert not fits or choice.time.total <= scaling_choices.TOLERANCE * time.total
        assert not fits or time.total > choice.time.total or (plan.stage or 0) >= (choice.plan.stage or 0)


def test_what_does_not_fit_has_no_choice_and_the_fewest_gpus_fit():
    shape = SHAPES["70B"]
    assert scaling_choices.choose(shape, 16, False) is None
    fewest = scaling_choices.find_fewest_gpus(shape, has_adapter=False)
    sizes = [scaling_choices.find_least(shape, ranks, has_adapter=False) for ranks in (fewest - 8, fewest)]
    assert sizes[1] <= scaling_choices.USABLE < sizes[0]


def test_the_rows_of_a_table_have_its_columns():
    lines = scaling.render().splitlines()
    tables = [line.count("|") if line.startswith("|") else None for line in lines]
    for above, below in itertools.pairwise(tables):
        assert above is None or below is None or above == below


def test_numbers_keep_two_digits():
    assert [scaling._number(value) for value in (0, 0.0123, 0.5, 9.96, 12.4, 1234.5)] == [
        "0",
        "0.012",
        "0.50",
        "10.0",
        "12",
        "1,234",
    ]
    assert math.isclose(scaling_choices.RATE, 395.6e12)


def test_the_page_has_the_tables_that_the_command_prints():
    page = scaling.PAGE.read_text(encoding="utf-8")
    written = page.partition(scaling.BEGIN)[2].partition(scaling.END)[0]
    stamp, _, tables = written.strip("\n").partition("\n\n")
    number = r"[\d.]+"
    versions = f"torch {number}, transformers {number}, TRL {number}, DeepSpeed {number}"
    command = "`python -m benchmarks.scaling --write`"
    assert re.fullmatch(rf"Computed on \d{{4}}-\d\d-\d\d by {command} for {versions}\.", stamp)
    assert tables == scaling.render(), "run python -m benchmarks.scaling --write"


def test_only_what_is_between_the_markers_is_replaced():
    page = f"before\n{scaling.BEGIN}\nold\n{scaling.END}\nafter\n"
    assert scaling.replace_tables(page, "new") == f"before\n{scaling.BEGIN}\nnew\n{scaling.END}\nafter\n"
    with pytest.raises(SystemExit):
        scaling.replace_tables("no markers", "new")
