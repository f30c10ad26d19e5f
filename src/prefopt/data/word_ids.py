"""Token ids of texts from the remembered ids of their words: the same ids, for a fraction of the time.

Most byte-level tokenizers cut a text into words with a regular expression and look at each word alone. Text repeats
its words, so a table of words is faster than the tokenizer, which makes an object for every token.
"""

import json
import re
from array import array
from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_BYTES = 64 * 2**20
"""Memory of the words that are remembered; beyond, all are forgotten."""
ENTRY_BYTES = 150
"""Memory that a word takes besides its characters."""
SOLID = r"[^\s\u180e\u200b\ufeff]"
BLANK = re.compile(rf" (?<={SOLID} )(?={SOLID})")
"""A single blank between two other characters. The next word begins with it, whatever the text around."""

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LED = r"[^\r\n\p{L}\p{N}]?"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_OTHERS_O200K = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
PATTERNS = frozenset(
    (
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2
        *(rf"{_CONTRACTIONS}|{_LED}\p{{L}}+|{digits}|{_OTHERS}|{_BLANKS}" for digits in (r"\p{N}{1,3}", r"\p{N}")),
        rf"{_CONTRACTIONS}|{_LED}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_BLANKS}",
        *(
            rf"{_LED}{_UPPER}*{_LOWER}+{end}|{_LED}{_UPPER}+{_LOWER}*{end}|{digits}|{_OTHERS_O200K}|{_BLANKS}"
            for end in ("", f"{_CONTRACTIONS}?")
            for digits in (r"\p{N}{1,3}", r"\p{N}")
        ),
    )
)
"""Of GPT-2, Llama 3, Qwen, GPT-4o and Mistral. No match goes over a `BLANK` or depends on what is behind."""


class WordIds:
    """The words of one tokenizer and their ids."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._forget()

    def _forget(self) -> None:
        self._tables: dict[_Place, dict[str, bytes]] = {place: {} for place in _Place}
        self._num_bytes = 0

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text, without special tokens at its ends."""
        if self._num_bytes > MAX_BYTES:
            self._forget()
        # Cutting at every blank is ten times as fast as at each `BLANK`, and most often the same.
        packed = self._pack([text.split(" ") for text in texts])
        others = [at for at, found in enumerate(packed) if found is None]
        for at, found in zip(others, self._pack([BLANK.split(texts[at]) for at in others]), strict=True):
            packed[at] = found
        return [array("i", found or b"").tolist() for found in packed]

    def _pack(self, rows: Sequence[list[str]]) -> list[bytes | None]:
        """Returns the ids of each row of words; None if one of them does not stand at a `BLANK`, but has to."""
        longer = [words for words in rows if len(words) > 1]
        self._learn(_Place.alone, {words[0] for words in rows if len(words) == 1})
        self._learn(_Place.first, {words[0] for words in longer})
        self._learn(_Place.later, set().union(*(words[1:-1] for words in longer)))
        self._learn(_Place.last, {words[-1] for words in longer})
        alone, first, later, last = (self._tables[place] for place in _Place)
        get = later.__getitem__
        packed: list[bytes | None] = []
        for words in rows:
            try:
                if len(words) == 1:
                    packed.append(alone[words[0]])
                else:
                    packed.append(b"".join((first[words[0]], *map(get, words[1:-1]), last[words[-1]])))
            except KeyError:
                packed.append(None)
        return packed

    def _learn(self, place: "_Place", words: set[str]) -> None:
        """Adds the words that can stand at a place: none is there that begins or ends where no `BLANK` can be."""
        table = self._tables[place]
        new = [word for word in words.difference(table) if place.value.fullmatch(word)]
        before = "" if place in (_Place.alone, _Place.first) else " "
        encoded = self._backend.encode_batch_fast([before + word for word in new], add_special_tokens=False)
        table.update((word, array("i", found.ids).tobytes()) for word, found in zip(new, encoded, strict=True))
        self._num_bytes += sum(map(len, new)) + ENTRY_BYTES * len(new)


class _Place(Enum):
    """Where a word stands in its text, and what the words there are like: a `BLANK` is between two of them."""

    alone = re.compile(r".*", re.DOTALL)
    first = re.compile(rf".*{SOLID}", re.DOTALL)
    later = re.compile(rf"{SOLID}(.*{SOLID})?", re.DOTALL)
    last = re.compile(rf"{SOLID}.*", re.DOTALL)


_memories: "WeakKeyDictionary[PreTrainedTokenizerBase, tuple[object, WordIds]]" = WeakKeyDictionary()


def find_word_ids(tokenizer: "PreTrainedTokenizerBase") -> WordIds | None:
    """Returns the words of a tokenizer that cuts texts as `PATTERNS` do; None for any other."""
    if not tokenizer.is_fast or tokenizer.split_special_tokens:
        return None
    backend = tokenizer.backend_tokenizer
    state = (backend, _state(backend.pre_tokenizer), _state(backend.normalizer), str(tokenizer.added_tokens_decoder))
    known = _memories.get(tokenizer)
    if known is not None and known[0] == state:
        return known[1]
    if not _looks_at_words(tokenizer):
        return None
    _memories[tokenizer] = state, WordIds(backend)
    return _memories[tokenizer][1]


def _looks_at_words(tokenizer: "PreTrainedTokenizerBase") -> bool:
    backend = tokenizer.backend_tokenizer
    kind = type(backend.model).__name__
    if kind != "BPE" or backend.model.dropout or (_state(backend.normalizer) or {"type": "NFC"}) != {"type": "NFC"}:
        return False
    absorbs_blanks = (
        token.lstrip or token.rstrip or token.single_word or re.search(r"\s", token.content) is not None
        for token in tokenizer.added_tokens_decoder.values()
    )
    return _cuts_at_blanks(_state(backend.pre_tokenizer)) and not any(absorbs_blanks)


def _state(part: Any) -> Any:
    """Returns a part of a tokenizer as its JSON file has it; None if there is none."""
    if part is None:
        return None
    try:
        return json.loads(part.__getstate__())
    except Exception:  # a part written in Python; the package tokenizers raises no narrower class
        return {"type": "Custom"}


def _cuts_at_blanks(pre_tokenizer: Any) -> bool:
    """Returns whether a word begins at every `BLANK`, and its cutting depends on nothing outside it."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer])
    cuts = False
    for step in steps:
        if step is None:
            return False
        if step["type"] == "ByteLevel" and not step["add_prefix_space"]:
            cuts |= step["use_regex"]
        elif step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
            if step["pattern"].get("Regex") not in PATTERNS:
                return False
            cuts = True
        elif step["type"] != "Digits":
            return False
    return cuts
