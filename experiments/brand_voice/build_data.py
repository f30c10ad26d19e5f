"""Multiplies the hand-written cases in `material/` into the study's training files.

Run: python experiments/brand_voice/build_data.py

A case has three customer messages, two answers in the brand's voice, two neutral ones, and slots. From each case come
four preference pairs and two demonstrations, each with its own draw of message, answers and slot values. The held-out
pairs (`held_out.jsonl`) are written by hand, one by one, and no script touches them. Every row names its topic, and
the area that this belongs to (`material/areas.json`): reports tell their numbers by area.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAIRS_PER_CASE = 4
DEMONSTRATIONS_PER_CASE = 2
HELD_OUT_CASE_EVERY = 10

Case = dict[str, Any]


def read_cases() -> list[Case]:
    """All hand-written cases, in file order."""
    files = sorted((HERE / "material").glob("cases_*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def read_areas() -> dict[str, str]:
    """Topic -> its area, of all topics in training and held-out rows."""
    table = json.loads((HERE / "material" / "areas.json").read_text(encoding="utf-8"))
    return {topic: area for area, topics in table.items() for topic in topics}


def split_cases(cases: list[Case]) -> tuple[list[Case], list[Case]]:
    """Training cases, and every tenth, which neither the base model nor SFT sees."""
    return [case for i, case in enumerate(cases) if i % HELD_OUT_CASE_EVERY], cases[::HELD_OUT_CASE_EVERY]


def fill(text: str, values: dict[str, str]) -> str:
    """Puts slot values into a text."""
    return text.format_map(values)


def draw_slots(case: Case, rng: random.Random) -> dict[str, str]:
    return {name: rng.choice(values) for name, values in case.get("slots", {}).items()}


def say(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def pairs(case: Case, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Four pairs: every answer is used twice, every message at least once."""
    prompts = [*case["prompts"], rng.choice(case["prompts"])]
    chosen = [*case["chosen"], *case["chosen"]]
    rejected = [*case["rejected"], *reversed(case["rejected"])]
    rng.shuffle(prompts)
    for prompt, good, bad in zip(prompts, chosen, rejected, strict=True):
        slots = draw_slots(case, rng)
        yield {
            "prompt": [say("user", fill(prompt, slots))],
            "chosen": [say("assistant", fill(good, slots))],
            "rejected": [say("assistant", fill(bad, slots))],
            "topic": case["topic"],
            "area": case["area"],
        }


def demonstrations(case: Case, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Both answers in the brand's voice, each to another message."""
    prompts = rng.sample(case["prompts"], DEMONSTRATIONS_PER_CASE)
    for prompt, good in zip(prompts, case["chosen"], strict=True):
        slots = draw_slots(case, rng)
        yield {
            "messages": [say("user", fill(prompt, slots)), say("assistant", fill(good, slots))],
            "topic": case["topic"],
            "area": case["area"],
        }


def write(name: str, rows: list[dict[str, Any]], rng: random.Random) -> None:
    unique = list({json.dumps(row, ensure_ascii=False): None for row in rows})
    rng.shuffle(unique)
    (HERE / name).write_text("".join(f"{line}\n" for line in unique), encoding="utf-8")
    print(f"{name}: {len(unique)} rows")


def main() -> None:
    rng, areas = random.Random(0), read_areas()
    cases = [{**case, "area": areas[case["topic"]]} for case in read_cases()]
    write("train.jsonl", [row for case in cases for row in pairs(case, rng)], rng)
    training, held_out = split_cases(cases)
    write("sft_train.jsonl", [row for case in training for row in demonstrations(case, rng)], rng)
    write("sft_held_out.jsonl", [row for case in held_out for row in demonstrations(case, rng)], rng)


if __name__ == "__main__":
    main()
