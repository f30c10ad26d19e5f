"""Implicit prompts: for pairs without a prompt, the common beginning of chosen and rejected.

For messages, it is the messages that are equal. For text, the first differing character is not enough, since two
answers may begin with the same words: a transcript is cut after the last mark of an assistant's turn, and other text
at the end of a word, at the same place in all pairs with the same prompt.
"""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from prefopt.data.counts import Counts
from prefopt.data.messages import Content
from prefopt.data.prefixes import common_prefix_length
from prefopt.data.records import PreferencePair
from prefopt.data.table import Table, TableWriter
from prefopt.data.values import RowError, describe


class Marks(NamedTuple):
    """Patterns of the marks before each turn of a transcript, in one notation."""

    asks: re.Pattern[str]
    """Mark before a turn of the user or the system."""
    answers: re.Pattern[str]
    """Mark before a turn of the assistant."""
    are_words: bool
    """The marks are words that occur in any text: an assistant's mark counts only after a user's mark."""
    have_names: bool = False
    """The marks are speakers' names, which a dialogue within an answer may have too; see `_asked_for`."""


_NAMED = r"\n[ \t]*(?:[#*]+ ?)?(?:%s)(?:\*\*)? ?:(?:\*\*)?"
TURNS = (
    Marks(
        re.compile(_NAMED % "(?i:human|user|person|customer|client|student|prompter|me|system)"),
        re.compile(_NAMED % "Assistant|ASSISTANT|assistant|AI|Bot|Chatbot|ChatGPT|GPT"),
        are_words=True,
        have_names=True,
    ),
    Marks(
        re.compile(
            r"<(?:\|im_start\|>(?:user|system)\n|\|start_header_id\|>(?:user|system)<\|end_header_id\|>\n\n"
            r"|start_of_turn>user\n|\|(?:user|system|prompter)\|>\n?|\uff5cUser\uff5c>"
            r"|\|start\|>(?:user|system|developer)<\|message\|>)"
        ),
        re.compile(
            r"<(?:\|im_start\|>assistant\n|\|start_header_id\|>assistant<\|end_header_id\|>\n\n"
            r"|start_of_turn>model\n|\|assistant\|>\n?|\uff5cAssistant\uff5c>"
            r"|\|start\|>assistant(?:<\|channel\|>final<\|message\|>)?)"
        ),
        are_words=False,
    ),
    Marks(re.compile(r"\[INST\]"), re.compile(r"\[/INST\]"), are_words=True),
    Marks(re.compile(r"[\n >]USER:"), re.compile(r" ASSISTANT:"), are_words=True, have_names=True),
)
"""Notations of transcripts. Each pattern begins with one of a few characters, so that the search is fast."""
EXERCISES = (
    Marks(
        re.compile(_NAMED % "(?i:instruction|question|q|input|problem|query|task|prompt)"),
        re.compile(r"\n[ \t]*(?:#+ ?(?:Response|Answer|Output)|Response|Answer) ?:"),
        are_words=True,
    ),
    Marks(re.compile(r"\Z"), re.compile(r"\n[ \t]*(?:#+ ?)?TL;DR ?:"), are_words=False),
)
"""Notations of a single question and answer. They count only in text without assistant marks of `TURNS`."""
WORD_ENDS = " \t\n\r\u3002\uff01\uff1f\u2026"
_SENTENCE_END = re.compile(r"""[.!?:\u3002\uff01\uff1f\u2026]["')\]\u201d\u2019*]*\s*\Z|\n[ \t]*\Z""")
MAX_SHORTENED = 4
"""Longer prompts are cut down to a shorter one only if they are at most this many times as frequent."""


@dataclass(kw_only=True)
class ImplicitNotes(Counts):
    """Counts of how the implicit prompts of text pairs were found."""

    num_marked_prompts: int = 0
    """Prompts that end after the mark of an assistant's turn."""
    num_word_prompts: int = 0
    """Prompts without such a mark, which end at the end of a word."""
    num_shortened_prompts: int = 0
    """Word prompts that were cut down to the shorter prompt of another pair."""
    num_crowded_prompts: int = 0
    """Word prompts that were not cut down to a shorter prompt, because of `MAX_SHORTENED`."""
    crowded_prompt: str = ""
    """The shorter prompt to which most of these would have been cut, as it is shown in a sentence."""
    num_further_turns: int = 0
    """Pairs with a completion that contains another mark of an assistant's turn."""


def split_common_prompt(chosen: Content, rejected: Content) -> tuple[Content, Content, Content]:
    """Returns (prompt, chosen, rejected) of a pair whose prompt is the common beginning of both completions.

    For messages the rule is that of `trl.data_utils.extract_prompt`: the last message never belongs to the prompt.

    Raises:
        RowError: The two transcripts, or lists of messages, first differ in a question and not in an answer.
    """
    if isinstance(chosen, str) and isinstance(rejected, str):
        end = _end_of_text(chosen, rejected)
    else:
        end = min(common_prefix_length(chosen, rejected), max(min(len(chosen), len(rejected)) - 1, 0))
        _require_same_question(chosen[end], rejected[end], end)
    return chosen[:end], chosen[end:], rejected[end:]


def _require_same_question(chosen: Any, rejected: Any, position: int) -> None:
    """Refuses a pair if the first messages that differ, at `position`, have the same role and are no answers."""
    if chosen == rejected or chosen["role"] != rejected["role"] or chosen["role"] == "assistant":
        return
    said = [message.get("content", "") for message in (chosen, rejected)]
    is_said = said[0] != said[1]  # else the messages differ in another key than content
    start = max(common_prefix_length(*said) - 20, 0) if is_said else 0
    parts = [text[start:] for text in said] if is_said else [chosen, rejected]
    where = f", from character {start}," if start else ""
    raise RowError(
        f"'chosen' and 'rejected' answer different questions: message {position + 1}, of role '{chosen['role']}', is"
        f"{where} {describe(parts[0])} in 'chosen' and {describe(parts[1])} in 'rejected'. Make both the same, blanks "
        "included, or drop the row."
    )


def _end_of_text(chosen: str, rejected: str) -> int:
    common = common_prefix_length(chosen, rejected)
    shared = chosen[:common]
    end = _last_answer(shared, TURNS)
    if end and not _is_asked_again(shared, end):
        return end
    if end and any(_last_answer(text, TURNS) > end for text in (chosen, rejected)):
        raise _other_question(common, f"after the assistant's turn at character {end}")
    if not end and all(_is_transcript(text, common) for text in (chosen, rejected)):
        raise _other_question(common, "before the assistant's first turn")
    if end := _last_answer(shared, EXERCISES):
        return end
    if common < min(len(chosen), len(rejected)) and (chosen[common] + rejected[common]).isspace():
        return common
    return _end_of_word(chosen, common)


def _other_question(position: int, where: str) -> RowError:
    return RowError(
        f"'chosen' and 'rejected' are transcripts that differ at character {position}, {where}, in what is asked and "
        "not in an answer, so they answer different prompts. Correct or drop this row. If they are no transcripts, "
        "give the prompt as a column 'prompt', and only the answers in 'chosen' and 'rejected'."
    )


def _answers(text: str, ways: Sequence[Marks]) -> Iterator[int]:
    """Yields the end positions of the assistant marks in a text that count (see `_asked_for`), in no order."""
    lines = "\n" + text  # so that a mark in the first line also follows a line break
    for marks in ways:
        answers = list(marks.answers.finditer(lines))
        if answers and marks.are_words:
            answers = _asked_for(answers, list(marks.asks.finditer(lines)), marks)
        yield from (match.end() - 1 for match in answers)


def _asked_for(answers: list[re.Match[str]], asks: list[re.Match[str]], marks: Marks) -> list[re.Match[str]]:
    """Returns the assistant marks that count as turns, given all assistant and user marks of a text.

    Only assistant marks after the first user mark count. If the marks are names, two more rules exclude a dialogue
    within an answer. The user mark before an assistant mark must have the same name as the first user mark of the
    text, or as the user mark before the first assistant mark (a question may quote a dialogue). And if an empty line
    precedes the first assistant mark, one must precede each of them.
    """
    if marks.have_names:
        asks = [match for match in asks if not _is_system(match)] or asks
    answers = [match for match in answers if asks and match.start() > asks[0].start()]
    if not answers or not marks.have_names:
        return answers
    starts = [match.start() for match in asks]
    askers = [_name(asks[bisect_left(starts, match.start()) - 1]) for match in answers]
    allowed = (_name(asks[0]), askers[0])
    return [
        match
        for match, asker in zip(answers, askers, strict=True)
        if asker in allowed and (_is_apart(match) or not _is_apart(answers[0]))
    ]


def _name(match: re.Match[str]) -> str:
    return match[0].strip(" \t\n>")


def _is_system(match: re.Match[str]) -> bool:
    return "system" in match[0].lower()


def _is_apart(match: re.Match[str]) -> bool:
    """Returns whether an empty line precedes a mark."""
    return match.string[max(match.start() - 8, 0) : match.start()].rstrip(" \t\r").endswith("\n")


def _last_answer(text: str, ways: Sequence[Marks]) -> int:
    """Returns the end position of the last assistant mark in a text; 0 if there is none."""
    return max(_answers(text, ways), default=0)


def _is_asked_again(shared: str, end: int) -> bool:
    """Returns whether the shared beginning of two transcripts has a user's turn after the last assistant mark.

    The user mark must be spelt like an earlier one, and follow an empty line if the assistant marks do: otherwise it
    belongs to a dialogue within the answer.
    """
    lines = "\n" + shared
    for marks in TURNS:
        asks = list(marks.asks.finditer(lines))
        before = {_name(match) for match in asks if match.start() < end}
        again = [match for match in asks if match.start() > end and _name(match) in before]
        if again and marks.have_names:
            first = next(iter(_asked_for(list(marks.answers.finditer(lines)), asks, marks)), None)
            again = [match for match in again if first is None or _is_apart(match) or not _is_apart(first)]
        if again:
            return True
    return False


def _is_transcript(text: str, common: int) -> bool:
    """Returns whether a text has turns, the first of them at its beginning or in its first `common` characters."""
    lines = "\n" + text
    opening = len(text) - len(text.lstrip())  # the blanks before its first line
    begins = "\n" + text[opening : opening + 80]
    for marks in TURNS:
        asked = marks.asks.match(begins) or marks.asks.match(begins, 1)
        end = opening + asked.end() if asked else None
        if end is None and (asked := marks.asks.search(lines, 0, common + 1)):
            end = asked.end()
        if end is not None and marks.answers.search(lines, end):
            return True
    return False


def _end_of_word(text: str, end: int) -> int:
    """Returns the end of the last whole word before `end`; a blank after it belongs to the completion."""
    while end and text[end - 1] not in WORD_ENDS:
        end -= 1
    return end - 1 if end and text[end - 1] == " " else end


def _has_turn_behind(text: str, end: int) -> bool:
    """Returns whether an assistant mark that counts follows the first `end` characters of a text."""
    has_mark = any(marks.answers.search(text, end) for marks in TURNS)  # a fast check first: few texts have a mark
    return has_mark and _last_answer(text, TURNS) > end


def agree_on_prompts(pairs: Sequence[Any], given: Sequence[str] = ()) -> tuple[Table[Any], ImplicitNotes]:
    """Returns text pairs with equal prompts for equal questions, and counts of the changes.

    A prompt that was cut at the end of a word also contains the words with which both answers happen to begin, so
    pairs of one question may have prompts of different lengths. Such a prompt is cut down to the prompt of another
    pair with which it begins, if the shorter one ends a sentence or a line, or is the prompt of several pairs: "I" or
    "Write a" in one pair alone is no question. A shorter prompt that would cut more than `MAX_SHORTENED` times as many
    pairs as have it, such as a greeting, is not used.

    Args:
        pairs: Preference pairs of text whose prompt was found by `split_common_prompt`.
        given: Prompts of other rows, which have a column for them. They are questions as they stand, and not cut.
    """
    table = Table.of(pairs)
    notes, words = ImplicitNotes(), Counter[str]()
    for part_notes, part_words in table.map_parts(_look, doing="reading"):
        notes.add(part_notes)
        words += part_words
    if not words:
        return table, notes
    ends = _agreed_ends(words, Counter(map(str.rstrip, given)), notes)
    writer = TableWriter[Any]()
    for pair in table:
        shortened = _shorten(pair, ends.get(str(pair.prompt), pair.prompt))
        notes.num_shortened_prompts += shortened is not pair
        writer.append(shortened)
    return writer.table(), notes


def _look(pairs: Table[PreferencePair]) -> tuple[ImplicitNotes, Counter[str]]:
    """Returns counts of some pairs, and their prompts that end at the end of a word, each with the number of pairs."""
    notes, words = ImplicitNotes(), Counter[str]()
    for pair in pairs:
        prompt, *answers = (str(content) for content in (pair.prompt, pair.chosen, pair.rejected))
        notes.num_further_turns += any(_has_turn_behind(prompt + answer, len(prompt)) for answer in answers)
        if not prompt:  # a pair with an empty answer
            continue
        if _ends_at_mark(prompt):
            notes.num_marked_prompts += 1
        else:
            notes.num_word_prompts += 1
            words[prompt] += 1
    return notes, words


def _shorten(pair: PreferencePair, prompt: Content) -> PreferencePair:
    """Returns a pair with a shorter prompt, the rest of which both answers then begin with; itself if it is equal."""
    if prompt == pair.prompt:
        return pair
    texts = (str(content) for content in (pair.prompt[len(prompt) :], pair.chosen, pair.rejected))
    moved, chosen, rejected = texts
    return replace(pair, prompt=prompt, chosen=moved + chosen, rejected=moved + rejected)


def _agreed_ends(prompts: Counter[str], given: Counter[str], notes: ImplicitNotes) -> dict[str, str]:
    """Returns for each prompt the one to which it is cut, often itself; adds counts of crowded prompts to `notes`."""
    shorter = _shorter_prompts(prompts, given)
    followers: Counter[str] = Counter()  # pairs with a longer prompt
    for prompt, other in reversed(shorter.items()):
        if other is not None:
            followers[other] += prompts[prompt] + followers[prompt]
    askers = prompts + given
    crowded = {prompt for prompt, count in followers.items() if count > MAX_SHORTENED * askers[prompt]}
    ends: dict[str, str] = {}
    behind: set[str] = set()  # prompts that begin with a crowded one
    for prompt, other in shorter.items():
        ends[prompt] = prompt if other is None or (ends[other] == other and other in crowded) else ends[other]
        if other in crowded or other in behind:
            behind.add(prompt)
            notes.num_crowded_prompts += prompts[prompt]
    if crowded:
        notes.crowded_prompt = describe(max(crowded, key=lambda prompt: (followers[prompt], prompt)))
    return ends


def _shorter_prompts(prompts: Counter[str], given: Counter[str]) -> dict[str, str | None]:
    """Returns for each prompt, sorted, the longest other question with which it begins; None if there is none.

    A given prompt is a question in any case, and has None since it is never cut.
    """
    shorter: dict[str, str | None] = {}
    begun: list[str] = []  # earlier questions with which the current prompt begins
    for prompt in sorted(prompts.keys() | given):
        while begun and not prompt.startswith(begun[-1]):
            begun.pop()
        shorter[prompt] = (
            None
            if prompt in given
            else next((other for other in reversed(begun) if _ends_word(prompt, len(other))), None)
        )
        is_asked = prompt in given or prompts[prompt] > 1
        if prompt.strip() and (is_asked or _SENTENCE_END.search(prompt, max(len(prompt) - 80, 0))):
            begun.append(prompt)
    return shorter


def is_transcript(prompt: str) -> bool:
    """Returns whether a prompt is a transcript that ends where the assistant's turn begins."""
    end = _last_answer(prompt, TURNS)
    return end > 0 and not prompt[end:].strip()


def _ends_at_mark(prompt: str) -> bool:
    tail = "\n" + prompt[-80:]
    if not any(match.end() == len(tail) for marks in (*TURNS, *EXERCISES) for match in marks.answers.finditer(tail)):
        return False
    return (_last_answer(prompt, TURNS) or _last_answer(prompt, EXERCISES)) == len(prompt)


def _ends_word(text: str, position: int) -> bool:
    """Returns whether a word ends at a position in a text."""
    return text[position - 1] in WORD_ENDS or text[position : position + 1].strip(WORD_ENDS) == ""
