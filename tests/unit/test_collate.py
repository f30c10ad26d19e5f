"""The collator against TRL's, and what it adds."""

import numpy as np
import pytest
import torch
from trl.trainer.dpo_trainer import DataCollatorForPreference

from prefopt.models.shared_prefix import LAYOUT
from prefopt.models.shared_prefix.collate import REFERENCE, PairCollator


def build_rows(lengths):
    rng = np.random.default_rng(0)
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return [dict(zip(names, (rng.integers(1, 99, n).tolist() for n in row), strict=True)) for row in lengths]


@pytest.mark.parametrize("lengths", [[(3, 2, 4)], [(40, 2, 9), (1, 1, 1), (35, 20, 3)]])
def test_the_tensors_are_those_of_trls_collator(lengths):
    rows = build_rows(lengths)
    expected = DataCollatorForPreference(pad_token_id=7)(rows)
    found = PairCollator(7)(rows)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_reference_log_probs_stand_where_the_head_returns_those_of_the_policy():
    rows = build_rows([(3, 2, 1), (1, 1, 3)])
    for row in rows:
        for side in ("chosen", "rejected"):
            row[f"ref_{side}_per_token"] = [-float(token) for token in row[f"{side}_ids"]]
    batch = PairCollator(0)(rows)
    scored = batch["completion_mask"][:, 1:].bool()
    assert torch.equal(batch[REFERENCE][scored], -batch["input_ids"][:, 1:][scored].float())
    assert (batch[REFERENCE][~scored] == 0).all()


def test_a_batch_without_anything_to_save_goes_without_layout():
    collate = PairCollator(0, with_layout=True)
    assert LAYOUT not in collate(build_rows([(1, 50, 50), (1, 50, 50)]))
    assert LAYOUT in collate(build_rows([(1, 50, 50), (1, 10, 10)]))
    assert LAYOUT in collate(build_rows([(50, 50, 50)]))
    assert LAYOUT not in PairCollator(0)(build_rows([(50, 50, 50)]))


def test_context_inside_a_completion_is_in_the_batch_and_never_scored():
    rows = build_rows([(40, 6, 4), (40, 2, 3)])
    for row in rows:
        row |= {"chosen_context": [], "rejected_context": []}
        for side in ("chosen", "rejected"):
            row[f"ref_{side}_per_token"] = [-float(token) for token in row[f"{side}_ids"]]
    whole = PairCollator(0)(rows)
    rows[0] |= {"chosen_context": [1, 3, 5, 6], "rejected_context": [0, 2]}
    batch = PairCollator(0, with_layout=True)(rows)
    mask = whole["completion_mask"].clone()
    mask[0, [41, 42, 45]] = 0
    mask[2, [40, 41]] = 0
    assert torch.equal(batch["completion_mask"], mask)
    assert torch.equal(batch["input_ids"], whole["input_ids"])
    assert torch.equal(batch[REFERENCE], whole[REFERENCE] * mask[:, 1:])
    scored = torch.zeros_like(mask[:, 1:])
    scored.view(-1)[batch[LAYOUT].scored] = 1
    assert torch.equal(scored, mask[:, 1:])
