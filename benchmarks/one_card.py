"""What fits on one card: how many tokens a forward may have, for each shipped model and way to train it.

python -m benchmarks.one_card
python -m benchmarks.one_card --write

Arithmetic on `benchmarks.scaling_formulas`, nothing is run. `--write` replaces the comments in conf/model/*.yaml; the
tables of docs/scaling.md come from the same functions by `python -m benchmarks.scaling --write`.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.scaling_formulas import (
    NF4,
    Memory,
    Plan,
    activation_bytes,
    compute_states,
    count_parameters,
    gathered_keys_bytes,
)
from benchmarks.shapes import COLUMNS, MODELS, PAIRS, ModelShape

CONF = Path(__file__).parents[1] / "conf" / "model"
BEGIN = "# One card, computed by `python -m benchmarks.one_card --write`: tokens per forward that fit"
CARDS = (24, 48, 80, 141)
"""GB of memory: RTX 4090 and A10, L40S and A6000, H100 and A100, H200."""
USABLE = 0.9
"""Share of a card that a plan may take; the rest is for CUDA and fragmentation."""
LONGEST = 2048
"""Tokens of the longest pair at `data.max_length=1024`: what a forward has to hold, and the step of what is told."""
ENOUGH, MOST = 4096, 65536
"""Tokens per forward below which checkpointing is worth its third of computation; and the most that is told."""
TYPED = 16384
"""The most tokens per forward that a command has, since a budget is a step's size too: eight of the longest pairs."""
EIGHT_BIT = 2 * (1 + 4 / 256)
"""Bytes per parameter of an 8-bit Adam: two states of a byte, and 4 bytes of scale for 256 of each (bitsandbytes)."""

SHAPES = {
    "llama3_1_8b": MODELS["8B"],
    "llama3_2_1b": MODELS["1B"],
    "mistral_7b": ModelShape(32, 4096, 32, 8, 128, 14336, 32768, False),
    "qwen2_5_0_5b": MODELS["0.5B"],
    "qwen2_5_7b": ModelShape(28, 3584, 28, 4, 128, 18944, 152064, False),
    "qwen3_0_6b": ModelShape(28, 1024, 16, 8, 128, 3072, 151936, True),
    "smollm2_135m": ModelShape(30, 576, 9, 3, 64, 1536, 49152, True),
}
"""By option of `model`. Biases of Qwen 2.5 and norms of queries and keys of Qwen 3 are left out: below 0.01 % of N."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One way to train on one card.

    Attributes:
        overrides: What is typed besides the model; None: prefopt refuses it.
        weights: Bytes per weight of what is trained; 4: computed in bf16 under autocast. LoRA: of its base.
        adam: Bytes per trained parameter of the optimizer's states.
    """

    name: str
    overrides: str | None
    weights: float
    adam: float = 8.0
    has_adapter: bool = False

    def states(self, shape: ModelShape) -> float:
        """Bytes of weights, gradients and optimizer."""
        if self.has_adapter:
            return compute_states(self._plan(shape), is_quantised=self.weights < 1)
        in_fp32 = shape.vocabulary * shape.hidden  # transformers gives embeddings an Adam of 32 bits
        return (2 * self.weights + self.adam) * count_parameters(shape) + (8 - self.adam) * in_fp32

    def memory(self, shape: ModelShape, tokens: int, *, checkpointing: bool) -> Memory:
        """Bytes at the largest, for `tokens` in a forward without a prompt to share."""
        stored, backward = activation_bytes(self._plan(shape, checkpointing), tokens)
        if self.weights < 1:  # a weight is made bf16 for its product
            backward += 2 * max(shape.hidden * shape.intermediate, shape.hidden * shape.heads * shape.head_size)
        # AdamW of torch works on all its square roots at once; bitsandbytes' has no temporaries.
        update = 4 * self._plan(shape).trained if self.adam == 8 else 0
        return Memory(self.states(shape), 0, stored, backward, 0, update)

    def find_tokens(self, shape: ModelShape, card: int) -> tuple[int, bool]:
        """The most tokens per forward on a card of so many GB, and whether with checkpointing; 0: not one pair."""
        most = {}
        for checkpointing in (False, True):
            sizes = range(LONGEST, MOST + 1, LONGEST)
            fits = [n for n in sizes if self.memory(shape, n, checkpointing=checkpointing).peak <= USABLE * card * 1e9]
            most[checkpointing] = max(fits, default=0)
        checkpointing = most[False] < ENOUGH and most[True] > most[False]
        return most[checkpointing], checkpointing

    def command(self, model: str, card: int) -> str:
        """The overrides for a model on a card that it fits."""
        tokens, checkpointing = self.find_tokens(SHAPES[model], card)
        assert tokens, f"{model}, {self.name}: fits on {card} GB"
        line = f"model={model} {self.overrides} trainer.tokens_per_device={min(tokens, TYPED)}"
        return f"{line} trainer.gradient_checkpointing=true" if checkpointing else line

    def _plan(self, shape: ModelShape, checkpointing: bool = False) -> Plan:
        """Autocast is what a plan without a stage has; weights of bf16 are computed in as those of DeepSpeed are."""
        has_autocast = self.has_adapter or self.weights == 4
        return Plan(shape, self.has_adapter, None if has_autocast else 1, 1, checkpointing=checkpointing)


FULL = Recipe("full, AdamW", "model.dtype=fp32 trainer.precision=bf16", 4)
FULL_8BIT = Recipe(
    "full, 8-bit Adam", "model.dtype=fp32 trainer.precision=bf16 optim.name=adamw_bnb_8bit", 4, EIGHT_BIT
)
FULL_BF16 = Recipe("full, bf16 weights, 8-bit Adam", None, 2, EIGHT_BIT)
LORA = Recipe("LoRA, bf16", "model.dtype=bf16 trainer.precision=bf16 peft=lora", 2, has_adapter=True)
QLORA = Recipe("QLoRA, 4 bits", "model.dtype=bf16 trainer.precision=bf16 peft=qlora", NF4, has_adapter=True)
OFFERED = (FULL, FULL_8BIT, LORA, QLORA)
OFFLOAD = "deepspeed=zero2_offload model.dtype=fp32 trainer.precision=bf16"
"""Full fine-tuning with Adam and master weights in the memory of the host; under torchrun with one process."""


def offload_bytes(shape: ModelShape, tokens: int) -> tuple[float, float]:
    """Bytes on the card and in the host with `OFFLOAD` and checkpointing.

    On the card weights and gradients in bf16 at most, as DeepSpeed moves gradients bucket by bucket; in the host
    master weights, gradients and Adam in fp32.
    """
    stored, backward = activation_bytes(Plan(shape, False, 2, 1, checkpointing=True), tokens)
    size = count_parameters(shape)
    return 4 * size + stored + backward, 16 * size


def render_comment(model: str) -> str:
    """The comment in a model's file."""
    shape = SHAPES[model]
    lines = [BEGIN, f"# (c: with trainer.gradient_checkpointing=true, -: not one pair of {LONGEST:,})"]
    lines.append("#   " + " ".join([f"{'':18}", *(f"{card:>5} GB" for card in CARDS), "   states"]))
    for recipe in OFFERED:
        cells = [_cell(recipe, shape, card) for card in CARDS]
        lines.append(
            f"#   {recipe.name:18} {' '.join(f'{cell:>8}' for cell in cells)} {_gb(recipe.states(shape)):>6} GB"
        )
    return "\n".join(lines)


def replace_comment(text: str, comment: str) -> str:
    """A model's file with another comment before its first setting; what stands above it stays."""
    lines = text.splitlines()
    first = next(place for place, line in enumerate(lines) if not line.startswith("#"))
    above = lines[: lines.index(BEGIN)] if BEGIN in lines else lines[:first]
    return "\n".join([*above, comment, *lines[first:]]) + "\n"


def tabulate_recipes() -> list[list[str]]:
    """Rows of the page: what fits on each card."""
    rows = []
    for model, shape in SHAPES.items():
        for recipe in (FULL, FULL_8BIT, FULL_BF16, LORA, QLORA):
            told = recipe.name if recipe.overrides else f"{recipe.name} (refused)"
            rows.append([f"`{model}`", told, _gb(recipe.states(shape)), *(_cell(recipe, shape, c) for c in CARDS)])
    return rows


def predict_first_measurement(*, has_fused_layers: bool) -> tuple[float, float]:
    """Bytes of the step that was measured on a GPU first: above weights, gradients and optimizer, and in all.

    The 1B shape in bf16 with AdamW, four pairs of 1024/256 as `benchmarks.shapes` draws them, variable-length form.
    """
    shape = MODELS["1B"]
    pairs = [row for batch in PAIRS["1024/256"].build(shape.vocabulary) for row in batch]
    tokens = sum(len(row[name]) for row in pairs for name in COLUMNS)
    prompt_tokens = sum(len(row["prompt_ids"]) for row in pairs)
    whole = predict_step(shape, tokens, prompt_tokens, has_adapter=False, has_fused_layers=has_fused_layers)
    return whole - 8 * count_parameters(shape), whole


def predict_step(
    shape: ModelShape, tokens: int, prompt_tokens: int, *, has_adapter: bool, has_fused_layers: bool
) -> float:
    """Bytes of a step of `benchmarks.dpo_step` on CUDA, variable-length form: bf16, and AdamW's states in bf16.

    With adapters these are in fp32 and computed under autocast.

    Args:
        shape: Of the model.
        tokens: In a forward, prompts once.
        prompt_tokens: Of these, the prompts'.
        has_adapter: LoRA, else all weights.
        has_fused_layers: Liger's; counted for full fine-tuning alone.
    """
    plan = Plan(shape, has_adapter, None if has_adapter else 1, 1)
    states = compute_states(plan) if has_adapter else 8 * count_parameters(shape)
    activations = sum(activation_bytes(plan, tokens, has_fused_layers=has_fused_layers))
    return states + activations + gathered_keys_bytes(shape, prompt_tokens)


def list_commands(card: int) -> list[tuple[str, str, str]]:
    """Model, way to train and overrides for one card, the best of each kind; what needs torchrun ends with OFFLOAD."""
    found = []
    for model, shape in SHAPES.items():
        full = next((recipe for recipe in (FULL, FULL_8BIT) if recipe.find_tokens(shape, card)[0]), None)
        if full is None:
            assert offload_bytes(shape, TYPED)[0] <= USABLE * card * 1e9
            line = f"model={model} {OFFLOAD} trainer.tokens_per_device={TYPED} trainer.gradient_checkpointing=true"
            found.append((model, "full, offloaded", line))
        else:
            found.append((model, full.name, full.command(model, card)))
        found += [(model, recipe.name, recipe.command(model, card)) for recipe in (LORA, QLORA)]
    return found


def main(argv: Sequence[str]) -> None:
    """Prints what fits, or writes it into the models' files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="replace the comments in conf/model/*.yaml")
    options = parser.parse_args(argv)
    for model in SHAPES:
        path, comment = CONF / f"{model}.yaml", render_comment(model)
        if options.write:
            path.write_text(replace_comment(path.read_text(encoding="utf-8"), comment), encoding="utf-8")
        print(f"written: {path}" if options.write else f"{model}\n{comment}")


def _cell(recipe: Recipe, shape: ModelShape, card: int) -> str:
    tokens, checkpointing = recipe.find_tokens(shape, card)
    return f"{tokens:,}{'c' if checkpointing else ''}" if tokens else "-"


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f}" if size < 10e9 else f"{size / 1e9:.0f}"


if __name__ == "__main__":
    main(sys.argv[1:])
