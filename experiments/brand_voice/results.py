"""Prints the table of the study's README from finished runs.

Run: python experiments/brand_voice/results.py runs/voice_dpo runs/voice_sft ...
"""

import json
import sys
from pathlib import Path
from typing import Any

COLUMNS = {
    "preference accuracy": ("held_out", "tuned", "preference_accuracy"),
    "reward accuracy": ("held_out", "tuned", "reward_accuracy"),
    "neutral perplexity, ratio": ("drift", "perplexity", "ratio"),
    "KL per token": ("drift", "kl_per_token"),
}
SHARES = ("preference accuracy", "reward accuracy")


def look_up(report: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any] | None:
    entry: Any = report
    for key in path:
        entry = entry.get(key) if entry else None
    return entry


def show(name: str, entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "not measured"
    values = (entry["value"], *entry["ci95"])
    if name in SHARES:
        return "{:.1f} % [{:.1f}, {:.1f}]".format(*(100 * value for value in values))
    return "{:.2f} [{:.2f}, {:.2f}]".format(*values)


def main(folders: list[str]) -> None:
    print(f"| run | {' | '.join(COLUMNS)} | decision |\n|{'---|' * (len(COLUMNS) + 2)}")
    for folder in folders:
        report = json.loads((Path(folder) / "report/report.json").read_text(encoding="utf-8"))
        cells = [show(name, look_up(report, path)) for name, path in COLUMNS.items()]
        decision = report["decision"]
        words = f"{decision['word'].replace('_', ' ')}: {decision['reasons'][0]}"
        print(f"| `{report['run']['name']}` | {' | '.join(cells)} | {words} |")


if __name__ == "__main__":
    main(sys.argv[1:])
