"""What the benchmarks of many ranks count and how they summarise it; they themselves take minutes."""

import pytest
import torch

from benchmarks import checkpoints, checkpoints_rank, zero_memory
from benchmarks.checkpoints_rank import Settings
from benchmarks.zero_memory_rank import count_storages, find_tensors


def test_a_storage_counts_once_and_for_the_first_that_claims_it():
    weights = torch.zeros(1000)
    claims = {
        "weights": find_tensors([weights]),
        "other": find_tensors({"view": weights[10:20], "nested": (torch.zeros(5), None), "meta": weights.to("meta")}),
    }
    assert count_storages(claims) == {"weights": 4000, "other": 20}


def test_bytes_of_a_single_rank_are_those_without_sharding_and_a_copy_of_the_weights():
    for stage in (None, 1, 2, 3):
        expected = zero_memory.expected_bytes(stage, 1)
        assert expected["bf16_mixed"] == 16
        assert expected["backward"] == (16 if stage is None else 20)
        assert zero_memory.expected_bytes(stage, 8)["backward"] <= expected["backward"]


def test_a_summary_takes_the_rank_with_the_most_tensors_and_leaves_buckets_out():
    def rank(weights: int, buckets: int) -> dict:
        moment = {"bytes": {"buckets": buckets, "weights": weights}, "rss": 3000}
        moments = {"backward": moment, "step_end": moment}
        return {"parameters": 100, "moments": moments, "baseline_rss": 1000, **peaks}

    peaks = {"loading_peak_rss": 2000, "steps_peak_rss": 4000}
    case = zero_memory.Case(ranks=2, stage=3, bucket=7)
    summary = zero_memory.summarise(case, [rank(1000, 5), rank(1100, 28)])
    assert summary["backward"]["ratio"] == pytest.approx(1.1)
    assert summary["backward"]["bucket_bytes"] == 28
    assert summary["backward"]["rss_growth_bytes"] == 2000
    assert summary["steps_peak_rss_growth_bytes"] == 3000


def test_steps_with_a_save_are_no_step_times():
    ends = [("end_step", float(at), 0.1) for at in range(10)]
    spans = [*ends, ("save", 7.5, 0.2)]
    assert checkpoints.find_step_times(spans) == [1.0, 1.0, 1.0]  # 5-6, 6-7, 8-9


def test_a_step_costs_what_the_rank_that_came_last_needed():
    def rank(seconds: float) -> dict:
        ends = [("agree", float(at), seconds / 2) for at in range(10)]
        ends += [("end_step", float(at), seconds) for at in range(10)]
        positions = [("position", float(at), 0.001) for at in range(20)]
        return {"spans": ends + positions, "agreements_s": [0.002]}

    found = checkpoints.summarise_agreement([rank(0.004), rank(0.5)], step_s=1.0)
    assert found["end_of_step_us"] == pytest.approx(4000)
    assert found["per_step_us"] == pytest.approx(5000), "one of the two positions is noted before the step"


def test_a_synthetic_checkpoint_is_saved_sealed_and_verified(tmp_path):
    settings = Settings(agreements=3, verifications=1, rounds=2, synthetic_mib=3)
    rank = {"synthetic": checkpoints_rank.time_synthetic(tmp_path / "synthetic", settings)}
    names = [name for name, _, _ in rank["synthetic"][1]["spans"]]
    assert {"weights", "optimizer", "seal", "fsync", "hash", "manifest", "rotate"} <= set(names)
    found = checkpoints.summarise_synthetic([rank], settings)
    assert 0 < found["hash_s_per_gib"] < found["seal_s_per_gib"] < found["save_s_per_gib"]
    assert found["verify_cold_s_per_gib"] > 0
    assert not (tmp_path / "synthetic").exists()
    assert len(checkpoints_rank.time_agreement(3)) == 3
