"""The layout of a shared-prefix row against loops that follow its definition."""

import pickle

import torch
from accelerate.utils import send_to_device
from hypothesis import given
from hypothesis import strategies as st

from prefopt.models.shared_prefix import PairLayout

Lengths = list[tuple[int, int, int]]
pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=5)
spare = st.integers(0, 3)


def slow_row(lengths: Lengths) -> list[tuple[int, int, int]]:
    """Pair, segment and position of each token."""
    row = []
    for pair, (prompt, chosen, rejected) in enumerate(lengths):
        row += [(pair, 0, position) for position in range(prompt)]
        row += [(pair, 1, prompt + i) for i in range(chosen)]
        row += [(pair, 2, prompt + i) for i in range(rejected)]
    return row


def width_of(lengths: Lengths, spare: int = 0) -> int:
    return max(prompt + max(chosen, rejected) for prompt, chosen, rejected in lengths) + spare


def test_a_pair_is_laid_out_as_written_down_by_hand():
    layout = PairLayout.build([(2, 1, 2), (0, 2, 1)], width=5)
    assert layout.source.tolist() == [0, 1, 2, 12, 13, 5, 6, 15, 2, 12, 13, 6]
    assert layout.position_ids.tolist() == [[0, 1, 2, 2, 3, 0, 1, 0]]
    assert layout.predictors.tolist() == [1, 1, 3, 5]
    assert layout.scored.tolist() == [1, 9, 10, 4]


@given(pairs, spare)
def test_the_row_holds_every_prompt_once_and_no_padding(lengths, spare):
    width = width_of(lengths, spare)
    layout, row = PairLayout.build(lengths, width), slow_row(lengths)
    place = [(pair + len(lengths) * (segment == 2)) * width + position for pair, segment, position in row]
    assert layout.source[: layout.num_tokens].tolist() == place
    assert layout.position_ids.tolist() == [[position for _, _, position in row]]
    assert layout.num_tokens == len(row) == sum(layout.split)
    assert layout.num_pairs == len(lengths)


@given(pairs, spare)
def test_every_completion_token_is_predicted_by_the_token_before_it(lengths, spare):
    width = width_of(lengths, spare)
    layout, row = PairLayout.build(lengths, width), slow_row(lengths)
    predictors, targets, scored = [], [], []
    for target, (pair, segment, position) in enumerate(row):
        if segment == 0 or position == 0:
            continue
        before = [i for i, (p, s, at) in enumerate(row) if p == pair and s in (0, segment) and at == position - 1]
        assert len(before) == 1
        predictors += before
        targets.append(target)
        scored.append((pair + len(lengths) * (segment == 2)) * (width - 1) + position - 1)
    assert layout.predictors.tolist() == predictors
    row_sources, of_targets = layout.source.split([layout.num_tokens, len(targets)])
    assert of_targets.tolist() == row_sources[targets].tolist()
    assert layout.scored.tolist() == scored


def test_a_prompt_too_short_to_be_shared_stands_before_both_completions():
    layout = PairLayout.build([(2, 1, 2), (4, 1, 1)], width=5, share_from=3)
    assert layout.segments == ((0, 3, 4), (4, 1, 1))
    assert layout.source[:13].tolist() == [0, 1, 2, 10, 11, 12, 13, 5, 6, 7, 8, 9, 19]
    assert layout.source[13:].tolist() == [2, 12, 13, 9, 19]
    assert layout.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3, 4, 4]]
    assert layout.predictors.tolist() == [1, 4, 5, 10, 10]
    assert layout.scored.tolist() == [1, 9, 10, 7, 15]


@given(pairs, spare, st.integers(0, 12))
def test_what_is_scored_is_what_trl_scores(lengths, spare, share_from):
    width = width_of(lengths, spare)
    is_completion = torch.zeros(2 * len(lengths), width, dtype=torch.bool)
    for pair, (prompt, chosen, rejected) in enumerate(lengths):
        is_completion[pair, prompt : prompt + chosen] = True
        is_completion[pair + len(lengths), prompt : prompt + rejected] = True
    expected = is_completion[:, 1:].flatten().nonzero().flatten().tolist()
    assert sorted(PairLayout.build(lengths, width, share_from).scored.tolist()) == expected


@given(pairs, st.integers(0, 12))
def test_a_kernel_gets_two_sequences_a_pair_with_the_keys_that_their_tokens_see(lengths, share_from):
    layout = PairLayout.build(lengths, width_of(lengths), share_from)
    queries, keys, place = [], [], 0
    for prompt, chosen, rejected in layout.segments:
        of_prompt, first = list(range(place, place + prompt)), list(range(place, place + prompt + chosen))
        second = list(range(first[-1] + 1, first[-1] + 1 + rejected))
        queries += [first, second]
        keys += [first, of_prompt + second]
        place = second[-1] + 1
    found = layout.varlen
    assert found.cu_seqlens_q.dtype == found.cu_seqlens_k.dtype == torch.int32
    assert found.cu_seqlens_q.tolist() == [sum(map(len, queries[:i])) for i in range(len(queries) + 1)]
    assert found.cu_seqlens_k.tolist() == [sum(map(len, keys[:i])) for i in range(len(keys) + 1)]
    assert found.max_q == max(map(len, queries))
    assert found.max_k == max(map(len, keys))
    flat = [place for sequence in keys for place in sequence]
    if found.keys is None:
        assert flat == list(range(layout.num_tokens))
    else:
        assert found.keys.tolist() == flat
        assert max(map(flat.count, flat)) <= 2, "more addends than two have an order"


def test_a_layout_survives_a_loader_worker():
    layout = PairLayout.build([(3, 2, 1)], width=5)
    copy = pickle.loads(pickle.dumps(layout))
    assert (copy.segments, copy.width) == (layout.segments, layout.width)
    assert torch.equal(copy.source, layout.source)


def test_accelerate_moves_a_layout_with_its_batch():
    layout = PairLayout.build([(3, 2, 1)], width=5)
    assert layout.varlen.keys.device.type == "cpu"
    moved = send_to_device({"pair_layout": layout}, torch.device("meta"))["pair_layout"]
    tensors = [
        moved.source,
        moved.position_ids,
        moved.predictors,
        moved.scored,
        *moved.varlen[:2],
        moved.varlen.keys,
    ]
    assert all(tensor.is_meta for tensor in tensors)
    assert moved.segments == layout.segments
