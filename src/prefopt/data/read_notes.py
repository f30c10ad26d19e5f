"""Counts of what happened while the rows of files were read."""

from dataclasses import dataclass, field

from prefopt.data.implicit_prompts import ImplicitNotes


@dataclass(kw_only=True)
class ReadNotes(ImplicitNotes):
    """Counts of what happened while rows were read."""

    num_rows: int = 0
    """Rows in the files."""
    num_parsed: int = 0
    """Rows with messages that were given as text in a cell, and parsed."""
    num_repeated_keys: int = 0
    """Rows with a repeated key in a column that is not read."""
    num_unreadable_skipped: int = 0
    """Rows that are no record, since something is wrong with them."""
    first_unreadable: str = ""
    """Place of the first of them, and what is wrong."""
    num_other_shape_skipped: int = 0
    """Rows of another format or shape than the first."""
    num_unwanted_skipped: int = 0
    """Demonstrations whose label says that they are to be avoided."""
    num_ties_skipped: int = 0
    """Rows of two answers of which none is preferred."""
    num_joined: int = 0
    """Pairs that were joined of two rows with a label each."""
    num_waiting_skipped: int = 0
    """Rows with a label for which there is none of the other label."""
    num_metadata_scores: int = 0
    """Rows with the scores of a pair in the column `metadata`, of which nothing else is read."""
    num_close_skipped: int = 0
    """Pairs whose margin is below the one of the settings."""
    num_identical_skipped: int = 0
    num_empty_skipped: int = 0
    num_over_limit: int = 0
    """Rows that are not used, since there are more than `data.max_rows`."""
    num_as_chat: int = 0
    """Rows of plain text that were converted to chats."""
    num_given_system: int = 0
    """Conversations that got the system prompt of the settings."""
    num_own_system: int = 0
    """Conversations that have one of their own, where the settings have one too."""
    num_duplicates: int = 0
    """Rows equal to an earlier row in prompt, completions and tools; they are kept."""
    unclear_labels: dict[str, str] = field(default_factory=dict)
    """Column that may be a label of two words which are not known -> what they are, in all files of the data set."""
    ignored_columns: dict[str, int] = field(default_factory=dict)
    """For each column that is not read: the number of rows in which it has a value."""
    absent_columns: dict[str, str] = field(default_factory=dict)
    """prefopt's name of each column of `data.columns` that no row has -> the name that was looked for."""
