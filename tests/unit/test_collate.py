"""The collator against TRL's, and what it adds."""

import numpy as np
import pytest
import torch
from trl.trainer.dpo_trainer import DataCollatorForPreference

from prefopt.data.collate import REFERENCE, PairCollator
from prefopt.modeling.shared_prefix import LAYOUT


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
