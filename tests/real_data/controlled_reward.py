"""The controlled-reward experiment: a rule, not a person, says which of a model's own two stories is better.

In the manner of the sentiment task of the DPO paper (arXiv 2305.18290). Since the rule is known, the tuned model's
fresh stories can be judged exactly, and so can the report: whether it says what became better and what was ruined.
Nothing here uses prefopt: sampling, scoring and judging are plain torch and transformers.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import exp
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

    def log_prob_per_token(self, sequences: Sequence[Sequence[int]], num_given: int) -> float:
        """Mean log-prob of the tokens after the first `num_given`; one sequence at a time, so nothing is padded."""
        log_probs = []
        with torch.inference_mode():
            for sequence in sequences:
                ids = torch.tensor([sequence])
                predicted = self.model(ids).logits[0, num_given - 1 : -1].double().log_softmax(dim=-1)
                log_probs.append(predicted.gather(1, ids[0, num_given:, None]))
        return torch.cat(log_probs).mean().item()

    def text(self, ids: Sequence[int]) -> str:
        """Text that the tokenizer turns into `ids` again, where they begin a story (it adds no token of its own)."""
        start = "<s>" if ids[:1] == [BOS] else ""
        return start + str(self.tokenizer.decode(ids, skip_special_tokens=True))


def _cut(ids: list[int]) -> list[int]:
    return ids[: next((index for index, token in enumerate(ids) if token in (BOS, EOS)), len(ids))]


@dataclass(frozen=True)
class Judgement:
    """What is true of a tuned model.

    Attributes:
        win_rate: Share of held-out prompts whose fresh story has a higher reward than the base's; a tie is half a win.
        reward: Mean over the tuned model's fresh stories.
        base_reward: Mean over the base's.
        kl_per_token: Nats, estimated on the tuned model's fresh stories.
        perplexity: Of the tuned model, on the neutral texts.
        base_perplexity: Of the base, on the neutral texts.
    """

    win_rate: float
    reward: float
    base_reward: float
    kl_per_token: float
    perplexity: float
    base_perplexity: float


@dataclass(frozen=True)
class Experiment:
    """What the rule labelled.

    Attributes:
        base: The model that wrote all of it.
        pairs: `prompt`, `chosen` and `rejected` as strings. The last `NUM_HELD_OUT` have a prompt that no other has.
        held_out_prompts: Token ids of the prompts of those.
        neutral: Whole stories of the base.
    """

    base: Stories
    pairs: list[dict[str, str]]
    held_out_prompts: list[list[int]]
    neutral: list[str]

    @classmethod
    def build(cls, folder: Path) -> "Experiment":
        base = Stories.load(folder)
        drawn = base.sample([[BOS]] * NUM_DRAWN, PROMPT_TOKENS, SEEDS["prompts"])
        prompts = [[BOS, *ids] for ids in drawn if len(ids) == PROMPT_TOKENS][:NUM_PROMPTS]
        first, second = (base.sample(prompts, CONTINUATION_TOKENS, SEEDS[name]) for name in ("first", "second"))
        labelled = [(prompt, label(base, prompt, *two)) for prompt, *two in zip(prompts, first, second, strict=True)]
        rows = [(prompt, pair) for prompt, pair in labelled if pair is not None]
        random.Random(0).shuffle(rows)
        num_same = Counter(pair["prompt"] for _, pair in rows)
        rows.sort(key=lambda row: num_same[row[1]["prompt"]] == 1)  # stable: openings that are alike are for training
        neutral = base.sample([[BOS]] * NUM_NEUTRAL, NEUTRAL_TOKENS, SEEDS["neutral"])
        return cls(
            base=base,
            pairs=[pair for _, pair in rows],
            held_out_prompts=[prompt for prompt, _ in rows[-NUM_HELD_OUT:]],
            neutral=[base.text([BOS, *ids]) for ids in neutral],
        )

    def write(self, folder: Path, num_train: int) -> list[str]:
        """Writes the data of one run and returns the settings that name it."""
        files = {
            "train": self.pairs[:-NUM_HELD_OUT][:num_train],
            "held_out": self.pairs[-NUM_HELD_OUT:],
            "neutral": [{"text": text} for text in self.neutral],
        }
        for name, rows in files.items():
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
        return [
            "data=files",
            f"data.train={folder / 'train.jsonl'}",
            f"data.held_out={folder / 'held_out.jsonl'}",
            f"evaluation.neutral_texts={folder / 'neutral.jsonl'}",
        ]

    def judge(self, folder: Path) -> Judgement:
        """Compares the tuned model in `folder` with its base."""
        tuned = Stories.load(folder)
        stories = self._tell(tuned)
        rewards, base_rewards = self._rewards(tuned, stories), self._rewards(self.base, self._told_by_base)
        wins = [(own > other) + 0.5 * (own == other) for own, other in zip(rewards, base_rewards, strict=True)]
        told = [prompt + story for prompt, story in zip(self.held_out_prompts, stories, strict=True)]
        neutral = [self.base.tokenizer(text)["input_ids"] for text in self.neutral]
        log_probs = [model.log_prob_per_token(told, 1 + PROMPT_TOKENS) for model in (tuned, self.base)]
        return Judgement(
            win_rate=sum(wins) / len(wins),
            reward=sum(rewards) / len(rewards),
            base_reward=sum(base_rewards) / len(base_rewards),
            kl_per_token=log_probs[0] - log_probs[1],
            perplexity=exp(-tuned.log_prob_per_token(neutral, 1)),
            base_perplexity=exp(-self.base.log_prob_per_token(neutral, 1)),
        )

    @cached_property
    def _told_by_base(self) -> list[list[int]]:
        return self._tell(self.base)

    def _tell(self, stories: Stories) -> list[list[int]]:
        return stories.sample(self.held_out_prompts, CONTINUATION_TOKENS, SEEDS["judged"])

    def _rewards(self, stories: Stories, told: list[list[int]]) -> list[int]:
        return [reward(stories.text(ids)) for ids in told]


def label(stories: Stories, prompt: list[int], first: list[int], second: list[int]) -> dict[str, str] | None:
    """The pair that the rule makes of two continuations; None where it likes both alike."""
    opening = stories.text(prompt)
    texts = [stories.text(prompt + ids).removeprefix(opening) for ids in (first, second)]
    worse, better = sorted(texts, key=reward)
    if reward(worse) == reward(better):
        return None
    return {"prompt": opening, "chosen": better, "rejected": worse}
