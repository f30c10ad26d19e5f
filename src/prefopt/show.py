"""Entry point: shows one row of the training data as the model gets it. `python -m prefopt.show --help`."""

import json
from pathlib import Path

from prefopt.config.load import TRAIN, load_config
from prefopt.config.overrides import read_overrides
from prefopt.config.settings_parser import SettingsParser
from prefopt.data.shown_record import read_record
from prefopt.distributed.entry import run_entry
from prefopt.process.imports import importing
from prefopt.process.terminal import Terminal, quote

HELP = """Show one row of the training data as the model gets it: rendered by the chat template, as tokens, and which
of them are trained, only given, or cut off. Look at some before you train.

  prefopt show pairs.jsonl                                             as the shipped model gets it
  prefopt show pairs.jsonl model=hf model.path=<id or folder>          as yours does
  prefopt show pairs.jsonl --row pairs.jsonl:18                        a row that the audit names
  prefopt show +experiment=dpo_brand_voice --row 17                    by number, from 0
  prefopt show +experiment=dpo_brand_voice --row 17 --html row.html    each token with its id
  prefopt show +experiment=dpo_brand_voice --json                      for programs"""


def main(argv: list[str]) -> None:
    """Shows a row; trains nothing, and writes nothing but the page that is asked for.

    Raises:
        UserError: A setting or a row is invalid, or there is no such row.
    """
    parser = SettingsParser("prefopt.show", HELP, [TRAIN])
    parser.add_argument("overrides", nargs="*", help="files, and overrides as for prefopt.train")
    parser.add_argument(
        "--row",
        default="0",
        help="which row of data.train: its number from 0 (default), or file:line as the audit has it",
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--config-dir", help="a folder with your own config groups")
    options = parser.read(argv)
    config = load_config(read_overrides(options.overrides), options.config_dir)
    record, rows, remarks = read_record(config.data, kind=config.algorithm.rows, row=options.row)

    with importing():
        from prefopt.data.anatomy import dissect
        from prefopt.models.load import load_tokenizer
        from prefopt.reports.row import print_row, to_json, write_row_page

    tokenizer = load_tokenizer(config.model)
    anatomy = dissect(record, rows, tokenizer, config.data, loss_on=config.algorithm.trained_tokens)
    seen_by = f"as {config.model.path} gets it in {config.algorithm.name.value}"
    if options.html is not None:
        write_row_page(anatomy, tokenizer, options.html, remarks=[*remarks, seen_by])
    if options.json:
        print(json.dumps(to_json(anatomy, tokenizer)))
        return
    console = Terminal(soft_wrap=True)
    print_row(anatomy, tokenizer, console, [*remarks, seen_by])
    if options.html is not None:
        console.print(f"\nPage: {quote(options.html)}")


if __name__ == "__main__":
    run_entry(main)
