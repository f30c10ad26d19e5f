"""Preparation of a large data set: speed of reading, of read + check + tokenise, peak memory, and the second start.

python -m benchmarks.data_scale --pairs 50000
python -m benchmarks.data_scale --pairs 1000000 --write
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.results import write_results
from prefopt.process.paths import shipped

PACKAGES = ("transformers", "tokenizers", "datasets", "pyarrow")
PARTS = ("read", "prepare", "start again")
POLL_S = 0.2
BLOCK = 10_000
"""Different rows; the files repeat them with another number in the prompt, so that writing them takes no time."""
EXTRAS = ("naïve café", "“quoted”", "東京", "größer", "f(x) = x**2", "$4,200.50", "a\\b", "don't", "e-mail", "100 %")


def build_rows(num_pairs: int, seed: int = 0) -> Iterator[str]:
    """Yields JSON lines of chat pairs, ~670 bytes each: words as they occur in the shipped study, in another order."""
    rng = random.Random(seed)
    study = shipped("experiments/brand_voice/train.jsonl").read_text(encoding="utf-8").splitlines()
    words = [word for line in study for turn in json.loads(line)["chosen"] for word in turn["content"].split()]

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


def write_rows(path: Path, num_pairs: int) -> None:
    """Writes the rows of `build_rows` to a file."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(build_rows(num_pairs))


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
    """Returns what `measure` says in a process of its own, with the largest memory of it and its children."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.data_scale",
        "--part",
        part,
        "--data",
        str(data),
        "--model",
        str(model),
    ]
    environment = {**os.environ, "PREFOPT_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, memory_of_family(process.pid))
        time.sleep(POLL_S)
    assert process.stdout is not None
    if process.returncode:
        raise SystemExit(f"{part}: the process ended with {process.returncode}")
    found = json.loads(process.stdout.read().splitlines()[-1])
    bytes_read = data.stat().st_size
    return {
        "part": part,
        **found,
        "pairs_per_s": found["pairs"] / found["seconds"],
        "megabytes_per_s": bytes_read / found["seconds"] / 1e6,
        "peak_gib": peak / 2**30,
    }


def memory_of_family(pid: int) -> int:
    """Bytes of a process and its children; a page that n processes share counts as 1/n in each."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                total = int(line.split()[1]) * 1024
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except OSError:  # it has ended
        return 0
    return total + sum(memory_of_family(int(child)) for child in children)


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
    parser.add_argument("--pairs", type=int, default=50_000)
    parser.add_argument("--model", type=Path, default=shipped("assets/base_model"), help="folder of the tokenizer")
    parser.add_argument("--write", action="store_true", help="write results/<machine>/data_scale.json")
    parser.add_argument("--part", choices=PARTS, help="used by the benchmark itself: measure one part of --data")
    parser.add_argument("--data", type=Path, help="a file of pairs, in the place of made ones")
    args = parser.parse_args(argv)
    if args.part:
        print(json.dumps(measure(args.part, str(args.data), str(args.model))))
        return
    with tempfile.TemporaryDirectory() as folder:
        data = args.data or Path(folder) / "pairs.jsonl"
        if not args.data:
            write_rows(data, args.pairs)
        results = [run_part(part, data, args.model, Path(folder) / "cache") for part in PARTS]
        content = {"bytes": data.stat().st_size, "results": results}
    print_table(results)
    if args.write:
        print(f"written: {write_results('data_scale', content, packages=PACKAGES, argv=argv)}")


if __name__ == "__main__":
    main(sys.argv[1:])
