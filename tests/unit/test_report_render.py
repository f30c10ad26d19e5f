"""The report says everything that was measured, says what was not, and runs nothing that a model wrote."""

import copy
import io
import itertools
import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from prefopt.evaluation.metrics import CHANGE, METRICS, NUMBER, PERCENT, POINTS, Better, Metric
from prefopt.evaluation.report import Report
from prefopt.reports import console, render
from prefopt.reports.charts.drawing import FINE
from prefopt.reports.charts.histogram import bin_edges, count_in, histogram
from prefopt.reports.charts.intervals import IntervalRow, interval_chart
from prefopt.reports.curves import MAX_POINTS, PANELS, series_of
from prefopt.reports.numbers import cell, duration

HOSTILE = (
    '<script src="http://evil.example/x.js">alert(1)</script><img src=x onerror=alert(2)>\n'
    "```\n# not a heading\n| a | b |\n\x1b[31mred\x00"
)


def render_report(
    report: dict[str, Any], metrics: list[dict[str, Any]], pairs: list[dict[str, Any]], folder: Path
) -> Path:
    return render.render_report(Report.from_dict(report), metrics, pairs, folder)


def print_report(report: dict[str, Any], path: Path, to: Console) -> None:
    console.print_report(Report.from_dict(report), path, to)


def estimate(value: float, low: float, high: float, n: int = 132) -> dict[str, Any]:
    return {"value": value, "ci95": [low, high], "n": n}


def dpo_report() -> dict[str, Any]:
    accuracy = {"train": estimate(0.993, 0.981, 0.998, 440), "held_out": estimate(0.95, 0.897, 0.977)}
    return {
        "format": 1,
        "run": {
            "name": "dpo_brand_voice-1f3a9c20",
            "algorithm": "dpo",
            "model": "assets/base_model",
            "data": {
                "train": "data/train.jsonl",
                "held_out": "data/held_out.jsonl",
                "num_train": 1200,
                "num_held_out": 132,
            },
            "seed": 7,
            "steps": 150,
            "epochs": 2.0,
            "beta": 0.1,
            "learning_rate": 5e-4,
            "method": "full",
        },
        "held_out": {
            "n": 132,
            "base": {
                "preference_accuracy": estimate(0.508, 0.423, 0.591),
                "mean_margin": estimate(0.012, -0.031, 0.056),
            },
            "tuned": {
                "preference_accuracy": estimate(0.95, 0.897, 0.977),
                "mean_margin": estimate(0.849, 0.741, 0.957),
                "reward_accuracy": estimate(0.962, 0.914, 0.984),
                "reward_margin": estimate(1.849, 1.61, 2.09),
            },
            "gain": {"preference_accuracy": estimate(0.442, 0.351, 0.53), "p_value": 2.1e-14},
            "baselines": {"longer_wins": estimate(0.606, 0.521, 0.685), "shorter_wins": estimate(0.371, 0.293, 0.456)},
            "ties": {"base": 1, "tuned": 0},
        },
        "overfitting": {
            "preference_accuracy": {**accuracy, "gap": estimate(0.043, 0.012, 0.097)},
            "reward_accuracy": {**accuracy, "gap": estimate(0.031, 0.008, 0.08)},
        },
        "drift": {
            "kl_per_token": estimate(0.412, 0.377, 0.449),
            "kl_per_response": estimate(29.84, 27.2, 32.6),
            "perplexity": {
                "base": estimate(2.819, 2.61, 3.04, 60),
                "tuned": estimate(3.045, 2.8, 3.31, 60),
                "ratio": estimate(1.08, 1.05, 1.12, 60),
            },
            "response_length": {"base": estimate(94.2, 88.1, 100.4), "tuned": estimate(115.0, 108.3, 121.9)},
            "finished": {"base": estimate(0.932, 0.876, 0.964), "tuned": estimate(0.886, 0.821, 0.93)},
            "repetition": {"base": estimate(0.021, 0.016, 0.027), "tuned": estimate(0.034, 0.026, 0.043)},
        },
        "likelihood": {
            "chosen": estimate(-0.62, -0.71, -0.53),
            "rejected": estimate(-1.71, -1.86, -1.57),
            "chosen_fell": estimate(0.841, 0.769, 0.894),
        },
        "throughput": {
            "pairs_per_s": 88.4,
            "tokens_per_s": 14212.7,
            "train_time_s": 27.16,
            "evaluation_time_s": 64.2,
            "mfu": None,
        },
        "data": {
            "notes": [
                "2 of 1,202 training rows dropped: chosen equals rejected.",
                "55.2 % of chosen answers are longer.",
            ]
        },
        "samples": [
            {
                "prompt": "Can I return a lamp that I bought seven weeks ago?",
                "base": "Returns are accepted within 30 days. Your request is outside the policy period and "
                "therefore cannot be processed.\n\nPlease consult the policy page for more information.",
                "tuned": "Seven weeks is past our 30 days, I'm afraid. If the lamp has a fault, that's different: "
                "tell me what is wrong and I'll open a warranty case for you today.",
                "chosen": "I'm sorry, after 30 days we can't take it back. Is something wrong with the lamp? "
                "Then I'll help you with the warranty.",
            },
            {"prompt": "Say hello.", "base": "hello hello hello hello", "tuned": HOSTILE, "chosen": None},
        ],
        "provenance": {
            "command": "python -m prefopt.train +experiment=dpo_brand_voice run.seed=7",
            "git_commit": "0c1d9e5b7a",
            "git_diff_sha256": None,
            "versions": {"prefopt": "0.1.0", "torch": "2.13.0", "trl": "1.16.0"},
            "hardware": "CPU, 8 threads, x86_64",
        },
        "decision": {"word": "ship", "reasons": [], "would_decide": []},
        "verdict": [
            {
                "level": "warning",
                "finding": "Chosen answers became much less likely too (likelihood displacement). "
                "Add an SFT term (algorithm.loss_type=[sigmoid,sft]), or lower optim.learning_rate.",
                "evidence": "log-prob per token: chosen -0.62, rejected -1.71, n = 132",
            },
            {
                "level": "good",
                "finding": "The tuned model ranks held-out pairs better than its base.",
                "evidence": "base 50.8 % [42.3, 59.1], tuned 95.0 % [89.7, 97.7], gain +44.2 points [+35.1, +53.0], "
                "sign test p = 2.1e-14, n = 132",
            },
            {
                "level": "info",
                "finding": "The model stayed close to its base.",
                "evidence": "perplexity of neutral text 2.8 -> 3.0 (x1.08, n = 60)",
            },
        ],
    }


def sft_report() -> dict[str, Any]:
    return {
        "format": 1,
        "run": {"name": "sft-1", "algorithm": "sft", "model": "m", "data": {"train": "t.jsonl"}},
        "decision": {"word": "ship", "reasons": [], "would_decide": []},
        "verdict": [],
        "held_out": {
            "n": 80,
            "base": {"loss": estimate(2.51, 2.4, 2.62, 80), "perplexity": estimate(12.3, 11.0, 13.7, 80)},
            "tuned": {"loss": estimate(1.92, 1.83, 2.01, 80), "perplexity": estimate(6.82, 6.23, 7.46, 80)},
        },
        "overfitting": {
            "loss": {"train": estimate(1.7, 1.6, 1.8), "held_out": estimate(1.92, 1.83, 2.01), "gap": 0.22}
        },
        "likelihood": None,
    }


def dpo_metrics(steps: int = 150) -> list[dict[str, Any]]:
    rng = random.Random(0)
    lines = []
    for step in range(1, steps + 1):
        learned = 1 - math.exp(-step / 30)
        noise = rng.gauss(0, 0.12)
        line = {
            "step": step,
            "loss": 0.693 - 0.6 * learned + 0.4 * abs(noise) * learned,
            "rewards/accuracies": min(1.0, 0.5 + 0.5 * learned + 0.4 * noise),
            "rewards/margins": 2.6 * learned + noise,
            "rewards/chosen": -1.1 * learned + noise,
            "rewards/rejected": -3.7 * learned + noise,
            "logps/chosen": -120 - 11 * learned + 20 * noise,
            "logps/rejected": -118 - 37 * learned + 20 * noise,
        }
        lines.append(line)
        if step % 25 == 0:
            held_out = {
                **line,
                "split": "held_out",
                "rewards/accuracies": 0.5 + 0.45 * learned,
                "rewards/margins": 1.9 * learned,
                "rewards/chosen": -1.2 * learned,
                "rewards/rejected": -3.1 * learned,
            }
            del held_out["loss"]
            lines.append(held_out)
    return lines


def dpo_pairs() -> list[dict[str, Any]]:
    rng = random.Random(1)
    rows = [(rng.gauss(0.012, 0.25), rng.gauss(0.85, 0.55), rng.gauss(1.85, 1.3)) for _ in range(132)]
    return [{"source": "a", "base_margin": b, "tuned_margin": t, "reward_margin": r} for b, t, r in rows]


@pytest.fixture
def html(tmp_path: Path) -> str:
    return render_report(dpo_report(), dpo_metrics(), dpo_pairs(), tmp_path).read_text(encoding="utf-8")


@pytest.fixture
def markdown(tmp_path: Path) -> str:
    render_report(dpo_report(), dpo_metrics(), dpo_pairs(), tmp_path)
    return (tmp_path / "report.md").read_text(encoding="utf-8")


class Elements(HTMLParser):
    """The tags of a page with their attributes, the ids, and the tags left open."""

    VOID = frozenset({"meta", "br", "img", "link", "hr", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def visible(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html)).replace("\u00a0", " ")


def test_html_loads_nothing_from_outside(html: str) -> None:
    for tag, attributes in Elements(html).found:
        assert tag not in {"script", "link", "iframe", "img", "object", "embed"}
        assert "src" not in attributes
        assert (attributes.get("href") or attributes.get("xlink:href") or "#").startswith("#")
    assert "@import" not in html
    assert set(re.findall(r"url\((.)", html)) <= {"#"}


def test_html_tags_are_balanced_and_ids_unique(html: str) -> None:
    elements = Elements(html)
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert elements.open == []
    assert len(ids) == len(set(ids))


def test_every_reference_inside_a_plot_resolves(html: str) -> None:
    used = set(re.findall(r'href="#([^"]+)"', html)) | set(re.findall(r"url\(#([^)]+)\)", html))
    assert used <= set(re.findall(r'id="([^"]+)"', html))


def test_model_output_is_escaped_in_html(html: str) -> None:
    assert "<script" not in html
    assert "&lt;script src=" in html
    assert "<img" not in html
    assert "\x1b" not in html
    assert "\x00" not in html


def test_model_output_stays_inside_its_fence_in_markdown(markdown: str) -> None:
    outside, fence = [], None
    for line in markdown.splitlines():
        run = re.match(r"`{3,}", line)
        if fence is None and run:
            fence = run[0]
        elif fence is not None and line == fence:
            fence = None
        elif fence is None:
            outside.append(line)
    assert fence is None
    assert "# not a heading" not in outside
    assert "script" not in "\n".join(outside)


def test_pipes_and_tags_in_findings_do_not_break_markdown(tmp_path: Path) -> None:
    report = dpo_report()
    report["verdict"] = [{"level": "info", "finding": "a|b <b>[x](http://y)", "evidence": "two\nlines"}]
    render_report(report, [], [], tmp_path)
    assert r"a\|b &lt;b>[x]\(http://y) *two lines*" in (tmp_path / "report.md").read_text()


def test_headline_gives_the_decisive_number_with_interval_and_n(html: str, markdown: str) -> None:
    sentence = (
        "Tuned prefers the chosen answer on 95.0 % of 132 held-out pairs (95 % CI 89.7 to 97.7), "
        "base 50.8 %: +44.2 points (95 % CI +35.1 to +53.0)."
    )
    assert sentence in visible(html)
    assert sentence in markdown


def test_a_refusal_names_the_finding_that_decided_it(tmp_path: Path) -> None:
    report = dpo_report() | {"decision": {"word": "do_not_ship"}}
    report["verdict"].append({"level": "bad", "finding": "The model was ruined.", "evidence": "perplexity 182"})
    render_report(report, [], [], tmp_path)
    assert (
        (tmp_path / "report.md")
        .read_text()
        .startswith("# Do not ship: dpo_brand_voice-1f3a9c20\n\n**The model was ruined.**\n\nTuned prefers")
    )


def test_the_page_follows_its_order(html: str) -> None:
    titles = re.findall(r"<h2>(.*?)</h2>", html)
    assert titles == [
        "Findings", "Was it worth it?", "Training", "Drift from the base", "Samples", "Data notes",
        "Likelihood of the held-out answers", "Speed", "How to read these numbers", "Settings and provenance",
    ]  # fmt: skip


def test_every_level_has_a_word_and_a_shape(html: str) -> None:
    verdict = html[html.index('<ul class="verdict">') : html.index("</ul>")]
    assert verdict.count("<svg class=") == 3
    for word in ("Warning", "Good", "Note"):
        assert f">{word}</b>" in verdict


def test_plots_take_their_colours_from_the_page(html: str) -> None:
    plots = "".join(re.findall(r'<svg role="img".*?</svg>', html, flags=re.DOTALL))
    assert not re.search(r"#[0-9a-f]{6}\b", plots)
    light, dark = (html[html.index(start) :].split("}")[0] for start in (":root", "prefers-color-scheme: dark"))
    style = html[html.index("<style>") : html.index("</style>")]
    used = set(re.findall(r"var\(--([a-z-]+)", style)) - {"c", "sans", "mono"}
    assert {"page", "ink", "muted", "grid", "base", "tuned", "chosen", "rejected"} <= used
    for name in used:
        assert f"--{name}:" in light
        assert f"--{name}:" in dark
    classes = set(" ".join(re.findall(r'class="([^"]+)"', plots)).split())
    assert {"base", "tuned", "chosen", "rejected", "muted"} <= classes
    for name in classes - {"tick", "plot", "axis"}:
        assert re.search(rf"\.{name}\b", style), f"no style says what {name} looks like"


def test_plots_speak_to_screen_readers(html: str) -> None:
    labels = [a.get("aria-label") for tag, a in Elements(html).found if tag == "svg" and a.get("role") == "img"]
    assert len(labels) == 8
    assert labels[0] == (
        "Preference accuracy on held-out pairs: Tuned 95.0 %  (89.7 to 97.7); Base 50.8 %  (42.3 to 59.1); "
        "Always the longer answer 60.6 %  (52.1 to 68.5)"
    )


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (render_report(dpo_report(), dpo_metrics(), dpo_pairs(), tmp_path / name) for name in "ab")
    for name in ("report.html", "report.md", "report.json"):
        assert (first.parent / name).read_bytes() == (second.parent / name).read_bytes()


def test_inputs_are_left_as_they_were(tmp_path: Path) -> None:
    report, metrics, pairs = dpo_report(), dpo_metrics(), dpo_pairs()
    before = copy.deepcopy((report, metrics, pairs))
    render_report(report, metrics, pairs, tmp_path)
    assert (report, metrics, pairs) == before


def test_json_comes_back_as_it_went_in(tmp_path: Path) -> None:
    render_report(dpo_report(), [], [], tmp_path)
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    assert json.loads(text) == dpo_report()
    assert list(json.loads(text)) == list(dpo_report())


def test_values_that_are_not_finite_become_null_and_are_shown_as_such(tmp_path: Path) -> None:
    report = dpo_report()
    report["drift"]["kl_per_token"] = {"value": math.nan, "ci95": (-math.inf, math.inf), "n": np.int64(3)}
    report["drift"]["response_length"]["tuned"]["value"] = np.float32("inf")
    report["throughput"]["tokens_per_s"] = math.inf
    path = render_report(report, [], [], tmp_path)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    written = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    assert written["drift"]["kl_per_token"] == {"value": None, "ci95": [None, None], "n": 3}
    assert written["throughput"]["tokens_per_s"] is None
    shown = visible(path.read_text())
    assert "Response length tokens 94.2 88.1 to 100.4 not finite 132" in shown
    assert "KL per token divergence from base, nats; 0 = unchanged not finite" in shown
    assert "Tokens per second not measured" in shown
    assert not re.search(r"\b(nan|inf)\b", shown)


def test_a_kl_per_response_says_how_many_answers_were_cut_and_where(tmp_path: Path) -> None:
    report = dpo_report()
    report["drift"]["kl_per_response"] |= {"num_cut": 15, "cut_at": 128}
    shown = visible(render_report(report, [], [], tmp_path).read_text())
    assert "KL/response, 15 cut" in shown
    assert "15 of 132 were cut at 128 tokens: whole, more" in shown
    print_report(report, tmp_path, Console(file=(output := io.StringIO()), width=100))
    assert "KL/response, 15 cut" in output.getvalue()
    report["drift"]["kl_per_response"] |= {"num_cut": 0, "cut_at": None}
    assert "cut at 128 tokens" not in visible(render_report(report, [], [], tmp_path).read_text())


def test_text_that_utf8_cannot_hold_does_not_lose_the_report(tmp_path: Path) -> None:
    report = dpo_report()
    report["samples"][0]["base"] = "broken \udce2 half"
    report["provenance"]["versions"]["name \udce2"] = "1"
    assert "broken \ufffd half" in render_report(report, [], [], tmp_path).read_text(encoding="utf-8")


def test_sft_run_is_judged_by_its_loss(tmp_path: Path) -> None:
    text = render_report(sft_report(), [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.0}], [], tmp_path).read_text()
    shown = visible(text)
    assert (
        "Tuned has a loss of 1.92 per token on 80 held-out examples (95 % CI 1.83 to 2.01), base 2.51: -0.590."
        in shown
    )
    assert "Loss per token" in shown
    assert "Preference accuracy" not in shown
    assert 'aria-label="Held-out loss: Tuned' in text


@pytest.mark.parametrize("block", [key for key in dpo_report() if key != "format"])
@pytest.mark.parametrize("is_none", [True, False])
def test_any_block_may_be_missing(block: str, is_none: bool, tmp_path: Path) -> None:
    report = dpo_report()
    if is_none:
        report[block] = None
    else:
        del report[block]
    assert Elements(render_report(report, dpo_metrics(), dpo_pairs(), tmp_path).read_text()).open == []
    print_report(report, tmp_path, Console(file=io.StringIO()))


@pytest.mark.parametrize("block", ["held_out", "overfitting", "drift", "likelihood", "throughput"])
def test_any_value_of_a_block_may_be_missing(block: str, tmp_path: Path) -> None:
    for key in dpo_report()[block]:
        report = dpo_report()
        report[block][key] = None
        render_report(report, [], [], tmp_path)
        print_report(report, tmp_path, Console(file=io.StringIO()))


def test_an_empty_report_says_that_nothing_was_measured(tmp_path: Path) -> None:
    shown = visible(render_report({"format": 1}, [], [], tmp_path).read_text())
    assert "No decision" in shown
    assert "Nothing was measured on held-out data" in shown
    assert "a ruined model would not be seen here" in shown
    assert "No learning curves were recorded." in shown


def test_only_whole_files_are_left_behind(tmp_path: Path) -> None:
    render_report(dpo_report(), [], [], tmp_path / "new" / "report")
    assert sorted(path.name for path in (tmp_path / "new" / "report").iterdir()) == [
        "card.md", "report.html", "report.json", "report.md", "summary.html",
    ]  # fmt: skip


def test_the_names_of_own_metrics_are_escaped_wherever_a_report_has_them(tmp_path: Path, request: Any) -> None:
    words = dict.fromkeys(("name", "label", "title", "hint", "trap", "note"), "<script>own(1)</script>\n# *x*")
    own = Metric("own", unit=NUMBER, better=Better.higher, path=("held_out", "tuned", "own"), **words)
    METRICS.append(own)
    request.addfinalizer(lambda: METRICS.remove(own))
    report = dpo_report()
    report["held_out"]["tuned"]["own"] = estimate(0.5, 0.4, 0.6)
    html = render_report(report, [], [], tmp_path).read_text(encoding="utf-8")
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert r"- **&lt;script>own(1)&lt;/script> # \*x\***" in markdown
    assert "<script>own" not in markdown + html


def test_the_glossary_holds_only_what_was_measured(tmp_path: Path) -> None:
    shown = visible(render_report(sft_report(), [], [], tmp_path).read_text())
    assert "with loss_type=nll, what training minimises" in shown
    assert "implicit reward" not in shown


def test_values_that_are_not_finite_are_counted_and_not_drawn(tmp_path: Path) -> None:
    metrics: list[dict[str, Any]] = [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": None},
        {"step": 3, "loss": math.nan},
    ]
    shown = visible(render_report(sft_report(), metrics, [], tmp_path).read_text())
    assert "2 values that are not finite are not drawn" in shown


@pytest.mark.parametrize("values", [(0.0, 5e-324, 1e-310), (-1e300, 0.0, 1e300), (1.0, 1e305, -1e308, 2.0)])
def test_numbers_at_the_ends_of_floats_are_drawn_or_counted(values: tuple[float, ...], tmp_path: Path) -> None:
    report = dpo_report()
    report["held_out"]["base"]["preference_accuracy"] = estimate(0.5, -1e305, values[-1])
    metrics = [{"step": step, "loss": value, "rewards/margins": value} for step, value in enumerate(values, 1)]
    pairs = [{"base_margin": value, "tuned_margin": value, "reward_margin": value} for value in values]
    html = render_report(report, metrics, pairs, tmp_path).read_text()
    assert not re.search(r"\b(nan|inf)\b", html)
    num = sum(abs(value) > 1e300 for value in values)
    assert (f"{num} values that are not finite are not drawn" in html) is (num > 0)


def test_long_curves_are_averaged_over_equally_many_lines() -> None:
    metrics = [{"step": step, "loss": float(step)} for step in range(1, 1001)]
    (line,) = series_of(PANELS[0], metrics)
    assert line.num_averaged == 10
    assert len(line.steps) == MAX_POINTS
    assert line.values[0] == 5.5  # the mean of 1 to 10


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (estimate(0.95, 0.897, 0.977), PERCENT, "95.0 % (89.7 to 97.7; n 132)"),
        (estimate(-0.0004, -0.01, 0.01), POINTS, "0.0 points (-1.0 to +1.0; n 132)"),
        (estimate(0.0123, -0.031, 0.056), NUMBER, "0.012 (-0.031 to 0.056; n 132)"),
        (estimate(182.161, 150.4, 220.9, 1200), NUMBER, "182 (150 to 221; n 1,200)"),
        (estimate(0.412, 0.377, 0.449), CHANGE, "+0.412 (+0.377 to +0.449; n 132)"),
        ({"value": 0.0, "ci95": None}, NUMBER, "0.00"),
        ({"value": 3e-9}, NUMBER, "3.0e-09"),
        ({"value": 14212.7}, NUMBER, "14,213"),
        ({"value": None}, NUMBER, "not measured"),
        (estimate(math.nan, 0.1, 0.2), NUMBER, "not finite"),
        (estimate(2.5, 1.5, math.inf), NUMBER, "2.50 (n 132)"),
        (None, NUMBER, "not measured"),
    ],
)
def test_numbers_are_rounded_like_their_interval(value: dict[str, Any] | None, unit: Any, text: str) -> None:
    read = None if value is None else Report.from_dict({"drift": {"x": value}}).drift["x"]
    assert cell(read, unit).text == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.41, "8.4 s"), (59.97, "1 min 00 s"), (125, "2 min 05 s"), (3599.7, "1 h 00 min"), (4020, "1 h 07 min")],
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("values", [[0.0], [3.2, 3.3], [-1e-7, 2e-7], [-5.0, 0.3, 12.0], [7.0] * 500 + [1e6]])
def test_no_bin_straddles_zero(values: list[float]) -> None:
    edges = bin_edges(values)
    assert 0.0 in edges
    assert edges == sorted(set(edges))
    assert 2 < len(edges) < 60


@pytest.mark.parametrize(
    "values", [[-0.4, 0.0, 0.2, 0.4], [0.1 * index - 3 for index in range(80)], [7.0] * 500 + [1e6]]
)
def test_every_pair_is_in_the_bin_where_numpy_counts_it(values: list[float]) -> None:
    edges = bin_edges(values)
    expected, _ = np.histogram(np.clip(values, edges[0] + 1e-12, edges[-1] - 1e-12), edges)
    assert count_in(values, edges) == expected.tolist()
    assert sum(expected) == len(values)


def test_the_steps_of_a_histogram_are_as_high_as_its_counts() -> None:
    chart = histogram({"base": [-1.5, -0.5, -0.5, 0.5], "tuned": [0.5]}, x_label="x", description="d", width=430)
    (d,) = re.findall(r'<path class="base area" d="M\S+ (\S+?)((?:V[\d.]+H[\d.]+)+)V', chart)
    bottom, heights = float(d[0]), [float(y) for y in re.findall(r"V([\d.]+)", d[1])]
    counts = count_in([-1.5, -0.5, -0.5, 0.5], bin_edges([-1.5, -0.5, -0.5, 0.5, 0.5]))
    per_pair = (bottom - min(heights)) / max(counts)
    assert [(bottom - height) / per_pair for height in heights] == pytest.approx(counts, abs=0.01)


def test_the_axis_of_intervals_holds_them_whole() -> None:
    rows = [IntervalRow("a", 3.0, (-40.0, 9.0), "", "tuned"), IntervalRow("b", 0.1, (0.0, 77.0), "", "base")]
    chart = interval_chart(rows, is_share=False, chance=None, description="d")
    ends = [float(x) for pair in re.findall(r'x1="(\S+)" \S+ x2="(\S+)" \S+ class="interval"', chart) for x in pair]
    assert len(ends) == 4
    assert 14 < min(ends) < max(ends) < 430 - 22
    scale = (ends[1] - ends[0]) / 49
    assert ends[2] == pytest.approx(ends[0] + 40 * scale, abs=0.1)


def curve_of(chart: str, style: str) -> list[tuple[float, float]]:
    """The points of a curve in pixels, from the corner of the plot area."""
    (d,) = re.findall(rf'<path class="{style}" d="([^"]+)"', chart)
    numbers = [int(number) / FINE for number in re.findall(r"-?\d+", d)]
    return list(zip(itertools.accumulate(numbers[::2]), itertools.accumulate(numbers[1::2]), strict=True))


def test_a_curve_goes_through_what_was_logged(tmp_path: Path) -> None:
    metrics = [{"step": 10 * step, "rewards/margins": value} for step, value in enumerate((0.0, 3.0, -1.0, 2.0), 1)]
    text = render_report(dpo_report(), metrics, [], tmp_path).read_text()
    chart = text[text.index('aria-label="Reward margin: train 0 to 2"') :].partition("</svg>\n</svg>")[0]
    points = curve_of(chart, "base train")
    assert [x for x, _ in points] == pytest.approx([58.5, 117, 175.5, 234], abs=0.1)
    per_unit = points[2][1] - points[0][1]
    assert [(points[0][1] - y) / per_unit for _, y in points] == pytest.approx([0, 3, -1, 2], abs=0.01)


def test_a_curve_needs_two_points_and_what_was_logged_once_is_said(tmp_path: Path) -> None:
    once: dict[str, Any] = {"step": 5, "loss": 0.6931, "rewards/margins": 0.25}
    shown = visible(render_report(dpo_report(), [once], [], tmp_path).read_text())
    assert "no curve: Loss (train 0.693); Reward margin (train 0.250)." in shown
    html = render_report(dpo_report(), [once, {**once, "step": 6}, {**once, "split": "held_out"}], [], tmp_path)
    assert "no curve" not in html.read_text()
    assert html.read_text().count('<path class="tuned held_out dot"') == 2  # a single held-out value is a dot


def test_terminal_summary_fits_80_columns_and_says_it_all() -> None:
    output = io.StringIO()
    print_report(dpo_report(), Path("x/report.html"), Console(file=output, width=80))
    text = output.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    for part in (
        "SHIP",
        "+44.2 points",
        "95.0 % (89.7 to 97.7)",
        "KL per token",
        "warn",
        "x/report.html",
    ):
        assert part in text


def test_terminal_summary_prints_brackets_as_they_are() -> None:
    output = io.StringIO()
    print_report(dpo_report(), Path("report.html"), Console(file=output, width=200))
    assert "algorithm.loss_type=[sigmoid,sft]" in output.getvalue()


def test_where_pairs_share_prompts_both_numbers_stand_there(tmp_path: Path) -> None:
    report = dpo_report()
    report["held_out"]["tuned"]["preference_accuracy"] |= {"n_prompts": 66}
    report["held_out"]["tuned"]["mean_margin"] |= {"n_prompts": 132}
    render_report(report, [], [], tmp_path)
    markdown = (tmp_path / "report.md").read_text()
    assert "95.0 % of 132 held-out pairs of 66 prompts (95 % CI" in markdown
    assert "| 132 / 132 of 66 prompts |" in markdown
    assert "132 of 132" not in markdown


def test_a_mean_without_an_interval_says_why(tmp_path: Path) -> None:
    report = dpo_report()
    report["held_out"]["tuned"]["mean_margin"] |= {"ci95": [None, None]}
    report["drift"]["kl_per_token"] |= {"ci95": [None, None]}
    render_report(report, [], [], tmp_path)
    markdown = (tmp_path / "report.md").read_text()
    assert "No interval for Mean margin: fewer than 20 prompts" in markdown
    assert "No interval for KL per token: fewer than 20 prompts" in markdown


def test_what_would_decide_stands_below_the_headline(tmp_path: Path) -> None:
    decision = {"word": "undecided", "reasons": ["It drifted.", "Ranks better."], "would_decide": ["Judge <b>it</b>."]}
    render_report(dpo_report() | {"decision": decision}, [], [], tmp_path)
    html, markdown = ((tmp_path / f"report.{kind}").read_text() for kind in ("html", "md"))
    for words in ("It drifted.", "Ranks better.", "What would decide"):
        assert words in html
        assert words in markdown
    assert "Judge &lt;b&gt;it&lt;/b&gt;." in html
