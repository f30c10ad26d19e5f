"""Reads prompts alone, for a model that is to answer them: each once, and none that is held out."""

from collections.abc import Sequence

from prefopt.config.algorithms import Kind
from prefopt.config.schema import DataConfig
from prefopt.data.as_chat import Chats
from prefopt.data.bad_rows import BadRows, require_usable
from prefopt.data.files import iter_rows
from prefopt.data.labels import Labels
from prefopt.data.loading import agree_among, read_rows, without_overlap
from prefopt.data.messages import check_content
from prefopt.data.notes import DataNotes
from prefopt.data.records import Record, SFTExample
from prefopt.data.strict_json import RepeatingRow
from prefopt.data.table import Table
from prefopt.data.values import RowError
from prefopt.process.errors import UserError


def read_prompts(config: DataConfig, kind: Kind) -> tuple[list[Record], int]:
    """Reads rows of which only `prompt` counts, each prompt once; a system prompt is put first as in training.

    Args:
        config: `train` names the files. Prompts that `held_out` has too are refused or left out, as `on_overlap` and
            the gate have it of training rows: answers to them are for training.
        kind: Kind of the rows of `held_out`.

    Returns:
        The prompts, as demonstrations without an answer, and how many were left out since they are held out.

    Raises:
        UserError: A file cannot be read, a row has no prompt, or a prompt is held out.
    """
    found: dict[str, Record] = {}
    chats = Chats.of(config)
    num_rows = 0
    for row, source in iter_rows(config.train):
        num_rows += 1
        try:
            if isinstance(row, RepeatingRow):
                row.require_whole(("prompt",))
            prompt = check_content(row.get("prompt"), "prompt")
            record = chats.make(SFTExample(prompt=prompt, completion="", source=source))
        except RowError as error:
            raise UserError(f"{source}: {error} Each row needs a field 'prompt', as text or as messages.") from error
        found.setdefault(repr(prompt), record)
    prompts = list(found.values())
    if config.held_out is None:
        return prompts, 0
    own = BadRows("data.train", config)
    own.num_rows = num_rows
    left = _without_held_out(prompts, own, config, kind)
    return left, len(prompts) - len(left)


def _without_held_out(prompts: Sequence[Record], own: BadRows, config: DataConfig, kind: Kind) -> list[Record]:
    bad, asked = BadRows("data.held_out", config), Table.of(prompts)
    read = read_rows(config.held_out, bad, config, kind, Labels())
    require_usable(bad)
    _, agreed = agree_among((asked, None), (read.records, read.notes))
    held_out = Table.of(map(Chats.of(config).make, agreed))
    left = without_overlap(asked, held_out, own, config, DataNotes())
    require_usable(own)
    return list(left)
