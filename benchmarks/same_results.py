"""Shows that a change of structure changes no number: the same runs on two states of the code, compared bit by bit.

    python -m benchmarks.same_results --against <commit>

Runs the shipped study with DPO, with LoRA and with SFT, and on two ranks under ZeRO-3, once with the sources of the
commit and once with those of the working tree, in processes of their own. Compares every number of metrics.jsonl and
report.json that is not a time, and the bytes of the final weights. Exit code 1 if anything differs.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
SHORT = ["trainer.max_steps=12", "trainer.eval_every=6", "trainer.save_every=6", "evaluation.num_samples=4"]
RUNS = {
    "default": ["+experiment=dpo_brand_voice"],
    "lora": ["+experiment=dpo_brand_voice", "peft=lora", *SHORT],
    "sft": ["+experiment=sft_brand_voice", *SHORT],
    "zero3": ["+experiment=dpo_brand_voice", "deepspeed=zero3", "trainer.per_device_batch_size=8", *SHORT],
}
RANKS = {"zero3": 2}
OF_TIME = ("time_s", "training_s", "evaluation_time_s", "train_time_s", "pairs_per_s", "tokens_per_s", "gb_per_s")
OF_THE_PLACE = ("provenance", "date", "version", "phases", "saved_s", "reference", "checkpoints")
"""What says when, where and from which code a run came, not what it computed."""


def main(argv: list[str]) -> int:
    """Runs, compares and prints; returns the exit code."""
    parser = argparse.ArgumentParser("benchmarks.same_results", description=__doc__)
    parser.add_argument("--against", required=True, help="a commit")
    parser.add_argument("--runs", nargs="*", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--keep", type=Path, help="a folder for the runs; what is there from before is used again")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        old = Path(scratch) / "old"
        subprocess.run(
            ["git", "worktree", "add", "--quiet", "--detach", old, options.against], cwd=REPOSITORY, check=True
        )
        try:
            differences = sum(_compare(name, old, folder.resolve()) for name in options.runs)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", old], cwd=REPOSITORY, check=True)
    print("the same" if not differences else f"{differences} differences")
    return min(differences, 1)


def _compare(name: str, old: Path, folder: Path) -> int:
    """Prints one line per run and one per difference."""
    before = _train(name, old, folder / "before")
    after = _train(name, REPOSITORY, folder / "after")
    found = [
        *_differences("metrics.jsonl", _records(before), _records(after)),
        *_differences("report.json", _report(before), _report(after)),
        *_differences("model", _weights(before), _weights(after)),
    ]
    numbers = sum(1 for _ in _flatten("", [_records(after), _report(after)]))
    print(f"{name:10} {numbers} values, {len(_weights(after))} files of weights: {len(found)} differences", flush=True)
    for line in found[:20]:
        print(f"    {line}")
    return len(found)


def _train(name: str, sources: Path, root: Path) -> Path:
    """One run by the sources of a tree; one that is there is not run again."""
    run = root / name
    if not (run / "report" / "report.json").exists():
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(RANKS[name])] if name in RANKS else []
        command = [sys.executable, *launcher, "-m", "prefopt.train", *RUNS[name], "logger=none"]
        environment = {
            **os.environ,
            "PYTHONPATH": str(sources / "src"),
            "OMP_NUM_THREADS": "1",
            "PREFOPT_CACHE": str(root / "cache"),
        }
        command += [f"run.root={root}", f"run.name={name}"]
        ended = subprocess.run(command, cwd=sources, env=environment, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise SystemExit(f"{' '.join(command)}: exit code {ended.returncode}\n{ended.stderr[-2000:]}")
    return run


def _records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def _report(run: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((run / "report" / "report.json").read_text(encoding="utf-8"))
    return report


def _weights(run: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((run / "model").glob("*.safetensors"))
    }


def _differences(where: str, before: Any, after: Any) -> Iterator[str]:
    old, new = dict(_flatten("", before)), dict(_flatten("", after))
    for key in sorted(old.keys() | new.keys()):
        if repr(old.get(key)) != repr(new.get(key)):  # nan is nan
            yield f"{where}{key}: {old.get(key)!r} -> {new.get(key)!r}"


def _flatten(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Every value with its path, but for those of time and place."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if parts is None:
        yield key, value
        return
    for name, part in parts:
        if name not in OF_TIME and name not in OF_THE_PLACE:
            yield from _flatten(f"{key}.{name}", part)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
