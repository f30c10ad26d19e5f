"""What a run writes down step by step: nothing may be missing from it, so a run that cannot write stops."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefopt.distributed.checkpoint import CheckpointFacts
from prefopt.distributed.group import on_main
from prefopt.process.errors import UserError, describe
from prefopt.runs.directory import RunDirectory, State, trouble_of
from prefopt.tracking.metrics import MetricsLog, Mirror

logger = logging.getLogger(__name__)


class RunRecords:
    """metrics.jsonl, rows.jsonl and status.json while a run trains. Rank 0 writes; the others have one and leave it.

    Attributes:
        num: Lines of metrics.jsonl over all attempts, those included that were lost or are still to be written.
        trouble: Why a file could not be written: all ranks are to stop then. None as it should be.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._metrics, self._rows = MetricsLog(run.metrics), MetricsLog(run.rows)
        self.num = 0
        self.trouble: OSError | None = None

    def begin(self, facts: CheckpointFacts | None, mirror: Mirror | None) -> None:
        """Drops the lines that will be written again, and says how many of the others are gone. All ranks call it.

        Args:
            facts: Of the checkpoint that the run goes on from, if it does.
            mirror: Is told every line of metrics.jsonl as well.
        """
        self._metrics = MetricsLog(self._run.metrics, mirror)
        self.num = on_main(lambda: self._cut(facts))

    def _cut(self, facts: CheckpointFacts | None) -> int:
        """Returns the number of lines up to the checkpoint; those that are gone count, so that readers learn of it."""
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

    def write(self, record: dict[str, Any]) -> None:
        """Adds a line to metrics.jsonl."""
        self.num += 1
        with self._stopping_if_unwritable():
            self._metrics.write(record)

    def write_rows(self, step: int, rows: list[int]) -> None:
        """Adds a line to rows.jsonl."""
        with self._stopping_if_unwritable():
            self._rows.write({"step": step, "rows": rows})

    def note_saved(self, step: int) -> None:
        """Says in status.json up to where the run is safe."""
        with self._stopping_if_unwritable():
            self._run.set_state(State.running, step=step, records=self.num)

    def write_waiting(self) -> None:
        """Tries what could not be written before: there may be room again."""
        for log in (self._metrics, self._rows):
            with self._stopping_if_unwritable():
                log.write_waiting()

    def is_gone(self) -> bool:
        """True if the run's folder was found to be away."""
        return self.trouble is not None and not self._run.path.is_dir()

    def why_stopped(self) -> str | None:
        """The trouble in words."""
        return None if self.trouble is None else describe(self.trouble, self._run.path, "written")

    def refusal(self) -> UserError | None:
        """What to do about the trouble."""
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
