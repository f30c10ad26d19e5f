"""What we rely on in TRL beyond its documented interface: a change there must fail here first."""

import inspect
from importlib.metadata import version

import trl
from trl.trainer import dpo_trainer
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


def test_the_reference_is_precomputed_through_one_method_after_one_hash():
    names = list(inspect.signature(trl.DPOTrainer._precompute_ref_logps).parameters)
    assert names == ["self", "dataset", "name", "batch_size"]
    source = inspect.getsource(trl.DPOTrainer.__init__)
    assert "hash_module(self.ref_model or self.model)" in source
    assert "is_peft_model(self.model) or (args.precompute_ref_log_probs and not self.is_fsdp_enabled)" in source
    assert callable(dpo_trainer.hash_module)


def test_columns_of_reference_log_probs_are_kept_by_name():
    assert "self._signature_columns = [" in inspect.getsource(trl.DPOTrainer._set_signature_columns_if_needed)


def test_the_head_calls_the_backbone_as_a_module_and_takes_labels_that_are_shifted():
    source = inspect.getsource(add_fused_lm_head)
    assert "backbone_outputs = getattr(self, backbone_attr)(*args, **kwargs)" in source
    assert "hidden_states = backbone_outputs.last_hidden_state\n" in source
    assert "labels = shift_labels" in source


def test_batch_entries_that_trl_does_not_know_reach_the_model():
    source = inspect.getsource(trl.DPOTrainer._compute_loss)
    assert "model_kwargs = {k: v for k, v in inputs.items() if k not in _non_model_keys}" in source


def test_the_chunked_head_returns_log_probs():
    assert "outputs" in inspect.signature(add_fused_lm_head).parameters


def test_sft_takes_rows_that_are_ready():
    assert "skip_prepare_dataset" in inspect.getsource(trl.SFTTrainer.__init__)
