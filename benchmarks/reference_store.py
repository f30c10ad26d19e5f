"""Memory and time that the reference store takes in a process: to fill it, and to find everything in it.

python -m benchmarks.reference_store
python -m benchmarks.reference_store --pairs 50000 200000 --write

Log-probs are random numbers and no model is run. Token ids are memory-mapped, as in a run, and are left out.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.results import write_results
from prefopt.data.ragged import PairLogps, PairTable, Ragged
from prefopt.models import reference
from prefopt.models.reference import ReferenceStore
from prefopt.models.shards import Rows

PHASES = ("fill", "find")
PROMPT_TOKENS, COMPLETION_TOKENS = 100, 512
BATCH_PAIRS = 64
SAMPLE_S = 0.005
COLUMNS = ("pairs", "phase", "seconds", "peak_anonymous_bytes_per_pair", "peak_bytes_per_pair")


def build_table(folder: Path, num_pairs: int) -> PairTable:
    """Returns pairs of random tokens in memory-mapped files, which it writes if they do not exist yet."""
    sides = []
    for name, length in (("prompt", PROMPT_TOKENS), ("chosen", COMPLETION_TOKENS), ("rejected", COMPLETION_TOKENS)):
        path = folder / f"{name}-{num_pairs}.int32"
        if not path.exists():
            rng = np.random.default_rng(len(sides))
            rng.integers(0, 2**17, num_pairs * length, dtype=np.int32).tofile(path)
        ids = np.memmap(path, np.int32, "r").view(np.ndarray)  # memmap's own slices are slow
        sides.append(Ragged(ids, np.arange(num_pairs + 1) * length))
    return PairTable(*sides)


def compute(table: PairTable, rows: Rows) -> Iterator[tuple[Rows, PairLogps]]:
    """Yields random log-probs, as a model would that takes no time."""
    rng = np.random.default_rng(int(rows[0]) if len(rows) else 0)
    for start in range(0, len(rows), BATCH_PAIRS):
        part = rows[start : start + BATCH_PAIRS]
        offsets = np.arange(len(part) + 1) * COMPLETION_TOKENS
        sides = (Ragged(-rng.random(offsets[-1], dtype=np.float32), offsets) for _ in range(2))
        yield part, PairLogps(*sides)


def measure_here(folder: Path, phase: str, num_pairs: int) -> tuple[float, int, int]:
    """Fills the store, or finds and reads everything in it; returns seconds, and bytes as described in `Memory`."""
    table = build_table(folder, num_pairs)
    reference.FLUSH_S = 0.02  # shards of some MB, as of a model that takes its time
    store = ReferenceStore.open(folder / "store", {"pairs": num_pairs})
    with Memory() as memory:
        begun = time.perf_counter()
        logps, usage = store.complete(table, compute)
        seconds = time.perf_counter() - begun
        for row in np.random.default_rng(0).permutation(num_pairs).tolist():  # as an epoch reads them
            logps.chosen[row].sum()
            logps.rejected[row].sum()
    assert usage.num_computed == (num_pairs if phase == "fill" else 0)
    return seconds, memory.anonymous, memory.whole


class Memory:
    """Context manager that watches this process's memory.

    Attributes:
        anonymous: By how many bytes the block raised the memory that only this process holds, at most.
        whole: The same with pages of mapped files, which processes share and the system takes back when it needs them.
    """

    def __enter__(self) -> "Memory":
        self._before = read_memory()
        self.anonymous = self.whole = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._is_over.wait(SAMPLE_S)
            anonymous, whole = (now - before for now, before in zip(read_memory(), self._before, strict=True))
            self.anonymous, self.whole = max(self.anonymous, anonymous), max(self.whole, whole)


def read_memory() -> tuple[int, int]:
    """Returns this process's anonymous bytes in memory, and all of its bytes in memory."""
    lines = (line.split() for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    fields = {words[0]: int(words[1]) * 1024 for words in lines if words[0] in ("RssAnon:", "VmRSS:")}
    return fields["RssAnon:"], fields["VmRSS:"]


def measure(folder: Path, phase: str, num_pairs: int) -> dict[str, float | str]:
    """Measures one phase in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.reference_store", "--inside", str(folder), phase, str(num_pairs)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    seconds, anonymous, whole = (float(word) for word in said[-3:])
    return dict(zip(COLUMNS, (num_pairs, phase, seconds, anonymous / num_pairs, whole / num_pairs), strict=True))


def main(argv: list[str]) -> None:
    """Measures and prints a table; `--write` keeps it with the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, nargs="+", default=[50_000, 200_000])
    parser.add_argument("--write", action="store_true", help="keep the results below benchmarks/results")
    parser.add_argument("--inside", nargs=3, metavar=("FOLDER", "PHASE", "PAIRS"), help="measure in this process")
    options = parser.parse_args(argv)
    if options.inside:
        folder, phase, num_pairs = options.inside
        print(*measure_here(Path(folder), phase, int(num_pairs)))
        return
    results = []
    print(f"{'pairs':>9}  phase  seconds  anonymous bytes/pair  all bytes/pair")
    for num_pairs in options.pairs:
        with tempfile.TemporaryDirectory() as folder:
            build_table(Path(folder), num_pairs)
            for phase in PHASES:
                results.append(measure(Path(folder), phase, num_pairs))
                _, _, seconds, anonymous, whole = results[-1].values()
                print(f"{num_pairs:>9,}  {phase}  {seconds:7.2f}  {anonymous:20,.0f}  {whole:14,.0f}", flush=True)
    if options.write:
        settings = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": COMPLETION_TOKENS, "results": results}
        print(write_results("reference_store", settings, packages=("prefopt", "numpy", "pyarrow"), argv=argv))


if __name__ == "__main__":
    main(sys.argv[1:])
