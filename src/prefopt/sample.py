"""Entry point: preference pairs of a model's own answers, by a judge. `python -m prefopt.sample --help`."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.text import Text

from prefopt.config.durations import parse_time_limit
from prefopt.config.judges import read_deciding_judge
from prefopt.config.load import TRAIN, load_config
from prefopt.config.overrides import read_overrides
from prefopt.config.ranges import require
from prefopt.config.schema import TrainConfig
from prefopt.config.settings_parser import SettingsParser
from prefopt.data.prompts import read_prompts
from prefopt.data.sources import digest_files
from prefopt.distributed import group
from prefopt.distributed.entry import run_entry
from prefopt.distributed.group import keep_on_main, on_main
from prefopt.distributed.preemption import StopRequest, scheduler_end
from prefopt.process import phases
from prefopt.process.console import build_console
from prefopt.process.errors import UserError
from prefopt.process.imports import importing
from prefopt.process.output import keep_in
from prefopt.process.paths import cache_folder, resolve
from prefopt.process.ranks import is_launched, is_main
from prefopt.process.terminal import quote
from prefopt.runs.directory import RunDirectory, State
from prefopt.runs.provenance import SAMPLE, collect, command_line
from prefopt.runs.sampling import check_sampling, describe_sampled, is_sampled
from prefopt.storage.files import write_text

HELP = """Let a model answer prompts several times, and make pairs of the best and the worst answer by a judge.

  prefopt sample prompts.jsonl --output pairs.jsonl model=hf model.path=runs/<name>/model \\
      'evaluation.judges=[{kind: rule, patterns: [...]}]' --num-samples 4
  prefopt train data=files data.train=pairs.jsonl model=hf model.path=runs/<name>/model

Only the field 'prompt' of the rows is read, text or messages; each prompt is asked once, and none that data.held_out
has too (data.on_overlap=skip leaves such prompts out). Answers that were cut at evaluation.max_new_tokens are left
out, since training would teach the model to end there; so are prompts whose answers the judge finds equally good. The
rows have as score_chosen and score_rejected what each answer won less what it lost against the prompt's other samples;
data.train reads them as they are.

Without --output the pairs go to <run.root>/<run.name>/pairs.jsonl, a folder with a state as a run's. The stages of a
chain do so: prefopt submit chain=iterative_dpo."""
SUFFIX = ".jsonl"


class Pairs(NamedTuple):
    """Rows of pairs, what has become of the prompts and their answers, in words, and what would give more."""

    rows: list[dict[str, Any]]
    told: str
    remedy: str


def main(argv: list[str]) -> None:
    """Writes one file, or none.

    Raises:
        UserError: A setting or a row is invalid, there is no judge, no pair is left, or the file exists already.
    """
    options = _parse(argv)
    require(options.num_samples >= 2, f"--num-samples: must be >= 2, found {options.num_samples}.")
    require(
        options.output is not None or not options.overwrite,
        "--overwrite: replaces the file of --output, and none is named. To replace what is in <run.root>/<run.name>, "
        "write run.overwrite=true instead.",
    )
    output = None if options.output is None else _check_output(options.output, may_replace=options.overwrite)
    phases.begin()
    config = load_config(read_overrides(options.overrides), options.config_dir)
    read_deciding_judge(config.evaluation.judges)
    if is_launched():
        with importing():
            group.start(config)
    console = build_console()
    if output is None:
        _sample_in_folder(config, options.num_samples, argv, console)
        return
    pairs = _sample(config, options.num_samples)
    on_main(lambda: _write(pairs, output, console))


def _sample_in_folder(config: TrainConfig, num_samples: int, argv: list[str], console: Console) -> None:
    """Samples in a folder that has a state, as a run's; where that is done, only says so."""
    own = RunDirectory.of(config)
    on_main(lambda: check_sampling(own, config, num_samples))
    limit, end = parse_time_limit(config.run.time_limit), scheduler_end()
    with StopRequest.install(time_limit_s=limit, scheduler_end=end) as stop, own.locked() as run:
        keep_in(run.path)
        if on_main(lambda: not config.run.overwrite and is_sampled(run)):
            console.print(on_main(lambda: describe_sampled(run, config)))
            return
        console.print(Text.assemble((str(run.path), "bold"), f"  samples of {config.model.path}"))

        with importing():
            from prefopt.models.fingerprint import describe_model
            from prefopt.training.ending import recorded_end

        def begin() -> None:
            files = {"train": config.data.train, "held_out": config.data.held_out}
            digests = {name: digest_files(spec) for name, spec in files.items() if spec is not None}
            provenance = collect(
                config, {"files": digests}, describe_model(config.model), {"command": command_line(SAMPLE, argv)}
            )
            run.start(config, {**provenance, "num_samples": num_samples})
            phases.keep(run)

        def finish(pairs: Pairs) -> None:
            _write(pairs, run.pairs, console)
            phases.save()
            run.set_state(State.done, message=pairs.told)

        with recorded_end(run), stop.raise_at_once():
            pairs = _sample(config, num_samples, begin)
            on_main(lambda: finish(pairs))


def _sample(config: TrainConfig, num_samples: int, begin: Callable[[], None] = lambda: None) -> Pairs:
    """Returns the pairs, on rank 0 those of all ranks.

    Args:
        config: The settings: model, prompts, judge.
        num_samples: Answers to each prompt.
        begin: Called on rank 0 once prompts and judge are known to be good.

    Raises:
        UserError: The prompts, the judge or the model cannot be used.
    """
    with importing():
        from prefopt.evaluation.judges import build_judges
        from prefopt.evaluation.judges.judge import JudgeContext
        from prefopt.evaluation.on_policy import Counts, make_pairs, sample_answers
        from prefopt.models.load import check_hardware

    check_hardware(config)
    with phases.of("reading"):
        prompts, num_held_out = on_main(lambda: read_prompts(config.data, config.algorithm.rows))
    wanted = read_deciding_judge(config.evaluation.judges)
    context = JudgeContext([], config, cache_folder() / "verdicts")
    judge = keep_on_main(lambda: build_judges(wanted, context)[0])
    on_main(begin)
    with phases.of("answers"):
        answers = sample_answers(config, prompts, num_samples)
    if not is_main():
        return Pairs([], "", "")
    counts = Counts(num_held_out=num_held_out)
    made_by = {"model": config.model.path, "judge": judge.name, "seed": config.run.seed}
    with phases.of("judging"):
        rows = [{**row, **made_by} for row in make_pairs(prompts, answers, judge, counts)]
    return Pairs(rows, counts.line(), counts.remedy())


def _write(pairs: Pairs, output: Path, console: Console) -> None:
    console.print(pairs.told, soft_wrap=True)
    name = quote(output)
    require(bool(pairs.rows), f"{name}: not written, since no pair is left. {pairs.remedy}")
    write_text(output, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in pairs.rows))
    console.print(f"{name}: train on them: data=files data.train={name}", soft_wrap=True)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = SettingsParser("prefopt.sample", HELP, [TRAIN])
    parser.add_argument("overrides", nargs="+", help="files with prompts, and overrides as for prefopt.train")
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"the file to write, {SUFFIX}")
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
