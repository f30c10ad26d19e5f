"""Generation: an answer depends on prompt, seed and model alone, and a sample follows the model's distribution."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GPTNeoConfig,
    MambaConfig,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
)
from transformers.cache_utils import DynamicLayer

from prefopt.evaluation import sampling
from prefopt.evaluation.key_values import RoomyLayer
from prefopt.evaluation.measure import seeds
from prefopt.evaluation.sampling import GumbelNoise, NoNumbersError, Question, generate
from prefopt.evaluation.scoring import Scorer

NEW = 12


@pytest.fixture(scope="module")
def scorer(tiny_model: Path) -> Scorer:
    return Scorer(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval(), 0, batch_size=8)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> object:
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    """Sampled and greedy ones, of many lengths, one prompt twice."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 2000, length).tolist() for length in (5, 1, 12, 3, 31, 2, 17)]
    return [
        *(Question(prompt, seed) for prompt, seed in zip([*prompts, prompts[0]], seeds(0), strict=False)),
        *map(Question, prompts[:3]),
    ]


def slow_answer(model: torch.nn.Module, question: Question, ends: set[int]) -> list[int]:
    """Token by token, without padding, batch or cache; a sample is the first arrival of exponential clocks."""
    generator = None if question.seed is None else torch.Generator().manual_seed(question.seed)
    ids: list[int] = []
    while len(ids) < NEW and not (ids and ids[-1] in ends):
        with torch.no_grad():
            probabilities = model(torch.tensor([[*question.prompt, *ids]])).logits[0, -1].double().softmax(-1)
        if generator is not None:
            probabilities = probabilities / torch.empty_like(probabilities).exponential_(generator=generator)
        ids.append(int(probabilities.argmax()))
    return ids


@pytest.mark.parametrize("tokens_per_batch", [1, 70, 2**15], ids=["one by one", "a few", "all at once"])
def test_answers_equal_the_slow_reference_in_any_batches(scorer, tokenizer, questions, tokens_per_batch):
    found = generate(scorer, tokenizer, questions, max_new_tokens=NEW, tokens_per_batch=tokens_per_batch)
    ends = {tokenizer.eos_token_id}
    assert [answer.ids for answer in found] == [slow_answer(scorer.model, question, ends) for question in questions]
    assert [answer.finished for answer in found] == [answer.ids[-1] in ends for answer in found]


def begun_alike(num: int = 40) -> list[Question]:
    """Questions of several lengths whose prompts begin with the same tokens."""
    rng = np.random.default_rng(1)
    beginning = rng.integers(3, 2000, num).tolist()
    ends = [rng.integers(3, 2000, length).tolist() for length in (1, 9, 4, 20)]
    return [Question([*beginning, *end], seed) for end, seed in zip(ends, (*range(3), None), strict=True)]


def test_a_beginning_that_prompts_share_is_read_once_and_changes_no_answer(scorer, tokenizer, monkeypatch):
    questions, widths = begun_alike(), []
    forward = scorer.model.model.forward

    def counted(*args, **given):
        widths.append(tuple(given["input_ids"].shape))
        return forward(*args, **given)

    monkeypatch.setattr(scorer.model.model, "forward", counted)
    found = generate(scorer, tokenizer, questions, max_new_tokens=NEW)
    assert widths[:3] == [(1, 40), (2, 20), (2, 60)], "the longest and the shortest, tried in both ways"
    assert widths[3:5] == [(1, 40), (4, 20)], "the beginning once, then what is left of each"
    ends = {tokenizer.eos_token_id}
    assert [answer.ids for answer in found] == [slow_answer(scorer.model, question, ends) for question in questions]


def test_answers_that_have_ended_leave_the_batch_and_change_no_other(scorer, tokenizer, monkeypatch):
    ends = {*range(3, 400), tokenizer.eos_token_id}
    monkeypatch.setattr(scorer.model.generation_config, "eos_token_id", sorted(ends))
    monkeypatch.setattr(sampling, "TOKENS_AT_A_TIME", 2)
    rng = np.random.default_rng(2)
    questions = [Question([7, *rng.integers(3, 2000, length).tolist()], length) for length in range(2, 14)]
    rows, forward = [], scorer.model.model.forward

    def counted(*args, **given):
        rows.append(len(given["input_ids"]))
        return forward(*args, **given)

    monkeypatch.setattr(scorer.model.model, "forward", counted)
    found = generate(scorer, tokenizer, questions, max_new_tokens=NEW)
    monkeypatch.undo()
    assert [answer.ids for answer in found] == [slow_answer(scorer.model, question, ends) for question in questions]
    tried, rows = rows[:3], rows[3:]
    assert (tried, rows[:2]) == ([1, 2, 2], [1, 12])
    assert rows[1:] == sorted(rows[1:], reverse=True)
    assert len({*rows[1:]}) > 3


@pytest.mark.parametrize("room", [9, 4, 0], ids=["enough room", "too little", "none"])
def test_keys_and_values_with_room_are_those_of_transformers(room):
    rng = torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, 1, 3, 5, 4, generator=rng)
    plain = DynamicLayer()
    plain.update(keys.expand(6, -1, -1, -1), values.expand(6, -1, -1, -1))
    begun = DynamicLayer()
    begun.update(keys, values)
    roomy = RoomyLayer(begun, 6, room)
    for num_new, kept in ((2, [0, 2, 3]), (1, [1]), (4, [0])):
        new = torch.randn(2, len(plain.keys), 3, num_new, 4, generator=rng)
        for expected, seen in zip(plain.update(*new), roomy.update(*new), strict=True):
            assert torch.equal(expected, seen)
        assert roomy.get_seq_length() == plain.get_seq_length()
        for layer in (plain, roomy):
            layer.batch_select_indices(torch.tensor(kept))
    for layer in (plain, roomy):
        layer.batch_repeat_interleave(3)  # tensors in their place, made by nobody who knows of the room
    new = torch.randn(2, 3, 3, 1, 4, generator=rng)
    assert all(map(torch.equal, plain.update(*new), roomy.update(*new)))


def test_with_a_sliding_window_every_prompt_is_read_whole(tokenizer):
    torch.manual_seed(0)
    model = MistralForCausalLM(
        MistralConfig(
            vocab_size=2048, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, sliding_window=8, pad_token_id=0, eos_token_id=tokenizer.eos_token_id,
        )
    ).eval()  # fmt: skip
    questions, ends = begun_alike(), {tokenizer.eos_token_id}
    found = generate(Scorer(model, 0, batch_size=8), tokenizer, questions, max_new_tokens=NEW)
    assert [answer.ids for answer in found] == [slow_answer(model, question, ends) for question in questions]


SIZES = {"vocab_size": 2048, "pad_token_id": 0, "eos_token_id": 2}
OTHERS = {
    "ALiBi": MptConfig(d_model=32, n_heads=4, n_layers=2, max_seq_len=128, initializer_range=0.5, **SIZES),
    "local windows, all keys and values kept": GPTNeoConfig(
        hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=48,
        max_position_embeddings=128, initializer_range=0.5, **SIZES,
    ),
    "a state in place of keys and values": MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4, **SIZES),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_of_any_architecture_an_answer_is_the_same_alone_and_in_a_batch(tokenizer, name):
    """Padding after a shared beginning moves it where distances count padding, too (issue 16)."""
    torch.manual_seed(0)
    scorer = Scorer(AutoModelForCausalLM.from_config(OTHERS[name]).eval(), 0, batch_size=8)
    questions = begun_alike()
    together = generate(scorer, tokenizer, questions, max_new_tokens=NEW)
    alone = [generate(scorer, tokenizer, [question], max_new_tokens=NEW)[0] for question in questions]
    assert [answer.ids for answer in together] == [answer.ids for answer in alone]


@pytest.mark.parametrize(
    "own",
    [
        {"min_new_tokens": 9},
        {"forced_eos_token_id": 2},
        {"guidance_scale": 1.5},
        {"repetition_penalty": 3.0},
        {"cache_implementation": "static"},
        {"stop_strings": ["a"]},
        {"return_dict_in_generate": True},
    ],
    ids=lambda own: next(iter(own)),
)
def test_a_models_own_settings_of_generation_change_no_answer(scorer, tokenizer, monkeypatch, own):
    monkeypatch.setattr(sampling, "TOKENS_AT_A_TIME", 4)
    questions, settings = begun_alike(), GenerationConfig(eos_token_id=2, **own)
    plain = generate(scorer, tokenizer, questions, max_new_tokens=NEW)
    monkeypatch.setattr(scorer.model, "generation_config", settings)
    assert generate(scorer, tokenizer, questions, max_new_tokens=NEW) == plain
    assert scorer.model.generation_config is settings


def test_an_answer_does_not_depend_on_what_else_is_asked(scorer, tokenizer, questions):
    together = generate(scorer, tokenizer, questions, max_new_tokens=NEW)
    reversed_ = generate(scorer, tokenizer, questions[::-1], max_new_tokens=NEW)[::-1]
    alone = generate(scorer, tokenizer, questions[2:3], max_new_tokens=NEW)
    assert together == reversed_
    assert together[2] == alone[0]


def test_one_prompt_with_two_seeds_has_two_answers(scorer, tokenizer, questions):
    found = generate(scorer, tokenizer, questions, max_new_tokens=NEW)
    assert questions[0].prompt == questions[7].prompt
    assert found[0] != found[7]


def test_greedy_answers_are_those_of_transformers(scorer, tokenizer, questions):
    settings = GenerationConfig(
        max_new_tokens=NEW, do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=0
    )
    for question, answer in zip(questions, generate(scorer, tokenizer, questions, max_new_tokens=NEW), strict=True):
        if question.seed is None:
            out = scorer.model.generate(torch.tensor([question.prompt]), generation_config=settings)
            assert out[0, len(question.prompt) :].tolist() == answer.ids


def test_answers_leave_the_random_state_as_it_was(scorer, tokenizer, questions):
    before = torch.get_rng_state()
    generate(scorer, tokenizer, questions, max_new_tokens=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_questions_have_no_answers(scorer, tokenizer):
    assert generate(scorer, tokenizer, [], max_new_tokens=NEW) == []


def test_samples_follow_the_softmax():
    """100,000 draws from five tokens; 5 standard deviations of a count, with the least one far from zero."""
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -3.0])
    draws = 100_000
    noise = GumbelNoise([1], torch.device("cpu"))
    noisy = torch.stack([noise(None, logits[None])[0] for _ in range(draws)])
    counts = torch.bincount(noisy.argmax(-1), minlength=5)
    expected = draws * logits.double().softmax(-1)
    assert ((counts - expected).abs() < 5 * expected.sqrt()).all(), counts


def test_an_impossible_token_is_never_sampled():
    noise = GumbelNoise([1], torch.device("cpu"))
    logits = torch.tensor([[0.0, -torch.inf]], dtype=torch.float64)
    assert all(noise(None, logits).argmax() == 0 for _ in range(100))
    assert logits[0, 0] == 0, "the logits of the model stay as they were"


def test_a_model_that_would_search_by_beams_answers_as_any_other(scorer, tokenizer, questions, monkeypatch):
    expected = generate(scorer, tokenizer, questions, max_new_tokens=NEW)
    for name, value in (("num_beams", 2), ("num_return_sequences", 2), ("no_repeat_ngram_size", 1)):
        monkeypatch.setattr(scorer.model.generation_config, name, value)
    assert generate(scorer, tokenizer, questions, max_new_tokens=NEW) == expected


def test_where_memory_ends_batches_are_halved_and_answers_stay(scorer, tokenizer, questions, monkeypatch, caplog):
    expected, sizes = generate(scorer, tokenizer, questions, max_new_tokens=NEW), []
    plain = type(scorer.model).generate

    def with_little_memory(self, input_ids, **inputs):
        sizes.append(len(input_ids))
        if len(input_ids) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return plain(self, input_ids=input_ids, **inputs)

    monkeypatch.setattr(type(scorer.model), "generate", with_little_memory)
    assert generate(scorer, tokenizer, questions, max_new_tokens=NEW) == expected
    assert max(sizes) == len(questions)
    assert "out of memory; goes on with" in caplog.text


def test_memory_that_is_too_small_for_one_answer_is_an_error(scorer, tokenizer, questions, monkeypatch):
    def without_memory(self, **inputs):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(type(scorer.model), "generate", without_memory)
    with pytest.raises(torch.OutOfMemoryError):
        generate(scorer, tokenizer, questions, max_new_tokens=NEW)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers_are_an_error_and_no_answer(tiny_model, tokenizer, questions, broken):
    """Their argmax is a token as any other: NaN weights would else answer with the first token, over and over."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    with torch.no_grad():
        model.lm_head.weight[7] = broken
    for asked in (questions, questions[-1:]):  # sampled and greedy; greedy alone
        with pytest.raises(NoNumbersError, match="gives no numbers"):
            generate(Scorer(model, 0, batch_size=8), tokenizer, asked, max_new_tokens=NEW)
