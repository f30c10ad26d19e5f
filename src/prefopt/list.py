"""Entry point: lists what can be chosen. `python -m prefopt.list --help` shows the use."""

import argparse
from collections.abc import Sequence
from dataclasses import fields

from rich.text import Text

from prefopt.config.aliases import called, nearest, slipped
from prefopt.config.catalog import EXPERIMENT, Option, read_defaults, read_options
from prefopt.config.cluster import SUBMIT
from prefopt.config.load import TRAIN
from prefopt.config.provider import PROVIDER, ProviderConfig
from prefopt.config.setting_docs import read_sections
from prefopt.distributed.entry import run_entry
from prefopt.process.errors import UserError
from prefopt.process.terminal import Terminal

HELP = """List what can be chosen: models, experiments, sweeps, clusters, options of all other groups, single settings.

  prefopt list
  prefopt list models
  prefopt list experiments --config-dir mine
  prefopt list settings learning            every single setting whose name or meaning holds a word

What would run: prefopt train <overrides> --cfg job. The same list of settings on one page: docs/settings.md."""
SETTINGS = ("settings", "setting")
ABOUT = {
    EXPERIMENT: "Whole studies: data, model and the settings that differ from the defaults.",
    PROVIDER: str(ProviderConfig.__doc__),
}
TYPED = {EXPERIMENT: f"+{EXPERIMENT}=", PROVIDER: "convert --to "}
"""What is typed before an option of a group; `<group>=` before those of others."""


def main(argv: list[str]) -> None:
    """Lists the config groups, or the options of one.

    Raises:
        UserError: There is no such group or folder.
    """
    parser = argparse.ArgumentParser("prefopt.list", None, HELP, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("group", nargs="?", help="a config group, such as models, or settings; all groups without")
    parser.add_argument("word", nargs="?", default="", help="with settings: those whose name or meaning holds it")
    parser.add_argument("--config-dir", help="a folder with your own config groups: its options are listed too")
    options = parser.parse_intermixed_args(argv)
    console = Terminal(soft_wrap=True)
    if options.group in SETTINGS:
        _print_settings(options.word, console)
        return
    if options.word:
        raise UserError(f"list {options.group} {options.word}: only settings are searched for a word.")
    found = read_options(options.config_dir)
    if options.group is None:
        _print_groups(found, console)
    else:
        group = find_group(options.group, list(found))
        _print_options(group, found[group], console)


def find_group(asked: str, groups: Sequence[str]) -> str:
    """The group of this name, in the singular or the plural.

    Raises:
        UserError: There is none; the message names the nearest ones.
    """
    for group in groups:
        if asked in (group, f"{group}s", f"{group}es"):
            return group
    near = nearest(asked, groups)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    raise UserError(f"list {asked}: no such config group. {hint}Groups: {', '.join(groups)}.")


def _print_groups(found: dict[str, list[Option]], console: Terminal) -> None:
    """Prints a line per group: how it is chosen, and its options."""
    groups = dict.fromkeys([EXPERIMENT, *read_defaults("train"), *read_defaults("submit"), *found])
    width = max(map(len, map(_choice, groups)))
    for group in (group for group in groups if group in found):
        names = ", ".join(option.name for option in found[group])
        console.print(Text.assemble((f"{_choice(group):<{width}}  ", "bold"), names))
    console.print("\nprefopt list <group> describes each one.")


def _print_settings(word: str, console: Terminal) -> None:
    """Prints two lines per setting: its name with default and type, and its meaning."""
    found = [
        (section, setting)
        for tree in (TRAIN, SUBMIT)
        for section in read_sections(tree)
        for setting in section.settings
    ]
    shown = [(section, s) for section, s in found if word.lower() in f"{s.name} {s.meaning}".lower()]
    if not shown:
        names = list(dict.fromkeys(setting.name for _, setting in found))
        meant = called(word, names) or slipped(word, names)
        hint = f"Did you mean {' or '.join(meant)}? " if meant else ""
        raise UserError(
            f"list settings {word}: no setting has it in its name or meaning. {hint}All: prefopt list settings."
        )
    for section, setting in shown:
        kind, default = (text.replace("`", "") for text in (setting.kind, setting.default))
        of = f"  ({section.title})" if section.is_variant else ""
        console.print(Text.assemble((setting.name, "bold"), f"={default}  ({kind})", (of, "dim")))
        console.print(f"    {setting.meaning}")


def _print_options(group: str, options: Sequence[Option], console: Terminal) -> None:
    """Prints a line per option: its name and the description in its file."""
    command = " of prefopt.submit" if group in read_defaults("submit") else ""
    console.print(Text.assemble((f"{_choice(group)}<name>", "bold"), f"{command}  {_about(group)}"))
    width = max(len(option.name) for option in options)
    for option in options:
        marks = [mark for mark, holds in (("default", option.is_default), (str(option.path), option.is_own)) if holds]
        words = option.description or "(begin the file with a comment, and it is shown here)"
        console.print(f"  {option.name:<{width}}  {words}" + (f"  ({', '.join(marks)})" if marks else ""))


def _choice(group: str) -> str:
    """What is typed before the name of an option."""
    return TYPED.get(group, f"{group}=")


def _about(group: str) -> str:
    """The first sentence of the group's schema."""
    schemas = {field.name: field.type for tree in (TRAIN, SUBMIT) for field in fields(tree.root)}
    words = getattr(schemas.get(group), "__doc__", None) or ABOUT.get(group, "")
    return str(words).strip().splitlines()[0] if words else ""


if __name__ == "__main__":
    run_entry(main)
