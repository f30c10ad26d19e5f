"""Plans a submission: its jobs, their order, and the files that are written before they are queued."""

from collections.abc import Callable, Sequence

from prefopt.cluster.chains import plan_chain
from prefopt.cluster.queued import find_parent, refuse_queued
from prefopt.cluster.submission import TRAIN, Submission, check_inputs, plan_run, with_folder
from prefopt.config.choices import ClusterKind, PeftMethod, ReferenceMode
from prefopt.config.cluster import ClusterConfig, SubmitConfig, SweepConfig
from prefopt.config.load import load_config
from prefopt.config.plain import as_dict
from prefopt.config.schema import TrainConfig
from prefopt.data.sources import sources_of
from prefopt.evaluation.constraint import check_constraint
from prefopt.process.errors import UserError
from prefopt.process.paths import expand
from prefopt.process.ranks import Launch
from prefopt.process.terminal import quote
from prefopt.runs.directory import RunDirectory, State
from prefopt.runs.find import CONSTRAINT, REFERENCE, SEARCH
from prefopt.runs.provenance import PREPARE
from prefopt.sweeps.folder import SweepFolder, is_done, is_over
from prefopt.sweeps.jobs import Job, Task
from prefopt.sweeps.points import Axes, Plan, place_in, plan_points, read_axes, sets
from prefopt.sweeps.search_plan import plan_search


def plan_submission(config: SubmitConfig, overrides: Sequence[str], config_dir: str | None) -> Submission:
    """Checks everything and returns what to submit; writes nothing.

    Raises:
        UserError: Anything that would make a run fail at its start.
    """
    cluster = config.cluster
    check_constraint(config.sweep.constraint)
    _check_margin(cluster)
    _check_environment(cluster)
    launch = Launch(cluster.num_ranks, cluster.num_ranks > 1 or cluster.gpus_per_node > 0)
    if config.sweep.search.num_trials is not None:
        _refuse_run_name(overrides)
        return _plan_search(config, overrides, config_dir, launch)
    axes = read_axes(overrides, config.sweep.parameters, config.sweep.points, config_dir)
    is_sweep = bool(axes.parameters or axes.points)
    if is_sweep:
        _refuse_run_name(axes.base)
    else:
        _refuse_sweep_settings(config.sweep)
    after = _find_after(config, axes, config_dir, launch)
    if config.chain.stages:
        if is_sweep:
            raise UserError("chain and sweep: a chain takes one value per setting. Submit the sweep after the chain.")
        return plan_chain(config, axes.base, config_dir, launch, after)
    if is_sweep:
        return _plan_sweep(config, axes, config_dir, launch, after)
    run = load_config(axes.base, config_dir, launch)
    check_inputs(run)
    return plan_run(run, axes.base, config_dir, config.submit.dry_run, after)


def _refuse_run_name(overrides: Sequence[str]) -> None:
    if sets(overrides, "run.name"):
        raise UserError(
            "run.name with a sweep: its runs are named after what sets them apart. sweep.name=<name> names the sweep."
        )


def _refuse_sweep_settings(sweep: SweepConfig) -> None:
    given = [f"sweep.name={sweep.name}"] if sweep.name is not None else []
    given += ["sweep.resume=true"] if sweep.resume else []
    if given:
        raise UserError(
            f"{' and '.join(given)}: this is no sweep, for no setting has several values. Choose one, such as "
            "sweep=beta_lr, or give several values, such as algorithm.beta=0.1,0.3."
        )


def _check_margin(cluster: ClusterConfig) -> None:
    days, clock = cluster.time.split("-") if "-" in cluster.time else ("0", cluster.time)
    hours, minutes, seconds = (int(part) for part in clock.split(":"))
    limit_s = ((int(days) * 24 + hours) * 60 + minutes) * 60 + seconds
    if cluster.kind is ClusterKind.slurm and cluster.margin_s * 2 > limit_s:
        raise UserError(
            f"cluster.margin_s={cluster.margin_s}: more than half of cluster.time={cluster.time} would be spent on "
            "stopping. Raise cluster.time or lower cluster.margin_s."
        )


def _check_environment(cluster: ClusterConfig) -> None:
    path = cluster.environment
    if path is not None and not expand(path).is_file():
        raise UserError(f"cluster.environment={path}: no such file (looked for {expand(path).absolute()}).")


def _plan_sweep(
    config: SubmitConfig, axes: Axes, config_dir: str | None, launch: Launch, after: list[str]
) -> Submission:
    plan = plan_points(axes, config_dir, launch)
    folder = _open_sweep(plan, config.sweep)
    points = [point for point in plan.placed(folder.path) if not is_done(folder.run_of(point))]
    if not points:
        return Submission(folder.path, [], _describe_done(plan, folder))
    refuse_queued(folder.path)
    arguments = with_folder(config_dir)
    tasks = {p.index: Task(folder.run_of(p).path, [*p.overrides, *arguments]) for p in points}
    parallel = config.cluster.max_parallel
    jobs = [
        *_plan_reference(plan, folder, arguments, after),
        Job(folder.name, folder.path, TRAIN, tasks, is_array=True, parallel=parallel, after=after),
    ]

    def write(command: str) -> None:
        constraint = check_constraint(config.sweep.constraint)
        folder.write(plan.placed(folder.path), plan.digest, command=command, **{CONSTRAINT: constraint})

    return _in_order(folder, jobs, write)


def _describe_done(plan: Plan, folder: SweepFolder) -> str:
    """Says that all points are done, and in further lines which of their data files have changed since."""
    by_data: dict[str, str | None] = {}  # most points have the same, and files are read once
    for point, config in zip(plan.placed(folder.path), plan.configs, strict=True):
        run = folder.run_of(point)
        data = repr([sources_of(config), run.read_digests()])
        if data not in by_data:
            by_data[data] = run.find_changed_data(config)
    changed = dict.fromkeys(filter(None, by_data.values()))
    lines = [f"{each}, so reports of this sweep are of the earlier data." for each in changed]
    return "\n".join([f"{folder.path}: all {len(plan.points)} points are done.", *lines])


def _plan_search(config: SubmitConfig, overrides: Sequence[str], config_dir: str | None, launch: Launch) -> Submission:
    """Plans one task per trial; the settings of a trial are drawn when it starts."""
    if config.chain.stages:
        raise UserError("chain and sweep: a chain takes one value per setting. Submit the sweep after the chain.")
    own_folder = None if config_dir is None else str(expand(config_dir).absolute())
    plan = plan_search(config.sweep, overrides, own_folder, launch)
    search, corners = plan.search, plan.corners
    ids = _find_after(config, Axes(search.overrides), config_dir, launch)
    folder = _open_sweep(corners, config.sweep)
    if folder.exists():
        search = search.continued(folder)
    trials = [trial for trial in search.points() if not is_over(folder.run_of(trial))]
    if not trials:
        more = "A greater sweep.search.num_trials adds some."
        return Submission(folder.path, [], f"{folder.path}: all {search.num_trials} trials are over. {more}")
    refuse_queued(folder.path)
    shares_reference = len({_reference_key(run) for run in corners.configs}) == 1 and search.num_trials > 1
    tasks = {trial.index: Task(folder.run_of(trial).path, []) for trial in trials}
    parallel = config.cluster.max_parallel
    jobs = [
        *(_plan_reference(corners, folder, search.arguments, ids) if shares_reference else []),
        Job(folder.name, folder.path, TRAIN, tasks, is_array=True, is_search=True, parallel=parallel, after=ids),
    ]

    def write(command: str) -> None:
        more = {SEARCH: search.to_record(), CONSTRAINT: check_constraint(config.sweep.constraint)}
        folder.write(search.points(), corners.digest, command=command, **more)

    return _in_order(folder, jobs, write)


def _open_sweep(plan: Plan, sweep: SweepConfig) -> SweepFolder:
    """The folder of a new sweep, or with `sweep.resume` of the existing one.

    Raises:
        UserError: An input is missing, or the folder holds something else.
    """
    for run in {_inputs_key(run): run for run in plan.configs}.values():
        check_inputs(run)
    name = sweep.name or "-".join(filter(None, (plan.label, sweep.label, plan.digest[:8])))
    folder = SweepFolder(expand(plan.configs[0].run.root).absolute() / name)
    if folder.exists():
        _check_same(folder, plan, sweep.resume)
    elif sweep.resume:
        raise UserError(f"sweep.resume=true: there is no sweep {folder.path} yet. Leave it out to submit this one.")
    elif folder.path.exists() and any(folder.path.iterdir()):
        raise UserError(f"{folder.path}: exists and is no sweep. Set sweep.name or run.root.")
    return folder


def _in_order(folder: SweepFolder, jobs: list[Job], write: Callable[[str], None]) -> Submission:
    """The submission of a sweep, in which each job waits for the one before it."""
    waiting = [job.waiting() if number else job for number, job in enumerate(jobs)]
    return Submission(folder.path, waiting, write=write, is_sweep=True)


def _check_same(folder: SweepFolder, plan: Plan, resume: bool) -> None:
    if folder.read()["digest"] != plan.digest:
        raise UserError(f"{folder.path}: holds a sweep with other points. Set sweep.name for a new one.")
    if not resume:
        raise UserError(
            f"{folder.path}: this sweep was submitted before. sweep.resume=true submits what is not done; "
            f"prefopt status {quote(folder.path)} shows its state."
        )


def _plan_reference(plan: Plan, folder: SweepFolder, arguments: list[str], after: list[str]) -> list[Job]:
    """The job, if needed, for reference log-probs that several points share: one task per model and data."""
    groups: dict[str, list[int]] = {}
    for number, run in enumerate(plan.configs):
        if run.algorithm.has_reference and run.reference.mode is ReferenceMode.store:
            groups.setdefault(_reference_key(run), []).append(number)
    shared = [numbers for numbers in groups.values() if len(numbers) > 1]
    tasks = {}
    for index, numbers in enumerate(shared):
        name = REFERENCE if len(shared) == 1 else f"{REFERENCE}-{index}"
        if RunDirectory(folder.path / name).read_status().get("state") == State.done.value:
            continue
        point = plan.points[numbers[0]].overrides
        tasks[index] = Task(folder.path / name, [*point, *place_in(folder.path, name, point), *arguments])
    if not tasks:
        return []
    return [Job(f"{folder.name}-{REFERENCE}", folder.path, PREPARE, tasks, is_array=len(tasks) > 1, after=after)]


def _reference_key(run: TrainConfig) -> str:
    """Identifies the reference log-probs that a run needs; without the seed, which only moves pairs between splits."""
    extra = {name: run.trainer.extra[name] for name in ("tf32",) if name in run.trainer.extra}
    is_quantised = run.peft.method is PeftMethod.qlora
    casts = run.deepspeed.stage is not None
    parts = [as_dict(run.model), as_dict(run.data), run.trainer.precision.name, run.reference.path]
    return repr([*parts, extra, is_quantised, casts])


def _inputs_key(run: TrainConfig) -> str:
    return repr([as_dict(run.data), run.model.path, run.evaluation.pairs, run.evaluation.neutral_texts])


def _find_after(config: SubmitConfig, axes: Axes, config_dir: str | None, launch: Launch) -> list[str]:
    """Ids of the jobs to wait for; empty if `submit.after` is unset or names something that is done."""
    after = config.submit.after
    ids = find_parent(after, axes, config_dir, launch) if after else []
    if ids and config.cluster.kind is ClusterKind.local:
        raise UserError(f"submit.after={after} with cluster=local: only Slurm waits for its jobs.")
    return ids
