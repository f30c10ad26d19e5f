"""What we rely on in TRL, transformers, DeepSpeed and Hydra beyond what they document: a change fails here first."""

import inspect
import re
from importlib.metadata import version

import pytest
import trl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from hydra.core.utils import JobRuntime
from hydra.version import VersionBase
from transformers import Trainer
from trl.trainer import dpo_trainer
from trl.trainer.utils import FusedCausalLMOutput, add_fused_lm_head

from prefopt.config.choices import LOSS_TYPES


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


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize("trainer", [trl.DPOTrainer, trl.SFTTrainer])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("get_batch_samples", ["self", "epoch_iterator", "num_batches", "device"]),
        ("_get_grad_norm", ["self", "model", "grad_norm"]),
        ("_save_checkpoint", ["self", "model", "trial"]),
        ("_save_optimizer_and_scheduler", ["self", "output_dir"]),
        ("_save_scaler", ["self", "output_dir"]),
        ("_save_rng_state", ["self", "output_dir"]),
        ("_load_rng_state", ["self", "checkpoint"]),
        ("_save", ["self", "output_dir", "state_dict"]),
        ("_determine_best_metric", ["self", "metrics", "trial"]),
        ("_prepare_inputs", ["self", "inputs"]),
        ("log", ["self", "logs", "start_time"]),
        ("evaluate", ["self", "eval_dataset", "ignore_keys", "metric_key_prefix"]),
        ("compute_loss", ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]),
    ],
)
def test_what_we_override_or_call_in_a_trainer_is_there_with_its_arguments(trainer, name, expected):
    assert parameters(getattr(trainer, name)) == expected


def test_a_forward_is_one_call_of_training_step():
    """TRL wraps it to measure time, and passes on what it gets."""
    assert parameters(Trainer.training_step) == ["self", "model", "inputs", "num_items_in_batch"]
    assert "self.training_step(model, inputs, num_items_in_batch)" in inspect.getsource(Trainer._run_epoch)


def test_the_gradient_norm_of_a_step_is_asked_for_before_the_optimizer_uses_it():
    """With or without clipping: a gradient that is not finite must not reach the weights."""
    source = inspect.getsource(Trainer._run_epoch)
    norm = source.index("\n                    grad_norm = self._get_grad_norm(model, grad_norm=grad_norm)")
    assert norm < source.index("self.optimizer.step()")


def test_a_step_ends_before_it_is_logged_evaluated_and_saved_in_this_order():
    source = inspect.getsource(Trainer._run_epoch)
    assert source.index("self.callback_handler.on_step_end(") < source.index("self._maybe_log_save_evaluate(")
    source = inspect.getsource(Trainer._maybe_log_save_evaluate)
    positions = [source.index(call) for call in ("self.log(logs", "self._evaluate(", "self._save_checkpoint(")]
    assert positions == sorted(positions)
    assert source.index("metrics = self._evaluate(") < source.index("if self.control.should_save:"), (
        "an evaluation that was interrupted asks for a checkpoint"
    )


def test_a_step_of_fewer_forwards_is_a_mean_over_them():
    """`DPOTrainer.compute_loss` weighs forwards against this division."""
    assert "self.current_gradient_accumulation_steps = len(batch_samples)" in inspect.getsource(Trainer._run_epoch)
    assert "loss = loss / self.current_gradient_accumulation_steps" in inspect.getsource(Trainer.training_step)


def test_random_states_have_a_file_per_rank():
    source = inspect.getsource(Trainer._load_rng_state)
    assert 'f"rng_state_{process_index}.pth"' in source
    assert '"rng_state.pth"' in source


def test_the_states_of_a_step_are_saved_one_by_one_beside_the_weights():
    """What `prefopt.distributed.saving` does in place of `_save_checkpoint`: nothing else may have joined."""
    called = re.findall(r"self\.(_save\w*|save_model)\(", inspect.getsource(Trainer._save_checkpoint))
    assert called == ["save_model", "_save_optimizer_and_scheduler", "_save_scaler", "_save_rng_state"]


@pytest.mark.parametrize("trainer", [trl.DPOTrainer, trl.SFTTrainer])
def test_metrics_collect_in_lists_by_mode_and_name(trainer):
    assert 'self._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}' in inspect.getsource(
        trainer.__init__
    )


def test_the_losses_that_settings_allow_are_trls() -> None:
    source = inspect.getsource(trl.DPOTrainer._compute_loss)
    assert set(LOSS_TYPES) == set(re.findall(r'loss_type == "(\w+)"', source))


@pytest.mark.parametrize("compute", [trl.DPOTrainer._compute_loss, trl.SFTTrainer.compute_loss])
def test_a_forwards_metrics_are_gathered_through_two_methods_of_the_accelerator_alone(compute):
    """`OnThisRank` replaces these two; another collective would gather what is this rank's, or wait for nobody."""
    source = inspect.getsource(compute)
    used = set(re.findall(r"self\.accelerator\.(\w+)", source))
    assert used <= {"gather", "gather_for_metrics", "device", "unwrap_model", "num_processes", "parallelism_config"}
    assert "gather_for_metrics" in used
    assert not re.search(r"all_reduce|all_gather|\.reduce\(|nested_gather|\bdist\.|torch\.distributed", source)


def test_sft_divides_by_the_tokens_of_the_whole_step_times_the_ranks():
    """`SFTTrainer._note_metrics` undoes both."""
    source = inspect.getsource(trl.SFTTrainer.compute_loss)
    assert "loss = loss * (self.accelerator.num_processes // self.get_tp_size())" in source
    assert "outputs.label_mask.sum() if num_items_in_batch is None else num_items_in_batch" in source


@pytest.fixture
def engine():
    return pytest.importorskip("deepspeed.runtime.engine").DeepSpeedEngine


def test_deepspeed_writes_its_files_through_the_two_methods_that_we_guard(engine):
    """Between its barriers an error on one rank would leave the others waiting: see `saving._guarded`."""
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

    assert parameters(TorchCheckpointEngine.save) == ["self", "state_dict", "path"]
    assert "self.checkpoint_engine = create_checkpoint_engine(" in inspect.getsource(engine)
    assert parameters(engine._copy_recovery_script) == ["self", "save_path"]
    zero = inspect.getsource(engine._save_zero_checkpoint)
    assert "self.checkpoint_engine.save(zero_sd, zero_checkpoint_name)" in zero
    assert "self._copy_recovery_script(save_path)" in zero
    assert "self.checkpoint_engine.save(" in inspect.getsource(engine._save_checkpoint)


def test_deepspeed_names_its_folder_in_a_file_beside_it(engine):
    assert {"save_latest", "exclude_frozen_parameters"} <= set(parameters(engine.save_checkpoint))
    source = inspect.getsource(engine.save_checkpoint)
    assert "open(os.path.join(save_dir, 'latest'), 'w')" in source
    assert 'tag = f"global_step{self.global_steps}"' in source


def test_deepspeed_tells_its_stage(engine):
    assert parameters(engine.zero_optimization_stage) == ["self"]


def test_zero_uses_no_gradient_whose_norm_is_not_finite_and_reports_the_norm():
    """Stage 3 always looks; stages 1 and 2 do in fp32 and bf16 when they are told to, as we tell them."""
    pytest.importorskip("deepspeed")
    from deepspeed.runtime.zero import stage3, stage_1_and_2

    source = inspect.getsource(stage_1_and_2)
    assert "self.check_grad_overflow = check_grad_overflow" in source
    assert "or self.check_grad_overflow) and is_invalid_grad_norm(scaled_global_grad_norm)" in source
    assert 'self._global_grad_norm = float("inf")' in source
    source = inspect.getsource(stage3)
    assert (
        "            if is_invalid_grad_norm(scaled_global_grad_norm):\n                self.overflow = True" in source
    )
    assert 'self._global_grad_norm = float("inf")' in source


LOSS_FUNCTIONS = pytest.mark.parametrize("function", [trl.DPOTrainer._compute_loss, trl.SFTTrainer.compute_loss])


@LOSS_FUNCTIONS
def test_what_trl_reads_from_the_device_for_its_metrics_is_known(function):
    source = inspect.getsource(function)
    assert re.findall(r"\.(?:tolist|cpu|numpy)\(", source) == []
    counts = {"total_tokens", "total_sum", "total_chosen_tokens", "total_rejected_tokens", "num_valid"}
    assert set(re.findall(r"if (\w+) > 0 else 0\.0", source)) <= counts, "each is answered by yes"
    assert "self._total_train_tokens += num_tokens_in_batch // self._tp_size" in source


def test_what_dpo_picks_by_a_mask_it_sums_up_or_takes_the_gradient_of():
    source = inspect.getsource(trl.DPOTrainer._compute_loss)
    picked = re.findall(r"(\w+)\[\w+_mask\.bool\(\)\]\.(\w+)\(\)", source)
    metrics = [("chosen_mean_logits", "sum"), ("rejected_mean_logits", "sum")]
    assert sorted(picked) == [metrics[0], ("chosen_per_token_logps", "mean"), metrics[1]]


def test_per_token_results_are_zero_outside_of_the_completions():
    described = " ".join(inspect.getdoc(FusedCausalLMOutput).split())
    assert "Every per-token field is zero where the label is `-100`" in described


def test_the_head_selects_positions_where_one_name_says_so():
    source = inspect.getsource(add_fused_lm_head)
    assert "compact = _use_triton(hidden_states.device)" in source
    assert source.count("_use_triton(") == 1


@pytest.mark.parametrize("kind", [GlobalHydra, VersionBase, JobRuntime])
def test_what_hydra_keeps_once_per_process_lies_in_one_table_and_is_made_anew(kind):
    kept = Singleton._instances.pop(kind, None)
    try:
        assert kind.instance() is Singleton._instances[kind] is kind()
        assert kind.instance() is not kept
    finally:
        if kept is not None:
            Singleton._instances[kind] = kept
