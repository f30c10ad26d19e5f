"""Entry point: preference pairs of a model's own answers, by a judge. `python -m prefopt.sample --help`."""

import argparse
import json
from pathlib import Path

from prefopt.config.judges import read_judges
from prefopt.config.load import TRAIN, load_config
from prefopt.config.overrides import read_overrides
from prefopt.config.ranges import require
from prefopt.config.settings_parser import SettingsParser
from prefopt.distributed.entry import run_entry
from prefopt.process.errors import UserError
from prefopt.process.imports import importing
from prefopt.process.paths import cache_folder, resolve
from prefopt.process.terminal import quote
from prefopt.storage.files import write_text

HELP = """Let a model answer prompts several times, and make pairs of the best and the worst answer by a judge.

  prefopt sample prompts.jsonl --output pairs.jsonl model=hf model.path=runs/<name>/model \\
      'evaluation.judges=[{kind: rule, patterns: [...]}]' --num-samples 4
  prefopt train data=files data.train=pairs.jsonl model=hf model.path=runs/<name>/model

Only the field 'prompt' of the rows is read, text or messages; each prompt is asked once. Answers that were cut at
evaluation.max_new_tokens are left out, since training would teach the model to end there; so are prompts whose
answers the judge finds equally good. The rows have the judge's scores; data.train reads them as they are."""
SUFFIX = ".jsonl"


def main(argv: list[str]) -> None:
    """Writes one file, or none.

    Raises:
        UserError: A setting or a row is invalid, there is no judge, no pair is left, or the file exists already.
    """
    options = _parse(argv)
    output = _check_output(options.output, may_replace=options.overwrite)
    given = read_overrides(options.overrides)
    config = load_config([*given, "data.held_out_fraction=0"], options.config_dir)
    wanted = read_judges(config.evaluation.judges)
    require(bool(wanted), "evaluation.judges: required, such as 'evaluation.judges=[{kind: rule, patterns: [...]}]'.")
    require(options.num_samples >= 2, f"--num-samples: must be >= 2, found {options.num_samples}.")

    with importing():
        from prefopt.evaluation.judges import build_judges
        from prefopt.evaluation.judges.judge import JudgeContext
        from prefopt.evaluation.on_policy import Counts, make_pairs, read_prompts, sample_answers
        from prefopt.models.load import check_hardware
        from prefopt.process.console import build_console

    console = build_console()
    check_hardware(config)
    (judge, *_) = build_judges(wanted, JudgeContext([], config, cache_folder() / "verdicts"))
    records, counts = read_prompts(config.data), Counts()
    answers = sample_answers(config, records, options.num_samples)
    made_by = {"model": config.model.path, "judge": judge.name, "seed": config.run.seed}
    rows = [{**row, **made_by} for row in make_pairs(records, answers, judge, counts)]
    console.print(counts.line(), soft_wrap=True)
    require(
        bool(rows), f"{quote(output)}: not written, since no pair is left. More samples, or another judge, may help."
    )
    write_text(output, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
    console.print(f"{quote(output)}: train on them: data=files data.train={quote(output)}", soft_wrap=True)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = SettingsParser("prefopt.sample", HELP, [TRAIN])
    parser.add_argument("overrides", nargs="+", help="files with prompts, and overrides as for prefopt.train")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help=f"the file to write, {SUFFIX}")
    parser.add_argument("--num-samples", type=int, default=4, help="answers to each prompt, 4 by default")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if there is one")
    parser.add_argument("--config-dir", help="a folder with your own config groups")
    return parser.read(argv)


def _check_output(given: Path, *, may_replace: bool) -> Path:
    output = resolve(str(given))
    if output.suffix.lower() != SUFFIX:
        raise UserError(f"--output {given}: JSON lines are written, so the name must end in {SUFFIX}.")
    if not output.parent.is_dir():
        raise UserError(f"--output {given}: no such folder: {output.parent}. Make it first.")
    if output.exists() and not may_replace:
        raise UserError(f"--output {given}: exists already. Give another name, or add --overwrite.")
    return output


if __name__ == "__main__":
    run_entry(main)
