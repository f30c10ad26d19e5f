"""Loads policies, references and tokenizers as the configuration names them."""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from prefopt.choices import PeftMethod, Precision, WeightsDtype
from prefopt.errors import UserError
from prefopt.modeling.kernels import check_kernels
from prefopt.paths import SCHEME, resolve
from prefopt.schema import ModelConfig, PeftConfig, TrainConfig
from prefopt.tracking import phases

logger = logging.getLogger(__name__)

ADAPTER_FILE = "adapter_config.json"


def check_hardware(config: TrainConfig) -> None:
    """Refuses a precision, a quantisation or kernels that this machine cannot run, before anything is loaded."""
    disable_progress_bar()
    check_kernels(config)
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it had to find out
    if config.peft.method is PeftMethod.qlora:
        if not torch.cuda.is_available():
            raise UserError("peft=qlora: 4-bit base models need a CUDA device, and there is none. Use peft=lora.")
        try:
            import bitsandbytes  # noqa: F401 (an optional dependency: only its presence is asked)
        except ImportError as error:
            raise UserError("peft=qlora: needs bitsandbytes. Install it: pip install 'prefopt[qlora]'.") from error
    if config.trainer.precision is Precision.bf16 and not has_bf16():
        device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "this CPU"
        raise UserError(f"trainer.precision=bf16: {device} has no bfloat16 instructions. Set trainer.precision=fp32.")
    if torch.cuda.device_count() > 1 and "LOCAL_RANK" not in os.environ:
        raise UserError(
            f"{torch.cuda.device_count()} GPUs are visible to one process. "
            "Make one visible: CUDA_VISIBLE_DEVICES=0 python -m prefopt.train ..."
        )


def has_bf16() -> bool:
    """True if the device that trains computes in bfloat16 natively."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def choose_device() -> torch.device:
    """The device that this process computes on; with several ranks, each has made one GPU its current one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_tokenizer(config: ModelConfig) -> Any:
    """Loads the tokenizer, with the configured chat template in place of its own where one is given."""
    tokenizer = _from_pretrained(AutoTokenizer, config, config.path)
    if config.chat_template is not None:
        path = resolve(config.chat_template)
        if not path.is_file():
            raise UserError(f"model.chat_template: no such file: {path}.")
        tokenizer.chat_template = path.read_text(encoding="utf-8")
    if "strftime_now" in str(tokenizer.chat_template):
        logger.warning(
            "tokenizer: its chat template writes today's date into prompts, so another day's run sees other tokens. "
            "Set model.chat_template to a copy with a fixed date."
        )
    if tokenizer.eos_token is None:
        raise UserError(f"{config.path}: its tokenizer has no end-of-sequence token, so no answer could ever end.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        logger.info("tokenizer: no padding token, so %r pads (padding is masked everywhere)", tokenizer.eos_token)
    return tokenizer


@phases.of("model_load")
def load_model(
    config: ModelConfig, peft: PeftMethod = PeftMethod.none, placement: dict[str, Any] | None = None
) -> Any:
    """Loads the model before training; a folder that holds an adapter is loaded with the adapter merged in.

    Args:
        config: Path, revision, data type, attention.
        peft: With `qlora` the weights are quantised to 4-bit NF4.
        placement: `straight_to_device()`, or nothing: into host memory, from where a trainer moves or shards it.
    """
    path = resolve(config.path)
    arguments = _weights(config, peft) | (placement or {})
    if (path / ADAPTER_FILE).is_file():
        return _load_merged(config, path, peft, arguments)
    return _from_pretrained(AutoModelForCausalLM, config, config.path, **arguments)


def straight_to_device() -> dict[str, Any]:
    """Has a model read onto the GPU tensor by tensor: the ranks of a node need no host memory for copies of it.

    The GPU is named by its number, since what is current is known to one thread, and several read.
    """
    if choose_device().type != "cuda":
        return {}
    return {"device_map": {"": f"cuda:{torch.cuda.current_device()}"}}


@phases.of("model_load")
def load_tuned(config: TrainConfig, folder: Path) -> Any:
    """Loads what a run saved, onto the device that measures it: the full model, or the base with a PEFT adapter."""
    if not (folder / ADAPTER_FILE).is_file():
        tuned = ModelConfig(**{**vars(config.model), "path": str(folder), "revision": None})
        return load_model(tuned, placement=straight_to_device())
    from peft import PeftModel

    return PeftModel.from_pretrained(load_model(config.model, config.peft.method, straight_to_device()), folder)


def build_peft_config(peft: PeftConfig, model: ModelConfig) -> Any:
    """Returns PEFT's LoraConfig, or None for full fine-tuning."""
    if peft.method is PeftMethod.none:
        return None
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=peft.r,
        lora_alpha=peft.alpha,
        lora_dropout=peft.dropout,
        use_dora=peft.method is PeftMethod.dora,
        target_modules=peft.target_modules or model.lora_targets or "all-linear",
    )


def _weights(config: ModelConfig, peft: PeftMethod) -> dict[str, Any]:
    dtype = "auto" if config.dtype is WeightsDtype.auto else getattr(torch, config.dtype.value)
    arguments: dict[str, Any] = {"dtype": dtype, "attn_implementation": config.attn_implementation}
    if peft is PeftMethod.qlora:
        from transformers import BitsAndBytesConfig

        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    return arguments


def _load_merged(config: ModelConfig, path: Path, peft: PeftMethod, arguments: dict[str, Any]) -> Any:
    if peft is not PeftMethod.none:
        raise UserError(
            f"model.path={config.path}: holds an adapter, and one trained on top would name the base below both. "
            "Set peft=none, or save the merged model to a folder of its own and name that."
        )
    from peft import AutoPeftModelForCausalLM

    merged = AutoPeftModelForCausalLM.from_pretrained(path, **arguments).merge_and_unload()
    merged.requires_grad_(True)  # PEFT froze the base
    merged.config._name_or_path = str(path)
    logger.info("model: the adapter in %s is merged into its base", path)
    return merged


def _from_pretrained(kind: Any, config: ModelConfig, path: str, **arguments: Any) -> Any:
    local = resolve(path)
    looks_local = path.startswith((SCHEME, "/", ".", "~")) or local.exists()
    if looks_local and not local.is_dir():
        raise UserError(f"model.path={path}: no such folder.")
    try:
        return kind.from_pretrained(
            str(local) if looks_local else path,
            revision=config.revision or "main",
            trust_remote_code=config.trust_remote_code,
            **arguments,
        )
    except (OSError, ValueError, ImportError) as error:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"model.path={path}: cannot be loaded{offline}. {first}") from error
