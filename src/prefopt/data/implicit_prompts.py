"""Prompts of pairs that have none of their own: what chosen and rejected both begin with.

Of messages it is those that are equal. Of text the first differing character says little, since two answers may begin
with the same words: a transcript is cut behind the last mark of an assistant's turn, other text where a word ends, and
there at the same place in all pairs of a prompt.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from prefopt.data.messages import Content
from prefopt.data.values import RowError

TURN_MARKS = (
    re.compile(
        r"\n[ \t]*(?:[#*]+ ?)?(?:Assistant|ASSISTANT|assistant|AI|Bot|Chatbot|ChatGPT|GPT)(?:\*\*)? ?:(?:\*\*)?"
    ),
    re.compile(
        r"<(?:\|im_start\|>assistant\n|\|start_header_id\|>assistant<\|end_header_id\|>\n\n|start_of_turn>model\n"
        r"|\|assistant\|>\n?|\uff5cAssistant\uff5c>)"
    ),
    re.compile(r"\[/INST\]"),
    re.compile(r" ASSISTANT:"),
)
"""What stands before an assistant's turn in a transcript; each begins with one character, for a fast search."""
ANSWER_MARK = re.compile(r"\n[ \t]*(?:#+ ?)?(?:Response|Answer|Output|TL;DR) ?:")
"""What stands before an answer; it counts only where no assistant is named, whose answer may hold it."""
WORD_ENDS = " \t\n\r\u3002\uff01\uff1f\u2026"


@dataclass(kw_only=True)
class ImplicitNotes:
    """How the prompts of pairs of text were found."""

    num_marked_prompts: int = 0
    """They end behind the mark of an assistant's turn."""
    num_word_prompts: int = 0
    """They have no such mark, and end where a word does."""
    num_shortened_prompts: int = 0
    """Of these, cut where the shorter prompt of another pair ends."""
    num_further_turns: int = 0
    """Pairs with a completion in which the assistant's mark stands again."""


def split_common_prompt(chosen: Content, rejected: Content) -> tuple[Any, Any, Any]:
    """Returns prompt, chosen and rejected of a pair whose prompt is the common beginning of both completions.

    For messages it is the rule of `trl.data_utils.extract_prompt`: the last message never belongs to the prompt.

    Raises:
        RowError: Two transcripts differ before the assistant's first turn.
    """
    if isinstance(chosen, str) and isinstance(rejected, str):
        end = _end_of_text(chosen, rejected)
    else:
        shorter = min(len(chosen), len(rejected))
        end = next((at for at in range(shorter) if chosen[at] != rejected[at]), max(shorter - 1, 0))
    return chosen[:end], chosen[end:], rejected[end:]


def _end_of_text(chosen: str, rejected: str) -> int:
    common = _common_length(chosen, rejected)
    for marks in (TURN_MARKS, (ANSWER_MARK,)):
        end = max((match.end() for mark in marks for match in mark.finditer(chosen, 0, common)), default=0)
        if end:
            return end
    if _has_turn(chosen) and _has_turn(rejected):
        raise RowError(
            f"'chosen' and 'rejected' are transcripts that differ at character {common}, before the assistant's first "
            "turn, so they answer different prompts. Correct or drop this row."
        )
    if common < min(len(chosen), len(rejected)) and (chosen[common] + rejected[common]).isspace():
        return common
    return _end_of_word(chosen, common)


def _common_length(one: str, other: str) -> int:
    """Returns how many leading characters two texts share, by bisection: texts are compared faster than characters."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _end_of_word(text: str, end: int) -> int:
    """Returns where the last whole word before `end` ends; a blank behind it goes to the completion."""
    while end and text[end - 1] not in WORD_ENDS:
        end -= 1
    return end - 1 if end and text[end - 1] == " " else end


def agree_on_prompts(pairs: Sequence[Any]) -> tuple[list[Any], ImplicitNotes]:
    """Returns pairs of text, read one by one, with the same prompt wherever one's begins with another's; and counts.

    A prompt that was cut where a word ends holds the words with which both answers happen to begin. If it begins with
    the whole prompt of another pair, it is cut there.
    """
    agreed = list(pairs)
    asked = [index for index, pair in enumerate(pairs) if pair.prompt]  # without one, an answer is empty
    words = [index for index in asked if not _ends_at_mark(pairs[index].prompt)]
    notes = ImplicitNotes(num_marked_prompts=len(asked) - len(words), num_word_prompts=len(words))
    notes.num_further_turns = sum(_has_turn(pair.chosen) or _has_turn(pair.rejected) for pair in pairs)
    shorter: list[str] = []  # prompts with which the present one begins, the shortest first
    for index in sorted(words, key=lambda index: pairs[index].prompt):
        pair = pairs[index]
        while shorter and not pair.prompt.startswith(shorter[-1]):
            shorter.pop()
        prompt = next((other for other in shorter if _ends_word(pair.prompt, len(other))), pair.prompt)
        if prompt == pair.prompt:
            if prompt not in shorter[-1:]:
                shorter.append(prompt)
            continue
        moved = pair.prompt[len(prompt) :]
        agreed[index] = replace(pair, prompt=prompt, chosen=moved + pair.chosen, rejected=moved + pair.rejected)
        notes.num_shortened_prompts += 1
    return agreed, notes


def _has_turn(text: str) -> bool:
    return any(mark.search(text) for mark in TURN_MARKS)


def _ends_at_mark(prompt: str) -> bool:
    end = len(prompt)
    return any(
        match.end() == end for mark in (*TURN_MARKS, ANSWER_MARK) for match in mark.finditer(prompt, max(end - 80, 0))
    )


def _ends_word(text: str, position: int) -> bool:
    """Returns whether a word ends at a position in a text."""
    return text[position - 1] in WORD_ENDS or text[position : position + 1].strip(WORD_ENDS) == ""
