"""The final evaluation on several ranks: each measures a share, and the report is that of one process."""

import errno
import json
import shutil
from pathlib import Path

import pytest

from prefopt.distributed import group
from prefopt.evaluate import main as evaluate
from tests.conftest import STUDY, quick_run, read_rows, write_rows
from tests.faults.hooks import Injection

pytest.importorskip("deepspeed")

MEASURED = ("held_out", "overfitting", "drift", "likelihood", "samples")
HELD_OUT = ("held_out.jsonl", 7)
"""Four batches of two, which three ranks share unevenly."""


@pytest.fixture
def argv(tiny_model, tmp_path):
    files = [write_rows(tmp_path / name, read_rows(STUDY / name, n)) for name, n in (("train.jsonl", 12), HELD_OUT)]
    return [
        *quick_run(tiny_model, tuple(files), tmp_path / "runs"),
        "trainer.per_device_batch_size=2",
        "trainer.max_steps=2",
        "evaluation.batch_size=2",
        "evaluation.num_samples=5",
    ]


def report_of(run: Path) -> dict:
    report = json.loads((run / "report" / "report.json").read_text())
    return {part: report[part] for part in MEASURED}


@pytest.mark.parametrize(
    "changes",
    [["deepspeed=zero3"], ["peft=lora", "peft.r=4"], ["algorithm=sft"]],
    ids=["zero3", "lora", "sft"],
)
def test_three_ranks_report_what_one_process_does(argv, changes, tmp_path, zygote):
    if "algorithm=sft" in changes:
        rows = read_rows(STUDY / "sft_train.jsonl", 19)
        changes = [
            *changes,
            f"data.train={write_rows(tmp_path / 'texts.jsonl', rows[:12])}",
            f"data.held_out={write_rows(tmp_path / 'held_texts.jsonl', rows[12:])}",
            f"evaluation.pairs={tmp_path / 'held_out.jsonl'}",
        ]
    zygote.run([*argv, "trainer.batch_size=6", *changes, "run.name=shared"], ranks=3, log=tmp_path / "log")
    shared = tmp_path / "runs" / "shared"
    alone = shutil.copytree(shared, tmp_path / "runs" / "alone")
    shutil.rmtree(alone / "report")
    evaluate([f"run={alone}"])
    assert report_of(shared) == report_of(alone)
    assert (shared / "report" / "pairs.jsonl").read_text() == (alone / "report" / "pairs.jsonl").read_text()


@pytest.mark.parametrize("call", [1, 2], ids=["the first shard", "a later one"])
def test_what_one_rank_cannot_store_is_told_by_all_and_costs_the_report_nothing(argv, call, tmp_path, zygote):
    """Held-out pairs are not in the store yet; before, the other rank would have waited for this one's share."""
    full = Injection("prefopt.models.reference:write_bytes", "fail", rank=1, value=errno.ENOSPC, call=call, times=99)
    ranks = zygote.start(
        [*argv, "trainer.eval_every=null", "reference.path=" + str(tmp_path / "other"), "run.name=full"],
        ranks=2,
        log=tmp_path / "log",
        hooks="tests.faults.hooks",
        **full.environment(tmp_path),
    )
    codes, said = ranks.wait(), ranks.output()
    if call == 1:
        assert codes == [2, 2], said
        assert said.count("error: ") == 1, said
        assert "cannot be stored here (No space left on device)" in said
        return
    assert codes == [0, 0], said
    assert "goes on without the store" in said
    assert report_of(tmp_path / "runs" / "full")["held_out"]["n"] == HELD_OUT[1]


def test_shares_come_back_in_the_order_of_the_items(monkeypatch):
    shares = [["0", "3", "6"], ["1", "4"], ["2", "5"]]
    pooled = []
    monkeypatch.setattr(group, "pool", lambda share: pooled.append(share) or shares)
    for index in range(3):
        monkeypatch.setattr(group, "place", lambda index=index: (index, 3))
        assert group.share_out(range(7), str) == [str(number) for number in range(7)]
    assert pooled == shares
