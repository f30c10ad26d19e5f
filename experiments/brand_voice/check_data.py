"""Prints what the study's README says of its data: sizes, lengths, areas, wording shared with the held-out pairs.

Fails if a row has another area than its topic has in `material/areas.json`, or a topic there is in no row.

Run: python experiments/brand_voice/check_data.py
"""

import json
import sys
from collections import Counter
from pathlib import Path

from build_data import read_areas

HERE = Path(__file__).parent
N = 8
Pair = dict[str, str]


def read_pairs(name: str) -> list[Pair]:
    """Rows as plain texts of prompt, chosen and rejected."""
    rows = [json.loads(line) for line in (HERE / name).read_text(encoding="utf-8").splitlines()]
    return [{side: row[side][-1]["content"] for side in ("prompt", "chosen", "rejected")} for row in rows]


def check_areas() -> dict[str, dict[str, int]]:
    """Returns how many rows of each file are of each area; every topic has the area of the table, in every file."""
    areas = read_areas()
    counts: dict[str, dict[str, int]] = {}
    seen = set()
    for name in ("train", "held_out", "sft_train", "sft_held_out"):
        rows = [json.loads(line) for line in (HERE / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for number, row in enumerate(rows, start=1):
            if areas.get(row["topic"]) != row["area"]:
                sys.exit(f"{name}.jsonl:{number}: topic {row['topic']} is not of the area {row['area']} in areas.json")
        seen |= {row["topic"] for row in rows}
        counts[name] = dict(Counter(row["area"] for row in rows).most_common())
    if unknown := sorted(set(areas) - seen):
        sys.exit(f"areas.json: no row has the topic {', '.join(unknown)}")
    return counts


def grams(text: str) -> list[tuple[str, ...]]:
    """All sequences of eight words, in lower case."""
    words = text.lower().split()
    return [tuple(words[i : i + N]) for i in range(len(words) - N + 1)]


def main() -> None:
    train, held_out = read_pairs("train.jsonl"), read_pairs("held_out.jsonl")
    seen = {gram for pair in train for text in pair.values() for gram in grams(text)}
    for name, pairs in (("train", train), ("held_out", held_out)):
        lengths = {side: [len(pair[side].split()) for pair in pairs] for side in ("prompt", "chosen", "rejected")}
        longer = sum(c > r for c, r in zip(lengths["chosen"], lengths["rejected"], strict=True))
        means = ", ".join(f"{side} {sum(n) / len(n):.0f} words" for side, n in lengths.items())
        prompts = len({pair["prompt"] for pair in pairs})
        share = 100 * longer / len(pairs)
        print(f"{name}: {len(pairs)} pairs, {prompts} prompts, {means}; chosen longer in {share:.1f} %")
    sharing = [pair for pair in held_out if any(gram in seen for text in pair.values() for gram in grams(text))]
    total = sum(len(grams(text)) for pair in held_out for text in pair.values())
    hits = sum(gram in seen for pair in held_out for text in pair.values() for gram in grams(text))
    print(f"{N}-word sequences of held_out that occur in train: {hits} of {total}, in {len(sharing)} pairs")
    same = {pair["prompt"] for pair in train} & {pair["prompt"] for pair in held_out}
    print(f"prompts in both: {len(same)}")
    for name, counts in check_areas().items():
        print(f"{name} by area: {', '.join(f'{area} {num}' for area, num in counts.items())}")


if __name__ == "__main__":
    main()
