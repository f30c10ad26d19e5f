"""The parser of commands that take settings: a setting typed as an option gets an error that says how to type it."""

import argparse
import re
from collections.abc import Sequence

from prefopt.config.aliases import called, slipped
from prefopt.config.catalog import EXPERIMENT
from prefopt.config.composition import Tree
from prefopt.config.overrides import parse, typed
from prefopt.process.errors import UserError, shorten
from prefopt.process.terminal import quote

VALUE = "<value>"


class SettingsParser(argparse.ArgumentParser):
    """Reads options and overrides in any order."""

    def __init__(self, program: str, about: str, trees: Sequence[Tree]) -> None:
        """Sets up the parser; its arguments are added as to any other.

        Args:
            program: Name of the command.
            about: The text of `--help`, shown as it is.
            trees: The trees whose settings the command takes.
        """
        super().__init__(program, None, about, formatter_class=argparse.RawTextHelpFormatter)
        self._settings = list(dict.fromkeys(name for tree in trees for name in tree.setting_names()))
        self._groups = list(dict.fromkeys(name for tree in trees for name in tree.group_names()))

    def read(self, argv: list[str]) -> argparse.Namespace:
        """Parses the arguments.

        Raises:
            UserError: There is no such option; the message names the setting that was probably meant.
        """
        given, unknown = self.parse_known_intermixed_args(argv)
        if unknown:
            raise UserError(self._as_setting(unknown[0], argv))
        return given

    def _as_setting(self, option: str, argv: list[str]) -> str:
        """The message that says what to type in place of an unknown option, such as `--max-steps 3`."""
        word, equals, value = option.lstrip("-").partition("=")
        value = value if equals else _value_behind(option, argv)
        choices = {EXPERIMENT: [f"+{EXPERIMENT}"], **{group: [group] for group in self._groups}}
        said = f"{shorten(option)}: no option of {self.prog}; settings are written as group.setting=value."
        if meant := choices.get(word) or called(word, self._settings):
            return f"{said} Write {' or '.join(_assigned(name, value) for name in meant)}"
        if meant := slipped(word, self._settings):
            return f"{said} Did you mean {' or '.join(_assigned(name, value) for name in meant)}"
        return f"{said} What there is: prefopt list settings"


def _assigned(name: str, value: str) -> str:
    """An override as it is typed in a shell."""
    line = f"{name}={value}"
    if value == VALUE:
        return line
    try:
        parse([line])
    except UserError:
        return typed(name, value)
    return quote(line)


def _value_behind(option: str, argv: list[str]) -> str:
    """The argument after an option; `VALUE` if that is an option or an override itself."""
    following = argv[argv.index(option) + 1 :][:1] if option in argv else []
    return next((text for text in following if not re.match(r"-\D|[~+]*[\w.@/]+=", text)), VALUE)
