"""A model with random weights and the shipped tokenizer, in a folder: for whole runs of a size without a download.

python -m benchmarks.random_model 1B <folder>
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoTokenizer

from benchmarks.shapes import MODELS
from prefopt.process.paths import shipped


def main(argv: Sequence[str]) -> None:
    """Builds the model in bf16, on CUDA where there is one, and saves it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=MODELS)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(argv)
    tokenizer = AutoTokenizer.from_pretrained(shipped("assets/base_model"))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = replace(MODELS[options.shape], vocabulary=len(tokenizer))
    model = shape.build(device, torch.bfloat16)
    for config in (model.config, model.generation_config):
        config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(options.folder)
    tokenizer.save_pretrained(options.folder)


if __name__ == "__main__":
    main(sys.argv[1:])
