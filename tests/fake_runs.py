"""Run folders as a real run leaves them, without training: for tests and benchmarks of what reads runs."""

import json
import math
import random
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from prefopt.config.load import load_config, to_yaml
from prefopt.config.schema import TrainConfig
from prefopt.data.intervals import wilson
from prefopt.runs.find import SWEEP_FORMAT

NUM_HELD_OUT = 132


@cache
def base_config(algorithm: str = "dpo") -> TrainConfig:
    """The configuration of the shipped study without a tracker."""
    return load_config([f"+experiment={algorithm}_brand_voice", "logger=none"])


def with_settings(config: TrainConfig, settings: dict[str, Any]) -> TrainConfig:
    """A copy of a configuration with dotted settings changed."""
    changed = deepcopy(config)
    for key, value in settings.items():
        *groups, name = key.split(".")
        target: Any = changed
        for group in groups:
            target = getattr(target, group)
        assert hasattr(target, name), f"{key} is no setting"
        setattr(target, name, value)
    return changed


def write_fake_run(
    folder: Path,
    *,
    state: str | None = "done",
    settings: dict[str, Any] | None = None,
    algorithm: str = "dpo",
    accuracy: float | None = 0.9,
    kl: float | None = 0.2,
    loss: float | None = None,
    num_lines: int = 20,
    lines_per_evaluation: int = 5,
    num_held_out: int = NUM_HELD_OUT,
    decision: str = "ship",
    message: str = "",
    margins: list[float] | None = None,
    prompts: list[int] | None = None,
    seed: int = 0,
) -> Path:
    """Writes `folder` as a run of this state would lie there, and returns it.

    Args:
        folder: The run's folder; its name is the run's.
        state: Of status.json; None: no status.json.
        settings: Dotted settings that differ from the shipped study's.
        algorithm: dpo or sft.
        accuracy: Held-out preference accuracy of the report; None: not measured.
        kl: KL per token of the report; None: not measured.
        loss: Held-out loss per token of the report; None: not measured.
        num_lines: Training lines of metrics.jsonl.
        lines_per_evaluation: Training lines between two held-out lines.
        num_held_out: Held-out pairs.
        decision: Of the report.
        message: Of status.json.
        margins: Of the tuned model per held-out pair, written to report/pairs.jsonl; None: no such file.
        prompts: Of these pairs; None: one each.
        seed: Of the noise in the curves.
    """
    folder.mkdir(parents=True)
    config = with_settings(base_config(algorithm), {"run.name": folder.name, **(settings or {})})
    folder.joinpath("config.yaml").write_text(to_yaml(config), encoding="utf-8")
    lines = fake_lines(algorithm, num_lines, lines_per_evaluation, accuracy or 0.5, seed)
    folder.joinpath("metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    if state is not None:
        status = {"state": state, "step": lines[-1]["step"] if lines else 0, "attempts": 1, "message": message}
        folder.joinpath("status.json").write_text(json.dumps(status, indent=2), encoding="utf-8")
    if state == "done":
        folder.joinpath("report").mkdir()
        report = fake_report(config, lines, accuracy, kl, loss, num_held_out, decision)
        folder.joinpath("report", "report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
        if margins is not None:
            folder.joinpath("report", "pairs.jsonl").write_text(_pair_lines(margins, prompts), encoding="utf-8")
    return folder


def _pair_lines(margins: list[float], prompts: list[int] | None) -> str:
    rows = [
        {
            "source": f"held_out.jsonl:{number}",
            "prompt": prompt,
            "base_margin": 0.0,
            "tuned_margin": margin,
            "reward_margin": margin,
        }
        for number, (margin, prompt) in enumerate(zip(margins, prompts or range(len(margins)), strict=True), start=1)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_fake_sweep(
    folder: Path, points: dict[str, dict[str, Any]], constraint: dict[str, float] | None = None
) -> Path:
    """Writes `folder/sweep.json` with these points (run name -> changed settings) and returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = {
        "format": SWEEP_FORMAT,
        "name": folder.name,
        "constraint": constraint or {},
        "points": [
            {"index": i, "name": name, "changes": changes, "overrides": [f"{k}={v}" for k, v in changes.items()]}
            for i, (name, changes) in enumerate(points.items())
        ],
    }
    folder.joinpath("sweep.json").write_text(json.dumps(plan, indent=2), encoding="utf-8")
    return folder


def fake_lines(
    algorithm: str, num_lines: int, per_evaluation: int, accuracy: float, seed: int
) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl: training lines, and a held-out line after every `per_evaluation` of them."""
    chance = random.Random(seed)
    lines = []
    for number in range(1, num_lines + 1):
        learned = 1 - math.exp(-3 * number / num_lines)
        seen = {"step": 5 * number, "time_s": round(0.61 * number, 3), "pairs": 40 * number, "tokens": 9731 * number}
        lines.append(seen | _train_line(algorithm, learned, number / num_lines, chance))
        if number % per_evaluation == 0:
            lines.append({**seen, "split": "held_out", **_held_out_line(algorithm, learned, accuracy, chance)})
    return lines


def _train_line(algorithm: str, learned: float, done: float, chance: random.Random) -> dict[str, float]:
    shared = {
        "loss": 0.6931 - 0.5 * learned + chance.gauss(0, 0.05)
        if algorithm == "dpo"
        else 3.1 - learned + chance.gauss(0, 0.1),
        "grad_norm": abs(chance.gauss(4, 1.5)),
        "learning_rate": 1e-4 * (1 - done),
        "entropy": 2.1 + chance.gauss(0, 0.1),
        "mean_token_accuracy": 0.4 + 0.2 * learned + chance.gauss(0, 0.02),
    }
    if algorithm != "dpo":
        return shared
    return shared | {
        "logits/chosen": chance.gauss(-1.3, 0.2),
        "logits/rejected": chance.gauss(-1.2, 0.2),
        **_rewards(learned, chance),
    }


def _held_out_line(algorithm: str, learned: float, accuracy: float, chance: random.Random) -> dict[str, float]:
    if algorithm != "dpo":
        return {"loss": 3.1 - 0.9 * learned, "mean_token_accuracy": 0.4 + 0.2 * learned}
    return {
        "loss": 0.6931 - 0.4 * learned,
        **_rewards(learned, chance),
        "preference_accuracy": 0.5 + (accuracy - 0.5) * learned + chance.gauss(0, 0.01),
    }


def _rewards(learned: float, chance: random.Random) -> dict[str, float]:
    margin = 2 * learned + chance.gauss(0, 0.2)
    return {
        "rewards/chosen": 0.3 * learned + chance.gauss(0, 0.1),
        "rewards/rejected": 0.3 * learned - margin,
        "rewards/accuracies": min(1.0, 0.5 + 0.5 * learned),
        "rewards/margins": margin,
        "logps/chosen": -183.0 + 4 * learned + chance.gauss(0, 8),
        "logps/rejected": -197.0 - 12 * learned + chance.gauss(0, 8),
    }


def estimate(value: float, half: float, n: int) -> dict[str, Any]:
    """An entry of report.json."""
    return {"value": value, "ci95": [value - half, value + half], "n": n}


def share(value: float, n: int) -> dict[str, Any]:
    """An entry of report.json for a proportion, with Wilson's interval."""
    return {"value": value, "ci95": list(wilson(value * n, n)), "n": n}


def fake_report(
    config: TrainConfig,
    lines: list[dict[str, Any]],
    accuracy: float | None,
    kl: float | None,
    loss: float | None,
    n: int,
    decision: str,
) -> dict[str, Any]:
    """A report.json with every block that evaluation writes."""
    last = lines[-1] if lines else {"step": 0, "time_s": 0.0, "pairs": 0, "tokens": 0}
    seconds = max(last["time_s"], 1e-9)
    tuned: dict[str, Any] = {} if loss is None else {"loss": estimate(loss, 0.08, n)}
    base: dict[str, Any] = {} if loss is None else {"loss": estimate(3.1, 0.1, n)}
    if accuracy is not None:
        base |= {"preference_accuracy": share(0.5, n), "mean_margin": estimate(0.01, 0.04, n)}
        tuned |= {
            "preference_accuracy": share(accuracy, n),
            "mean_margin": estimate(2 * (accuracy - 0.5), 0.11, n),
            "reward_accuracy": share(accuracy, n),
            "reward_margin": estimate(4 * (accuracy - 0.5), 0.24, n),
        }
    gain = {} if accuracy is None else {"preference_accuracy": estimate(accuracy - 0.5, 0.09, n), "p_value": 1e-6}
    drift = {"response_length": {"base": estimate(94.2, 6.1, 32), "tuned": estimate(94.2 + 120 * (kl or 0), 6.8, 32)}}
    if kl is not None:
        drift |= {"kl_per_token": estimate(kl, 0.12 * kl, 32), "kl_per_response": estimate(75 * kl, 9 * kl, 32)}
    drift["perplexity"] = {
        "base": estimate(157, 14, 40),
        "tuned": estimate(181, 17, 40),
        "ratio": estimate(1.15, 0.04, 40),
    }
    level = "bad" if decision == "do_not_ship" else "good"
    return {
        "format": 1,
        "run": {"name": config.run.name, "algorithm": config.algorithm.name.value, "steps": last["step"]},
        "held_out": {"n": n, "base": base, "tuned": tuned, "gain": gain},
        "overfitting": {} if accuracy is None else {"preference_accuracy": {"gap": estimate(0.03, 0.05, n)}},
        "drift": drift,
        "likelihood": None
        if accuracy is None
        else {"chosen": estimate(-0.2, 0.05, n), "rejected": estimate(-0.9, 0.1, n)},
        "throughput": {
            "pairs_per_s": last["pairs"] / seconds,
            "tokens_per_s": last["tokens"] / seconds,
            "train_time_s": last["time_s"],
            "mfu": None,
        },
        "samples": [{"prompt": "Where is my order?", "base": "It " * 60, "tuned": "On the van. " * 9, "chosen": None}]
        * 8,
        "provenance": {"data": {"sha256": {"train": "a" * 64, "held_out": "b" * 64}}, "git_commit": "c" * 40},
        "decision": {"word": decision, "reasons": [], "would_decide": []},
        "verdict": [{"level": level, "finding": "The model was ruined." if level == "bad" else "It is better."}],
    }
