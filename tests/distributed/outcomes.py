"""What a run left behind, in a form that can be compared with another run's."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt.storage.files import read_lines
from prefopt.tracking.metrics import TIMES

SHORT_REPORT = [
    "evaluation.num_samples=0",
    "evaluation.num_shown_samples=0",
    "evaluation.neutral_texts=null",
    "evaluation.max_train_examples=1",
    "evaluation.batch_size=2",
]
"""For runs whose training is what counts. With two pairs per forward, ranks share the held-out pairs unevenly."""

Record = dict[str, Any]


def metrics(run: Path) -> list[Record]:
    """metrics.jsonl without what a clock decides."""
    return [
        {key: value for key, value in record.items() if key not in TIMES}
        for record in read_lines(run / "metrics.jsonl")
    ]


def training(run: Path) -> list[Record]:
    """The lines of training."""
    return [record for record in metrics(run) if "split" not in record]


def held_out(run: Path) -> list[Record]:
    """The lines of held-out evaluations."""
    return [record for record in metrics(run) if record.get("split") == "held_out"]


def rows(run: Path) -> list[Record]:
    """Which rows each optimizer step saw."""
    return list(read_lines(run / "rows.jsonl"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a saved model or adapter."""
    files = sorted(folder.glob("*.safetensors"))
    assert files, f"{folder} holds no weights"
    return {key: tensor for file in files for key, tensor in load_file(file).items()}


def assert_same_bits(a: Path, b: Path) -> None:
    """The weights in two folders have the same names, types and bits."""
    one, other = weights(a), weights(b)
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        assert tensor.dtype == other[key].dtype
        assert torch.equal(tensor, other[key]), key


def load_plainly(folder: Path, base: Path) -> Any:
    """A saved model or adapter in transformers and PEFT alone."""
    if not (folder / "adapter_config.json").exists():
        return AutoModelForCausalLM.from_pretrained(folder)
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)


def token_logps(model: Any, tokenizer_folder: Path, texts: list[str]) -> torch.Tensor:
    """The log-probs of all tokens of some texts, one after the other."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    found = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            logps = model.eval()(input_ids=ids).logits.log_softmax(dim=-1)
        found.append(logps[:, :-1].gather(2, ids[:, 1:, None]).flatten())
    return torch.cat(found)
