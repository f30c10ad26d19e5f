"""Languages, label noise and separability: right on rows whose answer is known, silent where there is none."""

# ruff: noqa: RUF001 (text in many scripts is what these tests are about)
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.config.choices import CheckName
from prefopt.data.audit import bag_of_words, language
from prefopt.data.audit.check import Chunk
from prefopt.data.audit.engine import Outcome, run_checks
from prefopt.data.audit.sampling import sample_rows
from prefopt.data.records import PreferencePair
from tests.audit_rows import found, pair, pairs, rows_of, run

TEXTS = {
    "en": "The committee will publish its report next week, and everybody who took part can read it on the web.",
    "de": "Der Ausschuss wird seinen Bericht nächste Woche veröffentlichen, und alle Beteiligten können ihn lesen.",
    "fr": "Le comité publiera son rapport la semaine prochaine, et tous ceux qui ont participé pourront le lire.",
    "es": "Los niños juegan en el parque mientras sus padres hablan con los vecinos de la nueva escuela del barrio.",
    "ru": "Комитет опубликует свой отчёт на следующей неделе, и все участники смогут прочитать его в сети.",
    "zh": "委员会将于下周公布其报告，所有参与者都可以在网上阅读。",
    "ja": "委員会は来週報告書を公表し、参加者は全員ウェブで読むことができます。",
    "ko": "위원회는 다음 주에 보고서를 발표할 예정이며 모든 참가자가 웹에서 읽을 수 있습니다.",
    "el": "Η επιτροπή θα δημοσιεύσει την έκθεσή της την επόμενη εβδομάδα και όλοι θα μπορούν να τη διαβάσουν.",
    "ar": "ستنشر اللجنة تقريرها الأسبوع المقبل ويمكن لجميع المشاركين قراءته على الإنترنت في أي وقت.",
}
CODE = 'for (int i = 0; i < 10; i++) { printf("%d\\n", x[i]); } while (y--) { z += f(y); }'


@pytest.mark.parametrize("code", TEXTS)
def test_each_language_is_told(code):
    assert language.tell(TEXTS[code]) == code


@pytest.mark.parametrize("text", ["", "OK", "12345 + 67890 = 80235, 3 * 7 = 21", CODE, "zażółć"])
def test_no_language_is_told_of_few_letters_numbers_and_code(text):
    assert language.tell(text) == language.UNKNOWN


def test_shortcuts_agree_with_the_model(monkeypatch):
    texts = [TEXTS["en"], "What is the best way to learn it, and how long does it take you?", *TEXTS.values()]
    short = [language.tell(text) for text in texts]
    monkeypatch.setattr(language, "ENGLISH", frozenset())
    monkeypatch.setattr(language, "SCRIPTS", {})
    told = [language.tell(text) for text in texts]
    assert [code for code, other in zip(short, told, strict=True) if other] == [other for other in told if other]
    assert sum(map(bool, told)) >= 8


def test_rows_are_found_whose_answers_differ_in_language_or_from_the_prompt():
    rows = pairs(
        (TEXTS["en"], TEXTS["en"], TEXTS["en"]),
        (TEXTS["en"], TEXTS["en"], TEXTS["fr"]),
        (TEXTS["de"], TEXTS["en"], TEXTS["en"]),
        (TEXTS["de"], TEXTS["de"], TEXTS["de"]),
        ("Translate this into French: " + TEXTS["en"], TEXTS["fr"], TEXTS["en"]),
        (TEXTS["en"], CODE, TEXTS["en"]),
    )
    finding = found("language", rows)
    assert rows_of(finding) == [1, 2]
    assert (finding.values["differing"], finding.values["unasked"]) == (1, 1)
    assert finding.values["languages"] == pytest.approx({"en": 3 / 6, "de": 1 / 6, "fr": 1 / 6, "unknown": 1 / 6})
    assert [example.detail for example in finding.examples] == [
        "chosen is in en, rejected in fr",
        "the prompt is in de, chosen in en",
    ]
    assert rows_of(found("language", rows, chunk_rows=1)) == [1, 2]


def test_the_sample_is_whole_at_first_and_then_thins_out_but_stands_for_all():
    taken, weights = sample_rows(0, 200_000, budget=1_000)
    assert taken[:1_000].tolist() == list(range(1_000))
    assert len(taken) == pytest.approx(1_000 * (1 + np.log(200)), rel=0.05)
    assert weights.sum() == pytest.approx(200_000, rel=0.05)
    assert weights[taken >= 100_000].sum() == pytest.approx(100_000, rel=0.15)
    parts = [start + sample_rows(start, 777, budget=1_000)[0] for start in range(0, 200_000, 777)]
    assert np.concatenate(parts)[: len(taken)].tolist() == taken.tolist(), "chunks do not matter"


def test_a_sample_of_languages_is_said(monkeypatch):
    monkeypatch.setattr(language, "BUDGET", 10)
    rows = [pair(TEXTS["en"], TEXTS["en" if row % 2 else "de"], "x", row) for row in range(300)]
    finding = found("language", rows)
    assert finding.num_rows < 100
    assert f"by a sample of {finding.num_rows}" in finding.summary
    assert finding.values["languages"]["de"] == pytest.approx(0.5, abs=0.2)


def told_pairs(num_rows: int, *, flipped: float = 0.0, skill: float = 1.0) -> tuple[list[PreferencePair], np.ndarray]:
    """Pairs whose chosen answer says 'please', if it is told by words at all; a share has its sides swapped."""
    draw = random.Random(0)
    rows, swapped = [], np.zeros(num_rows, bool)
    for row in range(num_rows):
        filler = [" ".join(draw.choices([f"w{i}" for i in range(50)], k=12)) for _ in range(2)]
        polite = ["please", ""] if draw.random() < skill else ["", ""]
        sides = [f"{text} {word}" for text, word in zip(filler, polite, strict=True)]
        swapped[row] = draw.random() < flipped
        rows.append(pair(f"question {row}", *(sides[::-1] if swapped[row] else sides), line=row + 1))
    return rows, swapped


def test_words_that_tell_the_chosen_answer_are_named_with_their_accuracy():
    rows, _ = told_pairs(400)
    finding = found("separability", rows)
    assert finding.share > 0.98
    assert finding.gauge is not None
    assert finding.gauge <= finding.share
    assert finding.values["words"]["chosen"][0] == "please"
    assert "'please'" in finding.summary
    assert finding.remedy
    assert found("separability", rows, chunk_rows=90).values == finding.values


def test_nothing_is_told_by_words_that_both_sides_have():
    rows, _ = told_pairs(600, skill=0.0)
    separability, noise = found("separability", rows), found("label_noise", rows)
    low, high = separability.values["accuracy"]["ci95"]
    assert low < 0.5 < high
    assert separability.remedy == ""
    assert "sees too little here" in noise.summary
    assert (noise.share, rows_of(noise)) == (0, [])


@pytest.mark.parametrize("flipped", [0.1, 0.3])
def test_swapped_labels_are_ranked_first_and_their_share_is_estimated(flipped):
    rows, swapped = told_pairs(600, flipped=flipped)
    finding = found("label_noise", rows)
    low, high = finding.values["estimate"]["ci95"]
    assert low <= flipped <= high
    assert finding.gauge == low
    worst = [int(each["source"].partition(":")[2]) - 1 for each in finding.values["suspicious"][: int(swapped.sum())]]
    assert swapped[worst].mean() > 0.85
    assert swapped[rows_of(finding)].mean() > 0.9
    odds = [each["log_odds"] for each in finding.values["suspicious"]]
    assert odds == sorted(odds)


def test_right_labels_are_not_doubted():
    finding = found("label_noise", told_pairs(400)[0])
    assert finding.values["estimate"]["value"] < 0.02
    assert finding.gauge < 0.01


@pytest.mark.parametrize("name", ["label_noise", "separability"])
def test_of_too_few_pairs_nothing_is_said_but_how_many_it_takes(name):
    outcome = run_checks({"train": told_pairs(199)[0]}, kind="preference", only=[CheckName(name)])[CheckName(name)]
    assert outcome == Outcome(None, "too few pairs: a classifier of words needs 200")


@pytest.mark.parametrize("name", ["label_noise", "separability"])
@pytest.mark.parametrize("skill", [0.0, 1.0])
def test_a_sample_of_pairs_is_said(name, skill, monkeypatch):
    rows, _ = told_pairs(400, skill=skill)
    assert "sample" not in found(name, rows).summary
    monkeypatch.setattr(bag_of_words, "BUDGET", 150)
    sampled = found(name, rows)
    assert sampled.num_rows < 400
    assert f"by a sample of {sampled.num_rows}" in sampled.summary


def test_pairs_of_one_prompt_are_judged_together():
    """Copies of a pair under one prompt would tell each other's labels, if some were trained on and some judged."""
    draw = random.Random(1)
    rows = []
    for prompt in range(60):
        texts = [" ".join(f"u{draw.randrange(40)}" for _ in range(8)) for _ in range(2)]
        rows += [pair(f"question {prompt}", *texts) for _ in range(5)]
    finding = found("separability", rows)
    assert finding.values["accuracy"]["value"] == pytest.approx(0.5, abs=0.2)
    low, high = finding.values["accuracy"]["ci95"]
    assert high - low > 0.2, "60 prompts are no 300 independent pairs"


def test_the_interval_is_wilsons_where_every_prompt_has_one_pair():
    wins = np.array([1.0] * 70 + [0.0] * 30)
    low, high = bag_of_words.interval(wins, np.ones(100), np.arange(100, dtype=np.uint32))
    assert (low, high) == pytest.approx((0.6042, 0.7811), abs=1e-3)


def test_features_are_the_words_and_pairs_of_words_of_one_side_only():
    chunk = Chunk(split="train", start=0, records=pairs(("p", "Yes it is", "yes it was"), ("p", "a", "a")))
    bags = bag_of_words.examine(chunk)

    def number(text: str) -> int:
        features, _ = bag_of_words.number_features([text])
        return int(features[-1]) + 1  # the last is the run of two words, if there are two

    expected = {number("is"), number("it is"), -number("was"), -number("it was")}
    assert set(bags.features.tolist()) == expected
    assert bags.num_features.tolist() == [4, 0]


def test_both_checks_ask_one_classifier(monkeypatch):
    trained = Counter()
    real = bag_of_words._cross_validate

    def count(bags):
        trained["times"] += 1
        return real(bags)

    monkeypatch.setattr(bag_of_words, "_cross_validate", count)
    chunk = Chunk(split="train", start=0, records=told_pairs(300)[0])
    seen = [("train", 0, bag_of_words.examine(chunk))]
    assert bag_of_words.judge(seen) is bag_of_words.judge(seen)
    assert trained["times"] == 1


@settings(max_examples=20, deadline=None)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=5))
def test_any_text_can_be_judged(texts):
    rows = [pair(text, text + " x", text[::-1], line) for line, text in enumerate([*texts, "\ud800" * 60])]
    for name in ("language", "label_noise", "separability"):
        run(name, rows)
    bag_of_words._cross_validate([bag_of_words.examine(Chunk(split="train", start=0, records=rows))])
