"""Answers of a model behind a server: many requests at once against one at a time.

python -m benchmarks.endpoint
python -m benchmarks.endpoint --prompts 64 --rounds 5 --write

The server is `transformers serve --continuous-batching` with the shipped model, in a process of its own on the same
CPU. Both ways ask the same prompts with the same seeds, and nothing comes from a cache. A round before the others, in
which the server compiles and allocates, is not counted.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks.results import write_results
from prefopt.evaluation.endpoint import Endpoint
from prefopt.process.paths import shipped
from tests.serving import serve

PACKAGES = ("torch", "transformers", "openai")
MANY = 16
"""Requests at once, as contestants and judges have by default."""
TARGET = 5.0
MAX_TOKENS = 32


def answer(url: str, model: Path, num_prompts: int, concurrency: int) -> float:
    """Returns the seconds in which all prompts are answered."""
    talks = [
        [{"role": "user", "content": f"Order {number} has not arrived. What now?"}] for number in range(num_prompts)
    ]
    with tempfile.TemporaryDirectory() as cache:
        endpoint = Endpoint("benchmark:", url=url, model=str(model), cache=Path(cache), concurrency=concurrency)
        began = time.perf_counter()
        replies = endpoint.chat(talks, max_tokens=MAX_TOKENS, temperature=1.0, seed=7)
        seconds = time.perf_counter() - began
    if sum(bool(reply.text) for reply in replies) < num_prompts:
        raise SystemExit("the server left prompts unanswered: no time is printed")
    return seconds


def main(argv: list[str]) -> None:
    """Measures, prints, and writes if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write results/<machine>/endpoint.json")
    args = parser.parse_args(argv)
    model = shipped("assets/base_model")
    seconds: dict[int, list[float]] = {1: [], MANY: []}
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(model, Path(folder) / "serve.log", ["--continuous-batching"]) as url,
    ):
        answer(url, model, args.prompts, MANY)
        for _ in range(args.rounds):
            for concurrency, found in seconds.items():
                found.append(answer(url, model, args.prompts, concurrency))
    one, many = (median(found) for found in seconds.values())
    console = Console(soft_wrap=True)
    table = Table("requests at once", "seconds, median", title=f"{args.prompts} prompts, {args.rounds} rounds")
    for concurrency, found in seconds.items():
        table.add_row(str(concurrency), f"{median(found):.1f}")
    console.print(table, f"{one / many:.1f} times as fast (target: {TARGET:g})")
    if args.write:
        content = {
            "prompts": args.prompts,
            "max_tokens": MAX_TOKENS,
            "seconds": {str(concurrency): found for concurrency, found in seconds.items()},
            "times_as_fast": one / many,
            "target": TARGET,
        }
        console.print(f"written: {write_results('endpoint', content, packages=PACKAGES, argv=argv)}")


if __name__ == "__main__":
    main(sys.argv[1:])
