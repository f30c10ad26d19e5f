"""The words of many texts, and numbers that stand for them."""

import zlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", bound=np.integer)

MEAN_LENGTH = 16
"""Characters a word, from which a text is taken to be in a script without spaces; there each character is a word."""
MIXER = np.uint64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio: multiplied by it, numbers that are alike become unlike in their upper bits."""


def split_words(text: str) -> list[str]:
    """Returns the words of `text`, in order; its characters if it is Chinese, Japanese, Thai or the like."""
    words = text.split()
    if not text.isascii() and len(text) > MEAN_LENGTH * len(words):
        return [character for character in text if not character.isspace()]
    return words


def hash_words(texts: Sequence[Sequence[str]]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Returns a number for each word of all texts, one text after the other, and for each the index of its text."""
    places: dict[str, int] = {}
    flat = [places.setdefault(word, len(places)) for words in texts for word in words]
    numbers = np.fromiter((zlib.crc32(word.encode("utf-8", "replace")) for word in places), np.uint64, len(places))
    owners = np.repeat(np.arange(len(texts)), np.fromiter(map(len, texts), np.int64, len(texts)))
    return mix(numbers)[np.array(flat, np.int64)], owners


def hash_runs(
    words: NDArray[np.uint64], owners: NDArray[np.int64], n: int
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Returns a number for each run of `n` words of a text, and the index of its text, from those of the words."""
    num_runs = max(0, len(words) - n + 1)
    runs = np.zeros(num_runs, np.uint64)
    for offset in range(n):
        runs = mix(runs + words[offset : offset + num_runs])
    is_within = owners[:num_runs] == owners[len(owners) - num_runs :]
    return runs[is_within], owners[:num_runs][is_within]


def distinct(numbers: NDArray[Number]) -> NDArray[Number]:
    """Returns the numbers, ascending, each once; `numpy.unique` takes five times as long for many numbers."""
    numbers = np.sort(numbers)
    is_new = np.ones(len(numbers), bool)
    is_new[1:] = numbers[1:] != numbers[:-1]
    found: NDArray[Number] = numbers[is_new]
    return found


def mix(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Returns numbers whose bits all depend on all bits of `numbers`."""
    numbers = numbers * MIXER
    return numbers ^ (numbers >> np.uint64(32))
