"""Makes the base model that ships with the package, from this repository's text alone.

Run: OMP_NUM_THREADS=2 python experiments/base_model/build.py     (about ten minutes on two CPU cores)

The corpus is general prose (`corpus/prose.jsonl`) and the brand-voice cases, in which every answer in the brand's
voice has its neutral twin: the model learns both ways of answering and prefers neither. Nothing held out is used.
Output: `src/prefopt/assets/base_model/` (weights in bfloat16, tokenizer, chat template).
"""

import json
import math
import random
import sys
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
OUTPUT = REPOSITORY / "src/prefopt/assets/base_model"
sys.path.insert(0, str(HERE.parent / "brand_voice"))
from build_data import Case, draw_slots, fill, read_cases, split_cases  # noqa: E402

VOCABULARY = 2048
EPOCHS = 6
DRAWS_PER_CASE = 12
TOKENS_PER_BATCH = 4096
PEAK_LEARNING_RATE = 2e-3
PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)


def read_prose() -> list[str]:
    lines = (HERE / "corpus/prose.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def draw_chats(cases: list[Case], rng: random.Random) -> list[str]:
    """Rendered conversations: of each case's draws, half in either voice."""
    chats = []
    for case in cases:
        for draw in range(DRAWS_PER_CASE):
            slots = draw_slots(case, rng)
            prompt = fill(rng.choice(case["prompts"]), slots)
            answer = fill(rng.choice(case["chosen" if draw % 2 else "rejected"]), slots)
            chats.append(f"{START}user\n{prompt}{END}\n{START}assistant\n{answer}{END}\n")
    return chats


def build_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE; the end of a turn is the end of a sequence."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=3,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def draw_batches(documents: list[list[int]], pad: int, rng: random.Random) -> list[torch.Tensor]:
    """Padded batches of documents of like length, at most `TOKENS_PER_BATCH` tokens each, in random order."""
    ordered = sorted(documents, key=lambda ids: (len(ids), rng.random()))
    batches: list[list[list[int]]] = [[]]
    for ids in ordered:
        if len(ids) * (len(batches[-1]) + 1) > TOKENS_PER_BATCH:
            batches.append([])
        batches[-1].append(ids)
    rng.shuffle(batches)
    return [torch.tensor([ids + [pad] * (len(b[-1]) - len(ids)) for ids in b]) for b in batches]


def compute_loss(model: LlamaForCausalLM, batch: torch.Tensor, pad: int) -> torch.Tensor:
    """Mean cross-entropy per token that is not padding."""
    return model(input_ids=batch, attention_mask=batch != pad, labels=batch.masked_fill(batch == pad, -100)).loss


def measure(model: LlamaForCausalLM, batches: list[torch.Tensor], pad: int) -> float:
    """Loss on cases that are not in the corpus: more epochs than its minimum only memorise."""
    with torch.no_grad():
        losses = [compute_loss(model, batch, pad).item() for batch in batches]
    return sum(losses) / len(losses)


def main() -> None:
    torch.manual_seed(0)
    rng = random.Random(0)
    (cases, unseen), prose = split_cases(read_cases()), read_prose()
    tokenizer = build_tokenizer([*prose, *draw_chats(cases, rng)])
    model = build_model(tokenizer)
    pad = tokenizer.pad_token_id
    print(f"{model.num_parameters():,} parameters, vocabulary {len(tokenizer)}", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    per_epoch = len(draw_batches(tokenizer([*prose, *draw_chats(cases, rng)])["input_ids"], pad, rng))
    total = per_epoch * EPOCHS * 1.02
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(step / 100, 0.5 * (1 + math.cos(math.pi * min(1, step / total))))
    )
    development = tokenizer(draw_chats(unseen, random.Random(1)))["input_ids"]
    start = time.monotonic()
    for epoch in range(EPOCHS):
        texts = [*(f"{text}{END}" for text in prose), *draw_chats(cases, rng)]
        losses = []
        for batch in draw_batches(tokenizer(texts)["input_ids"], pad, rng):
            loss = compute_loss(model, batch, pad)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        dev = measure(model, draw_batches(development, pad, random.Random(0)), pad)
        seconds = time.monotonic() - start
        print(f"epoch {epoch}: loss {sum(losses) / len(losses):.3f}, unseen {dev:.3f}, {seconds:.0f} s", flush=True)
    model.to(torch.bfloat16).save_pretrained(OUTPUT)
    tokenizer.save_pretrained(OUTPUT)
    print(f"written to {OUTPUT.relative_to(REPOSITORY)}")


if __name__ == "__main__":
    main()
