"""Reads the settings of a run from its folder."""

import shlex
from pathlib import Path

import yaml

from prefopt.config.load import from_dict
from prefopt.config.schema import TrainConfig
from prefopt.process.errors import UserError, explained, first_line
from prefopt.runs.files import PROVENANCE, read_run_file


def read_config(path: Path) -> TrainConfig:
    """Reads the `config.yaml` of a run's folder, which `to_yaml` wrote.

    Raises:
        UserError: The file cannot be read, is damaged, or is of another version.
    """
    anew = _how_to_write_anew(path)
    try:
        with explained(path, remedy=anew):
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is damaged ({first_line(error)}). {anew}") from error
    return from_dict(values, str(path))


def _how_to_write_anew(path: Path) -> str:
    """Returns a sentence with the command that writes config.yaml again, from the command in provenance.json."""
    try:
        command = read_run_file(path.with_name("provenance.json"), PROVENANCE).get("command")
    except UserError:
        command = None
    begun = command or "python -m prefopt.train <the overrides of the run>"
    return f"Write it anew with the command that began the run: {begun} --cfg job > {shlex.quote(str(path))}"
