"""Measures a finished run again: `python -m prefopt.evaluate --help`, or `prefopt.evaluate(run)` in Python."""

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefopt.config.choices import Kernels, OnBadRow
from prefopt.config.load import TRAIN, load_config
from prefopt.config.ranges import require
from prefopt.config.remeasure import ROWS, asks_for_test, override, split_override
from prefopt.config.schema import TrainConfig
from prefopt.config.settings_parser import SettingsParser
from prefopt.data.loading import read_splits
from prefopt.data.sources import digest_files, find_changed_files
from prefopt.distributed import group
from prefopt.distributed.entry import run_entry
from prefopt.process.errors import UserError
from prefopt.process.imports import importing
from prefopt.process.ranks import is_launched, is_main, world_size
from prefopt.process.terminal import quote
from prefopt.runs.changes import SETTINGS, find_changed_model
from prefopt.runs.directory import RunDirectory
from prefopt.runs.files import read_report
from prefopt.runs.find import find_run
from prefopt.runs.settings import read_config

if TYPE_CHECKING:
    from prefopt.evaluation.overlap import Overlap
    from prefopt.models.examples import Examples

logger = logging.getLogger("prefopt.evaluate")  # as `python -m` its name is __main__

HELP = """Measure a finished run again and rebuild its report.

  python -m prefopt.evaluate run=runs/<name>
  python -m prefopt.evaluate run=runs/<name> evaluation.num_samples=128
  python -m prefopt.evaluate run=runs/<name> data.held_out=other_pairs.jsonl
  python -m prefopt.evaluate run=runs/<name> split=test
  torchrun --nproc-per-node 8 -m prefopt.evaluate run=runs/<name>
  python -m prefopt.evaluate run=runs/<name> evaluation.judges=[classifier] \\
      'evaluation.contestants=[base,tuned,{name: prompted, system: prompt.md}]'
  python -m prefopt.evaluate report=<folder> data.held_out=prompts.jsonl model=hf model.path=<base> \\
      'evaluation.contestants=[base,{name: tuned, model: <folder>}]' evaluation.judges=[...]

Settings of `evaluation`, `data.held_out`, and what is read of other rows (data.tag, data.max_length, data.on_bad and
the other data.on_…) may be changed; everything else is as in the run's config.yaml.
A report on other data goes to a folder of its own beside the run's, runs/<name>/report-<file>-<digest>.

split=test measures on data.test (of the run's config.yaml, or data.test=<file> given here), after all choices are
made: the report goes to runs/<name>/report-test, and runs/test_looks.jsonl counts the looks. From the second run on
that is measured on the same test data, the report warns: a test set by which runs are chosen is held-out data."""
WORDS = ("ship",)
NOT_MET = 3
"""Exit code if the decision is not the one that `--require` asks for, as that of a gate of the audit."""
MEASURED_BY = ("data.held_out", "data.test")
"""Settings that name the data of a comparison without a run."""


def main(argv: list[str]) -> None:
    """Rebuilds `report/` of a run, or writes a report on other data beside it, from command-line overrides."""
    parser = SettingsParser("prefopt.evaluate", HELP, [TRAIN])
    parser.add_argument(
        "overrides", nargs="+", help="run=<folder>, evaluation.<setting>=<value>, data.held_out=<file>, split=test"
    )
    parser.add_argument(
        "--require", choices=WORDS, help=f"for CI: exit code {NOT_MET} if the decision is another word"
    )
    parser.add_argument(
        "--recorded",
        action="store_true",
        help="measure nothing: take the decision that was recorded, if model, data and settings are still the same",
    )
    options = parser.read(argv)
    report = _report_of(options.overrides, is_recorded=options.recorded)
    if not is_main():
        return
    if options.require is not None:
        _pass_or_exit(options.require, report)
    elif options.recorded:
        print(f"The recorded decision holds: {_word_of(report)} ({report.get('date')})")


def _word_of(report: Mapping[str, Any]) -> str | None:
    from prefopt.evaluation.decision import Decision

    decision = Decision.from_written(report.get("decision"))
    return None if decision is None else decision.word


def _pass_or_exit(required: str, report: Mapping[str, Any]) -> None:
    """Tells the decision, and ends with `NOT_MET` if it is not the one that is required."""
    word = _word_of(report)
    sys.stderr.write(f"--require {required}: the decision is {word} ({report.get('date')})\n")
    if word != required:
        sys.exit(NOT_MET)


def _report_of(given: Sequence[str], *, is_recorded: bool) -> dict[str, Any]:
    """Measures what the command line asks for, or reads what was measured, and returns the report."""
    if not any(item.startswith("run=") for item in given) and any(item.startswith("report=") for item in given):
        require(not is_recorded, "--recorded: goes with run=<folder>, whose report it reads.")
        return _compare(given)
    overrides = dict(split_override(item) for item in given)
    if "run" not in overrides:
        raise UserError(
            "run: required. Give run=<folder of a run>, such as run=runs/<name>; or report=<folder> to compare models "
            "where no run is."
        )
    folder = Path(overrides.pop("run"))
    return _recall(folder, overrides) if is_recorded else _evaluate(folder, overrides)


def _recall(folder: Path, overrides: dict[str, str]) -> dict[str, Any]:
    """Returns the run's report, if what its decision rests on is still the same.

    Raises:
        UserError: There is no report, or its evidence is stale.
    """
    with importing():
        from prefopt.evaluation.evidence import find_edit, find_stale, gather
        from prefopt.runs.final_model import require_sound_model

    run = find_run(folder)
    trained, config = read_settings(run, overrides)
    report, _ = read_report(run.report / "report.json")
    again = f"Measure again: prefopt evaluate run={quote(folder)}"
    require(bool(report), f"--recorded: {run.report} has no report that can be read. {again}")
    assert report is not None
    edited = find_edit(run.report)
    require(edited is None, f"--recorded: {run.report} is not what was measured: {edited}. {again}")
    require_sound_model(run)
    require_same_base(run, trained)
    stale = find_stale(report.get("evidence") or {}, gather(config, run.model))
    require(not stale, f"--recorded: the report of {run.path} is stale: changed since: {', '.join(stale)}. {again}")
    logger.info("evaluation: %s: the decision of %s holds", run.report, report.get("date"))
    return report


def _compare(given: Sequence[str]) -> dict[str, Any]:
    """Compares contestants where no run is; see `prefopt.evaluation.duel`.

    Raises:
        UserError: It was launched on several ranks, which would all measure and write the same, the report cannot be
            written, or the settings or the data cannot be used.
    """
    require(
        world_size() == 1,
        f"report: a comparison without a run is measured by one process, found {world_size()} ranks. Start it without "
        "torchrun: python -m prefopt.evaluate report=<folder> ...",
    )
    wanted = {name: [item for item in given if item.startswith(f"{name}=")] for name in ("report", *MEASURED_BY)}
    data = [item for name in MEASURED_BY for item in wanted[name]]
    require(len(data) == 1, f"report: name the data to measure on, by one of {', '.join(MEASURED_BY)}.")
    folder = _check_folder(wanted["report"][-1].partition("=")[2])
    others = [item for item in given if item not in (*wanted["report"], *data)]
    named = data[0].partition("=")[2]
    names_data = any(item.startswith("data=") and item != "data=files" for item in others)
    is_trained = names_data or any(item.startswith(("data.train=", "+experiment=")) for item in others)
    untrained = [] if is_trained else [f"data.train={named}"]  # the settings need one
    config = load_config([*others, *untrained, f"data.held_out={named}"])

    with importing():
        from prefopt.evaluation.duel import evaluate_contestants
        from prefopt.process.console import build_console
        from prefopt.reports.console import print_report
        from prefopt.reports.publish import write

    console = build_console()
    setting = data[0].partition("=")[0]
    evaluation = evaluate_contestants(config, setting=setting, has_training=is_trained)
    write(evaluation, folder)
    print_report(evaluation.report, folder / "report.html", console)
    return evaluation.report.to_dict()


def evaluate(run: RunDirectory | Path | str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Measures a finished run again, and returns what report.json holds, NaN for its null; {} on ranks other than 0.

    Args:
        run: What `train` returned, or the folder of a run.
        overrides: Settings of `evaluation`, `data.held_out`, and `split=test` with `data.test`, as on the command
            line. A report on other data than the run's goes to a folder of its own beside `report/`.

    Raises:
        UserError: There is no such run, it has no final model, another process trains or measures it, or a setting
            may not change.
    """
    require(not isinstance(overrides, str), f"overrides: must be a list of settings, found the text {overrides!r}.")
    folder = run.path if isinstance(run, RunDirectory) else Path(run)
    return _evaluate(folder, dict(split_override(item) for item in overrides))


def _evaluate(folder: Path, overrides: dict[str, str]) -> dict[str, Any]:
    run = find_run(folder)
    _, config = read_settings(run, overrides)  # tells mistakes before the ranks meet and the run is locked
    if is_launched():
        with importing():
            group.start(config)
    with run.locked() as locked:
        return _measure(locked, overrides)


def _measure(run: RunDirectory, overrides: dict[str, str]) -> dict[str, Any]:
    trained, config = read_settings(run, overrides)  # before it was locked, another process may have replaced the run
    is_test = asks_for_test(overrides)

    from prefopt.models.examples import load_examples
    from prefopt.process.console import build_console
    from prefopt.process.output import keep_in
    from prefopt.runs.final_model import require_sound_model

    console = build_console()
    keep_in(run.path)
    run.read_records()  # reports a damaged line now, not after measuring
    require_sound_model(run)
    group.on_main(lambda: require_same_base(run, trained))
    if is_test:
        group.on_main(lambda: _require_no_held_out(run, trained, config))
    is_other = config.data.held_out != trained.data.held_out or group.on_main(lambda: _has_changed(run, trained))
    rows = {name: getattr(config.data, name) for name in ROWS}
    on_overlap = trained.data.on_overlap or trained.data.on_bad or OnBadRow.refuse  # about training data: as it was
    read = replace(trained, data=replace(trained.data, **rows, on_overlap=on_overlap))
    examples = load_examples(read, measured=config.data.held_out if is_other else None)

    with importing():
        from prefopt.evaluation.looks import digest_prompts, record_look
        from prefopt.evaluation.material import build_material  # TRL: seconds
        from prefopt.evaluation.run import choose_folder, describe_data, evaluate_run
        from prefopt.reports.console import print_report
        from prefopt.reports.publish import publish
        from prefopt.tracking.wandb import record_evaluation

    material = group.on_main(lambda: build_material(config, examples))
    folder = group.on_main(lambda: choose_folder(config, run, examples, material, is_test=is_test))
    test = None
    if is_test:

        def look() -> dict[str, Any]:
            _require_other_tokens(run, trained, config, describe_data(examples, material)["sha256"])
            looks = [record_look(run, config.data.held_out, digest_prompts(examples.records.held_out or ()))]
            looks += [record_look(run, config.evaluation.pairs)] if config.evaluation.pairs is not None else []
            found = max(looks, key=lambda each: (len(each["others"]), each["looks"]))
            return {**found, "held_out": _compare_with_held_out(trained, examples)}

        test = group.on_main(look)
    evaluation = evaluate_run(config, run, examples, material, test)
    if evaluation is None:
        return {}
    report = publish(evaluation, run, folder)
    print_report(report, folder / "report.html", console)
    record_evaluation(config, run, report.to_dict(), evaluation.answers)
    return report.to_dict()


def _check_folder(given: str) -> Path:
    """Returns the folder of a report that is to be written; found unfit now, nothing is measured in vain.

    Raises:
        UserError: It has no name, cannot be written, or holds a report.
    """
    require(given.strip() not in ("", "."), "report: name a folder of its own for the report: report=<folder>.")
    folder = Path(given)
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists() or each.is_symlink())
    require(there.is_dir(), f"report={folder}: {there} is a file, and a folder is needed. Name another folder.")
    require(not (folder / "report.json").exists(), f"report={folder}: holds a report already. Name another folder.")
    require(os.access(there, os.W_OK | os.X_OK), f"report={folder}: {there} cannot be written. Name another folder.")
    return folder


def _compare_with_held_out(trained: TrainConfig, examples: "Examples") -> "Overlap | None":
    """Counts the test prompts that are held-out prompts of the run; None if it has none that can be read."""
    from prefopt.evaluation.overlap import measure_overlap

    try:
        known = read_splits(trained.data, kind=trained.algorithm.rows, seed=trained.run.seed).held_out
    except UserError as error:
        logger.warning("evaluation: test prompts were not compared with the run's held-out prompts. %s", error)
        return None
    return measure_overlap(known, examples.records.held_out or (), trained.data) if known else None


def _require_no_held_out(run: RunDirectory, trained: TrainConfig, config: TrainConfig) -> None:
    """Refuses the run's held-out data as test data, also if they are a copy: the run may have been chosen by them.

    Raises:
        UserError: The files have the same content.
    """
    known = run.read_provenance().get("data", {}).get("files", {}).get("held_out")
    if known is not None and known == digest_files(config.data.held_out):
        raise _same_as_held_out(trained, config)
    if trained.evaluation.pairs is not None and config.evaluation.pairs is None:
        logger.info(
            "evaluation: evaluation.pairs=%s is held-out data and not measured here; evaluation.pairs=<file> beside "
            "split=test names test pairs",
            trained.evaluation.pairs,
        )


def _require_other_tokens(
    run: RunDirectory, trained: TrainConfig, config: TrainConfig, measured: dict[str, str]
) -> None:
    """Refuses the run's held-out rows as test data, also from a file that is written in another way.

    Raises:
        UserError: The rows are the same.
    """
    own = run.read_provenance().get("data", {}).get("sha256", {})
    for part in ("held_out", "pairs"):
        if own.get(part) is not None and own.get(part) == measured.get(part):
            raise _same_as_held_out(trained, config)


def _same_as_held_out(trained: TrainConfig, config: TrainConfig) -> UserError:
    return UserError(
        f"data.test={config.data.held_out}: holds the same as data.held_out={trained.data.held_out}, on which "
        "this run was measured before it was chosen. Give other data."
    )


def _has_changed(run: RunDirectory, trained: TrainConfig) -> bool:
    """Returns whether the held-out file of a run has changed since it was trained; says so, also of its pairs."""
    known = run.read_provenance().get("data", {}).get("files", {})
    specs = {"held_out": trained.data.held_out, "pairs": trained.evaluation.pairs}
    found = find_changed_files(specs, known)
    for name, what in found.items():
        logger.warning("%s: %s %s: not the data of the run", SETTINGS[name], specs[name], what)
    return "held_out" in found


def read_settings(run: RunDirectory, overrides: dict[str, str]) -> tuple[TrainConfig, TrainConfig]:
    """Returns the settings that a run was trained with, and those that it is to be measured with.

    Raises:
        UserError: The run has no final model, or a setting may not change.
    """
    if not run.model.is_dir():
        raise UserError(f"run={run.path}: has no final model yet. Finish it with the command that started it.")
    trained = read_config(run.config)
    config = override(trained, overrides)
    config.engine.kernels = Kernels.auto  # chosen for this machine, not for the one that trained
    return trained, config


def require_same_base(run: RunDirectory, config: TrainConfig) -> None:
    """Refuses a base model that has changed since training: it would be a wrong baseline, or a wrong base of adapters.

    Raises:
        UserError: The message names the files that have changed.
    """
    with importing():
        from prefopt.models.fingerprint import describe_model

    changed = find_changed_model(run.read_provenance(), {"model": describe_model(config.model)})
    if changed is not None:
        raise UserError(f"run={run.path}: {changed}. Put it back as it was, or train anew under another run.name.")


if __name__ == "__main__":
    run_entry(main)
