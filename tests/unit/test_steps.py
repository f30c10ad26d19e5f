"""Rows of optimizer steps: each once an epoch, the same on any number of ranks, in the order of transformers."""

import math
from itertools import chain, islice
from typing import Any, NamedTuple

import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import BatchSamplerShard, SeedableRandomSampler, prepare_data_loader
from datasets import Dataset
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from prefopt.data.steps import COUNTS, IGNORED, NO_ROW, ROWS, NumberedRows, NumberingCollator, StepBatches, TokenCounts

Plan = list[list[int]]


class Split(NamedTuple):
    """How a step's examples are divided; the arguments of `StepBatches`."""

    batch_size: int
    accumulation: int
    num_ranks: int


splits = st.builds(Split, st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))


def plan(num_rows: int, split: Split, *, seed: int = 0, epoch: int = 0) -> Plan:
    batches = StepBatches(num_rows, seed=seed, **split._asdict())
    batches.set_epoch(epoch)
    return list(batches)


def rounds_of(batches: Plan, num_ranks: int) -> list[Plan]:
    """The batches that the ranks run at the same time."""
    assert len(batches) % num_ranks == 0, "all ranks make the same number of forwards"
    return [batches[start : start + num_ranks] for start in range(0, len(batches), num_ranks)]


def steps_of(batches: Plan, split: Split) -> list[list[int]]:
    """The rows of each optimizer step, filling left out, as transformers groups each rank's batches."""
    rounds = rounds_of(batches, split.num_ranks)
    size = split.accumulation
    steps = [rounds[start : start + size] for start in range(0, len(rounds), size)]
    return [sorted(row for row in chain(*chain(*step)) if row >= 0) for step in steps]


def divisions(total: int) -> list[Split]:
    """Every way to divide a step of `total` examples."""
    sizes = [size for size in range(1, total + 1) if total % size == 0]
    return [Split(a, b, total // a // b) for a in sizes for b in sizes if total % (a * b) == 0]


@given(st.integers(1, 60), splits, st.integers(0, 3), st.integers(0, 3))
@settings(deadline=None)
def test_every_row_is_in_exactly_one_batch_of_an_epoch(num_rows: int, split: Split, seed: int, epoch: int) -> None:
    batches = plan(num_rows, split, seed=seed, epoch=epoch)
    assert sorted(row for row in chain(*batches) if row >= 0) == list(range(num_rows))
    assert all(batches)
    assert max(map(len, batches)) <= split.batch_size
    assert len(batches) == len(StepBatches(num_rows, seed=seed, **split._asdict()))


@given(st.integers(1, 60), splits, st.integers(0, 3), st.data())
@settings(deadline=None)
def test_the_rows_of_the_first_batches_are_known_before_they_are_drawn(num_rows, split, seed, data):
    epochs = [plan(num_rows, split, seed=seed, epoch=epoch) for epoch in range(3)]
    num_batches = data.draw(st.integers(0, 3 * len(epochs[0])))
    drawn = {row for batch in list(chain(*epochs))[:num_batches] for row in batch if row >= 0}
    batches = StepBatches(num_rows, seed=seed, **split._asdict())
    batches.set_epoch(data.draw(st.integers(0, 3)))
    found = batches.rows_in(num_batches).tolist()
    assert len(found) == len(set(found))
    assert set(found) == drawn


@given(st.integers(1, 60), st.sampled_from([1, 4, 6, 12, 24]), st.data())
@settings(deadline=None)
def test_a_step_has_the_same_rows_however_it_is_divided(num_rows: int, total: int, data: st.DataObject) -> None:
    one, other = (data.draw(st.sampled_from(divisions(total))) for _ in range(2))
    epoch = data.draw(st.integers(0, 2))
    expected = steps_of(plan(num_rows, one, epoch=epoch), one)
    assert steps_of(plan(num_rows, other, epoch=epoch), other) == expected
    assert len(expected) == math.ceil(num_rows / total)
    assert [len(step) for step in expected[:-1]] == [total] * (len(expected) - 1)


@given(st.integers(1, 60), splits)
@settings(deadline=None)
def test_the_last_step_is_spread_evenly_over_as_few_forwards_as_hold_it(num_rows: int, split: Split) -> None:
    per_step = split.batch_size * split.accumulation * split.num_ranks
    tail = num_rows % per_step
    assume(tail)
    last = rounds_of(plan(num_rows, split), split.num_ranks)[num_rows // per_step * split.accumulation :]
    assert len(last) == math.ceil(tail / (split.batch_size * split.num_ranks))
    sizes = [sum(row >= 0 for row in batch) for batch in chain(*last)]
    assert sum(sizes) == tail
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, 60), splits)
@settings(deadline=None)
def test_filling_stands_alone_in_the_last_round_and_only_where_rows_run_out(num_rows: int, split: Split) -> None:
    *earlier, last = rounds_of(plan(num_rows, split), split.num_ranks)
    assert all(row >= 0 for row in chain(*chain(*earlier)))
    filling = [batch for batch in last if min(batch) < 0]
    assert all(len(batch) == 1 for batch in filling)
    assert all(0 <= ~batch[0] < num_rows for batch in filling)
    if filling:
        assert max(len(batch) for batch in last) == 1
    if num_rows % split.num_ranks == 0 or split.num_ranks == 1:
        assert not filling


@given(st.integers(1, 40), splits, st.data())
@settings(deadline=None)
def test_rows_are_counted_exactly_over_epochs(num_rows: int, split: Split, data: st.DataObject) -> None:
    batches = StepBatches(num_rows, seed=0, **split._asdict())
    sizes = [sum(row >= 0 for row in batch) for epoch in range(3) for batch in plan(num_rows, split, epoch=epoch)]
    num_batches = data.draw(st.integers(0, len(sizes)))
    assert batches.num_rows_after(num_batches) == sum(sizes[:num_batches])


def test_epochs_and_seeds_have_orders_of_their_own_that_come_back() -> None:
    batches = StepBatches(50, seed=0, batch_size=4, accumulation=1, num_ranks=1)
    first = list(batches)
    batches.set_epoch(1)
    second = list(batches)
    batches.set_epoch(0)
    assert list(batches) == first != second
    assert list(StepBatches(50, seed=1, batch_size=4, accumulation=1, num_ranks=1)) == second, "seed + epoch decides"


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("seed", [0, 7])
def test_rows_come_in_the_order_of_accelerates_sampler(seed: int, epoch: int) -> None:
    sampler = SeedableRandomSampler(range(37), generator=torch.Generator(), data_seed=seed)
    sampler.set_epoch(epoch)
    assert list(chain(*plan(37, Split(4, 2, 1), seed=seed, epoch=epoch)[:8])) == list(sampler)[:32]


class Recording(torch.nn.Module):
    """Remembers the rows that it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: Plan = []

    def forward(self, row: torch.Tensor) -> dict[str, torch.Tensor]:
        self.seen.append(row.tolist())
        return {"loss": self.weight.sum()}


def train_plainly(tmp_path: Any, seed: int, split: Split) -> Plan:
    """The batches on which transformers' own Trainer trains in two epochs over 21 rows."""
    model = Recording()
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        seed=seed,
        per_device_train_batch_size=split.batch_size,
        gradient_accumulation_steps=split.accumulation,
        num_train_epochs=2,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    Trainer(model=model, args=arguments, train_dataset=Dataset.from_dict({"row": list(range(21))})).train()
    return model.seen


@pytest.mark.parametrize("split", [Split(4, 1, 1), Split(2, 2, 1)])
def test_one_process_trains_on_the_batches_of_a_plain_trainer(tmp_path, split: Split) -> None:
    """But for the short last step of an epoch, whose forwards we make even."""
    seen = train_plainly(tmp_path, 3, split)
    num_even = 21 // (split.batch_size * split.accumulation) * split.accumulation
    per_epoch = len(seen) // 2
    for epoch in range(2):
        theirs, ours = seen[epoch * per_epoch :][:per_epoch], plan(21, split, seed=3, epoch=epoch)
        assert ours[:num_even] == theirs[:num_even]
        assert sorted(chain(*ours[num_even:])) == sorted(chain(*theirs[num_even:]))


@pytest.mark.parametrize("even_batches", [False, True])
@pytest.mark.parametrize("num_rows", [23, 24, 25, 29])
def test_three_ranks_of_accelerate_take_every_batch_once(num_rows: int, even_batches: bool) -> None:
    batches = StepBatches(num_rows, seed=0, batch_size=2, accumulation=2, num_ranks=3)
    shards = [
        list(BatchSamplerShard(batches, num_processes=3, process_index=rank, even_batches=even_batches))
        for rank in range(3)
    ]
    assert [batch for together in zip(*shards, strict=True) for batch in together] == list(batches)


def test_a_resumed_epoch_yields_exactly_the_remainder() -> None:
    for rank in range(2):
        batches = StepBatches(50, seed=0, batch_size=4, accumulation=1, num_ranks=2)
        plain: DataLoader[Any] = DataLoader(range(50), batch_sampler=batches, collate_fn=list)  # type: ignore[arg-type]
        prepared = prepare_data_loader(plain, num_processes=2, process_index=rank, even_batches=False)
        resumed = skip_first_batches(prepared, 3)
        batches.set_epoch(1)
        assert list(resumed) == list(islice(plan(50, Split(4, 1, 2), epoch=1), rank, None, 2))[3:]


def test_rows_know_their_index_and_filling_has_none() -> None:
    rows = NumberedRows(Dataset.from_dict({"text": ["a", "b", "c"]}))
    assert len(rows) == 3
    assert rows[1] == {"text": "b", ROWS: 1}
    assert rows.__getitems__([2, 0]) == [{"text": "c", ROWS: 2}, {"text": "a", ROWS: 0}]
    assert rows.__getitems__([~0]) == [{"text": "a", ROWS: NO_ROW}]
    assert rows.__getitems__([~2]) == [{"text": "c", ROWS: NO_ROW}]


def test_a_batch_names_its_rows_and_filling_loses_its_labels() -> None:
    def collate(examples: Any) -> dict[str, Any]:
        assert all(set(example) == {"labels"} for example in examples), "the collator must not see the numbers"
        labels = torch.tensor([example["labels"] for example in examples])
        return {"labels": labels, "attention_mask": torch.ones_like(labels), "other": 1}

    batch = NumberingCollator(collate)(
        [{"labels": [1, 2], ROWS: 5}, {"labels": [3, 4], ROWS: NO_ROW}, {"labels": [6, IGNORED], ROWS: 0}]
    )
    assert batch[ROWS] == [5, NO_ROW, 0]
    assert batch["labels"].tolist() == [[1, 2], [IGNORED, IGNORED], [6, IGNORED]]
    assert batch["other"] == 1
    assert batch[COUNTS] == TokenCounts(real=6, scored=(1,)), "filling has no labels, and a first token no predictor"


def test_a_batch_of_pairs_is_numbered_and_its_tokens_are_counted() -> None:
    completions = torch.tensor([[0, 1, 1], [1, 1, 0], [0, 0, 1], [0, 1, 0]])
    masks = {"completion_mask": completions, "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]).repeat(2, 1)}
    batch = NumberingCollator(lambda examples: masks)([{ROWS: NO_ROW}, {ROWS: 3}])
    assert set(batch) == {*masks, ROWS, COUNTS}
    assert batch[ROWS] == [NO_ROW, 3]
    assert batch[COUNTS] == TokenCounts(real=10, scored=(3, 2))


def test_filling_reaches_a_rank_through_the_loader_as_a_row_without_number() -> None:
    data = NumberedRows(Dataset.from_dict({"labels": [[10], [11], [12]]}))
    batches = StepBatches(3, seed=0, batch_size=1, accumulation=1, num_ranks=2)

    def pad(examples: Any) -> dict[str, Any]:
        labels = torch.tensor([example["labels"] for example in examples])
        return {"labels": labels, "attention_mask": torch.ones_like(labels)}

    collate = NumberingCollator(pad)
    loader: DataLoader[Any] = DataLoader(data, batch_sampler=batches, collate_fn=collate)  # type: ignore[arg-type]
    seen = list(loader)
    assert sorted(batch[ROWS][0] for batch in seen) == [NO_ROW, 0, 1, 2]
    assert [batch["labels"].item() for batch in seen if batch[ROWS] == [NO_ROW]] == [IGNORED]
    assert seen[-1][ROWS] == [NO_ROW]
