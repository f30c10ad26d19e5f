"""The audit's page tells every finding, draws the numbers that there are, and runs nothing that the data hold."""

import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from prefopt.config.choices import CheckName
from prefopt.config.gate import GateConfig
from prefopt.data.audit import duplicate
from prefopt.data.audit.check import Chunk, Sides
from prefopt.data.audit.finding import Audit, Finding, sort_findings
from prefopt.data.audit.label_noise import count_log_odds
from prefopt.data.audit.truncation import count_lengths
from prefopt.data.records import SFTExample
from prefopt.process.errors import UserError
from prefopt.reports.audit import describe_measure
from prefopt.reports.audit_figures import DRAWN
from prefopt.reports.audit_glossary import CHECKS
from prefopt.reports.audit_page import render_audit_page, split_code, write_audit_page
from prefopt.reports.charts.bars import MAX_LABEL
from prefopt.reports.charts.counted import counted_histogram

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> \"' \x1b[31m \ud800 \u202e"
RATIO = {"counts": [1, 0, 3, 2], "edges": [-4.0, -2.0, 0.0, 2.0, 4.0]}
ESTIMATE = {"value": 0.75, "ci95": [0.7, 0.8], "n": 300}
VALUES: dict[str, dict[str, Any]] = {
    "length_bias": {
        "log2_ratio": RATIO,
        "longer_is_chosen": ESTIMATE,
        "matched": {"value": None, "ci95": [0, 1], "n": 0},
    },
    "truncation": {
        "max_length": 512,
        "tokens": {"0.5": 200, "1.0": 4000},
        "histogram": {"counts": [5, 3, 1], "edges": [0.0, 300.0, 600.0, 900.0]},
    },
    "language": {"languages": {"en": 0.9, "de": 0.08, "unknown": 0.02}},
    "refusal": {"chosen_refusals": 0.04, "rejected_refusals": 0.02},
    "separability": {
        "accuracy": ESTIMATE,
        "length_accuracy": 0.6,
        "words": {"chosen": ["<b>certainly"], "rejected": []},
    },
    "label_noise": {
        "accuracy": 0.7,
        "ci95": [0.6, 0.8],
        "estimate": {"value": 0.1, "ci95": [0.05, 0.15]},
        "suspicious": [{"source": "a.jsonl:7", "log_odds": -2.5}],
        "log_odds": RATIO,
    },
    "score_margin": {"margins": RATIO, "below": 3},
    "slices": {
        "sources": [
            {"name": HOSTILE, "rows": 3, "findings": {"empty": 0.5}},
            {"name": "b", "rows": 9, "findings": {}},
        ],
        "tags": [
            {"name": HOSTILE, "rows": 4, "findings": {"identical": 0.25}},
            {"name": "billing", "rows": 8, "findings": {}},
        ],
        "uneven": [{"check": "empty", "source": HOSTILE}],
    },
    "duplicate": {"group_sizes": {"2": 10, "5": 1}},
    "near_leakage": {"by_split": {"held_out": 3, HOSTILE: 1}},
    "near_duplicate": {"group_sizes": {"2": 10, "5": 1}},
    **{
        check: {"matches": {HOSTILE: 3, "other": 1}}
        for check in ("secrets", "personal_data", "control_characters", "mojibake")
    },
    "role_order": {"faults": {"two turns of the user in a row": 3, "begins with the assistant": 1}},
}
GATE = GateConfig()


def finding(check: str, share: float = 0.02, **given: Any) -> Finding:
    measured = {
        "check": check,
        "count": round(1000 * share),
        "share": share,
        "gauge": share,
        "summary": f"what {check} has found",
        "remedy": "Drop them (prefopt audit --fix), or set data.on_empty=skip." if share else "",
        "examples": [{"source": "a.jsonl:3", "detail": "a detail", "text": "a text"}] if share else [],
        "values": VALUES.get(check, {}),
    }
    return Finding.of({**measured, **given}, GATE)


def audit(*findings: Finding, **given: Any) -> Audit:
    known: dict[str, Any] = {
        "version": "1.2.3",
        "date": "2026-11-27T20:00:00+00:00",
        "gate": "default",
        "data": {"train": "a.jsonl", "held_out": None},
        "rows": 1000,
        "splits": {"train": 1000},
        "checks": sort_findings(findings),
        "skipped": [],
    }
    return Audit(**{**known, **given})


@pytest.fixture
def whole() -> Audit:
    return audit(*(finding(name.value) for name in CheckName))


class Tags(HTMLParser):
    """The tags of a page, and those that were not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def words(html: str) -> str:
    """What a reader sees, on one line."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", re.sub(r"(?s)<style>.*?</style>", "", html))).split())


def test_the_page_has_every_finding_with_its_level_as_a_word_its_remedy_and_its_examples(whole: Audit) -> None:
    html = render_audit_page(whole)
    for each in whole.checks:
        article = re.search(rf'(?s)<article class="finding \w+" id="{each.check}">.*?</article>', html)
        assert article is not None, each.check
        told = words(article.group())
        assert f"{each.level.capitalize()} {CHECKS[each.check].title}" in told
        assert each.summary[1:] in told
        assert "a.jsonl:3 a detail a text" in told
        assert "<code>data.on_empty=skip</code>" in article.group()
        assert f'href="#{each.check}"' in html


def test_findings_come_worst_first(whole: Audit) -> None:
    levels = re.findall(r'<article class="finding (\w+)"', render_audit_page(whole))
    assert levels == sorted(levels, key=["bad", "warning", "info"].index)
    assert set(levels) == {"bad", "warning", "info"}


def test_the_heading_counts_errors_and_warnings_and_the_sentence_below_tells_the_worst() -> None:
    html = render_audit_page(audit(finding("empty"), finding("refusal"), finding("leakage")))
    assert "1 error, 1 warning In 1,000 rows, first of all: what leakage has found." in words(html)


def test_data_without_findings_are_clean_and_what_was_not_looked_at_is_told_with_its_reason() -> None:
    skipped = [{"check": "secrets", "reason": "not checked: <no> package"}]
    told = words(render_audit_page(audit(finding("empty", 0.0), skipped=skipped)))
    assert "Clean 1 check found nothing in 1,000 rows; 1 check did not run." in told
    assert "Nothing found Empty answers What they say Empty answers What empty has found." in told
    assert "Not looked at Secrets not checked: <no> package" in told
    assert "At a glance" not in told


def test_a_gate_that_is_off_calls_nothing_clean() -> None:
    off = replace(finding("leakage"), level="note", limit=None)
    told = words(render_audit_page(audit(off, gate="off")))
    assert "Not judged" in told
    assert "Clean" not in told
    assert "No errors" not in told


@pytest.mark.parametrize("check", [name.value for name in CheckName])
def test_nothing_that_the_data_hold_is_run_or_breaks_the_page(check: str) -> None:
    example = {"source": HOSTILE, "detail": HOSTILE, "text": HOSTILE}
    hostile = finding(check, summary=HOSTILE, remedy=HOSTILE, examples=[example])
    skipped = [{"check": "empty", "reason": HOSTILE}]
    html = render_audit_page(audit(hostile, skipped=skipped, splits={"train": 1, HOSTILE: 2, "b": 3}), command=HOSTILE)
    tags = Tags(html)
    assert not tags.open
    assert not {"script", "img"} & {tag for tag, _ in tags.seen}
    assert not any(name.startswith("on") for _, attrs in tags.seen for name in attrs)
    assert "<b>certainly" not in html
    html.encode()
    assert "\x1b" not in html


def test_the_page_loads_nothing_and_takes_its_colours_from_light_and_dark(whole: Audit) -> None:
    html = render_audit_page(whole)
    links = [link for _, attrs in Tags(html).seen for name in ("src", "href") if (link := attrs.get(name)) is not None]
    assert all(link.startswith("#") for link in links)
    assert not re.search(r"url\(|@import|<script", html)
    assert "@media (prefers-color-scheme: dark)" in html
    drawn = re.findall(r"(?s)<svg.*?</svg>", html)
    assert drawn
    assert not any(re.search(r"#[0-9a-fA-F]{3,8}\b|rgb\(", svg) for svg in drawn)
    style = re.search(r"(?s)<style>(.*?)</style>", html)
    assert style is not None
    assert set(re.findall(r"var\((--[a-z-]+)", style.group(1))) <= set(re.findall(r"(--[a-z-]+):", style.group(1)))


@pytest.mark.parametrize("check", DRAWN)
def test_what_a_finding_keeps_is_drawn_with_words_for_screen_readers(check: str) -> None:
    html = render_audit_page(audit(finding(check)))
    labels = [attrs["aria-label"] for tag, attrs in Tags(html).seen if tag == "svg" and attrs.get("role") == "img"]
    assert len(labels) == len(DRAWN[check])
    assert all(labels)


@pytest.mark.parametrize("check", DRAWN)
def test_any_value_may_be_absent_or_unknown(check: str) -> None:
    values = VALUES[check]
    for key in values:
        for changed in ({**values, key: None}, {name: value for name, value in values.items() if name != key}):
            assert not Tags(render_audit_page(audit(finding(check, values=changed)))).open
    html = render_audit_page(audit(finding(check, values={})))
    assert "<figure" not in html


def test_all_findings_are_told_by_source() -> None:
    told = words(render_audit_page(audit(finding("slices"))))
    assert f"3 rows: {CHECKS['empty'].title} 50.0 %" in told
    assert "All findings by source" in told
    assert "b 9 rows: nothing found" in told
    assert "All findings by tag" in told
    assert f"4 rows: {CHECKS['identical'].title} 25.0 %" in told
    assert "billing 8 rows: nothing found" in told


def test_a_finding_that_is_uneven_among_tags_is_drawn_by_tag() -> None:
    values = {**VALUES["slices"], "uneven": [{"check": "identical", "tag": HOSTILE}]}
    told = words(render_audit_page(audit(finding("slices", values=values))))
    assert f"{CHECKS['identical'].title}, by tag" in told
    assert ", by source" not in told


def test_findings_without_rows_have_no_count() -> None:
    told = words(render_audit_page(audit(finding("separability", 0.95, count=0))))
    assert "Shortcuts in words accuracy: at least 95.0 %; over" in told


def test_a_share_at_a_glance_is_a_number_and_words_before_it_stand_below_the_title() -> None:
    html = render_audit_page(audit(finding("empty", 0.5), finding("length_bias", 0.18, gauge=0.817)))
    glance = html.partition('<table class="glance">')[2].partition("</table>")[0]
    cells = re.findall(r'<td class="num">(.*?)</td>', glance)
    assert sorted(unbroken.replace("\u00a0", " ") for unbroken in cells) == ["50.0 %", "81.7 %"]
    assert glance.count('class="measure"') == 1
    assert "Length bias the longer or the shorter answer wins in … 81.7 %" in words(glance)


def test_numbers_that_are_not_finite_are_not_drawn() -> None:
    values = {"longer_is_chosen": {"value": float("nan"), "ci95": [float("nan"), float("inf")], "n": 0}}
    html = render_audit_page(audit(finding("length_bias", values=values)))
    assert not re.search(r'="[^"]*\b(?:nan|inf)\b', html)


def test_a_share_above_zero_is_seen() -> None:
    told = words(render_audit_page(audit(finding("leakage", 0.00004, count=1))))
    assert "0.004 %" in told


def test_of_many_kinds_the_first_are_drawn_and_the_rest_is_counted() -> None:
    values = {"matches": {f"kind {number}": number for number in range(1, 12)}}
    told = words(render_audit_page(audit(finding("secrets", values=values))))
    assert "3 more are not drawn" in told
    assert "kind 11" in told
    assert "kind 3" not in told


def test_the_page_tells_by_which_name_settings_know_a_check() -> None:
    html = render_audit_page(audit(finding("separability", 0.95)))
    assert "Shortcuts in words<br><code>separability</code>" in html


def test_the_command_is_shown_and_with_it_how_to_mend_what_can_be_mended() -> None:
    told = commands(render_audit_page(audit(finding("empty")), command="prefopt audit a.jsonl"))
    assert told == ["prefopt audit a.jsonl", "prefopt audit a.jsonl --output mended --fix"]
    near = finding("near_duplicate", remedy="Keep one row of each group (prefopt audit --fix --near).")
    told = commands(render_audit_page(audit(near), command="prefopt audit a.jsonl --output b"))
    assert told[1] == "prefopt audit a.jsonl --output b --fix --near", "without --near nothing would be mended"
    told = commands(render_audit_page(audit(near, finding("empty")), command="prefopt audit a.jsonl"))
    assert told[1] == "prefopt audit a.jsonl --output mended --fix"
    fixed = "prefopt audit a.jsonl --output b --fix"
    assert commands(render_audit_page(audit(finding("empty")), command=fixed)) == [fixed]
    assert commands(render_audit_page(audit(finding("schema", 0.0)), command="prefopt audit a")) == ["prefopt audit a"]


def commands(html: str) -> list[str]:
    blocks = re.findall(r'<div class="typed">.*?<code>(.*?)</code>', html)
    return [unescape(re.sub(r"<[^>]*>", "", block)) for block in blocks]


def test_rows_that_cannot_be_read_are_not_counted_among_those_that_were_checked() -> None:
    told = words(render_audit_page(audit(finding("schema", 0.5, summary="2 rows cannot be read"), rows=2)))
    assert "1 error 2 rows cannot be read. Checked: 2 rows." in told


def test_a_learning_curve_stands_between_findings_and_what_was_not_looked_at() -> None:
    html = render_audit_page(audit(finding("empty")), sections=["<section><h2>Enough data?</h2></section>"])
    places = [html.index(title) for title in ("Findings, worst first", "Enough data?", "Nothing found, and")]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("remedy", "code"),
    [
        ("Drop them (prefopt audit --fix), or set data.on_empty=skip.", ["prefopt audit --fix", "data.on_empty=skip"]),
        ("Try 'data.columns={prompt: q, chosen: a.b}'. Most rows", ["'data.columns={prompt: q, chosen: a.b}'"]),
        ("data.max_length=2048 (data.on_long_prompt=skip).", ["data.max_length=2048", "data.on_long_prompt=skip"]),
        ("prefopt show --row <number> shows it.", ["prefopt show --row <number>"]),
        ("Look at them, well-known as they are.", []),
    ],
)
def test_what_is_to_be_typed_is_code_and_no_letter_of_a_remedy_is_lost(remedy: str, code: list[str]) -> None:
    pieces = split_code(remedy)
    assert [text for text, is_code in pieces if is_code] == code
    assert "".join(text for text, _ in pieces) == remedy


def test_every_check_is_explained_in_two_sentences() -> None:
    assert list(CHECKS) == [name.value for name in CheckName]
    assert all(text.endswith(".") for each in CHECKS.values() for text in (each.what, each.why))


def test_the_same_audit_gives_the_same_page(whole: Audit) -> None:
    assert render_audit_page(whole) == render_audit_page(Audit.from_dict(whole.to_dict()))


def test_a_page_that_cannot_be_written_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"audit\.html"):
        write_audit_page(audit(), tmp_path / "absent" / "audit.html")
    write_audit_page(audit(), tmp_path / "audit.html")
    assert [path.name for path in tmp_path.iterdir()] == ["audit.html"]


@pytest.mark.parametrize(("limit", "end"), [(512, 512), (100, 200), (50, 100), (10_000, 300)])
def test_all_rows_are_in_the_histogram_of_their_tokens_and_a_limit_that_is_near_is_on_it(limit: int, end: int) -> None:
    tokens = np.concatenate([np.arange(1, 101), [300]]).astype(np.int32)
    counted = count_lengths(tokens, limit)
    assert sum(counted["counts"]) == len(tokens)
    assert counted["edges"][-1] == end


def test_the_surest_pairs_are_in_the_outer_bars_and_no_bar_straddles_zero() -> None:
    counted = count_log_odds(np.array([-50.0, *np.linspace(-1, 1, 400), 80.0]))
    assert sum(counted["counts"]) == 402
    assert min(map(abs, counted["edges"])) < 1e-12
    assert max(counted["edges"]) < 2


def test_groups_of_equal_rows_are_counted_by_their_size() -> None:
    texts = [*"abcdefg", *"aab", *"c"]
    rows = [SFTExample(prompt="p", completion=text, source=f"a:{row}") for row, text in enumerate(texts)]
    chunk = Chunk(split="train", start=0, records=rows)
    found = duplicate.CHECK.conclude([("train", 0, duplicate.CHECK.examine(chunk))], Sides({"train": rows}))
    assert found is not None
    assert found.values["group_sizes"] == {"2": 2, "3": 1}


def test_files_to_compare_with_keep_their_names_and_of_long_ones_the_end_is_drawn() -> None:
    name = "/data/" + 20 * "very_long/" + "a_b.jsonl"
    html = render_audit_page(audit(splits={"train": 9, "held_out": 2, name: 3}))
    assert f"9 train, 2 held-out, 3 {name}" in words(html)
    (label,) = re.findall(r">(\u2026[^<]*)</text>", html)
    assert label.endswith("long/a_b.jsonl")
    assert len(label) == MAX_LABEL


@pytest.mark.parametrize(("edges", "left", "right"), [([-1, 0, 1], 1, 1), ([0, 1, 2], 0, 1), ([-2, -1, 0], 1, 0)])
def test_a_side_of_a_mark_without_bins_has_no_word(edges: list[float], left: int, right: int) -> None:
    chart = counted_histogram(
        [3, 4], edges, x_label="margin", unit="pairs", description="", mark=(0.0, ""), ends=("worse", "better")
    )
    assert (chart.count("worse"), chart.count("better")) == (left, right)


def test_the_docs_have_the_meaning_and_the_limits_of_each_check():
    page = (Path(__file__).parents[2] / "docs/audit.md").read_text(encoding="utf-8")
    strict = yaml.safe_load((Path(__file__).parents[2] / "conf/data/gate/strict.yaml").read_text(encoding="utf-8"))
    gates = (GateConfig().warn, GateConfig().error, strict["error"])
    for name, meaning in CHECKS.items():
        limits = [said(limits.get(name)) for limits in gates]
        assert f"| `{name}` | {meaning.what} {meaning.why} | {' | '.join(limits)} |" in page


def said(limit):
    return "–" if limit is None else "any" if limit == 0 else f"{limit * 100:g} %"  # noqa: RUF001


def test_a_finding_shows_the_number_that_its_limit_is_for() -> None:
    told = finding("separability", 0.9683, count=0, gauge=0.953)
    assert describe_measure(told) == "accuracy: at least 95.30 %, limit 90 %"
    assert "accuracy: at least 95.3 %; over the warning limit of 90 %" in words(render_audit_page(audit(told)))
    assert describe_measure(finding("length_bias", 0.18, count=52, gauge=0.817)).startswith(
        "the longer or the shorter"
    )
    assert describe_measure(finding("duplicate", 0.001, count=1)) == "1 row, 0.10 %"
