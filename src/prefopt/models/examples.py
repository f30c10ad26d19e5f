"""Reads, checks and tokenises the examples of a run; both training and evaluation use it."""

import hashlib
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from prefopt.config.gate import GateConfig
from prefopt.config.schema import TrainConfig
from prefopt.data.audit.audit import audit_run
from prefopt.data.audit.finding import Audit
from prefopt.data.audit.token_notes import audit_tokens
from prefopt.data.known_files import DataSet, Request
from prefopt.data.loading import Splits, read_splits
from prefopt.data.token_splits import TokenizedSplits, load_tokenized
from prefopt.distributed.group import keep_on_main, on_main
from prefopt.process import phases
from prefopt.process.imports import importing
from prefopt.process.paths import cache_folder
from prefopt.process.ranks import is_main

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from prefopt.models.limits import Limits  # imports transformers, which takes seconds

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Examples:
    """Records, their token ids, and the tokenizer."""

    records: Splits
    """The records, on rank 0 only; other ranks must not read them."""
    tokenized: TokenizedSplits
    tokenizer: "PreTrainedTokenizerBase"
    limits: "Limits | None" = None
    """The model's limits; None if they were not looked up."""
    audit: Audit | None = None
    """What the audit has found, on rank 0 only; None if it was not asked for."""

    def fingerprints(self) -> dict[str, str]:
        """Returns the SHA-256 (hex) of each split's token ids, in row order."""
        splits = {"train": self.tokenized.train, "held_out": self.tokenized.held_out}
        return {name: hash_rows(dataset) for name, dataset in splits.items() if dataset is not None}


def hash_rows(dataset: "Dataset") -> str:
    """Returns the SHA-256 (hex) of a tokenised split's ids in row order, independent of their source files."""
    digest = hashlib.sha256()
    for name in sorted(set(dataset.column_names) - {"source"}):
        pieces = dataset.data.column(name).chunks
        for piece in pieces:
            digest.update(piece.value_lengths().to_numpy())
        for piece in pieces:
            digest.update(piece.flatten().to_numpy())  # where it lies: the ids of a large data set fill the memory
    return digest.hexdigest()


def load_examples(config: TrainConfig, *, measured: object = None, audited: bool = False) -> Examples:
    """Reads, audits and tokenises the data of `config.data`, and logs counts of skipped or changed rows.

    Only rank 0 reads and tokenises, however long it takes; the other ranks open the result in the cache.

    Args:
        config: Settings of the run.
        measured: Other held-out data to use instead of the run's, in the same forms as `data.held_out`. They are read
            whatever they share with the training data: their report says it.
        audited: Whether the checks of the audit run, and its gate may refuse the data.

    Raises:
        UserError: Rows, the precision or the tokenizer cannot be used. Nothing has been written then.
    """
    algorithm = config.algorithm
    data = config.data if measured is None else replace(config.data, gate=GateConfig.off())

    def read() -> Splits:
        return read_splits(data, kind=algorithm.rows, seed=config.run.seed, measured=measured)

    request = Request(data, algorithm.rows, config.run.seed, algorithm.trained_tokens, measured)
    with phases.of("reading"):
        data_set = keep_on_main(lambda: DataSet(request, read, cache_folder() / "tokens"))
    audit = None
    if audited:
        with phases.of("audit"):
            audit = keep_on_main(
                lambda: audit_run(
                    config.data,
                    data_set.read_rows,
                    kind=algorithm.rows,
                    seed=config.run.seed,
                    digests=data_set.digests,
                )
            )

    # Imported only here: torch and transformers take seconds, and bad rows are reported before.
    with importing():
        from prefopt.data.cache import open_cached
        from prefopt.models.limits import Limits
        from prefopt.models.load import check_hardware, load_tokenizer

    check_hardware(config)
    with importing():  # the first tokenizer makes transformers import further modules
        limits = Limits.of(config.model)  # first: one file, so an unreachable hub fails early
        tokenizer = load_tokenizer(config.model)
        limits.check_tokenizer(tokenizer, config.model)
    with phases.of("tokenising"):
        stored = keep_on_main(lambda: data_set.fetch(tokenizer))
        folder = on_main(lambda: stored.folder)
        if is_main():
            tokenized = stored.tokenized
        elif folder is not None:
            tokenized = open_cached(folder)
        else:
            tokenized = load_tokenized(read(), tokenizer, config.data, loss_on=algorithm.trained_tokens)
    warnings = tokenized.notes.warnings()
    for line in tokenized.notes.lines():
        logger.log(logging.WARNING if line in warnings else logging.INFO, "data: %s", line)
    limits.check_data(tokenized)
    if audited:
        audit = keep_on_main(lambda: audit_tokens(audit, tokenized.notes.tokenized, config.data.gate))
    return Examples(keep_on_main(lambda: data_set.splits), tokenized, tokenizer, limits, audit)
