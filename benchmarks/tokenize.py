"""Preparation of preference pairs: TRL's own against prefopt's, on the same rows, ids compared first.

python -m benchmarks.tokenize
python -m benchmarks.tokenize --data pairs.jsonl --model path/to/model --write
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging
from trl import DPOTrainer

from benchmarks.results import write_results
from prefopt.config.choices import DataFormat, OnBadRow, OnLongCompletion
from prefopt.data.reading import read_records
from prefopt.data.records import PreferencePair
from prefopt.data.tokenize import tokenize_pairs

COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PACKAGES = ("trl", "transformers", "tokenizers", "datasets", "pyarrow")


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one preparation, over rounds."""

    case: str
    pairs: int
    tokens: int
    trl_min_s: float
    trl_median_s: float
    prefopt_min_s: float
    prefopt_median_s: float

    @property
    def ratio(self) -> float:
        """How many times as long TRL's preparation takes, by medians."""
        return self.trl_median_s / self.prefopt_median_s


def prepare_with_trl(pairs: list[PreferencePair], tokenizer: Any) -> Dataset:
    """Returns what `DPOTrainer._prepare_dataset` makes of the pairs; nothing comes from a cache."""
    rows = [{"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected} for pair in pairs]
    args = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start")
    stub = SimpleNamespace(_tokenizer=tokenizer)
    return DPOTrainer._prepare_dataset(stub, Dataset.from_list(rows), tokenizer, args, "train")


def prepare_with_prefopt(pairs: list[PreferencePair], tokenizer: Any) -> Dataset:
    """Returns what `prefopt.data.tokenize` makes of the pairs; a pair that it would drop is skipped."""
    return tokenize_pairs(
        pairs,
        tokenizer,
        max_length=10**9,
        on_long_prompt=OnBadRow.refuse,
        on_long_completion=OnLongCompletion.refuse,
        on_extra_eos=OnBadRow.skip,
    ).dataset


def keep_comparable(pairs: list[PreferencePair], tokenizer: Any) -> list[PreferencePair]:
    """Returns the pairs that both prepare, after a check that their ids are equal."""
    ours = prepare_with_prefopt(pairs, tokenizer)
    kept = set(ours["source"])
    pairs = [pair for pair in pairs if pair.source in kept]
    theirs = prepare_with_trl(pairs, tokenizer)
    for name in COLUMNS:
        if list(ours[name]) != list(theirs[name]):
            raise SystemExit(f"{name} differ between TRL and prefopt: nothing is timed")
    return pairs


def measure(case: str, pairs: list[PreferencePair], tokenizer: Any, rounds: int) -> Timing:
    """Times both preparations in turns, so that a busy machine slows both."""
    pairs = keep_comparable(pairs, tokenizer)
    sides: dict[str, Callable[[list[PreferencePair], Any], Dataset]] = {
        "trl": prepare_with_trl,
        "prefopt": prepare_with_prefopt,
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, prepare in sides.items():
            start = time.perf_counter()
            prepare(pairs, tokenizer)
            seconds[name].append(time.perf_counter() - start)
    data = prepare_with_prefopt(pairs, tokenizer)
    return Timing(
        case=case,
        pairs=len(pairs),
        tokens=sum(len(row[name]) for row in data for name in COLUMNS),
        trl_min_s=min(seconds["trl"]),
        trl_median_s=statistics.median(seconds["trl"]),
        prefopt_min_s=min(seconds["prefopt"]),
        prefopt_median_s=statistics.median(seconds["prefopt"]),
    )


def build_pairs(num_pairs: int, *, as_messages: bool) -> list[PreferencePair]:
    """Returns pairs of random words: prompts of 20 to 80, completions of 20 to 200."""
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(2000)]

    def text(shortest: int, longest: int) -> str:
        return " ".join(rng.choices(words, k=rng.randint(shortest, longest)))

    pairs = []
    for index in range(num_pairs):
        prompt, chosen, rejected = text(20, 80), " " + text(20, 200), " " + text(20, 200)
        if not as_messages:
            pairs.append(PreferencePair(prompt, chosen, rejected, None, {}, str(index)))
            continue
        turns = [[{"role": "user", "content": prompt}]]
        turns += [[{"role": "assistant", "content": completion}] for completion in (chosen, rejected)]
        pairs.append(PreferencePair(turns[0], turns[1], turns[2], None, {}, str(index)))
    return pairs


def build_tokenizer(pairs: list[PreferencePair]) -> Any:
    """Returns a byte-level BPE tokenizer of 8,000 tokens, trained on the pairs, with a ChatML template."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=8000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator((str(pair.prompt) for pair in pairs), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", additional_special_tokens=special[:1]
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def print_table(timings: list[Timing]) -> None:
    """Prints one line for each case."""
    print(f"{'case':<28}{'pairs':>7}{'tokens':>11}{'TRL s (min/med)':>19}{'prefopt s':>17}{'ratio':>8}")
    for row in timings:
        theirs = f"{row.trl_min_s:.2f} / {row.trl_median_s:.2f}"
        ours = f"{row.prefopt_min_s:.2f} / {row.prefopt_median_s:.2f}"
        print(f"{row.case:<28}{row.pairs:>7}{row.tokens:>11,}{theirs:>19}{ours:>17}{row.ratio:>7.1f}x")


def main() -> None:
    """Measures, prints, and writes if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2000, help="synthetic pairs per case")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", help="a preference file to measure on as well")
    parser.add_argument("--model", help="folder of the tokenizer for --data")
    parser.add_argument("--write", action="store_true", help="write results/<machine>/tokenize.json")
    args = parser.parse_args()
    if bool(args.data) != bool(args.model):
        parser.error("--data and --model go together")
    datasets.disable_progress_bars()
    datasets.disable_caching()
    transformers_logging.set_verbosity_error()
    texts, chats = (build_pairs(args.pairs, as_messages=as_messages) for as_messages in (False, True))
    tokenizer = build_tokenizer(texts)
    timings = [
        measure("synthetic text", texts, tokenizer, args.rounds),
        measure("synthetic ChatML messages", chats, tokenizer, args.rounds),
    ]
    if args.data:
        records: list[Any] = read_records(args.data, format=DataFormat.auto, kind="preference").records
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        timings.append(measure(Path(args.data).name[:26], records, tokenizer, args.rounds))
    print_table(timings)
    if args.write:
        content = {"rounds": args.rounds, "results": [{**asdict(row), "ratio": row.ratio} for row in timings]}
        print(f"written: {write_results('tokenize', content, packages=PACKAGES, argv=sys.argv[1:])}")


if __name__ == "__main__":
    main()
