"""The examples of a run, read, checked and tokenised: the one way in for training and for evaluation."""

import hashlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefopt.config.schema import TrainConfig
from prefopt.data.loading import Splits, TokenizedSplits, load_tokenized, read_splits
from prefopt.distributed.group import keep_on_main, on_main
from prefopt.process import phases
from prefopt.process.imports import importing
from prefopt.process.paths import cache_folder
from prefopt.process.ranks import is_main

if TYPE_CHECKING:
    from prefopt.models.limits import Limits  # with transformers, a matter of seconds

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Examples:
    """Records, their token ids, and the tokenizer that made them."""

    records: Splits
    """On rank 0 alone; nothing on other ranks asks for them."""
    tokenized: TokenizedSplits
    tokenizer: Any
    limits: "Limits | None" = None
    """What the model takes; None where nobody has asked."""

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 (hex) of each split's token ids, row for row."""
        splits = {"train": self.tokenized.train, "held_out": self.tokenized.held_out}
        return {name: hash_rows(dataset) for name, dataset in splits.items() if dataset is not None}


def hash_rows(dataset: Any) -> str:
    """SHA-256 (hex) of a tokenised split's ids, row for row, wherever the rows stood."""
    digest = hashlib.sha256()
    for name in sorted(set(dataset.column_names) - {"source"}):
        column = dataset.data.column(name).combine_chunks()
        for values in (column.value_lengths(), column.flatten()):
            digest.update(values.to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest()


def load_examples(config: TrainConfig, *, measured: Any = None) -> Examples:
    """Reads and tokenises what `config.data` names, and logs what happened to it.

    Of several ranks only the first one reads and tokenises, however long it takes; the others open what it has stored.

    Args:
        config: Of the run.
        measured: Other data, named like `data.held_out`, in place of the run's held-out ones.

    Raises:
        UserError: Rows, a precision or a tokenizer that cannot be used. Nothing has been written then.
    """
    algorithm = config.algorithm

    def read() -> Splits:
        return read_splits(config.data, kind=algorithm.rows, seed=config.run.seed, measured=measured)

    with phases.of("reading"):
        records = keep_on_main(read)

    # torch and transformers take seconds to import; bad rows are answered before that.
    with importing():
        from prefopt.data.cache import fetch_cached, open_cached
        from prefopt.models.limits import Limits
        from prefopt.models.load import check_hardware, load_tokenizer

    check_hardware(config)
    with importing():  # the first tokenizer makes transformers import what it then needs for models too
        limits = Limits.of(config.model)  # first: one file, so a hub out of reach is found out after one round
        tokenizer = load_tokenizer(config.model)
        limits.check_tokenizer(tokenizer, config.model)
    with phases.of("tokenising"):
        stored = keep_on_main(
            lambda: fetch_cached(
                records, tokenizer, config.data, loss_on=algorithm.trained_tokens, root=cache_folder() / "tokens"
            )
        )
        folder = on_main(lambda: stored.folder)
        if is_main():
            tokenized = stored.tokenized
        elif folder is not None:
            tokenized = open_cached(folder)
        else:
            tokenized = load_tokenized(read(), tokenizer, config.data, loss_on=algorithm.trained_tokens)
    for line in tokenized.notes.lines():
        logger.info("data: %s", line)
    limits.check_data(tokenized)
    return Examples(records, tokenized, tokenizer, limits)
