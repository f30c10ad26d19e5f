"""The table of docs/gpu.md: one step of DPO on one card, from results/<card>/dpo_step*.json.

python -m benchmarks.gpu_table
python -m benchmarks.gpu_table --write

Nothing is run. What `python -m benchmarks.dpo_step --device cuda --write` has measured is told with its date, versions
and command; what it has not, as "not measured".
"""

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks import one_card, results
from benchmarks.shapes import MODELS, PAIRS
from benchmarks.variants import BASELINE, FUSED, OURS, PRECOMPUTE

PAGE = Path(__file__).parents[1] / "docs" / "gpu.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
EXPECTED = tuple(product(("0.5B", "1B", "3B", "8B"), ("none", "lora"), ("1024/256",)))
"""Model, what is trained, and pairs of the rows that every card should have."""
COLUMNS = (
    "model",
    "training",
    "pairs",
    "layers",
    "pairs/s",
    "tokens/s",
    "MFU",
    "GB measured",
    "GB computed",
    "TRL takes",
    "TRL precompute takes",
    "error, TRL's",
)
Key = tuple[str, str, str]


def read_cards(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The files of every GPU below a folder of results, by its name."""
    cards: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*/dpo_step*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["gpu"] is not None:
            cards.setdefault(content["gpu"], []).append(content)
    return cards


def render(folder: Path) -> str:
    """The tables of all cards as Markdown; without any, one that says so."""
    cards = read_cards(folder)
    if not cards:
        return "\n".join(["No card has been measured with the current code.", "", *_table(_rows([]))])
    lines: list[str] = []
    for card, files in cards.items():
        lines += [f"### {card}", "", *(_describe(content) for content in files), "", *_table(_rows(files)), ""]
    return "\n".join(lines).rstrip()


def replace_tables(page: str, tables: str) -> str:
    """The page with other tables between its markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{PAGE}: the markers {BEGIN} and {END} are missing")
    return f"{before}{begin}\n{tables}\n{end}{after}"


def main(argv: Sequence[str]) -> None:
    """Prints the tables, or writes them into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="replace the tables in docs/gpu.md")
    options = parser.parse_args(argv)
    tables = render(results.RESULTS)
    if not options.write:
        print(tables)
        return
    PAGE.write_text(replace_tables(PAGE.read_text(encoding="utf-8"), tables), encoding="utf-8")
    print(f"written: {PAGE}")


def _describe(content: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in content["packages"].items())
    return f"- {content['date']}, `{content['command']}`, {content['dtype']}, Python {content['python']}, {packages}"


def _rows(files: list[dict[str, Any]]) -> list[list[str]]:
    """Of each shape the result with the most rounds, in the order of models; then what is expected and missing."""
    found: dict[Key, dict[str, Any]] = {}
    for content in sorted(files, key=lambda content: content["rounds"]):
        for result in content["results"]:
            key = (result["model"], result["trained"], result["pairs"])
            if "error" not in result or key not in found:
                found[key] = result
    order = list(product(MODELS, ("none", "lora"), PAIRS))
    keys = sorted({*found, *EXPECTED}, key=lambda key: order.index(key) if key in order else len(order))
    return [row for key in keys for row in _tell(key, found.get(key))]


def _tell(key: Key, result: dict[str, Any] | None) -> list[list[str]]:
    """A row for prefopt, and one with fused layers where there were some."""
    model, trained, pairs = key
    head = [model, "full" if trained == "none" else "LoRA"]
    if result is None or "error" in result:
        reason = "not measured" if result is None else result["error"].split(":")[0]
        told = [*head, pairs, "-", reason]
        return [told + ["-"] * (len(COLUMNS) - len(told))]
    variants = {row["variant"]: row for row in result["variants"]}
    rows = []
    for end, layers in (("", "transformers'"), (FUSED, "Liger's")):
        if OURS + end not in variants:
            continue
        ours = variants[OURS + end]
        rows.append(
            [
                *head,
                f"{result['batch_pairs']} x {pairs}",
                layers,
                f"{ours['pairs_per_s']:,.1f}",
                f"{ours['tokens_per_s']:,.0f}",
                "-" if ours["mfu"] is None else f"{ours['mfu']:.1%}",
                f"{ours['total_bytes'] / 1e9:.1f}",
                _compute(result, has_fused_layers=end == FUSED),
                f"{variants[BASELINE + end]['times_min']:.2f} x",
                f"{variants[PRECOMPUTE + end]['times_min']:.2f} x",
                f"{ours['gradient_error']:.1e}, {variants[BASELINE]['gradient_error']:.1e}",
            ]
        )
    return rows


def _compute(result: dict[str, Any], *, has_fused_layers: bool) -> str:
    """GB by the formulas of docs/scaling.md, where they know the case."""
    has_adapter = result["trained"] != "none"
    if result["model"] not in MODELS or result["batches"] != 1 or (has_adapter and has_fused_layers):
        return "-"
    shared = result["tokens_shared"]
    size = one_card.predict_step(
        MODELS[result["model"]],
        shared,
        result["tokens_real"] - shared,
        has_adapter=has_adapter,
        has_fused_layers=has_fused_layers,
    )
    return f"{size / 1e9:.1f}"


def _table(rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (COLUMNS, ["---"] * len(COLUMNS), *rows)]


if __name__ == "__main__":
    main(sys.argv[1:])
