"""Nothing in a path, in data or in another program's words acts on the terminal that shows it."""

import io
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.table import Table
from rich.text import Text

import prefopt
from prefopt.process.console import build_console, progress_bar
from prefopt.process.terminal import Terminal, printable, quote
from prefopt.training.callbacks import ConsoleCallback

HOSTILE = "[/] [bold red]x[/bold red] [link=u]y[/link] :smile: \x1b[31mred\x1b]0;title \u202egnp \udcff"
SHOWN = "[/] [bold red]x[/bold red] [link=u]y[/link] :smile: \ufffd[31mred\ufffd]0;title \ufffdgnp \ufffd"


def shown(what: object) -> str:
    output = io.StringIO()
    Terminal(file=output, width=200, force_terminal=True, color_system="truecolor").print(what)
    return output.getvalue()


def in_table(text: str) -> Table:
    table = Table(box=None)
    table.add_column(min_width=120)
    table.add_row(Text(text))
    return table


@pytest.mark.parametrize("as_", [str, Text, in_table], ids=["text", "Text", "table"])
def test_markup_and_escape_sequences_in_a_text_are_shown_as_text(as_):
    found = shown(as_(HOSTILE))
    assert SHOWN in found
    assert "\x1b[31m" not in found
    assert "\x1b]" not in found


def test_our_own_styles_still_act():
    assert shown(Text.assemble(("bold", "bold"), " \x1b[31m")) == "\x1b[1mbold\x1b[0m \ufffd[31m\n"


def test_a_line_of_progress_is_cleaned_too():
    console = Terminal(file=(output := io.StringIO()), width=80)
    with progress_bar(console, "read \x1b[2J") as update:
        update(1, 2)
    assert "\x1b[2J" not in output.getvalue()


@pytest.mark.parametrize(
    ("width", "parts"),
    [
        (160, ("training ━", "45/1000", "margin 9.732", "11.3 examples/s", "-:--:--")),
        (100, ("training   45/1000", "margin 9.732", "11.3 examples/s", "-:--:--")),
        (80, ("training   45/1000", "margin 9.732", "-:--:--")),
        (40, ("training   45/1000 -:--:--",)),
    ],
)
def test_the_line_of_training_loses_whole_parts_and_never_the_step_or_the_time_left(width, parts):
    console = Terminal(file=(output := io.StringIO()), width=width, force_terminal=True, color_system=None)
    state = SimpleNamespace(global_step=0, max_steps=1000)
    show = ConsoleCallback(console)
    show.on_train_begin(None, state, None)
    numbers = {"loss": 0.00134, "rewards/accuracies": 1.0, "rewards/margins": 9.732}
    show.record({"step": 45, "pairs": 1130, "training_s": 100.0, **numbers}, 1000)
    show.close()
    last = re.sub(r"\x1b\S*?[A-Za-z]", "", output.getvalue()).replace("\r", "\n").strip().splitlines()[-1]
    position = 0
    for part in parts:
        position = last.index(part, position) + len(part)
    assert ("━" in last, "examples/s" in last) == (width > 100, width > 80)
    assert "…" not in last


def test_a_number_of_training_that_rounds_to_zero_has_no_minus():
    show = ConsoleCallback(Terminal(file=(output := io.StringIO()), width=200))
    show.on_train_begin(None, SimpleNamespace(global_step=0, max_steps=9), None)
    numbers = {"loss": -0.00001, "rewards/accuracies": 1.0, "rewards/margins": -0.0004}
    show.record({"step": 4, "pairs": 1, "training_s": 1.0, **numbers}, 9)
    assert "loss 0.0000  reward acc 1.000  reward margin 0.000" in output.getvalue()


def test_log_lines_go_through_the_same_place(capsys):
    import logging

    build_console()
    logging.getLogger("prefopt.test").warning("rows of %s [/]", "a\x1b[31m.jsonl")
    assert capsys.readouterr().out == "rows of a\ufffd[31m.jsonl [/]\n"


def test_lines_and_tabs_stay_and_all_else_that_acts_goes():
    assert printable("a\tb\nc\rd\x00e\x7f") == "a\tb\nc\ufffdd\ufffde\ufffd"


@pytest.mark.parametrize("word", ["plain", "two words", "it's", "a\x1b[31m", "line\nbreak", "\u202e", "-n"])
def test_a_quoted_word_reaches_a_program_as_it_was_and_holds_nothing_that_acts(word):
    quoted = quote(word)
    assert printable(quoted) == quoted
    assert "\n" not in quoted
    found = subprocess.run(
        ["bash", "-c", f"printf %s {quoted}"] if word != "-n" else ["printf", "%s", word],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == word


def test_every_console_of_the_package_is_a_terminal():
    package = Path(prefopt.__file__).parent
    made = [path.name for path in package.rglob("*.py") if re.search(r"(?<!\w)Console\((?!\):)", path.read_text())]
    assert made == []
