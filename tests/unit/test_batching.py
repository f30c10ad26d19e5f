"""Batches of pairs: every pair once, within the budget, equal over ranks and epochs, and the same after a restart."""

from itertools import islice
from typing import Any

import numpy as np
import pytest
from accelerate import skip_first_batches
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from prefopt.config.choices import BatchOrder
from prefopt.data.batching import PairBatches
from prefopt.process.errors import UserError

Lengths = NDArray[np.int64]

ORDERS = pytest.mark.parametrize("order", BatchOrder)
SIZES = pytest.mark.parametrize("size", [{"pairs": 4}, {"tokens": 9000}], ids=["pairs", "tokens"])


def skewed(num_pairs: int, seed: int = 0) -> Lengths:
    """Lengths like those of real preference data: a few are many times the median; none above 1000."""
    drawn = np.random.default_rng(seed).lognormal(5, 1, (num_pairs, 3))
    return np.clip(drawn, 1, 1000).astype(np.int64)


def cost(lengths: Lengths, batch: list[int], *, padded: bool) -> int:
    prompt, chosen, rejected = lengths[batch].T
    if padded:
        return int(2 * len(batch) * (prompt + np.maximum(chosen, rejected)).max())
    return int((prompt + chosen + rejected).sum())


def epoch_of(batches: PairBatches, epoch: int) -> list[list[int]]:
    batches.set_epoch(epoch)
    return list(batches)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Lengths, dict[str, Any]]:
    num_ranks = draw(st.integers(1, 5))
    rows = draw(st.lists(st.tuples(*[st.integers(1, 20)] * 3), min_size=num_ranks, max_size=60))
    size = draw(st.sampled_from([{"pairs": 1}, {"pairs": 2}, {"pairs": 5}, {"tokens": 200}, {"tokens": 400}]))
    order, padded, seed = draw(st.sampled_from(BatchOrder)), draw(st.booleans()), draw(st.integers(0, 9))
    arguments = {"order": order, "padded": padded, "seed": seed, "num_ranks": num_ranks, "num_epochs": 3}
    return np.array(rows), arguments | size


@given(cases())
@settings(deadline=None)
def test_every_epoch_holds_every_pair_once_in_equally_many_batches_for_every_rank(
    case: tuple[Lengths, dict[str, Any]],
) -> None:
    lengths, arguments = case
    batches = PairBatches(lengths, **arguments)
    assert len(batches) % arguments["num_ranks"] == 0
    for epoch in range(3):
        plan = epoch_of(batches, epoch)
        assert len(plan) == len(batches)
        assert all(plan)
        assert sorted(row for batch in plan for row in batch) == list(range(len(lengths)))


@given(cases())
@settings(deadline=None)
def test_no_batch_is_above_its_limit(case: tuple[Lengths, dict[str, Any]]) -> None:
    lengths, arguments = case
    batches = PairBatches(lengths, **arguments)
    for batch in epoch_of(batches, 1):
        if "tokens" in arguments:
            assert cost(lengths, batch, padded=arguments["padded"]) <= arguments["tokens"]
        else:
            assert len(batch) <= max(arguments["pairs"], 2 if len(lengths) % arguments["num_ranks"] else 1)


@given(cases(), st.data())
@settings(deadline=None)
def test_pairs_are_counted_exactly_over_epochs(case: tuple[Lengths, dict[str, Any]], data: st.DataObject) -> None:
    lengths, arguments = case
    batches = PairBatches(lengths, **arguments)
    sizes = [len(batch) for epoch in range(3) for batch in epoch_of(batches, epoch)]
    num_batches = data.draw(st.integers(0, len(sizes)))
    assert batches.num_rows_after(num_batches) == sum(sizes[:num_batches])


@given(cases(), st.data())
@settings(deadline=None)
def test_the_pairs_of_the_first_batches_are_known_before_they_are_drawn(case, data):
    lengths, arguments = case
    batches = PairBatches(lengths, **arguments)
    plan = [batch for epoch in range(3) for batch in epoch_of(batches, epoch)]
    num_batches = data.draw(st.integers(0, len(plan)))
    batches.set_epoch(data.draw(st.integers(0, 2)))
    found = batches.rows_in(num_batches).tolist()
    assert len(found) == len(set(found))
    assert set(found) == {row for batch in plan[:num_batches] for row in batch}


@pytest.mark.parametrize("padded", [False, True])
@ORDERS
def test_a_budget_is_filled(order: BatchOrder, padded: bool) -> None:
    lengths = skewed(2000)
    batches = PairBatches(lengths, order=order, seed=0, tokens=20_000, padded=padded)
    mean = np.mean([cost(lengths, batch, padded=padded) for batch in batches])
    assert mean > 0.9 * 20_000  # measured: 0.92 to 0.98; a batch ends where the next pair (up to 4000) does not fit


@SIZES
@ORDERS
def test_equal_arguments_give_equal_batches_and_another_seed_others(order: BatchOrder, size: dict[str, int]) -> None:
    first, again, other = (
        PairBatches(skewed(200), order=order, seed=seed, num_ranks=2, padded=True, num_epochs=3, **size)
        for seed in (0, 0, 1)
    )
    assert list(first) == list(first)
    assert epoch_of(first, 2) == epoch_of(again, 2)
    assert epoch_of(first, 0) == epoch_of(again, 0)
    assert epoch_of(first, 0) != epoch_of(other, 0)


def test_random_order_with_a_fixed_count_slices_one_permutation() -> None:
    batches = PairBatches(skewed(10), order=BatchOrder.random, seed=3, pairs=4, padded=True)
    rows = np.random.default_rng([3, 0]).permutation(10).tolist()
    assert list(batches) == [rows[:4], rows[4:8], rows[8:]]


def test_the_last_batches_are_halved_to_fill_the_ranks() -> None:
    batches = PairBatches(skewed(17), order=BatchOrder.random, seed=3, pairs=4, num_ranks=4, padded=True)
    assert [len(batch) for batch in batches] == [4, 2, 2, 2, 2, 2, 2, 1]


def test_with_one_pair_per_batch_the_cheapest_share_what_the_ranks_do_not_divide() -> None:
    lengths = np.array([[length, 1, 1] for length in (50, 9, 8, 40, 30, 7, 6)])
    batches = PairBatches(lengths, order=BatchOrder.random, seed=0, pairs=1, num_ranks=5, padded=True)
    assert sorted(map(sorted, batches)) == [[0], [1, 6], [2, 5], [3], [4]]


def neighbours(plan: list[list[int]]) -> set[tuple[int, int]]:
    return {(a, b) for batch in plan for a in batch for b in batch if a < b}


@SIZES
@pytest.mark.parametrize("num_pairs", [100, 3000])
@ORDERS
def test_other_pairs_meet_in_another_epoch(order: BatchOrder, num_pairs: int, size: dict[str, int]) -> None:
    batches = PairBatches(skewed(num_pairs), order=order, seed=0, padded=False, num_epochs=2, **size)
    first, second = (neighbours(epoch_of(batches, epoch)) for epoch in range(2))
    assert len(first & second) < 0.3 * len(first)


@SIZES
def test_length_grouping_lowers_the_padded_cost(size: dict[str, int]) -> None:
    lengths = skewed(3000)
    random, grouped = (
        sum(
            cost(lengths, batch, padded=True)
            for batch in PairBatches(lengths, order=order, seed=0, num_ranks=2, padded=True, **size)
        )
        for order in (BatchOrder.random, BatchOrder.length_grouped)
    )
    unpadded = sum(cost(lengths, [row], padded=True) for row in range(len(lengths)))
    assert grouped < 1.06 * unpadded  # measured: 1.02 for both
    assert random > 1.4 * unpadded  # measured: 1.67 (pairs), 1.59 (tokens)


@SIZES
@pytest.mark.parametrize("padded", [False, True])
def test_length_grouping_starts_with_the_costliest_batch_and_mixes_the_others(
    padded: bool, size: dict[str, int]
) -> None:
    lengths = skewed(3000)
    batches = PairBatches(lengths, order=BatchOrder.length_grouped, seed=0, num_ranks=2, padded=padded, **size)
    costs = [cost(lengths, batch, padded=padded) for batch in batches]
    assert costs[0] == max(costs)
    assert (
        abs(np.corrcoef(costs[2:], range(len(costs) - 2))[0, 1]) < 0.25
    )  # 244 batches or more: four deviations of chance


@SIZES
@pytest.mark.parametrize("padded", [False, True])
def test_length_grouping_gives_the_ranks_batches_of_like_cost(padded: bool, size: dict[str, int]) -> None:
    lengths = skewed(3000)
    batches = PairBatches(lengths, order=BatchOrder.length_grouped, seed=0, num_ranks=4, padded=padded, **size)
    costs = np.array([cost(lengths, batch, padded=padded) for batch in batches]).reshape(-1, 4)
    waiting = 1 - costs.sum() / (4 * costs.max(axis=1).sum())
    assert waiting < 0.02  # measured: 0.002 to 0.007


@pytest.mark.parametrize("even_batches", [False, True])
@SIZES
@ORDERS
def test_three_ranks_of_accelerate_take_every_batch_once(
    order: BatchOrder, size: dict[str, int], even_batches: bool
) -> None:
    batches = PairBatches(skewed(200), order=order, seed=0, num_ranks=3, padded=True, **size)
    shards = [
        list(BatchSamplerShard(batches, num_processes=3, process_index=rank, even_batches=even_batches))
        for rank in range(3)
    ]
    assert {len(shard) for shard in shards} == {len(batches) // 3}
    assert [batch for together in zip(*shards, strict=True) for batch in together] == list(batches)


@pytest.mark.parametrize("num_ranks", [1, 2])
@SIZES
@ORDERS
def test_a_resumed_epoch_yields_exactly_the_remainder(order: BatchOrder, size: dict[str, int], num_ranks: int) -> None:
    for rank in range(num_ranks):
        batches = PairBatches(skewed(200), order=order, seed=0, num_ranks=num_ranks, padded=True, num_epochs=2, **size)
        plain: DataLoader[Any] = DataLoader(range(200), batch_sampler=batches, collate_fn=list)  # type: ignore[arg-type]
        prepared = prepare_data_loader(plain, num_processes=num_ranks, process_index=rank, even_batches=False)
        resumed = skip_first_batches(prepared, 5)
        resumed.set_epoch(1)
        batches.set_epoch(1)  # the line above does not reach it, see `PairBatches.set_epoch`
        assert list(resumed) == list(islice(epoch_of(batches, 1), rank, None, num_ranks))[5:]


@ORDERS
def test_a_plain_loader_skips_to_exactly_the_remainder(order: BatchOrder) -> None:
    batches = PairBatches(skewed(50), order=order, seed=0, pairs=4, padded=True)
    plain: DataLoader[Any] = DataLoader(range(50), batch_sampler=batches, collate_fn=list)  # type: ignore[arg-type]
    assert list(skip_first_batches(plain, 3)) == list(plain)[3:] == list(batches)[3:]


@ORDERS
def test_an_iteration_under_way_keeps_its_epoch(order: BatchOrder) -> None:
    batches = PairBatches(skewed(50), order=order, seed=0, pairs=4, padded=True, num_epochs=2)
    expected = epoch_of(batches, 0)
    under_way = iter(batches)
    batches.set_epoch(1)
    assert batches.num_rows_after(len(batches) + 1) == 50 + 4
    assert list(under_way) == expected


@pytest.mark.parametrize(("padded", "needed"), [(False, 60), (True, 80)])
def test_a_pair_above_the_budget_is_refused_by_index(padded: bool, needed: int) -> None:
    lengths = np.array([[1, 1, 1], [20, 20, 20], [19, 20, 20]])
    with pytest.raises(UserError, match=rf"pair 1 has {needed} tokens.*budget of 58 \(2 such") as caught:
        PairBatches(lengths, order=BatchOrder.random, seed=0, tokens=58, padded=padded)
    assert f"raise trainer.tokens_per_device to at least {needed} or lower data.max_length" in str(caught.value)
    PairBatches(lengths, order=BatchOrder.random, seed=0, tokens=needed, padded=padded)


def test_a_budget_that_cannot_fill_the_ranks_is_refused_with_the_one_that_can() -> None:
    lengths = np.array([[20, 20, 20]] * 5)
    with pytest.raises(UserError, match=r"5 pairs do not divide .* 4 ranks.*to at least 120 "):
        PairBatches(lengths, order=BatchOrder.random, seed=0, tokens=100, num_ranks=4, padded=False)
    assert len(PairBatches(lengths, order=BatchOrder.random, seed=0, tokens=120, num_ranks=4, padded=False)) == 4


def test_fewer_pairs_than_ranks_are_refused() -> None:
    with pytest.raises(UserError, match="3 pairs for 4 ranks"):
        PairBatches(skewed(3), order=BatchOrder.random, seed=0, pairs=1, num_ranks=4, padded=False)


@pytest.mark.parametrize("size", [{}, {"pairs": 1, "tokens": 9000}])
def test_exactly_one_of_pairs_and_tokens_is_allowed(size: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="pairs or tokens"):
        PairBatches(skewed(3), order=BatchOrder.random, seed=0, padded=False, **size)


def test_with_a_budget_an_epoch_that_was_not_counted_is_refused() -> None:
    batches = PairBatches(skewed(30), order=BatchOrder.random, seed=0, tokens=9000, padded=True, num_epochs=2)
    assert batches.num_rows_after(2 * len(batches)) == 60
    batches.set_epoch(2)
    with pytest.raises(ValueError, match="epoch 2 of 2"):
        iter(batches)
