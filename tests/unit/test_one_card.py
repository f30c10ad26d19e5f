"""What fits on one card: the formulas against known sizes and the one measurement, the files against the formulas."""

import pytest
from transformers.training_args import OptimizerNames

from benchmarks import one_card, scaling
from benchmarks import scaling_formulas as formulas
from benchmarks.one_card import CARDS, FULL, FULL_8BIT, FULL_BF16, LORA, OFFERED, QLORA, SHAPES
from benchmarks.shapes import MODELS
from prefopt.config.choices import PeftMethod, WeightsDtype
from prefopt.config.load import load_config
from prefopt.config.schema import DataConfig
from prefopt.process.errors import UserError
from prefopt.process.ranks import Launch

pytestmark = pytest.mark.slow

FILES = ["data=files", "data.train=pairs.jsonl"]
ALONE = Launch(num_ranks=1, is_launched=False)
TORCHRUN = Launch(num_ranks=1, is_launched=True)


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("llama3_1_8b", 8_030_261_248),
        ("llama3_2_1b", 1_235_814_400),
        ("mistral_7b", 7_248_023_552),
        ("qwen2_5_0_5b", 494_032_768),
        ("qwen2_5_7b", 7_615_616_512),
        ("qwen3_0_6b", 596_049_920),
        ("smollm2_135m", 134_515_008),
    ],
)
def test_shapes_have_the_parameters_of_the_shipped_models_but_for_biases(model, parameters):
    assert formulas.count_parameters(SHAPES[model]) == pytest.approx(parameters, rel=1e-4)


def test_every_shipped_model_of_the_hub_has_a_shape_and_its_file_says_what_fits():
    files = {path.stem: path for path in one_card.CONF.glob("*.yaml")}
    assert files.keys() - SHAPES.keys() == {"hf", "prefopt_base"}
    for model, shape in SHAPES.items():
        text = files[model].read_text(encoding="utf-8")
        written = one_card.replace_comment(text, one_card.render_comment(model))
        assert text == written, "run python -m benchmarks.one_card --write"
        assert load_config([f"model={model}", "peft=lora", "trainer.precision=bf16", *FILES]).model.path
        assert shape.key_heads <= shape.heads


def test_only_the_comment_of_a_models_file_is_replaced():
    old = f"# A model.\n{one_card.BEGIN}\n#  old\npath: a/b\n# kept\ndtype: bf16\n"
    new = f"# A model.\n{one_card.BEGIN}\n#  new\npath: a/b\n# kept\ndtype: bf16\n"
    comment = f"{one_card.BEGIN}\n#  new"
    assert one_card.replace_comment(old, comment) == new
    assert one_card.replace_comment("# A model.\npath: a/b\n# kept\ndtype: bf16\n", comment) == new


@pytest.mark.parametrize(("has_fused_layers", "above", "whole"), [(False, 12.8e9, 21.2), (True, None, 18.1)])
def test_the_first_step_measured_on_a_gpu_took_the_bytes_that_are_computed(has_fused_layers, above, whole):
    """Measured on an H200 (docs/gpu.md): 12.8 GB above the states, 21.2 GiB in all, 18.1 GiB with Liger's layers."""
    computed = one_card.predict_first_measurement(has_fused_layers=has_fused_layers)
    assert above is None or computed[0] == pytest.approx(above, rel=0.01)
    assert computed[1] / 2**30 == pytest.approx(whole, rel=0.01)


def test_states_of_8b_by_hand():
    shape, size, embeddings = MODELS["8B"], 8_030_261_248, 128256 * 4096
    assert FULL.states(shape) == 16 * size
    assert FULL_8BIT.states(shape) == pytest.approx((8 + 2.03125) * size + (8 - 2.03125) * embeddings)
    assert FULL_BF16.states(shape) == pytest.approx((4 + 2.03125) * size + (8 - 2.03125) * embeddings)
    assert LORA.states(shape) == 2 * size + 16 * 41_943_040
    assert QLORA.states(shape) < 0.4 * LORA.states(shape)
    assert one_card.offload_bytes(shape, 2048)[1] == 16 * size


def test_full_fine_tuning_in_fp32_computes_under_autocast_and_weights_in_bf16_without():
    shape = MODELS["1B"]
    casts = 2 * formulas.count_block_linear(shape)
    for recipe, expected in (
        (FULL, casts + 2048 * 16 * formulas.layer_bytes(shape, has_adapter=False, has_autocast=True)),
        (FULL_BF16, 2048 * 16 * formulas.layer_bytes(shape, has_adapter=False, has_autocast=False)),
        (LORA, 2048 * 16 * formulas.layer_bytes(shape, has_adapter=True, has_autocast=True)),
    ):
        assert recipe.memory(shape, 2048, checkpointing=False).stored == expected


@pytest.mark.parametrize("recipe", OFFERED, ids=lambda recipe: recipe.name)
def test_what_is_told_fits_and_one_pair_more_does_not(recipe):
    assert 2 * DataConfig().max_length == one_card.LONGEST
    for shape in SHAPES.values():
        for card in CARDS:
            tokens, checkpointing = recipe.find_tokens(shape, card)
            usable = one_card.USABLE * card * 1e9
            if tokens:
                assert recipe.memory(shape, tokens, checkpointing=checkpointing).peak <= usable
            if tokens < one_card.MOST:
                more = tokens + one_card.LONGEST
                assert recipe.memory(shape, more, checkpointing=checkpointing or not tokens).peak > usable


@pytest.mark.parametrize("card", CARDS)
def test_what_is_typed_for_one_card_composes(card):
    fits = [
        (name, recipe) for name, shape in SHAPES.items() for recipe in OFFERED if recipe.find_tokens(shape, card)[0]
    ]
    assert fits
    for model, recipe in fits:
        config = load_config([*recipe.command(model, card).split(), *FILES], launch=ALONE)
        tokens, checkpointing = recipe.find_tokens(SHAPES[model], card)
        assert config.trainer.tokens_per_device == min(tokens, one_card.TYPED)
        assert config.trainer.gradient_checkpointing == checkpointing
        assert config.model.dtype is (WeightsDtype.bf16 if recipe.has_adapter else WeightsDtype.fp32)
        assert config.peft.method is {LORA: PeftMethod.lora, QLORA: PeftMethod.qlora}.get(recipe, PeftMethod.none)
        assert config.optim.name in [name.value for name in OptimizerNames]


def test_commands_of_the_page_compose_for_every_model():
    commands = one_card.list_commands(80)
    assert {model for model, *_ in commands} == SHAPES.keys()
    for _, name, line in commands:
        launch = TORCHRUN if name == "full, offloaded" else ALONE
        assert load_config([*line.split(), *FILES], launch=launch).deepspeed.stage == (
            2 if launch is TORCHRUN else None
        )


def test_full_fine_tuning_of_bf16_weights_is_refused_as_the_page_says():
    line = "model=llama3_2_1b model.dtype=bf16 trainer.precision=bf16 optim.name=adamw_bnb_8bit peft=none"
    with pytest.raises(UserError, match="too small for bf16 weights"):
        load_config([*line.split(), *FILES])
    assert FULL_BF16.overrides is None
    assert "(refused)" in scaling.render()


def test_a_layer_of_liger_keeps_less_than_one_of_transformers():
    shape, mode = MODELS["1B"], {"has_adapter": False, "has_autocast": False}
    plain, fused = (formulas.layer_bytes(shape, **mode, has_fused_layers=fused) for fused in (False, True))
    assert plain - fused == 8 * 2048 + 2 * 8192, (
        "norms: their inputs in bf16 and no results; MLP: three of four tensors"
    )
