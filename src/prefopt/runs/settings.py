"""Reads the settings of a run from its folder."""

import shlex
from pathlib import Path

from prefopt.config.load import from_dict
from prefopt.config.schema import TrainConfig
from prefopt.process.errors import UserError, explained, first_line
from prefopt.runs.files import PROVENANCE, read_run_file
from prefopt.storage.reading import parse_yaml, read_text


def read_config(path: Path) -> TrainConfig:
    """Reads the `config.yaml` of a run's folder, which `to_yaml` wrote.

    Raises:
        UserError: The file cannot be read, is damaged, or is of another version.
    """
    anew = _how_to_write_anew(path)
    try:
        with explained(path, remedy=anew):
            text = read_text(path)
        values = parse_yaml(text)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path}: is damaged ({first_line(error)}). {anew}") from error
    return from_dict(values, str(path))


def _how_to_write_anew(path: Path) -> str:
    """How to get the settings of a run once more, from what is known of its beginning."""
    try:
        begun = read_run_file(path.with_name("provenance.json"), PROVENANCE)
    except UserError:
        begun = {}
    if "program" in begun:
        return (
            f"The run was begun by prefopt.train(config) in: {begun['program']}. Write the file anew there, with "
            f"pathlib.Path({str(path)!r}).write_text(prefopt.config.load.to_yaml(config))"
        )
    command = begun.get("command") or "python -m prefopt.train <the overrides of the run>"
    return f"Write it anew with the command that began the run: {command} --cfg job > {shlex.quote(str(path))}"
