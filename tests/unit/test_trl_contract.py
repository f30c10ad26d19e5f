"""What we rely on in TRL beyond its documented interface: a change there must fail here first."""

import inspect
from importlib.metadata import version

import trl
from trl.trainer.utils import add_fused_lm_head


def test_version_is_the_one_that_was_read():
    assert version("trl").split(".")[:2] == ["1", "16"]


def test_prepare_dataset_is_where_dpo_tokenises():
    assert list(inspect.signature(trl.DPOTrainer._prepare_dataset).parameters) == [
        "self",
        "dataset",
        "processing_class",
        "args",
        "dataset_name",
    ]


def test_reference_log_probs_come_from_the_batch_when_the_attribute_says_so():
    source = inspect.getsource(trl.DPOTrainer._compute_loss)
    assert "if self.precompute_ref_logps:" in source
    assert 'inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]' in source


def test_evaluation_metrics_collect_in_one_place_and_are_averaged_when_logged():
    assert "self._metrics[mode]" in inspect.getsource(trl.DPOTrainer.log)
    assert list(inspect.signature(trl.DPOTrainer.compute_ref_log_probs).parameters) == ["self", "model", "inputs"]


def test_the_chunked_head_returns_log_probs():
    assert "outputs" in inspect.signature(add_fused_lm_head).parameters


def test_sft_takes_rows_that_are_ready():
    assert "skip_prepare_dataset" in inspect.getsource(trl.SFTTrainer.__init__)
