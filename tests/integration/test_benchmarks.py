"""The benchmark of a DPO step runs, writes what it says, and prints no time for a wrong engine."""

import json
import math

import pytest
import torch

from benchmarks import cost, dpo_step, results
from benchmarks.gate import DisagreementError
from prefopt.models.shared_prefix import PairLayout, collate

pytestmark = pytest.mark.slow


def test_a_quick_run_writes_every_variant_with_its_costs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    dpo_step.main(["--quick", "--rounds", "1", "--device", "cpu", "--write"])
    (path,) = tmp_path.glob("*/dpo_step.json")
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["packages"].keys() == set(dpo_step.PACKAGES)
    assert written["command"] == "python -m benchmarks.dpo_step --quick --rounds 1 --device cpu --write"
    assert written["gpu"] is None
    fixed, mixed = written["results"]
    for result in (fixed, mixed):
        variants = {row["variant"]: row for row in result["variants"]}
        assert list(variants) == ["trl", "trl_precompute", "trl_proxy", "trl_proxy_precompute", "prefopt"]
        ours, plain = variants["prefopt"], variants["trl"]
        assert ours["times_min"] == ours["times_flops"] == 1
        assert plain["loss_error"] == plain["gradient_error"] == 0
        assert 0 < ours["gradient_error"] <= result["gradient_limit"] == pytest.approx(1e-5)
        assert result["compared_with"] == "trl"
        assert ours["tokens_computed"] == result["tokens_shared"] < plain["tokens_computed"] == result["tokens_padded"]
        assert variants["trl_proxy"]["flops"] < plain["flops"]
        assert variants["trl_precompute"]["flops"] < plain["flops"]
        assert plain["reference_bytes"] > 0 == ours["reference_bytes"]
        weights, batch_pairs = plain["reference_bytes"], result["batches"] * result["batch_pairs"]
        assert plain["total_bytes"] > plain["peak_bytes"] + weights * 5  # policy, gradients, two of AdamW; reference
        assert ours["pairs_per_s"] == pytest.approx(batch_pairs / ours["min_s"])
        assert ours["tokens_per_s"] == pytest.approx(result["tokens_real"] / ours["min_s"])
        assert ours["host_s"] is ours["host_calls"] is ours["mfu"] is None
        assert all(math.isfinite(row[name]) for row in variants.values() for name in ("min_s", "cpu_s", "peak_bytes"))
    assert mixed["padding_share"] > fixed["padding_share"]
    assert "prefopt" in capsys.readouterr().out


def test_a_run_in_half_precision_tells_trls_error_and_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    arguments = ["--quick", "--rounds", "1", "--device", "cpu", "--write", "--pairs", "quick"]
    dpo_step.main([*arguments, "--dtype", "bf16", "--peft", "none", "lora"])
    (path,) = tmp_path.glob("*/dpo_step.json")
    full, lora = json.loads(path.read_text(encoding="utf-8"))["results"]
    for result, trained in ((full, "none"), (lora, "lora")):
        assert (result["trained"], result["compared_with"]) == (trained, "float32")
        errors = {row["variant"]: row["gradient_error"] for row in result["variants"]}
        assert 0 < errors["prefopt"] <= 1.5 * errors["trl"] == result["gradient_limit"]
    assert lora["variants"][0]["reference_bytes"] == 0, "the base is the reference"
    printed = " ".join(capsys.readouterr().out.split())
    assert "errors against float32: loss trl" in printed
    assert f"gradient trl {errors['trl']:.1e}, prefopt {errors['prefopt']:.1e}" in printed


def test_no_time_is_printed_for_an_engine_with_wrong_positions(tmp_path, monkeypatch, capsys):
    class WrongLayout(PairLayout):
        @classmethod
        def build(cls, lengths, width, *rest):
            layout = PairLayout.build(lengths, width)
            layout.position_ids[0] = torch.arange(layout.num_tokens)  # without a restart after the prompt
            return layout

    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(collate, "PairLayout", WrongLayout)
    with pytest.raises(DisagreementError, match="prefopt differs from trl"):
        dpo_step.main(["--quick", "--rounds", "1", "--device", "cpu", "--write", "dpo_step_wrong"])
    assert "min s" not in capsys.readouterr().out
    (path,) = tmp_path.glob("*/dpo_step_wrong.json")
    rows = json.loads(path.read_text(encoding="utf-8"))["results"]
    assert [row["pairs"] for row in rows] == ["quick", "quick mixed"], "the other shapes follow"
    assert all("prefopt differs from trl" in row["error"] for row in rows)


def test_results_are_written_under_a_name_by_which_they_are_found(capsys):
    with pytest.raises(SystemExit):
        dpo_step.main(["--quick", "--write", "mine"])
    assert "--write mine: the name begins with dpo_step" in capsys.readouterr().err


def test_peak_memory_counts_what_is_alive_at_once():
    def work() -> None:
        for _ in range(3):
            torch.ones(250_000).exp()  # two of a million bytes at once, three times

    assert cost.measure_peak(work, torch.device("cpu")) == pytest.approx(2e6, rel=0.01)


def test_flops_of_attention_are_counted_on_a_cpu():
    query, key = (torch.randn(1, 2, length, 8, requires_grad=True) for length in (6, 10))
    flops = cost.count_flops(lambda: torch.nn.functional.scaled_dot_product_attention(query, key, key))
    assert flops == 2 * 2 * (2 * 6 * 10 * 8)
