"""Plans chains: stages that train or sample, each after the one before, perhaps in several rounds."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefopt.cluster.queued import queued_jobs
from prefopt.cluster.submission import Submission, check_inputs, is_below, locate, plan_run, with_folder
from prefopt.config.cluster import ChainConfig, SubmitConfig
from prefopt.config.judges import read_deciding_judge
from prefopt.config.load import fingerprint, load_config
from prefopt.config.mixture import paths_of
from prefopt.config.overrides import assign
from prefopt.config.plain import as_dict
from prefopt.config.ranges import require, require_folder_name
from prefopt.config.schema import TrainConfig
from prefopt.data.files import HUB
from prefopt.data.prompts import read_prompts
from prefopt.process.errors import UserError
from prefopt.process.ranks import Launch
from prefopt.runs.directory import RunDirectory
from prefopt.runs.provenance import SAMPLE
from prefopt.runs.sampling import check_sampling, describe_sampled, digest_sampling, is_sampled
from prefopt.sweeps.jobs import Job, Task
from prefopt.sweeps.points import sets

logger = logging.getLogger(__name__)

KEYS = ("name", "overrides", "command")
COMMANDS = ("train", "sample")
PLACE = re.compile(r"\{([^\W\d_][\w-]*)\}")
"""The folder of a stage, as an override names it. A name begins with a letter: `[a-z]{3}` is a regular expression."""


@dataclass(frozen=True)
class Stage:
    """One stage of one round.

    Attributes:
        name: As overrides of later stages name it.
        overrides: Its own, after those that all stages share.
        samples: Whether it samples; else it trains.
        round: Number of its round, from 1; None in a chain without rounds.
    """

    name: str
    overrides: list[str]
    samples: bool
    round: int | None

    @property
    def title(self) -> str:
        """The name with the number of the round, such as dpo_2."""
        return self.name if self.round is None else f"{self.name}_{self.round}"


def plan_chain(
    config: SubmitConfig, overrides: Sequence[str], config_dir: str | None, launch: Launch, after: Sequence[str]
) -> Submission:
    """Plans stages that each wait for the one before; `{name}` in overrides is the folder of an earlier stage.

    Args:
        config: The stages and rounds, and whether it is a dry run.
        overrides: Those that all stages share.
        config_dir: A folder of the user's own config groups.
        launch: How each stage is started.
        after: Ids of jobs for which the first job waits.

    Raises:
        UserError: Anything that would make a stage fail at its start, as far as it can be known now.
    """
    planner = _Planner(config, overrides, config_dir, launch)
    pending = list(after)
    for stage in _read_stages(config.chain):
        submission, queued = planner.plan(stage, pending)
        pending = [*pending, *queued] if submission.answer else []
    submissions = planner.submissions
    jobs: list[Job] = []
    left = [submission for submission in submissions if not submission.answer]
    for submission in left or submissions:
        jobs += [job.waiting() if jobs else job for job in submission.jobs]
    answer = "\n".join(submission.answer for submission in submissions if submission.answer)
    return Submission(submissions[-1].folder, jobs, answer)


def _read_stages(chain: ChainConfig) -> list[Stage]:
    """Returns the stages of all rounds, in order."""
    stages = []
    for number in range(1, (chain.rounds or 1) + 1):
        for index, given in enumerate(chain.stages):
            name, overrides, command = _read_stage(index, given)
            stages.append(Stage(name, overrides, command == "sample", None if chain.rounds is None else number))
    return stages


def _read_stage(number: int, stage: Any) -> tuple[str, list[str], str]:
    where = f"chain.stages[{number}]:"
    is_known = isinstance(stage, dict) and set(stage) <= set(KEYS) and isinstance(stage.get("name"), str)
    lines = stage.get("overrides", []) if is_known else None
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise UserError(f"{where} must have a name and a list of overrides, and may have a command, found {stage!r}.")
    command = stage.get("command", "train")
    require(command in COMMANDS, f"{where} command must be {' or '.join(COMMANDS)}, found {command!r}.")
    require(
        PLACE.fullmatch(f"{{{stage['name']}}}") is not None,
        f"{where} no stage can be called {stage['name']!r}: a letter, and then letters, digits, - and _.",
    )
    return stage["name"], lines, command


class _Planner:
    """Plans one stage after another, and knows the folders of those before.

    Attributes:
        submissions: Of the stages so far.
    """

    def __init__(self, config: SubmitConfig, overrides: Sequence[str], config_dir: str | None, launch: Launch) -> None:
        self.submissions: list[Submission] = []
        self._config, self._overrides, self._config_dir, self._launch = config, overrides, config_dir, launch
        self._folders: dict[str, str] = {}
        self._names = {stage.name for stage in _read_stages(config.chain)}
        self._read: set[str] = set()

    @property
    def _made(self) -> list[Path]:
        return [submission.folder for submission in self.submissions]

    def plan(self, stage: Stage, after: Sequence[str]) -> tuple[Submission, list[str]]:
        """Returns the submission of a stage, and the ids of queued jobs that do its work already."""
        lines = [*self._overrides, *(filled for line in stage.overrides if (filled := self._fill(line, stage)))]
        if stage.samples:
            submission, queued = self._plan_sample(stage, lines, after)
        else:
            submission, queued = self._plan_train(stage, lines, after), []
        if submission.folder in self._made:
            raise UserError(
                f"chain, stage {stage.name}: {submission.folder} is the folder of an earlier stage too. Give run.name "
                "in the overrides of each stage, or leave it out."
            )
        self.submissions.append(submission)
        self._folders[stage.name] = str(submission.folder)
        return submission, queued

    def _fill(self, line: str, stage: Stage) -> str | None:
        """Puts folders in the places of names; None if the first round leaves the line out."""
        names = PLACE.findall(line)
        if not names:
            return line
        known = self._names if stage.round is not None else set(self._folders)
        unknown = next((name for name in names if name not in known), None)
        if unknown is not None:
            which = "stages" if stage.round is not None else "stages before it"
            listed = ", ".join(sorted(known) if stage.round is not None else self._folders) or "none"
            raise UserError(f"chain, stage {stage.name}: {line} names stage {unknown}; {which}: {listed}.")
        if any(name not in self._folders for name in names):
            logger.info("chain, stage %s: %s is left out, for that stage has not been yet", stage.title, line)
            return None
        key, _, value = PLACE.sub(lambda found: self._folders[found[1]], line).partition("=")
        return assign(key, value)

    def _plan_train(self, stage: Stage, lines: list[str], after: Sequence[str]) -> Submission:
        run = load_config(lines, self._config_dir, self._launch)
        _name(run, stage, lines, f"{stage.title}-{fingerprint(run)[:8]}" if stage.round else run.run.name)
        check_inputs(run, made=self._made)
        self._require_apart(run, stage)
        return plan_run(run, lines, self._config_dir, self._config.submit.dry_run, after)

    def _require_apart(self, run: TrainConfig, stage: Stage) -> None:
        """Refuses to hold out prompts of a round on which rounds before may have trained."""
        rounds, data = self._config.chain.rounds or 1, run.data
        is_sampled = any(is_below(str(path), self._made) for path in paths_of(data.train))
        if rounds > 1 and is_sampled and data.held_out is None and data.held_out_fraction > 0:
            raise UserError(
                f"chain, stage {stage.name}: data.held_out: required with chain.rounds={rounds}, since each round "
                "would hold out other prompts, on which the rounds before have trained. Name a file of pairs with "
                "prompts of their own (prefopt sample makes some), or set data.held_out_fraction=0."
            )

    def _plan_sample(self, stage: Stage, lines: list[str], after: Sequence[str]) -> tuple[Submission, list[str]]:
        run = load_config(lines, self._config_dir, self._launch)
        if stage.round is not None and stage.round > 1:  # else a model that has hardly changed repeats its answers
            lines = [*lines, assign("run.seed", str(run.run.seed + stage.round - 1))]
            run.run.seed += stage.round - 1
        num_samples = self._config.chain.num_samples
        _name(run, stage, lines, f"{stage.title}-{digest_sampling(run, num_samples)[:8]}")
        check_inputs(run, made=self._made)
        read_deciding_judge(run.evaluation.judges)
        directory = RunDirectory(RunDirectory.of(run).path.absolute())
        check_sampling(directory, run, num_samples)
        answer = describe_sampled(directory, run) if is_sampled(directory) and not run.run.overwrite else ""
        if not answer:
            self._check_prompts(run)
        queued = queued_jobs(directory.path)
        if queued and not answer:  # of a chain that differs only in how it trains
            answer = f"{directory.path}: job {', '.join(queued)} samples these pairs already."
        if answer and not self._config.submit.dry_run:
            return Submission(directory.path, [], answer), queued
        arguments = [*lines, *locate(run, directory), f"--num-samples={num_samples}", *with_folder(self._config_dir)]
        task = Task(directory.path, arguments)
        return Submission(
            directory.path, [Job(directory.path.name, directory.path, SAMPLE, {0: task}, after=after)], answer
        ), queued

    def _check_prompts(self, run: TrainConfig) -> None:
        """Reads prompts that are there, once for all rounds: a mistake in them is told now."""
        paths = [str(path) for spec in (run.data.train, run.data.held_out) for path in paths_of(spec)]
        key = repr(as_dict(run.data))
        if key not in self._read and not any(path.startswith(HUB) or is_below(path, self._made) for path in paths):
            read_prompts(run.data, run.algorithm.rows)
            self._read.add(key)


def _name(run: TrainConfig, stage: Stage, lines: Sequence[str], default: str | None) -> None:
    """Sets the name of a stage's folder; one that was given is put before the stage's in a chain with rounds."""
    if not sets(lines, "run.name"):
        run.run.name = default
    elif stage.round is not None:
        run.run.name = f"{run.run.name}-{stage.title}"
    assert run.run.name is not None
    require_folder_name(f"chain, stage {stage.name}: run.name", run.run.name)
