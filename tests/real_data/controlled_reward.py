"""The controlled-reward experiment: a rule, not a person, says which of a model's own two stories is better.

In the manner of the sentiment task of the DPO paper (arXiv 2305.18290). Since the rule is known, the tuned model's fresh
stories can be judged exactly, and so can the report: whether it says what became better and what was ruined.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

BOS, EOS = 1, 2
"""Of stories260K. Both end a story: the model begins the next one instead of stopping."""
PROMPT_TOKENS = 12
CONTINUATION_TOKENS = 40
NEUTRAL_TOKENS = 120
NUM_DRAWN, NUM_PROMPTS, NUM_HELD_OUT, NUM_NEUTRAL = 900, 800, 120, 60
SEEDS = {"prompts": 1, "first": 2, "second": 3, "judged": 5, "neutral": 9}

HAPPY = re.compile(
    r"\b(happy|fun|smile[sd]?|love[sd]?|laugh(ed)?|excited|proud|hug(ged)?|play(ed)?|friends?)\b", re.IGNORECASE
)


def reward(text: str) -> int:
    """Happy words, and one for each exclamation mark."""
    return len(HAPPY.findall(text)) + text.count("!")


@dataclass(frozen=True)
class Stories:
    """A model that tells stories, with its tokenizer."""

    model: Any
    tokenizer: Any

    @classmethod
    def load(cls, folder: Path) -> "Stories":
        from transformers import AutoModelForCausalLM, AutoTokenizer

        return cls(AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder))

    def sample(self, prompts: Sequence[Sequence[int]], num_tokens: int, seed: int) -> list[list[int]]:
        """Continues prompts of one length, at temperature 1; each is cut where its story ends."""
        torch.manual_seed(seed)
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            out = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=num_tokens,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                eos_token_id=[BOS, EOS],
                pad_token_id=EOS,
            )
        return [_cut(row) for row in out[:, ids.shape[1] :].tolist()]

    def text(self, ids: Sequence[int]) -> str:
        """Text that the tokenizer turns into `ids` again, where they begin a story (it adds no token of its own)."""
        start = "<s>" if ids[:1] == [BOS] else ""
        return start + str(self.tokenizer.decode(ids, skip_special_tokens=True))


def _cut(ids: list[int]) -> list[int]:
    return ids[: next((index for index, token in enumerate(ids) if token in (BOS, EOS)), len(ids))]


@dataclass(frozen=True)
class Experiment:
    """What the rule labelled.

    Attributes:
        base: The model that wrote all of it.
        prompts: Token ids of the beginnings of the stories, beginning-of-sequence first.
        pairs: `prompt`, `chosen` and `rejected` as strings. The last `NUM_HELD_OUT` have a prompt that no other has.
        pair_prompts: For each pair the index of its prompt in `prompts`.
        neutral: Whole stories of the base.
    """

    base: Stories
    prompts: list[list[int]]
    pairs: list[dict[str, str]]
    pair_prompts: list[int]
    neutral: list[dict[str, str]]

    @classmethod
    def build(cls, folder: Path) -> "Experiment":
        base = Stories.load(folder)
        drawn = base.sample([[BOS]] * NUM_DRAWN, PROMPT_TOKENS, SEEDS["prompts"])
        prompts = [[BOS, *ids] for ids in drawn if len(ids) == PROMPT_TOKENS][:NUM_PROMPTS]
        first, second = (base.sample(prompts, CONTINUATION_TOKENS, SEEDS[name]) for name in ("first", "second"))
        pairs = [label(base, *stories) for stories in zip(prompts, first, second, strict=True)]
        order = [index for index, pair in enumerate(pairs) if pair is not None]
        random.Random(0).shuffle(order)
        openings = Counter(tuple(prompts[index]) for index in order)
        order.sort(
            key=lambda index: openings[tuple(prompts[index])] == 1
        )  # stable: repeated openings are for training
        neutral = base.sample([[BOS]] * NUM_NEUTRAL, NEUTRAL_TOKENS, SEEDS["neutral"])
        texts = [{"text": base.text([BOS, *ids])} for ids in neutral]
        return cls(base, prompts, [pairs[index] for index in order], order, texts)

    def write(self, folder: Path, num_train: int) -> list[str]:
        """Writes the data of one run and returns the settings that name it."""
        train, held_out = self.pairs[:-NUM_HELD_OUT], self.pairs[-NUM_HELD_OUT:]
        folder.mkdir(parents=True, exist_ok=True)
        files = {"train": train[:num_train], "held_out": held_out, "neutral": self.neutral}
        for name, rows in files.items():
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
        return [
            "data=files",
            f"data.train={folder / 'train.jsonl'}",
            f"data.held_out={folder / 'held_out.jsonl'}",
            f"evaluation.neutral_texts={folder / 'neutral.jsonl'}",
        ]

    @cached_property
    def _judged_base(self) -> list[int]:
        return self._rewards(self.base)

    def win_rate(self, tuned: Path) -> tuple[float, float, float]:
        """Returns the tuned model's win rate over its base on the held-out prompts, and the mean rewards of both.

        The rule is the judge, the stories are fresh, a tie is half a win.
        """
        base, own = self._judged_base, self._rewards(Stories.load(tuned))
        wins = [(a > b) + 0.5 * (a == b) for a, b in zip(own, base, strict=True)]
        return sum(wins) / len(wins), sum(own) / len(own), sum(base) / len(base)

    def _rewards(self, stories: Stories) -> list[int]:
        prompts = [self.prompts[index] for index in self.pair_prompts[-NUM_HELD_OUT:]]
        samples = stories.sample(prompts, CONTINUATION_TOKENS, SEEDS["judged"])
        return [reward(stories.text(ids)) for ids in samples]


def label(stories: Stories, prompt: list[int], first: list[int], second: list[int]) -> dict[str, str] | None:
    """The pair that the rule makes of two continuations; None where it likes both alike."""
    opening = stories.text(prompt)
    texts = [stories.text(prompt + ids).removeprefix(opening) for ids in (first, second)]
    ranked = sorted(texts, key=reward, reverse=True)
    if reward(ranked[0]) == reward(ranked[1]):
        return None
    return {"prompt": opening, "chosen": ranked[0], "rejected": ranked[1]}
