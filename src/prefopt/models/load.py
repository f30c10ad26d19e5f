"""Loads policies, references and tokenizers that the configuration names."""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from prefopt.config.choices import PeftMethod, Precision, WeightsDtype
from prefopt.config.overrides import typed
from prefopt.config.schema import ModelConfig, PeftConfig, TrainConfig
from prefopt.models.kernels import check_kernels
from prefopt.process import phases
from prefopt.process.errors import UserError
from prefopt.process.paths import describe_missing, is_local, resolve

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

ADAPTER_FILE = "adapter_config.json"


def check_hardware(config: TrainConfig) -> None:
    """Refuses a precision, quantisation or kernels that this machine cannot run, before anything is loaded."""
    disable_progress_bar()
    check_kernels(config)
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it must detect the device
    if config.peft.method is PeftMethod.qlora:
        if not torch.cuda.is_available():
            raise UserError("peft=qlora: 4-bit base models need a CUDA device, and there is none. Use peft=lora.")
        try:
            import bitsandbytes  # noqa: F401 (an optional dependency: only its presence is checked)
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
    """Returns whether the device that trains computes in bfloat16 natively."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def choose_device() -> torch.device:
    """Returns the device of this process: the current GPU, which each rank has set before, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_tokenizer(config: ModelConfig) -> "PreTrainedTokenizerBase":
    """Loads the tokenizer, and replaces its chat template if `model.chat_template` is set."""
    tokenizer = from_pretrained(AutoTokenizer, config)
    if config.chat_template is not None:
        tokenizer.chat_template = _read_template(resolve(config.chat_template))
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


def _read_template(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"model.chat_template: no such file: {path}.")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"model.chat_template: {path} is no UTF-8 ({error}). Save the file as UTF-8.") from error


def count_tokens(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Returns the number of embedding rows that a tokenizer needs: its largest token id + 1."""
    return 1 + max(tokenizer.get_vocab().values(), default=-1)


@phases.of("model_load")
def load_model(
    config: ModelConfig, peft: PeftMethod = PeftMethod.none, placement: dict[str, object] | None = None
) -> "PreTrainedModel":
    """Loads a model; if the folder holds an adapter, it loads its base with the adapter merged in.

    Args:
        config: Path, revision, data type, attention.
        peft: With `qlora`, the weights are quantised to 4-bit NF4.
        placement: `straight_to_device()`, or None to load into host memory, from where a trainer moves or shards it.

    Raises:
        UserError: The model is missing, damaged or incomplete.
    """
    path = resolve(config.path)
    arguments = _weights(config, peft) | (placement or {})
    if (path / ADAPTER_FILE).is_file():
        return _load_merged(config, path, peft, arguments)
    model, found = from_pretrained(AutoModelForCausalLM, config, output_loading_info=True, **arguments)
    _check_complete(config, found)
    if config.resize_embeddings:
        _resize_embeddings(model, config)
    return model


def _check_complete(config: ModelConfig, found: dict[str, Any]) -> None:
    """Refuses a model whose weights lack tensors, which transformers initialises randomly; warns of unused tensors."""
    missing, unused = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    if missing:
        raise UserError(
            f"model.path={config.path}: its weights lack {len(missing)} tensors that its config.json asks for, first "
            f"{missing[0]}; training would begin with random numbers there. Get the whole model, or mend the file."
        )
    if unused:
        what = f"{len(unused)} of its stored tensors have no place in its architecture, first {unused[0]}"
        logger.warning("model: %s: %s; they are left out", config.path, what)


def _resize_embeddings(model: "PreTrainedModel", config: ModelConfig) -> None:
    """Adds the embedding rows that the tokenizer needs; each is the mean of the old rows, so all loads are equal."""
    wanted, rows = count_tokens(from_pretrained(AutoTokenizer, config)), model.get_input_embeddings().num_embeddings
    if wanted <= rows:
        logger.info("model.resize_embeddings: nothing to do, %d tokens have %d rows", wanted, rows)
        return
    model.resize_token_embeddings(wanted, mean_resizing=False)
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    with torch.no_grad():
        for weight in {id(layer.weight): layer.weight for layer in layers if layer is not None}.values():
            weight[rows:] = weight[:rows].mean(dim=0)
    logger.info("model: its embedding grows from %d to %d rows (model.resize_embeddings=true)", rows, wanted)


def straight_to_device() -> dict[str, object]:
    """Returns arguments of `from_pretrained` that load a model onto the GPU tensor by tensor; {} without a GPU.

    The ranks of a node then need no host memory for copies of the model. The GPU is named by its number, since the
    current device is a setting of one thread, and transformers loads with several.
    """
    if choose_device().type != "cuda":
        return {}
    return {"device_map": {"": f"cuda:{torch.cuda.current_device()}"}}


@phases.of("model_load")
def load_tuned(config: TrainConfig, folder: Path) -> "PreTrainedModel | PeftModel":
    """Loads the model that a run saved in `folder` onto this process's device: full, or the base with its adapter."""
    if not (folder / ADAPTER_FILE).is_file():
        own = {"path": str(folder), "revision": None, "resize_embeddings": False}
        return load_model(ModelConfig(**{**vars(config.model), **own}), placement=straight_to_device())
    from peft import PeftModel

    base = load_model(config.model, config.peft.method, straight_to_device())
    with _readable(str(folder)):
        return PeftModel.from_pretrained(base, folder)


def build_peft_config(peft: PeftConfig, model: ModelConfig) -> "LoraConfig | None":
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


def _weights(config: ModelConfig, peft: PeftMethod) -> dict[str, object]:
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


def _load_merged(config: ModelConfig, path: Path, peft: PeftMethod, arguments: dict[str, object]) -> "PreTrainedModel":
    if peft is not PeftMethod.none:
        raise UserError(
            f"model.path={config.path}: holds an adapter, and one trained on top would name the base below both. "
            "Set peft=none, or save the merged model to a folder of its own and name that."
        )
    from peft import AutoPeftModelForCausalLM

    base = find_base(config)
    assert base is not None
    with _readable(config.path, f" (an adapter of {base.path}, as its {ADAPTER_FILE} names the base)"):
        merged = AutoPeftModelForCausalLM.from_pretrained(path, **arguments).merge_and_unload()
    merged.requires_grad_(True)  # PEFT froze the base
    merged.config._name_or_path = str(path)
    logger.info("model: the adapter in %s is merged into its base", path)
    return merged


def find_base(config: ModelConfig) -> ModelConfig | None:
    """Returns the configuration of the base model of the adapter in `config.path`; None if it holds no adapter.

    Raises:
        UserError: The adapter does not name its base, or the base is not there.
    """
    file = resolve(config.path) / ADAPTER_FILE
    if not file.is_file():
        return None
    try:
        adapter = json.loads(file.read_text(encoding="utf-8"))
        path, revision = adapter["base_model_name_or_path"], adapter.get("revision")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{file}: does not name the base of the adapter ({type(error).__name__}: {error}).") from error
    if not isinstance(path, str) or not path:
        raise UserError(
            f"{file}: names no base of the adapter, base_model_name_or_path is {json.dumps(path)}. Write there the "
            "folder, or the id on the hub, of the model on which the adapter was trained."
        )
    if is_local(path) and not resolve(path).is_dir():
        raise UserError(
            f"{file}: the adapter's base {path} is not there any more. Write where it is now under "
            "base_model_name_or_path in that file."
        )
    return ModelConfig(path=path, revision=revision, trust_remote_code=config.trust_remote_code)


def from_pretrained(kind: Any, config: ModelConfig, **arguments: object) -> Any:
    """Returns `kind.from_pretrained(...)` of the folder or hub model in `config`; `kind` is an Auto class.

    Raises:
        UserError: The model is missing or damaged.
    """
    path, local = config.path, is_local(config.path)
    if local and not resolve(path).is_dir():
        found = "is a file, and no folder." if resolve(path).exists() else describe_missing(resolve(path), "folder")
        raise UserError(f"model.path={path}: {found}")
    if local and config.revision is not None:
        raise UserError(
            f"{typed('model.revision', config.revision)}: {path} is a folder, and only models of the hub "
            "have revisions. Leave it out."
        )
    with _readable(path):
        return kind.from_pretrained(
            str(resolve(path)) if local else path,
            revision=config.revision or "main",
            trust_remote_code=config.trust_remote_code,
            **arguments,
        )


@contextmanager
def _readable(path: str, what: str = "") -> Iterator[None]:
    """Turns errors of transformers, PEFT, tokenizers or safetensors about a file into a one-sentence `UserError`.

    It catches every `Exception`, since a damaged file raises many types, from SafetensorError to KeyError; only
    out-of-memory errors and `UserError` pass unchanged.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, UserError):
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".") or "no reason given"
        if "ignore_mismatched_sizes" in reason:
            reason = "its weights have other shapes than its config.json says; the table above names them"
        elif not isinstance(error, (OSError, ValueError, ImportError)):
            reason = f"{type(error).__name__}: {reason}. A file there is damaged: copy or download it once more"
        raise UserError(f"model.path={path}{what}: cannot be loaded: {reason}.{_remedy(path, reason)}") from error


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Lets errors of the model of a judge or a contestant name their setting instead of the run's model."""
    try:
        yield
    except UserError as error:
        text = str(error).replace("model=hf model.path=", "model: ").replace("model.path=", "model=")
        raise UserError(f"{where} {text}") from error


def _remedy(path: str, reason: str) -> str:
    """Returns a remedy, as the end of an error message, if a hub model cannot be loaded; empty for a local one."""
    if is_local(path):
        return ""
    first = path.partition("/")[0]
    missing = f" As a folder: {describe_missing(resolve(path), 'folder')}" if resolve(first).is_dir() else ""
    if os.environ.get("HF_HUB_OFFLINE"):
        return f"{missing} HF_HUB_OFFLINE is set. Unset it, or give a folder: model=hf model.path=<folder>."
    if "connect" in reason:
        return f"{missing} Check the connection, or give a folder: model=hf model.path=<folder>."
    return missing
