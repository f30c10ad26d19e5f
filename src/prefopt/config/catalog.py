"""The options of every config group, shipped and the user's own, each with the description in its file."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from prefopt.process.errors import UserError
from prefopt.process.paths import expand, shipped

EXPERIMENT = "experiment"
PRIMARIES = ("train", "submit")
"""The files of `conf/` that choose an option per group."""
NESTED = ("data/gate",)
"""Groups whose folder lies within that of another group; all other folders within a group sort its options."""


@dataclass(frozen=True)
class Option:
    """One file of a config group.

    Attributes:
        group: Folder below `conf/`.
        name: What is typed after `<group>=`.
        description: The first comment of the file, in one line; empty if there is none.
        path: Path of the file.
        is_own: True if the file is the user's, not shipped.
        is_default: True if it is chosen by default.
    """

    group: str
    name: str
    description: str
    path: Path
    is_own: bool = False
    is_default: bool = False


def read_options(config_dir: str | None = None) -> dict[str, list[Option]]:
    """The options by group, groups and options sorted by name.

    Args:
        config_dir: A folder of the user's own config groups.

    Raises:
        UserError: There is no such folder, or an option in it has the name of a shipped one.
    """
    found = list(_options(shipped("conf"), is_own=False))
    if config_dir is not None:
        found += _options(find_folder(config_dir), is_own=True)
    grouped: dict[str, list[Option]] = {}
    for option in sorted(found, key=lambda option: (option.group, option.name)):
        grouped.setdefault(option.group, []).append(option)
    return grouped


def read_defaults(primary: str) -> dict[str, str | None]:
    """The option that a primary file of `conf/` chooses, by group; None for one that must be chosen."""
    text = (shipped("conf") / f"{primary}.yaml").read_text(encoding="utf-8")
    entries = [entry for entry in yaml.safe_load(text)["defaults"] if isinstance(entry, dict)]
    return {group: None if name == "???" else name for entry in entries for group, name in entry.items()}


def find_folder(config_dir: str) -> Path:
    """The folder that `--config-dir` names.

    Raises:
        UserError: There is none, or a file of it has the name of a shipped option, which Hydra would take instead.
    """
    folder = expand(config_dir).resolve()
    if not folder.is_dir():
        raise UserError(f"--config-dir {config_dir}: no such folder.")
    conf = shipped("conf")
    own = (path.relative_to(conf) for path in conf.rglob("*.yaml"))
    hidden = next((path for path in own if (folder / path).exists()), None)
    if hidden is not None:
        raise UserError(
            f"--config-dir {config_dir}: {hidden} has the name of a shipped option, which would be taken in its "
            "place. Give it another name."
        )
    return folder


def _options(folder: Path, *, is_own: bool) -> Iterator[Option]:
    chosen = {} if is_own else {group: name for tree in PRIMARIES for group, name in read_defaults(tree).items()}
    for outer in sorted(path.name for path in shipped("conf").iterdir() if path.is_dir()):
        for path in (folder / outer).rglob("*.yaml"):
            inner = f"{outer}/{path.relative_to(folder / outer).parts[0]}"
            group = inner if inner in NESTED else outer
            name = path.relative_to(folder / group).with_suffix("").as_posix()
            yield Option(group, name, describe(path), path, is_own, is_default=chosen.get(group) == name)


def describe(path: Path) -> str:
    """The first comment line of a config file; empty if there is none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    comments = (line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    return next((line for line in comments if line and not line.startswith("@")), "")
