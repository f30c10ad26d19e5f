"""Nothing of a batch is left off the device that computes: what a GPU would refuse is refused on a CPU too."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.attention.varlen

from prefopt.models.shared_prefix import attention
from prefopt.models.shared_prefix.collate import PairCollator
from prefopt.tracking.metrics import TIMES
from prefopt.train import main as train
from prefopt.training.durable import DurableTrainer
from tests.conftest import STUDY
from tests.numerics.test_shared_prefix_attention import kernel_of_torch_2_13
from tests.second_device import Away, LeftBehindError, second_device

pytestmark = pytest.mark.slow

SFT = ["algorithm=sft", f"data.train={STUDY / 'sft_train.jsonl'}", f"data.held_out={STUDY / 'sft_held_out.jsonl'}"]


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["peft=lora"],
        ["engine=trl"],
        ["reference=live"],
        ["reference=none"],
        ["algorithm.ld_alpha=0.5"],
        ["algorithm.loss_type=[ipo,sft]"],
        ["trainer.gradient_checkpointing=true"],
        SFT,
    ],
    ids=lambda changes: ",".join(changes[:1]) or "default",
)
def test_a_run_mixes_no_devices_and_computes_what_it_computes_on_the_cpu(overrides, tmp_path, monkeypatch, changes):
    def run(name: str) -> dict[str, Any]:
        monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache" / name))  # both compute the reference
        train([*overrides, *changes, "trainer.eval_every=3", f"run.name={name}"])
        folder = tmp_path / "runs" / name
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        report = json.loads((folder / "report" / "report.json").read_text())
        return dict(_numbers([lines, report["held_out"], report["drift"], report["likelihood"]]))

    expected = run("here")
    with second_device():
        found = run("away")
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)  # the optimizer sums up in another order


@pytest.mark.parametrize(
    ("changes", "num_waits"),
    [
        ([], 1),
        (["peft=lora", "trainer.gradient_accumulation_steps=2"], 1),
        (["algorithm.loss_type=[sigmoid_norm,apo_zero]", "algorithm.ld_alpha=0.5"], 1),
        (["reference=live"], 1),
        (["engine=trl"], 1 + 5),  # the padding mask of transformers, and TRL's head, which selects positions
        (SFT, 1 + 5),
    ],
    ids=lambda value: str(value[0] if isinstance(value, list) and value else ""),
)
def test_in_a_step_that_is_not_logged_the_host_waits_to_see_whether_the_gradient_is_finite_and_for_nothing_else(
    overrides, monkeypatch, changes, num_waits
):
    waits = []
    end_step = DurableTrainer.end_step

    def end(self: Any, control: Any) -> None:
        end_step(self, control)
        waits.append(host.num_waits)

    monkeypatch.setattr(DurableTrainer, "end_step", end)
    # On a GPU TRL's head selects the positions that it scores.
    monkeypatch.setattr("trl.trainer.utils._use_triton", lambda device: device.type == "meta")
    with second_device() as host:
        train([*overrides, *changes, "trainer.log_every=100", "trainer.save_every=100"])
    assert [after - before for before, after in itertools.pairwise(waits)] == [num_waits] * 5


@functools.wraps(kernel_of_torch_2_13)
def kernel_there(query, key, value, cu_seq_q, cu_seq_k, *lengths, **how):
    tensors = (query, key, value, cu_seq_q, cu_seq_k)
    assert all(isinstance(tensor, Away) for tensor in tensors), "a kernel takes no tensor from elsewhere"
    return kernel_of_torch_2_13(*(tensor.cpu() for tensor in tensors), *lengths, **how).to(query.device)


def test_a_run_on_the_variable_length_kernel_mixes_no_devices(overrides, tmp_path, monkeypatch):
    monkeypatch.setattr(attention, "HAS_KERNEL", {"meta"})
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", kernel_there)
    monkeypatch.setattr("prefopt.models.load.has_bf16", lambda: True)
    # Torch casts nothing by itself on the second device, so the weights are in bf16.
    small = ["model.dtype=bf16", "peft=lora", "trainer.precision=bf16", "trainer.eval_every=2", "trainer.max_steps=2"]
    with second_device():
        train([*overrides, *small, "evaluation.num_samples=0", "evaluation.neutral_texts=null"])
    work = json.loads((tmp_path / "runs" / "test" / "work.json").read_text())
    assert work["engine"] == "shared_prefix (varlen)"
    lines = (tmp_path / "runs" / "test" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 2]


def test_a_batch_is_moved_whole_where_training_and_evaluation_take_it():
    rows = [{"prompt_ids": list(range(40)), "chosen_ids": [1, 2], "rejected_ids": [3]} for _ in range(3)]
    for row in rows:
        row.update(ref_chosen_per_token=[0.5, 0.5], ref_rejected_per_token=[0.5])
    batch = {**PairCollator(0, with_layout=True)(rows), "nested": [{"mask": torch.ones(2)}]}
    with second_device():
        trainer = SimpleNamespace(args=SimpleNamespace(device=torch.device("meta")))
        moved = DurableTrainer._prepare_inputs(trainer, batch)
    tensors = dict(_tensors(moved))
    assert len(tensors) >= len(dict(_tensors(batch)))
    assert {name for name, tensor in tensors.items() if not isinstance(tensor, Away)} == set()


def test_the_second_device_refuses_what_a_gpu_refuses():
    with second_device():
        there = torch.arange(3).to("meta")
        assert (there + torch.tensor(2)).tolist() == [2, 3, 4], "CUDA takes a CPU tensor without dimension"
        assert (there + torch.ones(3, dtype=torch.long, device="meta")).tolist() == [1, 2, 3]
        for mix in (lambda: there + torch.ones(3), lambda: there[torch.tensor([0])], lambda: torch.ones(4)[there]):
            with pytest.raises(LeftBehindError):
                mix()


def _numbers(tree: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """All numbers of nested lists and dicts but the times, each with its place."""
    if isinstance(tree, bool) or tree is None or isinstance(tree, str):
        return
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            if key not in TIMES:
                yield from _numbers(value, f"{path}.{key}")
    elif isinstance(tree, Sequence):
        for index, value in enumerate(tree):
            yield from _numbers(value, f"{path}[{index}]")
    else:
        yield path, float(tree)


def _tensors(tree: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of nested lists, dicts and dataclasses."""
    if isinstance(tree, torch.Tensor):
        yield path, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _tensors(value, f"{path}.{key}")
    elif isinstance(tree, (list, tuple)):
        for index, value in enumerate(tree):
            yield from _tensors(value, f"{path}[{index}]")
    elif dataclasses.is_dataclass(tree):
        for field in dataclasses.fields(tree):
            yield from _tensors(getattr(tree, field.name), f"{path}.{field.name}")
