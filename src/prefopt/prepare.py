"""Entry point: computes tokens and reference log-probs for several runs, before they start.

`python -m prefopt.prepare --help` shows the use.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.text import Text

from prefopt.config.durations import parse_time_limit
from prefopt.config.load import TRAIN, load_config
from prefopt.config.schema import TrainConfig
from prefopt.config.settings_parser import SettingsParser
from prefopt.distributed import group
from prefopt.distributed.entry import run_entry
from prefopt.distributed.group import on_main
from prefopt.distributed.preemption import StopRequest, scheduler_end
from prefopt.models.examples import load_examples
from prefopt.process import phases
from prefopt.process.console import build_console
from prefopt.process.imports import importing
from prefopt.process.output import keep_in
from prefopt.process.ranks import is_launched
from prefopt.runs.directory import RunDirectory

HELP = """Tokenise the data and compute the reference log-probs of a run, without training.

  python -m prefopt.prepare +experiment=dpo_brand_voice

Runs that follow find both. The first job of a sweep does this, so that its points do not do it each."""


def main(argv: list[str]) -> None:
    """Fills the caches for one configuration.

    Raises:
        UserError: For every mistake that the user can fix.
    """
    parser = SettingsParser("prefopt.prepare", HELP, [TRAIN])
    parser.add_argument("overrides", nargs="*", help="as for prefopt.train")
    parser.add_argument("--config-dir", help="a folder with your own config groups")
    options = parser.read(argv)
    phases.begin()
    with phases.of("configuration"):
        config = load_config(options.overrides, options.config_dir)
    if is_launched():
        with importing():
            group.start(config)
    limit, end = parse_time_limit(config.run.time_limit), scheduler_end()
    with StopRequest.install(time_limit_s=limit, scheduler_end=end) as stop:
        execute(config, stop, argv)


def execute(config: TrainConfig, stop: StopRequest, argv: list[str]) -> None:
    """Loads and checks the examples, then computes the reference log-probs that the store lacks."""
    console = build_console()
    with RunDirectory.of(config).claimed(config) as own, _place(own, console) as run:
        of = f"  reference of {config.model.path} on {config.data.train}"
        console.print(Text.assemble((str(own.path), "bold"), of))
        examples = load_examples(config, audited=True)

        with importing():
            from prefopt.algorithms import load_algorithm
            from prefopt.training.preparation import compute_reference

            algorithm = load_algorithm(config.algorithm)  # TRL, a matter of seconds

        compute_reference(algorithm, config, run, examples, stop, console, argv)


@contextmanager
def _place(own: RunDirectory, console: Console) -> Iterator[RunDirectory]:
    """The run's folder; one that is thrown away, if training has begun there: a pass would cover up how far it is."""
    if not on_main(own.is_trained):
        keep_in(own.path)
        yield own
        return
    console.print(f"{own.path}: training has begun here, so this folder stays as it is, and only the store is filled")
    with TemporaryDirectory(prefix="prefopt-prepare-") as folder:
        yield RunDirectory(Path(folder))


if __name__ == "__main__":
    run_entry(main)
