"""The places in a run where the suite kills and stops it: what is half-done there, and how often a run comes by."""

from dataclasses import dataclass, replace

from tests.faults.hooks import Injection


@dataclass(frozen=True)
class Place:
    """A place that rank 0 passes, in every mode.

    Attributes:
        injection: Names it.
        calls: How often a run passes it at least.
        can_stop: A request to stop in it ends with 75 on every rank.
    """

    injection: Injection
    calls: int = 1
    can_stop: bool = True

    def at(self, call: int = 1, *, rank: int = 0) -> Injection:
        """A pause in the `call`-th passage, from 1."""
        return replace(self.injection, call=self.injection.call + call - 1, rank=rank)


TRAINER = "prefopt.training.durable:DurableTrainer"
SAVER = "prefopt.distributed.saving:CheckpointSaver"
DISK = "prefopt.distributed.checkpoint"

PLACES = {
    "while config.yaml is written": Place(Injection("pathlib:Path.replace", match="config.yaml"), can_stop=False),
    "while status.json is written": Place(Injection("pathlib:Path.replace", match="status.json"), 4),
    "in the reference pass": Place(Injection("prefopt.models.shards:Shard.take"), 7),
    "while reference log-probs are written": Place(Injection("prefopt.models.reference:write_bytes"), 2),
    "before a forward": Place(Injection(f"{TRAINER}.training_step"), 22),
    "between backward and optimizer": Place(Injection(f"{TRAINER}._get_grad_norm"), 12),
    "between optimizer and the end of the step": Place(Injection(f"{TRAINER}.end_step"), 12),
    "after the rows of a step are written": Place(Injection(f"{TRAINER}._write_rows", when="after"), 12),
    "before a log line": Place(Injection("prefopt.training.records:RunRecords.write"), 7),
    "after a log line": Place(Injection("prefopt.training.records:RunRecords.write", when="after"), 7),
    "in an evaluation": Place(Injection("prefopt.algorithms.dpo:DPOTrainer._evaluate_batch"), 6),
    "before a checkpoint": Place(Injection(f"{SAVER}.save"), 3),
    "in a checkpoint, after the weights": Place(Injection("prefopt.distributed.saving:save_weights", when="after"), 3),
    "in a checkpoint, while state is written": Place(Injection("torch:save"), 6),
    "in a checkpoint, before its manifest": Place(Injection(f"{DISK}:seal"), 3),
    "in a checkpoint, before COMPLETE": Place(Injection(f"{DISK}:write_text"), 3),
    "in a checkpoint, before the rename": Place(Injection(f"{DISK}:write_text", when="after"), 3),
    "in a checkpoint, before the oldest goes": Place(Injection(f"{DISK}:keep_newest"), 3),
    "in a checkpoint, while the oldest goes": Place(Injection("shutil:rmtree", match="removed-")),
    "before the final model": Place(Injection("prefopt.training.training:copy_model")),
    "while the final model is copied": Place(Injection("prefopt.runs.final_model:copy_file", when="after")),
    "before the final model is sealed": Place(Injection("prefopt.training.training:seal_model")),
    "before the final model gets its name": Place(Injection("prefopt.runs.final_model:write_json", when="after")),
    "before the final report": Place(Injection("prefopt.evaluation.run:measure_contestants"), can_stop=False),
    "in the final report": Place(Injection("prefopt.reports.publish:render_report"), can_stop=False),
    "while the final report is written": Place(Injection("pathlib:Path.replace", match="report.md"), can_stop=False),
    "before the run is done": Place(Injection("pathlib:Path.replace", match="status.json", call=6), can_stop=False),
}
"""Below `in the final report`, ranks other than 0 may have ended already."""
