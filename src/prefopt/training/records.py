"""The records that a run writes step by step. None may be missing, so a run that cannot write them stops."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from prefopt.distributed.checkpoint import CheckpointFacts
from prefopt.distributed.group import on_main
from prefopt.process.errors import UserError, describe
from prefopt.runs.directory import RunDirectory, State
from prefopt.runs.trouble import trouble_of
from prefopt.tracking.metrics import MetricsLog, Mirror

logger = logging.getLogger(__name__)


class RunRecords:
    """Writes metrics.jsonl, rows.jsonl and status.json while a run trains. Only rank 0 writes.

    Attributes:
        num: Lines of metrics.jsonl over all attempts, including those that were lost or are not written yet.
        trouble: The error if a file could not be written, for which all ranks must stop; else None.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._metrics, self._rows = MetricsLog(run.metrics), MetricsLog(run.rows)
        self.num = 0
        self.trouble: OSError | None = None

    def begin(self, facts: CheckpointFacts | None, mirror: Mirror | None) -> None:
        """Drops the lines that will be written again, and logs how many others were lost. All ranks call it.

        Args:
            facts: Facts of the checkpoint that the run resumes from; None if it starts afresh.
            mirror: Also gets every line of metrics.jsonl; None if there is none.
        """
        self._metrics = MetricsLog(self._run.metrics, mirror)
        self.num = on_main(lambda: self._cut(facts))

    def _cut(self, facts: CheckpointFacts | None) -> int:
        """Returns the number of lines up to the checkpoint. Lost lines count, so that readers notice the loss."""
        run = self._run
        step, known = (0, 0) if facts is None else (facts.step, facts.num_records)
        run.cut_records_after(step, evaluation_due=facts is not None and facts.evaluation_due)
        run.set_state(State.running, step=step, records=known)
        records = run.read_records()
        lost = run.count_lost_records(records)
        if lost:
            logger.warning(
                "resume: %s has lost %d of its %d lines up to step %d; the report and comparisons will say so",
                run.metrics,
                lost,
                known,
                step,
            )
        return len(records) if known is None else known

    def write(self, record: dict[str, object]) -> None:
        """Adds a line to metrics.jsonl."""
        self.num += 1
        with self._stopping_if_unwritable():
            self._metrics.write(record)

    def write_rows(self, step: int, rows: list[int]) -> None:
        """Adds a line to rows.jsonl."""
        with self._stopping_if_unwritable():
            self._rows.write({"step": step, "rows": rows})

    def note_saved(self, step: int) -> None:
        """Writes the step of the newest checkpoint to status.json."""
        with self._stopping_if_unwritable():
            self._run.set_state(State.running, step=step, records=self.num)

    def write_waiting(self) -> None:
        """Writes the lines that could not be written before, such as when the disk was full."""
        for log in (self._metrics, self._rows):
            with self._stopping_if_unwritable():
                log.write_waiting()

    def is_gone(self) -> bool:
        """Returns whether writing failed because the run's folder no longer exists."""
        return self.trouble is not None and not self._run.path.is_dir()

    def why_stopped(self) -> str | None:
        """Describes `trouble` in words; None if there is none."""
        return None if self.trouble is None else describe(self.trouble, self._run.path, "written")

    def refusal(self) -> UserError | None:
        """Returns the error that tells the user what to do about `trouble`; None if there is none."""
        if self.trouble is None:
            return None
        return trouble_of(self._run, self.trouble) or UserError(f"{self.why_stopped()}. Mend that, and run it again.")

    @contextmanager
    def _stopping_if_unwritable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self.trouble is None:
                logger.error("%s; the run will stop", describe(error, self._run.path, "written"))
            self.trouble = error
