"""Preparation of a large data set: speed of reading, of read + check + tokenise, peak memory, and the second start.

python -m benchmarks.data_scale --pairs 50000
python -m benchmarks.data_scale --pairs 1000000 --write
"""

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.parts import add_arguments, file_of_pairs, measure_part, study_words
from benchmarks.results import write_results
from prefopt.process.paths import shipped

PACKAGES = ("transformers", "tokenizers", "datasets", "pyarrow")
PARTS = ("read", "prepare", "start again")
BLOCK = 10_000
"""Different rows; the files repeat them with another number in the prompt, so that writing them takes no time."""
EXTRAS = ("naïve café", "“quoted”", "東京", "größer", "f(x) = x**2", "$4,200.50", "a\\b", "don't", "e-mail", "100 %")


def build_rows(num_pairs: int, seed: int = 0) -> Iterator[str]:
    """Yields JSON lines of chat pairs, ~670 bytes each: words as they occur in the shipped study, in another order."""
    rng = random.Random(seed)
    words = study_words()

    def say(shortest: int, longest: int) -> str:
        said = rng.choices(words, k=rng.randint(shortest, longest))
        said[rng.randrange(len(said))] = rng.choice(EXTRAS)
        return " ".join(said)

    templates: list[tuple[str, str]] = []
    for index in range(num_pairs):
        if index < BLOCK:
            turns = {
                "prompt": [{"role": "user", "content": "\0 " + say(11, 27)}],
                "chosen": [{"role": "assistant", "content": say(29, 56)}],
                "rejected": [{"role": "assistant", "content": say(24, 49)}],
            }
            before, _, after = json.dumps(turns, ensure_ascii=False).partition("\\u0000")
            templates.append((before, after))
        before, after = templates[index % BLOCK]
        yield f"{before}{index}{after}\n"


def measure(mode: str, data: str, model: str) -> dict[str, float]:
    """Returns the seconds and the rows of one part; called in a process of its own."""
    from prefopt.data.files import iter_rows

    if mode == "read":
        clock = _Clock()
        num_rows = sum(1 for _ in iter_rows(data))
        return {"pairs": num_rows, **clock.stop()}
    # The imports, which take the same time for any number of rows, are not what is measured.
    import prefopt.data.cache
    import prefopt.models.load  # noqa: F401
    from prefopt.config.load import load_config
    from prefopt.models.examples import load_examples

    settings = ["data=files", f"data.train={data}", f"model.path={model}", "data.max_length=2048", "logger=none"]
    config = load_config(settings)
    clock = _Clock()
    tokenized = load_examples(config).tokenized
    return {"pairs": len(tokenized.train) + len(tokenized.held_out or ()), **clock.stop()}


class _Clock:
    """Time since its making: of the clock, and of all CPUs, which a busy machine does not lengthen as much."""

    def __init__(self) -> None:
        self._start, self._cpu_start = time.perf_counter(), self._cpu()

    def stop(self) -> dict[str, float]:
        return {"seconds": time.perf_counter() - self._start, "cpu_seconds": self._cpu() - self._cpu_start}

    def _cpu(self) -> float:
        times = os.times()
        return times.user + times.system + times.children_user + times.children_system


def run_part(part: str, data: Path, model: Path, cache: Path) -> dict[str, Any]:
    """Returns what `measure` says in a process of its own, the memory of it and its children, and the speed."""
    arguments = ["--data", str(data), "--model", str(model)]
    found = measure_part("data_scale", part, arguments, PREFOPT_CACHE=str(cache), HF_HUB_OFFLINE="1")
    return {
        **found,
        "pairs_per_s": found["pairs"] / found["seconds"],
        "megabytes_per_s": data.stat().st_size / found["seconds"] / 1e6,
    }


def print_table(results: list[dict[str, Any]]) -> None:
    """Prints one line for each part."""
    print(f"{'part':<14}{'pairs':>10}{'seconds':>10}{'CPU s':>8}{'pairs/s':>10}{'MB/s':>8}{'peak GiB':>10}")
    for row in results:
        print(
            f"{row['part']:<14}{row['pairs']:>10,}{row['seconds']:>10.1f}{row['cpu_seconds']:>8.1f}{row['pairs_per_s']:>10,.0f}"
            f"{row['megabytes_per_s']:>8.1f}{row['peak_gib']:>10.2f}"
        )


def main(argv: list[str]) -> None:
    """Measures, prints, and writes if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, "data_scale", PARTS, num_pairs=50_000)
    parser.add_argument("--model", type=Path, default=shipped("assets/base_model"), help="folder of the tokenizer")
    args = parser.parse_args(argv)
    if args.part:
        print(json.dumps(measure(args.part, str(args.data), str(args.model))))
        return
    with file_of_pairs(args, build_rows) as (data, cache):
        results = [run_part(part, data, args.model, cache) for part in PARTS]
        content = {"bytes": data.stat().st_size, "results": results}
    print_table(results)
    if args.write:
        print(f"written: {write_results('data_scale', content, packages=PACKAGES, argv=argv)}")


if __name__ == "__main__":
    main(sys.argv[1:])
