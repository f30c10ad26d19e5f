"""The folder of a stage that samples: as a run's, with pairs in place of a model."""

import hashlib
import json
from typing import Any

from prefopt.config.load import flatten, identity
from prefopt.config.plain import as_dict
from prefopt.config.schema import TrainConfig
from prefopt.process.errors import UserError
from prefopt.runs.directory import RunDirectory, State
from prefopt.runs.provenance import SAMPLE
from prefopt.runs.settings import read_config


def settings_of_sampling(config: TrainConfig, num_samples: int | None) -> dict[str, Any]:
    """Returns by name the settings that decide which pairs come out; none of them is about training."""
    values = identity(config)
    data = {key: value for key, value in values["data"].items() if key != "held_out_fraction"}
    evaluation = config.evaluation
    return flatten(
        {
            "model": values["model"],
            "data": data,
            "evaluation": {"judges": as_dict(evaluation.judges), "max_new_tokens": evaluation.max_new_tokens},
            "trainer": {"precision": values["trainer"]["precision"]},
            "run": {"seed": config.run.seed},
            "chain": {"num_samples": num_samples},
        }
    )


def digest_sampling(config: TrainConfig, num_samples: int) -> str:
    """SHA-256 (hex) of `settings_of_sampling`: stages with the same one make the same pairs."""
    return hashlib.sha256(json.dumps(settings_of_sampling(config, num_samples), sort_keys=True).encode()).hexdigest()


def check_sampling(run: RunDirectory, config: TrainConfig, num_samples: int) -> None:
    """Refuses a folder that holds something else than this sampling, or that cannot be written. Writes nothing.

    Raises:
        UserError: It names the settings that differ.
    """
    if config.run.overwrite:
        run.check(config)
        return
    run.check_place()
    if not run.config.exists():
        return
    if run.made_by() != SAMPLE:
        raise UserError(f"{run.path}: holds a run that was not made by prefopt sample. Set run.name for another.")
    before = settings_of_sampling(read_config(run.config), run.read_provenance().get("num_samples"))
    now = settings_of_sampling(config, num_samples)
    changed = [f"{key}: {before.get(key)} -> {now.get(key)}" for key in sorted(now) if before.get(key) != now[key]]
    if changed:
        raise UserError(
            f"{run.path}: holds pairs that were sampled with other settings ({'; '.join(changed)}). "
            "Set run.name for new ones, or run.overwrite=true to replace these."
        )


def is_sampled(run: RunDirectory) -> bool:
    """Returns whether all pairs have been written."""
    return run.read_status().get("state") == State.done.value and run.pairs.is_file()


def describe_sampled(run: RunDirectory, config: TrainConfig) -> str:
    """Says that the pairs are there; if the prompts have changed since, in a second line."""
    done = f"{run.path}: its pairs have been sampled: {run.pairs}"
    changed = run.find_changed_data(config)
    return done if changed is None else f"{done}\n{changed}, so these pairs are of the earlier data."
