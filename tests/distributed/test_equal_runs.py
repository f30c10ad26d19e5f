"""A run is the same on any number of ranks and under any ZeRO stage: its steps, its metrics, its model."""

import json
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from prefopt.models.shards import SHARD
from tests.conftest import STUDY, quick_run, read_rows, write_rows
from tests.distributed import outcomes
from tests.zygote import Zygote

pytest.importorskip("deepspeed")

LIMIT = 1e-5
"""float32: gradients are summed in another order, which Adam carries on over the steps; measured are up to 7e-6."""
RELATIVE = {"logps/chosen": 1e-6, "logps/rejected": 1e-6, "grad_norm": 5e-5}
"""The same for what is far from 1: sums over hundreds of tokens (measured: 8e-8) and norms (1.1e-5)."""
SMALL = {"logits/chosen": 1e-7, "logits/rejected": 1e-7}
"""The same for means that nearly vanish (measured: 3e-9)."""
STEP_SIZE = 6
NUM_PAIRS = 20
"""The last step of an epoch has two pairs: one of three ranks has none."""


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        ranks: Processes; 0 is one without a launcher.
        deepspeed: The option of that name.
        method: Value of `peft`.
        algorithm: Value of `algorithm`.
        reference: Value of `reference`.
        per_device: Pairs per forward, at most.
    """

    ranks: int
    deepspeed: str = "none"
    method: str = "none"
    algorithm: str = "dpo"
    reference: str = "store"
    per_device: int = 4

    def __str__(self) -> str:
        parts = (self.algorithm, self.method, self.deepspeed, self.ranks, self.reference, self.per_device)
        return "-".join(str(part) for part in parts)

    @property
    def alone(self) -> "Case":
        """The run of one process that this one must equal."""
        return Case(0, method=self.method, algorithm=self.algorithm)


METHODS = ("none", "lora")
STAGES = ("none", "zero1", "zero2", "zero3")
ON_TWO = [Case(2, stage, method) for method in METHODS for stage in STAGES]
ON_THREE = [Case(3, stage, method) for method in METHODS for stage in ("none", "zero3")]
LIVE = [Case(2, stage, method, reference="live") for method in METHODS for stage in ("none", "zero3")]
ACCUMULATING = [Case(ranks, stage, per_device=1) for ranks, stage in [(2, "none"), (2, "zero2"), (3, "zero3")]]
SFT = [Case(2, stage, algorithm="sft") for stage in STAGES]
CASES = [*ON_TWO, *ON_THREE, *LIVE, *ACCUMULATING, *SFT]
needs_compiler = pytest.mark.skipif(
    shutil.which("c++") is None or shutil.which("ninja") is None,
    reason="DeepSpeed's CPU Adam needs a C++ compiler and ninja",
)
OFFLOAD = [pytest.param(Case(2, stage), marks=needs_compiler) for stage in ("zero2_offload", "zero3_offload")]

every_case = pytest.mark.parametrize("case", [*CASES, *OFFLOAD], ids=str)


class Runs:
    """The runs of this module; each starts when it is first asked for."""

    def __init__(self, folder: Path, model: Path, zygote: Zygote) -> None:
        self.folder, self.model = folder, model
        self._zygote = zygote
        self.held_out = write_rows(folder / "held_out.jsonl", read_rows(STUDY / "held_out.jsonl", 7))
        pairs = write_rows(folder / "train.jsonl", read_rows(STUDY / "train.jsonl", NUM_PAIRS))
        texts = read_rows(STUDY / "sft_train.jsonl", NUM_PAIRS + 7)
        self._sft = [
            "algorithm=sft",
            f"data.train={write_rows(folder / 'sft.jsonl', texts[:NUM_PAIRS])}",
            f"data.held_out={write_rows(folder / 'sft_held_out.jsonl', texts[NUM_PAIRS:])}",
        ]
        self._common = [*quick_run(model, (pairs, self.held_out), folder / "runs"), *outcomes.SHORT_REPORT]

    def _reference(self, case: Case) -> list[str]:
        """A store of this module: log-probs that other tests stored were computed in other batches, 1e-7 apart."""
        is_stored = case.reference == "store"
        return [f"reference={case.reference}", *([f"reference.path={self.folder / 'store'}"] if is_stored else [])]

    @cache  # noqa: B019 (lives as long as the module)
    def of(self, case: Case) -> Path:
        """The folder of a case's run."""
        return self.start(case, str(case))

    def start(self, case: Case, name: str, *changes: str, **environment: str) -> Path:
        """Runs a case to its end."""
        argv = [
            *self._common,
            f"trainer.batch_size={STEP_SIZE}",
            "trainer.max_steps=null",
            "trainer.num_epochs=2",
            "trainer.save_every=4",
            "trainer.eval_every=1",
            "trainer.log_rows=true",
            *(self._sft if case.algorithm == "sft" else self._reference(case)),
            *([f"peft={case.method}", "peft.r=4", "optim.learning_rate=5e-3"] if case.method != "none" else []),
            f"trainer.per_device_batch_size={case.per_device}",
            f"deepspeed={case.deepspeed}",
            f"run.name={name}",
            *changes,
        ]
        self._zygote.run(argv, ranks=case.ranks, log=self.folder / "logs" / f"{name}.log", **environment)
        return self.folder / "runs" / name


@pytest.fixture(scope="module")
def runs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Runs:
    return Runs(tmp_path_factory.mktemp("equal_runs"), tiny_model, zygote)


def assert_close(record: outcomes.Record, expected: outcomes.Record) -> None:
    """Two lines have the same keys, the same counts, and the same numbers but for rounding."""
    assert record.keys() == expected.keys()
    for key, value in expected.items():
        if key == "rewards/accuracies" and abs(expected["rewards/margins"]) < LIMIT:
            continue  # before the first update a margin is nothing but rounding, and has no sign
        if isinstance(value, int | str):
            assert record[key] == value, key
            continue
        limits = {"rel": RELATIVE[key]} if key in RELATIVE else {"rel": 0, "abs": SMALL.get(key, LIMIT)}
        assert record[key] == pytest.approx(value, **limits), (key, record["step"])


@every_case
def test_each_step_sees_the_rows_of_one_process_and_an_epoch_sees_every_row_once(runs, case):
    seen = outcomes.rows(runs.of(case))
    assert seen == outcomes.rows(runs.of(case.alone))
    assert [len(step["rows"]) for step in seen] == [6, 6, 6, 2] * 2
    for epoch in (seen[:4], seen[4:]):
        assert sorted(row for step in epoch for row in step["rows"]) == list(range(NUM_PAIRS))


@every_case
def test_each_log_line_is_that_of_one_process(runs, case):
    lines, expected = outcomes.training(runs.of(case)), outcomes.training(runs.of(case.alone))
    assert [line["pairs"] for line in expected] == [6, 12, 18, 20, 26, 32, 38, 40]
    assert expected[-1]["loss"] < expected[0]["loss"] - 0.05  # it learns, so that weights matter
    for line, alone in zip(lines, expected, strict=True):
        assert_close(line, alone)


@every_case
def test_held_out_metrics_are_those_of_one_process(runs, case):
    lines, expected = outcomes.held_out(runs.of(case)), outcomes.held_out(runs.of(case.alone))
    assert [line["step"] for line in expected] == list(range(1, 9))
    assert lines[0] == expected[0]  # the first step has a learning rate of 0, so these are the same weights
    for line, alone in zip(lines, expected, strict=True):
        assert_close(line, alone)


@every_case
def test_checkpoints_hold_the_optimizer_of_every_rank_under_zero_and_of_none_otherwise(runs, case):
    for step in (4, 8):
        checkpoint = runs.of(case) / "checkpoints" / f"step-{step}"
        parts = sorted(path.name for path in checkpoint.glob("global_step*/*_optim_states.pt"))
        if case.deepspeed == "none":
            assert (checkpoint / "optimizer.pt").exists()
            assert not parts
            continue
        assert parts == [f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(case.ranks)]
        assert not (checkpoint / "optimizer.pt").exists()
        sizes = [path.stat().st_size for path in checkpoint.glob("global_step*/*_optim_states.pt")]
        whole = (runs.of(case.alone) / "checkpoints" / f"step-{step}" / "optimizer.pt").stat().st_size
        assert max(sizes) < 1.6 * whole  # with a master copy of the weights, and its share only
        model_states = torch.load(next(checkpoint.glob("global_step*/*rank_00_model_states.pt")), weights_only=False)
        assert model_states["ds_config"]["zero_optimization"]["stage"] == int(case.deepspeed[4])


@every_case
@pytest.mark.parametrize("place", ["model", "checkpoints/step-4", "checkpoints/step-8"])
def test_saved_weights_load_plainly_and_are_those_of_one_process(runs, case, place):
    saved, expected = runs.of(case) / place, runs.of(case.alone) / place
    assert outcomes.weights(saved).keys() == outcomes.weights(expected).keys()
    if place == "model":
        names, alone = ({path.name for path in folder.iterdir()} for folder in (saved, expected))
        assert names == alone
    pairs = read_rows(runs.held_out, 3)
    texts = [f"{pair['prompt'][0]['content']} {pair['chosen'][0]['content']}" for pair in pairs]
    logps, alone, untrained = (
        outcomes.token_logps(outcomes.load_plainly(path, runs.model), runs.model, texts)
        for path in (saved, expected, runs.model)
    )
    assert (logps - alone).abs().max() < LIMIT
    assert (untrained - alone).abs().max() > 100 * LIMIT


@pytest.mark.parametrize("method", METHODS)
def test_the_reference_pass_under_zero_3_sees_whole_weights(runs, method):
    recorded = {}
    for deepspeed in ("none", "zero3"):
        case = Case(2, deepspeed, method)
        name = f"{case}-own-store"
        own_store = f"reference.path={runs.folder / name / 'reference'}"
        run = runs.start(case, name, "trainer.max_steps=1", f"evaluation.max_train_examples={NUM_PAIRS}", own_store)
        assert json.loads((run / "work.json").read_text())["reference"]["num_computed"] == NUM_PAIRS + 7
        recorded[deepspeed] = read_store(runs.folder / name)
    assert recorded["none"].keys() == recorded["zero3"].keys()
    for key, logps in recorded["none"].items():
        np.testing.assert_allclose(recorded["zero3"][key], logps, rtol=LIMIT, atol=LIMIT)


def read_store(cache: Path) -> dict[tuple[str, bytes], np.ndarray]:
    """Per-token log-probs under the store's folder, which names the model, and the key of the token ids."""
    found = {}
    for path in (cache / "reference").rglob(f"*{SHARD}"):
        shard = load_file(path)
        ends = np.cumsum(shard["lengths"])
        for key, start, end in zip(shard["keys"], ends - shard["lengths"], ends, strict=True):
            found[path.parent.name, key.tobytes()] = shard["logps"][start:end]
    return found
