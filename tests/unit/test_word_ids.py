"""Ids from remembered words: the tokenizer itself is the oracle, on texts that try to blur where a word begins."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from prefopt.data import word_ids
from prefopt.data.word_ids import PATTERNS, find_word_ids

CORPUS = [
    "The quick brown fox's 12 dogs don't jump. ",
    "größer é ̈ 日本語\n\n  x  y\t z, (f) = x**2 \r\n",
    "'s 've !? 1234 ",
] * 4
SPECIAL = ["<|im_start|>", "<|im_end|>", "<s>"]
PIECES = [
    *" \n\t\r.,'!?(xyÄé日1ß\u0308\u00a0\u2003\u180e\u200b\ufeff\x1c\x85",
    "  ",
    " x",
    "'s",
    "'S",
    "12",
    "fox",
    *SPECIAL,
]
TEXTS = st.lists(st.sampled_from(PIECES) | st.characters(exclude_categories=["Cs"]), max_size=30).map("".join)


def build(*steps: Any, normalizer: Any = None, added: Any = ()) -> Any:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence([*steps])
    backend.decoder = decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", additional_special_tokens=[SPECIAL[0], SPECIAL[2]]
    )
    tokenizer.add_tokens([*added])
    return tokenizer


def split(pattern: str) -> Any:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def byte_level(*, use_regex: bool = False, add_prefix_space: bool = False) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=use_regex)


WITH_TABLE = [
    build(byte_level(use_regex=True)),
    build(pre_tokenizers.Digits(individual_digits=True), byte_level(use_regex=True)),
    build(split(sorted(PATTERNS)[0]), byte_level(), normalizer=normalizers.NFC()),
    *(build(split(pattern), byte_level()) for pattern in sorted(PATTERNS)),
]


@pytest.mark.parametrize("tokenizer", WITH_TABLE)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_the_ids_are_the_tokenizers_own(tokenizer: Any, texts: list[str]) -> None:
    words = find_word_ids(tokenizer)
    assert words is not None
    expected = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    assert words.encode(texts) == [encoding.ids for encoding in expected]


WITHOUT_TABLE = {
    "a blank before every text": build(byte_level(use_regex=True, add_prefix_space=True)),
    "no words": build(byte_level()),
    "an unknown expression": build(split(r"\p{L}+ ?|\s+"), byte_level()),
    "a normalizer that changes blanks": build(byte_level(use_regex=True), normalizer=normalizers.Strip()),
    "a token that takes the blank behind it": build(
        byte_level(use_regex=True), added=[AddedToken("<x>", rstrip=True)]
    ),
    "a token with a blank in it": build(byte_level(use_regex=True), added=[AddedToken("fox x")]),
}


@pytest.mark.parametrize("name", WITHOUT_TABLE)
def test_other_tokenizers_have_no_table(name: str) -> None:
    assert find_word_ids(WITHOUT_TABLE[name]) is None


def test_a_token_that_is_added_later_is_seen() -> None:
    tokenizer = build(byte_level(use_regex=True))
    words = find_word_ids(tokenizer)
    assert words is not None
    words.encode(["a <new> b"])
    assert find_word_ids(tokenizer) is words
    tokenizer.add_tokens(["<new>"])
    words = find_word_ids(tokenizer)
    assert words is not None
    assert words.encode(["a <new> b"]) == [tokenizer.encode("a <new> b", add_special_tokens=False)]


def test_the_table_is_emptied_when_it_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_ids, "MAX_BYTES", 1000)
    tokenizer = build(byte_level(use_regex=True))
    words = find_word_ids(tokenizer)
    assert words is not None
    texts = [f"a{number} b{number}" for number in range(50)]
    expected = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    assert [words.encode([text])[0] for text in texts] == expected
    assert sum(map(len, words._tables.values())) < 20
