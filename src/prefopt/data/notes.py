"""All counts of reading and tokenizing, and the sentences that report them to the user."""

from dataclasses import asdict, dataclass, field
from typing import Literal

from prefopt.data.encoding import TokenizeNotes
from prefopt.data.mix import SliceNotes
from prefopt.data.read_notes import ReadNotes

SplitName = Literal["train", "held_out"]

READ_SENTENCES = {
    "num_marked_prompts": "{n} rows have no 'prompt'; it is their common beginning up to the assistant's last mark",
    "num_word_prompts": "{n} rows have no 'prompt' and no such mark; it is the words with which both answers begin",
    "num_shortened_prompts": "{n} of these prompts end where the shorter one of another row does",
    "num_crowded_prompts": "{n} of these prompts begin with a shorter one, most of them with {crowded_prompt}, but "
    "are not cut there: too few rows have that one alone. If it is their question, add a column 'prompt'",
    "num_further_turns": "{n} rows have completions with further turns, which are trained like the rest of the text",
    "num_parsed": "{n} rows hold their messages as text, or in a list of one list; read as messages",
    "num_repeated_keys": "{n} rows hold a key twice in a column that is ignored",
    "num_unreadable_skipped": "{n} rows skipped that cannot be read, first {first_unreadable} (data.on_bad=skip)",
    "num_other_shape_skipped": "{n} rows skipped: of another format or shape than the first (data.on_bad=skip)",
    "num_unwanted_skipped": "{n} rows skipped: their label says that the answer is to be avoided (data.on_bad=skip)",
    "num_ties_skipped": "{n} rows skipped: a tie, so neither answer is preferred",
    "num_joined": "{n} pairs joined of two rows each: to one prompt, an answer that is wanted and one that is not",
    "num_waiting_skipped": "{n} rows skipped: an answer with a label, and none of the other label to its prompt is "
    "left (algorithm=sft trains those that are wanted)",
    "num_close_skipped": "{n} pairs skipped: the scores of their answers differ by less than data.min_margin",
    "num_empty_skipped": "{n} rows with an empty completion skipped (data.on_empty=skip)",
    "num_identical_skipped": "{n} pairs with chosen equal to rejected skipped (data.on_identical=skip)",
    "num_over_limit": "{n} rows left out by data.max_rows",
    "num_duplicates": "{n} rows repeat an earlier row; kept",
    "num_as_chat": "{n} rows of plain text made chats: a user's question, an assistant's answer (data.as_chat)",
    "num_given_system": "{n} rows got the system prompt of data.system",
    "num_own_system": "{n} rows keep a system prompt of their own, though data.system is set",
}

TOKENIZE_SENTENCES = {
    "num_unreadable_skipped": "{n} rows skipped that cannot be tokenised, first {first_unreadable} (data.on_bad=skip)",
    "num_long_prompt_skipped": "{n} rows skipped: the prompt alone fills data.max_length (data.on_long_prompt=skip)",
    "num_long_completion_skipped": "{n} rows over data.max_length skipped (data.on_long_completion=skip)",
    "num_extra_eos_skipped": "{n} rows with an end-of-sequence token inside a text skipped (data.on_extra_eos=skip)",
    "num_truncated": "{n} rows cut at data.max_length (data.on_long_completion=truncate)",
    "num_eos_lost": "{n} completions lost their end-of-sequence token to the cut",
    "num_equal_skipped": "{n} pairs skipped: chosen and rejected have the same tokens, often because both were cut",
    "num_eos_appended": "{n} completions got the end-of-sequence token that the chat template leaves out",
    "num_double_bos": "{n} rows began with two begin-of-sequence tokens; one removed",
    "num_prompt_cut": "{n} rows lose the end of their prompt, which is tokenized differently before a completion",
    "num_prompt_tokens_cut": "{n} prompt tokens lost there in total",
    "num_context_turns": "{n} turns inside completions are context and not trained (of users, of tools, or marked so)",
    "num_marked_turns": "{n} assistant turns are marked as not trained (weight, train, training or loss)",
    "num_greetings": "{n} greetings are not trained: no question is before them",
    "num_lost_thoughts": "{n} thoughts of trained answers are left out by the chat template, most often of all turns "
    "but the last, and are not trained",
    "num_control_kept": "{n} rows have a control token in a message or a tool, first {first_control_token}; to the "
    "model it begins or ends a turn (data.on_control_token=keep)",
    "num_control_stripped": "{n} rows had a control token in a message or a tool, first {first_control_token}; "
    "stripped (data.on_control_token=strip)",
    "num_rendered_before": "{n} rows of text hold control tokens, as chats do that were rendered before: read as they "
    "are, and every token is trained (to train the assistant's turns alone, give the rows as 'messages')",
    "num_as_chat": "{n} rows of plain text made chats of one turn, since the model has a chat template "
    "(data.as_chat=auto; false leaves them text)",
    "num_not_chat": "{n} rows of plain text are transcripts, empty or hold control tokens, so all text stays text "
    "(data.as_chat=auto)",
    "num_plain": "{n} rows are plain text, though the model has a chat template: it will be tuned without turns. Rows "
    "of one question become chats by data.as_chat=true; transcripts of several turns must be given as messages",
}


@dataclass(kw_only=True)
class DataNotes:
    """All counts, by split. A split that was not read from its own files has no entry in `read`."""

    num_records: dict[SplitName, int] = field(default_factory=dict)
    """Records after reading, skipping and splitting."""
    num_overlap_skipped: int = 0
    """Skipped training rows whose prompt is held out."""
    slices: dict[SplitName, dict[str, SliceNotes]] = field(default_factory=dict)
    """Counts of each part of a mixture."""
    read: dict[SplitName, ReadNotes] = field(default_factory=dict)
    tokenized: dict[SplitName, TokenizeNotes] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Returns one sentence for each count that is not zero."""
        lines = [f"{split}: {notes.num_rows} rows read" for split, notes in self.read.items()]
        final = {split: notes.num_kept for split, notes in self.tokenized.items()} or self.num_records
        return [*lines, *self.remarks(), *(f"{split}: {count} rows used" for split, count in final.items() if count)]

    def remarks(self) -> list[str]:
        """Returns `lines` without the first and the last of each split, which say how many rows were read and used."""
        lines = []
        for split, notes in self.read.items():
            lines += _sentences(split, notes, READ_SENTENCES)
            lines += [
                f"{split}: column '{column}' has a value in {count} rows and is ignored"
                for column, count in notes.ignored_columns.items()
            ]
            lines += [f"{split}: {line}" for line in tell_absent(notes)]
        if self.num_overlap_skipped:
            count = self.num_overlap_skipped
            lines.append(f"train: {count} rows skipped: their prompt is held out (data.on_overlap=skip)")
        for split, slices in self.slices.items():
            lines += [f"{split}: part '{name}': {_tell_slice(notes)}" for name, notes in slices.items()]
        for split, tokenized in self.tokenized.items():
            lines += _sentences(split, tokenized, TOKENIZE_SENTENCES)
            lines += [
                f"{split}: key '{key}' of messages, in {count} rows, is not read by the chat template and is ignored"
                for key, count in tokenized.unread_keys.items()
            ]
        return lines

    def reasons(self) -> str:
        """Returns `lines` as one text, for an error that says why no rows are left."""
        return "".join(f"{line}. " for line in self.lines())

    def to_dict(self) -> dict[str, object]:
        """Returns all counts, including zeros, as a dict that can be written as JSON."""
        return asdict(self)


def tell_absent(notes: ReadNotes) -> list[str]:
    """Returns a sentence for each column of `data.columns` that no row has."""
    return [
        f"no row has a column '{column}' to be read as '{name}' (data.columns)"
        for name, column in notes.absent_columns.items()
    ]


def _tell_slice(notes: SliceNotes) -> str:
    cut = f", {notes.num_kept} of {notes.num_read} kept (max_rows)" if notes.num_kept < notes.num_read else ""
    weight = f" (weight {notes.weight:g})" if notes.weight != 1 else ""
    return f"{notes.num_records} rows{weight}{cut}"


def _sentences(split: str, notes: ReadNotes | TokenizeNotes, sentences: dict[str, str]) -> list[str]:
    counts = {name: getattr(notes, name) for name in sentences}
    return [f"{split}: {sentences[name].format(n=count, **vars(notes))}" for name, count in counts.items() if count]
