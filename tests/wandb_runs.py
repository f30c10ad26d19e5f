"""Runs that W&B's real client has recorded, without any training: synthetic records through the real mirror."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from prefopt.config.load import load_config
from prefopt.config.plain import as_dict
from prefopt.config.schema import TrainConfig
from prefopt.runs.directory import RunDirectory
from prefopt.tracking import wandb as tracker
from prefopt.tracking.metrics import MetricsLog
from prefopt.tracking.wandb import WandbMirror, start_wandb
from tests.wandb_server import KEY, WandbServer

REPORT: dict[str, Any] = {
    "decision": {"word": "ship", "reasons": [], "would_decide": []},
    "held_out": {"n": 7, "tuned": {"preference_accuracy": {"value": 0.75, "ci95": [0.4, 0.9], "n": 7}}},
    "drift": {"kl_per_token": {"value": 0.2, "ci95": [0.1, 0.3], "n": 3}},
    "audit": {
        "gate": "default",
        "rows": 9,
        "checks": [
            {"check": "empty", "level": "warning", "count": 2, "share": 0.2, "summary": "2 rows are empty"},
            {"check": "leakage", "level": "ok", "count": 0, "share": 0.0, "summary": "0 rows"},
        ],
    },
    "samples": [{"prompt": "p", "base": "b", "tuned": "t", "chosen": "c"}],
}
PROVENANCE: dict[str, Any] = {"git_commit": "c0ffee", "data": {"sha256": {"train": "5eed"}}}


@contextmanager
def recording_server(patch: pytest.MonkeyPatch, folder: Path) -> Iterator[WandbServer]:
    """A server that the client of this process, and of those that it starts, talks to with a key and in patience."""
    with WandbServer().running() as server:
        patch.setenv("WANDB_BASE_URL", server.url)
        patch.setenv("WANDB_API_KEY", KEY)
        patch.setenv("WANDB_DATA_DIR", str(folder / "wandb_data"))
        patch.setenv("WANDB_CACHE_DIR", str(folder / "wandb_cache"))
        patch.setenv("NETRC", str(folder / "netrc"))
        for limit in ("FINISH_TIMEOUT_S", "SERVICE_TIMEOUT_S"):
            patch.setattr(tracker, limit, 60)
        yield server
        assert server.misread == []


def make_run(root: Path, name: str, *overrides: str) -> tuple[TrainConfig, RunDirectory]:
    """A run that has begun, with data and a model of a few bytes."""
    data = root.parent / "voices"
    data.mkdir(parents=True, exist_ok=True)
    for split in ("train", "held_out"):
        (data / f"{split}.jsonl").write_text(f'{{"split": "{split}"}}\n')
    files = [f"data.train={data / 'train.jsonl'}", f"data.held_out={data / 'held_out.jsonl'}"]
    config = load_config(
        ["+experiment=dpo_brand_voice", "data=files", *files, f"run.root={root}", f"run.name={name}", *overrides]
    )
    run = RunDirectory.of(config)
    run.start(config, PROVENANCE)
    run.model.mkdir()
    (run.model / "model.safetensors").write_bytes(b"weights of the model")
    return config, run


def record(step: int, loss: float | None = None) -> dict[str, Any]:
    """A line of metrics.jsonl."""
    return {"step": step, "time_s": step / 2, "pairs": 4 * step, "tokens": 99 * step, "loss": loss or 1 / step}


def attempt(
    config: TrainConfig,
    run: RunDirectory,
    steps: Sequence[int],
    *,
    end: BaseException | None = None,
    report: dict[str, Any] | None = None,
    answers: Sequence[dict[str, Any]] = (),
) -> None:
    """One attempt at a run: the records of these steps, and its end, early with an exception or with a report."""
    run.cut_records_after(steps[0] - 1)
    _await_free_name(run)
    try:
        with ExitStack() as after:
            mirror = start_wandb(config, run)
            assert isinstance(mirror, WandbMirror)
            after.push(mirror)
            log = MetricsLog(run.metrics, mirror)
            for step in steps:
                log.write(record(step))
            if end is not None:
                raise end
            mirror.finish(report or REPORT, answers)
    except BaseException as error:
        if error is not end:
            raise


def _await_free_name(run: RunDirectory) -> None:
    """W&B names a session after the second in which it starts."""
    while list((run.path / "wandb").glob(time.strftime("*run-%Y%m%d_%H%M%S-*"))):
        time.sleep(0.05)


def sessions_of(run: RunDirectory) -> list[Path]:
    """The folders of W&B's sessions, oldest first."""
    return sorted(path for path in (run.path / "wandb").glob("*run-2*") if path.is_dir() and not path.is_symlink())


def read_session(folder: Path) -> list[dict[str, Any]]:
    """The records of a session, read back by W&B's own tool."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    return [json.loads(line) for line in done.stdout.splitlines()]


def has_config(found: dict[str, Any], config: TrainConfig) -> bool:
    """True if the resolved configuration is among what W&B has, but for empty tables, which the client may drop."""

    def plain(groups: dict[str, Any]) -> dict[str, Any]:
        return {name: {key: value for key, value in groups[name].items() if value != {}} for name in as_dict(config)}

    return plain(found) == plain(as_dict(config))


def of_kind(records: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The content of the records of one kind."""
    return [record[kind] for record in records if record["type"] == kind]
