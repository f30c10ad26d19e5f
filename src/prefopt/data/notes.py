"""All counts of reading and tokenizing, and the sentences that report them to the user."""

from dataclasses import asdict, dataclass, field
from typing import Literal

from prefopt.data.encoding import TokenizeNotes
from prefopt.data.mix import SliceNotes
from prefopt.data.read_notes import ReadNotes
from prefopt.data.wording import agree, say_rows

SplitName = Literal["train", "held_out"]

READ_SENTENCES = {
    "num_marked_prompts": "{n} [row has|rows have] no 'prompt'; it is what both answers begin with, up to the "
    "assistant's last mark",
    "num_word_prompts": "{n} [row has|rows have] no 'prompt' and no such mark; it is the words with which both "
    "answers begin",
    "num_shortened_prompts": "{n} of these prompts [ends|end] where the shorter one of another row does",
    "num_crowded_prompts": "{n} of these prompts [begins with a shorter one, which is|begin with a shorter one, most "
    "of them with] {crowded_prompt}, but [is|are] not cut there: too few rows have that one alone. If it is "
    "[its|their] question, add a column 'prompt'",
    "num_further_turns": "{n} [row has|rows have] completions with further turns, which are trained like the rest of "
    "the text",
    "num_parsed": "{n} [row holds its|rows hold their] messages as text, or in a list of one list; read as messages",
    "num_repeated_keys": "{n} [row holds|rows hold] a key twice in a column that is ignored",
    "num_unreadable_skipped": "{n} [row|rows] skipped that cannot be read, first {first_unreadable} "
    "(data.on_bad=skip)",
    "num_other_shape_skipped": "{n} [row|rows] skipped: of another format or shape than the first (data.on_bad=skip)",
    "num_unwanted_skipped": "{n} [row skipped: its|rows skipped: their] label says that the answer is to be avoided "
    "(data.on_bad=skip)",
    "num_ties_skipped": "{n} [row|rows] skipped: a tie, so neither answer is preferred",
    "num_joined": "{n} [pair joined of two rows|pairs joined of two rows each]: to one prompt, an answer that is "
    "wanted and one that is not",
    "num_waiting_skipped": "{n} [row|rows] skipped: an answer with a label, and none of the other label to its prompt "
    "is left (algorithm=sft trains those that are wanted)",
    "num_metadata_scores": "{n} [row has the scores of its|rows have the scores of their] answers, or the margin, in "
    "the column 'metadata', of which nothing else is read",
    "num_close_skipped": "{n} [pair skipped: the scores of its|pairs skipped: the scores of their] answers differ by "
    "less than data.min_margin",
    "num_empty_skipped": "{n} [row|rows] with an empty completion skipped (data.on_empty=skip)",
    "num_identical_skipped": "{n} [pair|pairs] with chosen equal to rejected skipped (data.on_identical=skip)",
    "num_over_limit": "{n} [row|rows] left out by data.max_rows",
    "num_duplicates": "{n} [row repeats|rows repeat] an earlier row; kept",
    "num_as_chat": "{n} [row|rows] of plain text made [a chat|chats]: a user's question, an assistant's answer "
    "(data.as_chat)",
    "num_given_system": "{n} [row|rows] got the system prompt of data.system",
    "num_own_system": "{n} [row keeps a system prompt of its|rows keep a system prompt of their] own, though "
    "data.system is set",
}

TOKENIZE_SENTENCES = {
    "num_unreadable_skipped": "{n} [row|rows] skipped that cannot be tokenised, first {first_unreadable} "
    "(data.on_bad=skip)",
    "num_long_prompt_skipped": "{n} [row|rows] skipped: the prompt alone fills data.max_length "
    "(data.on_long_prompt=skip)",
    "num_long_completion_skipped": "{n} [row|rows] over data.max_length skipped (data.on_long_completion=skip)",
    "num_extra_eos_skipped": "{n} [row|rows] with an end-of-sequence token inside a text skipped "
    "(data.on_extra_eos=skip)",
    "num_truncated": "{n} [row|rows] cut at data.max_length (data.on_long_completion=truncate)",
    "num_eos_lost": "{n} [completion lost its|completions lost their] end-of-sequence token to the cut",
    "num_equal_skipped": "{n} [pair|pairs] skipped: chosen and rejected have the same tokens, often because both were "
    "cut",
    "num_eos_appended": "{n} [completion|completions] got the end-of-sequence token that the chat template leaves out",
    "num_double_bos": "{n} [row|rows] began with two begin-of-sequence tokens; one removed",
    "num_prompt_cut": "{n} [row loses the end of its|rows lose the end of their] prompt, which is tokenized "
    "differently before a completion",
    "num_prompt_tokens_cut": "{n} prompt [token|tokens] lost there in total",
    "num_context_turns": "{n} [turn inside completions is|turns inside completions are] context and not trained (of "
    "users, of tools, or marked so)",
    "num_marked_turns": "{n} assistant [turn is|turns are] marked as not trained (weight, train, training or loss)",
    "num_greetings": "{n} [greeting is|greetings are] not trained: no question is before [it|them]",
    "num_lost_thoughts": "{n} [thought of a trained answer is|thoughts of trained answers are] left out by the chat "
    "template, most often of all turns but the last, and [is|are] not trained",
    "num_control_kept": "{n} [row has|rows have] a control token in a message or a tool, first {first_control_token}; "
    "to the model it begins or ends a turn (data.on_control_token=keep)",
    "num_control_stripped": "{n} [row|rows] had a control token in a message or a tool, first {first_control_token}; "
    "stripped (data.on_control_token=strip)",
    "num_rendered_before": "{n} [row of text holds|rows of text hold] control tokens, as chats do that were rendered "
    "before: read as [it is|they are], and every token is trained (to train the assistant's turns alone, give the "
    "rows as 'messages')",
    "num_as_chat": "{n} [row of plain text made a chat|rows of plain text made chats] of one turn, since the model "
    "has a chat template (data.as_chat=auto; false leaves them text)",
    "num_not_chat": "{n} [row of plain text is a transcript, empty or holds|rows of plain text are transcripts, empty "
    "or hold] control tokens, so all text stays text (data.as_chat=auto)",
    "num_plain": "{n} [row is|rows are] plain text, though the model has a chat template: it will be tuned without "
    "turns. Rows of one question become chats by data.as_chat=true; transcripts of several turns must be given as "
    "messages",
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
        lines = [f"{split}: {say_rows(notes.num_rows)} read" for split, notes in self.read.items()]
        final = {split: notes.num_kept for split, notes in self.tokenized.items()} or self.num_records
        return [
            *lines,
            *self.remarks(),
            *(f"{split}: {say_rows(count)} used" for split, count in final.items() if count),
        ]

    def remarks(self) -> list[str]:
        """Returns `lines` without the first and the last of each split, which say how many rows were read and used."""
        lines = []
        for split, notes in self.read.items():
            lines += _sentences(split, notes, READ_SENTENCES)
            lines += [f"{split}: {line}" for line in tell_columns(notes)]
        lines += self.warnings()
        if self.num_overlap_skipped:
            text = "[row skipped: its|rows skipped: their] prompt is held out (data.on_overlap=skip)"
            count = self.num_overlap_skipped
            lines.append(f"train: {count} {agree(text, count)}")
        for split, slices in self.slices.items():
            lines += [f"{split}: part '{name}': {_tell_slice(notes)}" for name, notes in slices.items()]
        for split, tokenized in self.tokenized.items():
            lines += _sentences(split, tokenized, TOKENIZE_SENTENCES)
            lines += [
                f"{split}: key '{key}' of messages, in {say_rows(count)}, is not read by the chat template and is "
                "ignored"
                for key, count in tokenized.unread_keys.items()
            ]
        return lines

    def warnings(self) -> list[str]:
        """Returns those of `remarks` that say that something is probably not as it was meant."""
        unclear = {column: values for notes in self.read.values() for column, values in notes.unclear_labels.items()}
        return [
            f"column '{column}' has two values, {values}: rows of an unknown one are trained. If it says which "
            "answers are wanted, write true there for these, and false for the others; if it says something else, "
            "rename it"
            for column, values in unclear.items()
        ]

    def reasons(self) -> str:
        """Returns `lines` as one text, for an error that says why no rows are left."""
        return "".join(f"{line}. " for line in self.lines())

    def to_dict(self) -> dict[str, object]:
        """Returns all counts, including zeros, as a dict that can be written as JSON."""
        return asdict(self)


def tell_columns(notes: ReadNotes) -> list[str]:
    """Returns a sentence for each column that is not read, and for each of `data.columns` that no row has."""
    ignored = [
        f"column '{column}' has a value in {say_rows(count)} and is ignored"
        for column, count in notes.ignored_columns.items()
    ]
    absent = [
        f"no row has a column '{column}' to be read as '{name}' (data.columns)"
        for name, column in notes.absent_columns.items()
    ]
    return [*ignored, *absent]


def _tell_slice(notes: SliceNotes) -> str:
    cut = f", {notes.num_kept} of {notes.num_read} kept (max_rows)" if notes.num_kept < notes.num_read else ""
    weight = f" (weight {notes.weight:g})" if notes.weight != 1 else ""
    return f"{say_rows(notes.num_records)}{weight}{cut}"


def _sentences(split: str, notes: ReadNotes | TokenizeNotes, sentences: dict[str, str]) -> list[str]:
    counts = {name: count for name in sentences if (count := getattr(notes, name))}
    values = vars(notes)
    return [f"{split}: {agree(sentences[name], n).format(n=n, **values)}" for name, n in counts.items()]
