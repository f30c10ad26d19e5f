"""What each check of the audit looks for, and why that matters: for people who read its findings."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Meaning:
    """A check in words: its title, what it finds, and why that matters."""

    title: str
    what: str
    why: str


MEASURES = {
    "length_bias": "the longer or the shorter answer wins in",
    "label_noise": "labels swapped: at least",
    "separability": "accuracy: at least",
}
"""Checks whose limits are for another number than the share of the rows: the words before it."""

CHECKS = {
    "schema": Meaning(
        "Rows that cannot be read",
        "Rows whose fields are missing, of a wrong type, or damaged.",
        "What was not read was not checked either, and training refuses the file.",
    ),
    "identical": Meaning(
        "Identical answers",
        "Pairs whose chosen answer equals the rejected one.",
        "They have no gradient: they cost time, and teach nothing.",
    ),
    "near_identical": Meaning(
        "Nearly identical answers",
        "Pairs whose answers share more than 80 % of their word trigrams.",
        "DPO lowers the probability of both: what they share is pushed down together with the rejected answer.",
    ),
    "empty": Meaning(
        "Empty answers",
        "Rows with an answer that holds neither text nor a tool call.",
        "The model learns to say nothing, or that anything is better than nothing.",
    ),
    "contradictory": Meaning(
        "Contradictory pairs",
        "Pairs of one prompt and the same two answers, with the preference the other way round.",
        "Their gradients cancel out; many of them mean that the labels are noise.",
    ),
    "duplicate": Meaning(
        "Exact duplicates",
        "Rows that repeat an earlier row of the same split.",
        "They weigh twice, are memorised first, and make held-out numbers look more certain than they are.",
    ),
    "near_duplicate": Meaning(
        "Near duplicates",
        "Rows that share at least 80 % of their words with another row.",
        "As exact duplicates: they weigh more than other rows, and say nothing new.",
    ),
    "leakage": Meaning(
        "Leakage",
        "Training rows whose prompt is also held out, or in a file that you compare with.",
        "What was trained on is measured too well: the accuracy on it says nothing about new prompts.",
    ),
    "near_leakage": Meaning(
        "Near leakage",
        "Held-out prompts that a training prompt repeats in nearly the same words, or covers piece by piece.",
        "As leakage: the model may know the answer by heart.",
    ),
    "prompt_mismatch": Meaning(
        "Answers to different prompts",
        "Pairs of which one answer repeats the prompt and the other does not.",
        "The model learns to tell the form of the rows, not which answer is better.",
    ),
    "length_bias": Meaning(
        "Length bias",
        "How often the longer answer is the chosen one.",
        "Length is the easiest thing to learn: the model then writes longer answers, not better ones.",
    ),
    "refusal": Meaning(
        "Refusals and boilerplate",
        "Chosen answers that refuse, or that begin or end with an assistant's stock phrases.",
        "What is trained here, the model will say more often, also where nobody should be refused.",
    ),
    "truncation": Meaning(
        "Truncation",
        "Rows of more tokens than data.max_length, under the model's own tokenizer and chat template.",
        "A cut answer has lost its end: the model sees no reason to stop, and may miss what made it better.",
    ),
    "control_tokens": Meaning(
        "Control tokens",
        "Text that holds the model's control tokens, letters that no token can write, ends that get lost.",
        "The model sees a turn or an end where the text has none.",
    ),
    "role_order": Meaning(
        "Order of turns",
        "Chats with two turns of one speaker in a row, a system message in the middle, and the like.",
        "Some chat templates refuse them, others render what the model has never seen.",
    ),
    "language": Meaning(
        "Languages",
        "In which languages the answers are, and where chosen, rejected and prompt differ.",
        "The model learns to change the language, or to prefer one, instead of what is meant.",
    ),
    "control_characters": Meaning(
        "Invisible characters",
        "Control and zero-width characters, and overrides of the writing direction.",
        "Nobody sees them, the tokenizer does: they split words, and can hide text from readers.",
    ),
    "mojibake": Meaning(
        "Wrongly decoded text",
        "Text that was decoded by the wrong encoding, such as \u00e2\u20ac\u2122 for an apostrophe.",
        "The model learns to write it.",
    ),
    "secrets": Meaning(
        "Secrets",
        "Keys, tokens and passwords in prompts, answers, tools and their calls.",
        "A model that was trained on them may tell them to anybody.",
    ),
    "personal_data": Meaning(
        "Personal data",
        "E-mail addresses, phone, card and account numbers and the like.",
        "A model that was trained on them may tell them; the law may ask for consent.",
    ),
    "label_noise": Meaning(
        "Label noise",
        "Pairs whose label contradicts what the words of all other pairs say.",
        "Swapped labels teach the opposite of what is meant, and limit every accuracy.",
    ),
    "separability": Meaning(
        "Shortcuts in words",
        "How often words alone, without their order, tell the chosen answer of a prompt never seen.",
        "If they nearly always do, the model learns these words, and little else.",
    ),
    "score_margin": Meaning(
        "Score margins",
        "Pairs whose scores, where the file has some, hardly differ or put the rejected answer first.",
        "Near 0 the label is a coin toss; below 0 it contradicts the scores that it was made of.",
    ),
    "slices": Meaning(
        "Sources",
        "Findings that are at least twice as frequent in one file, part or tag of the training data as in the others.",
        "One bad source hides in a mixture: shares over all rows look harmless.",
    ),
}
"""Check -> its meaning, in the order of `prefopt.config.choices.CheckName`."""


def title_of(check: str) -> str:
    """Returns the title of a check; its name if it is not explained here."""
    return CHECKS[check].title if check in CHECKS else check


def split_name(split: str) -> str:
    """Returns the name of a split as it is written; that of a file to compare with stays as it is."""
    return "held-out" if split == "held_out" else split
