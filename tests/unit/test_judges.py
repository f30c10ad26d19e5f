"""Judges that need no model: rules, the classifier, panels, what an endpoint's replies mean, and their settings."""

import itertools
import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefopt.config.contestants import read_contestants
from prefopt.config.judges import (
    ClassifierJudgeConfig,
    EndpointJudgeConfig,
    PanelJudgeConfig,
    RuleJudgeConfig,
    read_judges,
)
from prefopt.config.load import load_config
from prefopt.evaluation.judges import build_judges, classifier, rule
from prefopt.evaluation.judges.classifier import ClassifierJudge
from prefopt.evaluation.judges.endpoint import EndpointJudge
from prefopt.evaluation.judges.judge import JudgeContext, LabelledPair, Matchup
from prefopt.evaluation.judges.panel import PanelJudge
from prefopt.evaluation.judges.rubric import BY_LETTER, BY_MARK, Rubric
from prefopt.evaluation.judges.rule import RuleJudge
from prefopt.process.errors import UserError
from tests.chat_server import ChatServer, says
from tests.conftest import STUDY, read_rows

nan = math.nan


def read(judge: Any, *pairs: tuple[str, str], prompt: str = "p") -> list[float]:
    return judge.read([Matchup(prompt, first, second) for first, second in pairs]).tolist()


def same(found: Sequence[float], expected: Sequence[float]) -> bool:
    return bool(np.array_equal(np.array(found), np.array(expected), equal_nan=True))


class Fixed:
    """A judge with given verdicts."""

    def __init__(self, name: str, verdicts: list[float], sees_order: bool = False) -> None:
        self.name, self.sees_order, self._verdicts = name, sees_order, verdicts

    def read(self, matchups: Sequence[Matchup]) -> Any:
        return np.array(self._verdicts[: len(matchups)])

    def describe(self) -> dict[str, Any]:
        return {"kind": "fixed"}


# --- rules


def test_every_match_of_a_pattern_counts_its_points():
    judge = RuleJudge(RuleJudgeConfig(patterns={"please": 1.0, r"\bsir\b": -2.5}))
    # 2 against 1; 1 - 2.5 against 0; equal
    assert read(judge, ("Please, please", "please"), ("please, sir", "nothing"), ("a", "b")) == [1, -1, 0]


def test_letters_match_in_any_case_unless_told_otherwise():
    pairs = ("WE", "we")
    assert read(RuleJudge(RuleJudgeConfig(patterns=["we"])), pairs) == [0]
    assert read(RuleJudge(RuleJudgeConfig(patterns=["we"], ignore_case=False)), pairs) == [-1]


def test_near_scores_tie():
    judge = RuleJudge(RuleJudgeConfig(patterns=["a"], tie_within=1))
    assert read(judge, ("aa", "a"), ("aaa", "a"), ("", "aa")) == [0, 1, -1]


def test_a_rule_is_blind_to_the_order():
    judge = RuleJudge(RuleJudgeConfig(patterns=["a", "b+"]))
    matchups = [Matchup("p", "a b", "bb"), Matchup("p", "", "a"), Matchup("p", "x", "y")]
    assert not judge.sees_order
    assert judge.read([each.swapped for each in matchups]).tolist() == (-judge.read(matchups)).tolist()


def test_patterns_with_points_are_a_table_or_can_be_typed_in_a_list():
    """A key in quotes cannot be typed (issue 16)."""
    given = r"evaluation.judges=[{kind: rule, patterns: ['\b(we|I)\b', {pattern: 'sorry|oh, no', points: -2}]}]"
    (judge,) = read_judges(load_config([given]).evaluation.judges)
    assert judge == RuleJudgeConfig(patterns=[r"\b(we|I)\b", {"pattern": "sorry|oh, no", "points": -2}])
    assert judge.weights == RuleJudgeConfig(patterns={r"\b(we|I)\b": 1, "sorry|oh, no": -2}).weights
    with pytest.raises(UserError, match=r"a key in quotes cannot be typed\. Write the setting into a file"):
        load_config([r"""evaluation.judges=[{kind: rule, patterns: {"\bwe\b": 1}}]"""])


def test_a_pattern_that_would_search_for_years_is_stopped_and_named(monkeypatch):
    monkeypatch.setattr(rule, "SEARCH_LIMIT_S", 0.2)
    judge = RuleJudge(RuleJudgeConfig(name="slow", patterns=["x", "(a+)+b"]))
    with pytest.raises(UserError, match=r"slow: pattern '\(a\+\)\+b': .*more than 0 s.* answer of 60 letters"):
        read(judge, ("a" * 60, "b"))


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of the user's in the current folder."""
    path = tmp_path / "my_rules.py"
    path.write_text(
        "import numpy\n"
        "asked = []\n"
        "def shorter(prompt, answer):\n"
        "    asked.append((prompt, answer))\n"
        "    return -len(answer)\n"
        "def fails(prompt, answer):\n"
        "    return 1 / len(answer)\n"
        "def text(prompt, answer): return '7'\n"
        "def none(prompt, answer): pass\n"
        "def infinite(prompt, answer): return numpy.inf if answer == 'odd' else numpy.float32(1)\n"
        "def has_a(prompt, answer): return numpy.bool_('a' in answer)\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_rules", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield path
    sys.modules.pop("my_rules", None)


def test_a_function_of_the_user_scores_each_answer_once(own_module):
    judge = RuleJudge(RuleJudgeConfig(function="my_rules:shorter"))
    assert read(judge, ("long", "s"), ("s", "long"), prompt="why") == [-1, 1]
    assert sys.modules["my_rules"].asked == [("why", "long"), ("why", "s")]
    assert read(RuleJudge(RuleJudgeConfig(function="my_rules:has_a")), ("a", "b")) == [1]


@pytest.mark.parametrize(
    ("name", "pair", "said"),
    [
        ("fails", ("a", ""), r"my_rules:fails: failed for the answer '' \(ZeroDivisionError: division by zero\)"),
        ("text", ("a", "b"), r"my_rules:text: must return a finite number, found '7' \(str\) for the answer 'a'"),
        ("none", ("a", "b"), r"found None \(NoneType\)"),
        ("infinite", ("a", "odd"), r"found inf \(float\) for the answer 'odd'"),
    ],
)
def test_a_function_that_fails_is_named_with_what_it_returned(own_module, name, pair, said):
    with pytest.raises(UserError, match=said):
        read(RuleJudge(RuleJudgeConfig(function=f"my_rules:{name}")), pair)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my_rules:number", "must be a function, found int"),
        ("my_rules:gone", "cannot be imported.*AttributeError"),
        ("no_such_module:f", "cannot be imported.*ModuleNotFoundError"),
    ],
)
def test_a_function_that_is_none_is_refused_when_the_judge_is_built(own_module, name, said):
    with pytest.raises(UserError, match=rf"rule: function={name}: {said}"):
        RuleJudge(RuleJudgeConfig(function=name))


def test_a_rule_tells_its_patterns_or_the_file_of_its_function(own_module):
    assert RuleJudge(RuleJudgeConfig(patterns=["a"])).describe()["patterns"] == {"a": 1.0}
    before = RuleJudge(RuleJudgeConfig(function="my_rules:shorter")).describe()["sha256"]
    own_module.write_text(own_module.read_text() + "# changed\n")
    assert RuleJudge(RuleJudgeConfig(function="my_rules:shorter")).describe()["sha256"] != before
    assert RuleJudge(RuleJudgeConfig(function="operator:concat")).describe()["sha256"] is None


# --- the classifier


def study(name: str) -> list[LabelledPair]:
    return [
        LabelledPair(row["prompt"][0]["content"], row["chosen"][0]["content"], row["rejected"][0]["content"])
        for row in read_rows(STUDY / name)
    ]


@pytest.fixture(scope="module")
def learned() -> ClassifierJudge:
    pytest.importorskip("sklearn")
    return ClassifierJudge.learn(ClassifierJudgeConfig(), study("train.jsonl")[:150], seed=0)


def test_a_classifier_tells_the_study_s_answers_apart_on_prompts_that_it_has_not_seen(learned):
    held_out = [Matchup(pair.prompt, pair.chosen, pair.rejected) for pair in study("held_out.jsonl")]
    assert (learned.read(held_out) == 1).mean() > 0.97
    facts = learned.describe()
    assert facts["accuracy"]["value"] > 0.97
    assert facts["accuracy"]["n"] == facts["num_learned"] == 150
    assert facts["accuracy"]["n_prompts"] < 150
    json.dumps(facts, allow_nan=False)


def test_a_classifier_is_antisymmetric(learned):
    pairs = study("held_out.jsonl")[:40]
    matchups = [Matchup(a.prompt, a.chosen, b.chosen) for a, b in itertools.pairwise(pairs)]
    verdicts = learned.read(matchups)
    assert verdicts.any()
    assert learned.read([each.swapped for each in matchups]).tolist() == (-verdicts).tolist()
    assert learned.read([Matchup("p", "the same", "the same"), Matchup("p", "", "")]).tolist() == [0, 0]


def made_up(num: int, *, prompts: int | None = None, seed: int = 0) -> list[LabelledPair]:
    """Pairs of random words, of which `good` makes an answer chosen; the chosen one is longer in three of four."""
    rng = np.random.default_rng(seed)
    words = [f"w{number}" for number in range(50)]
    pairs = []
    for row in range(num):
        longer, shorter = (" ".join(rng.choice(words, size)) for size in (14, 9))
        chosen, rejected = (longer, shorter) if row % 4 else (shorter, longer)
        pairs.append(LabelledPair(f"p{row % (prompts or num)}", f"{chosen} good", f"{rejected} fine"))
    return pairs


def test_equal_data_and_seed_give_an_equal_classifier():
    pairs = made_up(60)
    a, b, c = (ClassifierJudge.learn(ClassifierJudgeConfig(), pairs, seed=seed) for seed in (1, 1, 2))
    assert a.describe() == b.describe()
    probes = [Matchup("p", x.chosen, y.rejected) for x, y in zip(made_up(9, seed=5), made_up(9, seed=6), strict=True)]
    assert a.read(probes).tolist() == b.read(probes).tolist()
    assert c.describe()["seed"] == 2


def test_its_accuracy_is_that_of_labels_it_has_not_seen_and_length_stands_beside_it():
    coin = np.random.default_rng(3).integers(2, size=200)
    pairs = [
        LabelledPair(pair.prompt, *((pair.chosen, pair.rejected) if heads else (pair.rejected, pair.chosen)))
        for pair, heads in zip(made_up(200), coin, strict=True)
    ]
    facts = ClassifierJudge.learn(ClassifierJudgeConfig(), pairs, seed=0).describe()
    assert 0.3 < facts["accuracy"]["value"] < 0.7  # it would be 1 on the pairs that it learned from
    facts = ClassifierJudge.learn(ClassifierJudgeConfig(), made_up(200), seed=0).describe()
    assert facts["accuracy"]["value"] > 0.9
    assert facts["length_accuracy"]["value"] == 0.75


def test_pairs_of_one_prompt_are_never_on_both_sides_of_a_fold(monkeypatch):
    seen = {}

    def remember(differences: Any, folds: Any) -> Any:
        seen["folds"] = folds
        return np.ones(len(folds))

    monkeypatch.setattr(classifier, "_cross_validate", remember)
    pairs = made_up(90, prompts=30)
    ClassifierJudge.learn(ClassifierJudgeConfig(num_folds=7), pairs, seed=0)
    by_prompt: dict[str, set[int]] = {}
    for pair, fold in zip(pairs, seen["folds"].tolist(), strict=True):
        by_prompt.setdefault(pair.prompt, set()).add(fold)
    assert all(len(folds) == 1 for folds in by_prompt.values())
    assert set.union(*by_prompt.values()) == set(range(7))


def test_of_many_pairs_a_sample_is_learned_from_and_said(monkeypatch, caplog):
    monkeypatch.setattr(classifier, "MOST_PAIRS", 50)
    with caplog.at_level("INFO"):
        facts = ClassifierJudge.learn(ClassifierJudgeConfig(), made_up(80), seed=0).describe()
    assert (facts["num_pairs"], facts["num_learned"]) == (80, 50)
    assert "sample of 50 of 80 pairs" in caplog.text


def test_of_a_long_answer_the_beginning_is_read_and_that_is_counted(caplog):
    pairs = made_up(30)
    pairs[3] = LabelledPair("p3", "good " * 1000, "fine " * 1000)
    with caplog.at_level("INFO"):
        judge = ClassifierJudge.learn(ClassifierJudgeConfig(), pairs, seed=0)
    assert "first 2000 characters of 2 longer answers" in caplog.text
    read(judge, ("good", "x" * 2001), ("x" * 2001, "x" * 2000))
    assert (judge.describe()["num_read"], judge.describe()["num_read_cut"]) == (3, 1)


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ([], "20 different prompts or more, and data.train has 0"),
        (made_up(60, prompts=19), "data.train has 19"),
        ([LabelledPair(f"p{n}", "same", "same") for n in range(30)], "data.train has 0"),
        ([LabelledPair(f"p{n}", "Same", "same") for n in range(30)], "nothing to learn"),
    ],
)
def test_data_from_which_nothing_can_be_learned_are_refused_with_a_next_step(pairs, said):
    with pytest.raises(UserError, match=f"evaluation.judges: classifier: .*{said}"):
        ClassifierJudge.learn(ClassifierJudgeConfig(), pairs, seed=0)


def test_without_scikit_learn_the_next_step_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match=r"pip install scikit-learn"):
        ClassifierJudge.learn(ClassifierJudgeConfig(), made_up(30), seed=0)


# --- panels


def test_the_majority_of_those_that_vote_decides():
    votes = {
        (1, 1, -1): 1,
        (-1, -1, 1): -1,
        (0, 0, 1): 0,
        (1, 0, -1): 0,  # no majority
        (1, 1, nan): 1,
        (1, -1, nan): 0,
        (1, nan, nan): nan,  # one voice is no panel
        (nan, nan, nan): nan,
    }
    columns = list(zip(*votes, strict=True))
    panel = PanelJudge(PanelJudgeConfig(of=["a", "b", "c"]), [Fixed(str(n), list(c)) for n, c in enumerate(columns)])
    assert same(read(panel, *[("x", "y")] * len(votes)), list(votes.values()))
    facts = panel.describe()
    assert (facts["num_read"], facts["num_without_majority"], facts["num_without_quorum"]) == (8, 2, 2)


def test_a_panel_sees_the_order_if_a_member_does():
    blind = [Fixed(name, []) for name in "abc"]
    assert not PanelJudge(PanelJudgeConfig(of=["a", "b", "c"]), blind).sees_order
    assert PanelJudge(PanelJudgeConfig(of=["a", "b", "c"]), [*blind[:2], Fixed("c", [], True)]).sees_order


def test_a_panel_gets_the_judges_that_it_names_wherever_it_stands(tmp_path):
    rules = [{"kind": "rule", "name": letter, "patterns": [letter]} for letter in "abc"]
    configs = read_judges([{"kind": "panel", "of": ["a", "b", "c"]}, *rules])
    judges = build_judges(configs, JudgeContext([], None, tmp_path))  # type: ignore[arg-type]
    assert [judge.name for judge in judges] == ["panel", "a", "b", "c"]
    assert read(judges[0], ("ab", "c"), ("a", "bc")) == [1, -1]


# --- rubrics and endpoints


def test_a_rubric_leaves_what_looks_like_a_place_in_an_answer_as_it_is():
    rubric = Rubric("{prompt}|{a}|{b}|{json}")
    assert rubric.fill(Matchup("{a}", "{b} {", "{prompt}")) == "{a}|{b} {|{prompt}|{json}"


def test_a_rubric_may_be_a_file(tmp_path):
    path = tmp_path / "rubric.md"
    path.write_text("{prompt} {a} {b} é", encoding="utf-8")
    assert Rubric.of("j", str(path), BY_MARK).text == "{prompt} {a} {b} é"
    assert Rubric.of("j", "{prompt} {a} {b}", BY_MARK).text == "{prompt} {a} {b}"
    assert Rubric.of("j", None, BY_LETTER).text == BY_LETTER
    long = "Which answer of the two is better? " * 20 + "{prompt} {a} {b}"
    assert Rubric.of("j", long, BY_MARK).text == long
    assert Rubric(BY_LETTER).sha256 != Rubric(BY_MARK).sha256


@pytest.mark.parametrize(
    ("given", "said"),
    [("Compare {a} with {b}.", r"lacks \{prompt\}"), ("gone.txt", "no such file"), ("", r"lacks \{prompt\}, \{a\}")],
)
def test_what_is_no_rubric_is_refused(given, said):
    with pytest.raises(UserError, match=rf"evaluation.judges: j: rubric.*{said}"):
        Rubric.of("j", given, BY_MARK)


@pytest.fixture
def endpoint_judge(tmp_path):
    pytest.importorskip("openai")

    def connect(server: ChatServer, **settings: Any) -> EndpointJudge:
        config = EndpointJudgeConfig(**{"endpoint": server.url, "model": "m", **settings})
        return EndpointJudge.connect(config, tmp_path)

    return connect


def by_answers(replies: dict[str, str]) -> Any:
    """Replies by a word in the first answer."""

    def behave(request: dict[str, Any], _: int) -> Any:
        asked = request["messages"][0]["content"]
        first = re.search(r"\[Answer A\]\n(.*)\n", asked).group(1)  # type: ignore[union-attr]
        return says(replies[first])

    return behave


def test_the_last_mark_of_a_reply_is_the_verdict(endpoint_judge):
    replies = {
        "1": "A is better. [[A]]",
        "2": "At first [[A]], but no: [[B]]",
        "3": "Neither. [[C]]",
        "4": "I like A.",
        "5": "[[D]] [A]",
        "6": "[[B]] [[A]] [[B]].",
    }
    with ChatServer(by_answers(replies)) as server:
        judge = endpoint_judge(server)
        assert same(read(judge, *((key, "x") for key in replies)), [1, -1, 0, nan, nan, -1])
        assert judge.sees_order
        facts = judge.describe()
        assert (facts["num_read"], facts["num_parsed"], facts["num_unparsed"]) == (6, 4, 2)
        assert {request["temperature"] for request in server.requests} == {0.0}
        read(endpoint_judge(server), ("1", "x"))
        assert len(server.requests) == 6  # its replies are kept


def test_a_judge_that_mostly_cannot_be_read_gives_no_verdicts_and_says_so(endpoint_judge, caplog):
    with ChatServer(by_answers({"1": "[[A]]", "2": "hm", "3": "well"})) as server:
        judge = endpoint_judge(server)
        assert same(read(judge, ("1", "x"), ("2", "x"), ("3", "x")), [nan, nan, nan])
    assert "2 of 3 replies have no verdict" in caplog.text
    assert "none counts" in judge.describe()["refused"]


def test_replies_cut_before_their_verdict_are_counted(endpoint_judge, caplog):
    with ChatServer(lambda *_: says("Let me think about", reason="length")) as server:
        judge = endpoint_judge(server, max_new_tokens=3)
        read(judge, ("1", "x"))
    assert judge.describe()["num_cut"] == 1
    assert "cut at max_new_tokens=3" in caplog.text


def test_a_reply_that_was_cut_is_no_verdict_whatever_mark_it_has(endpoint_judge):
    with ChatServer(lambda *_: says("If one wants [[A]], and if", reason="length")) as server:
        assert np.isnan(read(endpoint_judge(server), ("1", "x"))).all()


def test_a_rubric_that_asks_for_no_mark_is_refused_before_any_request(endpoint_judge):
    with (
        ChatServer(by_answers({})) as server,
        pytest.raises(UserError, match=r"does not ask for \[\[A\]\] and \[\[B\]\]"),
    ):
        endpoint_judge(server, rubric="{prompt} {a} {b}: A or B?")


# --- settings


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kind": "rule", "patterns": [{"pattern": "a"}]}, r"found \{'pattern': 'a'\}"),
        ({"kind": "rule", "patterns": ["a", 3]}, "or {pattern: ..., points: ...}; found 3"),
        ({"kind": "rule", "patterns": ["we", "we"]}, "'we' is named twice"),
        ({"kind": "rule", "patterns": ["we", {"pattern": "we", "points": 2}]}, "'we' is named twice"),
        ({"kind": "rule", "patterns": [{"pattern": ["x"], "points": 1}]}, r"found \{\['x'\]: 1\}"),
        ({"kind": "rule", "patterns": {"a": float("nan")}}, "points must be a finite number, found {'a': nan}"),
        ({"kind": "rule", "patterns": [{"pattern": "a", "points": float("inf")}]}, "finite number, found {'a': inf}"),
        ({"kind": "rule", "patterns": {"a": "b"}}, r"found \{'a': 'b'\}"),
        ({"kind": "rule", "patterns": ["(a"]}, r"'\(a' is no regular expression.*\\\(a"),
        ({"kind": "rule", "patterns": ["a{99999999999999999999}"]}, "is no regular expression"),
        ({"kind": "rule"}, "give either patterns or function"),
        ({"kind": "endpoint", "model": "m", "endpoint": "ftp://x"}, "must be a URL"),
        ({"kind": "endpoint", "model": "m", "endpoint": "http://"}, "must be a URL"),
        ({"kind": "endpoint", "model": "m", "endpoint": "http://[::1/v1"}, "must be a URL"),
        ({"kind": "endpoint", "model": "m", "endpoint": "http://h:99999/v1"}, "must be a URL"),
        ({"kind": "endpoint", "model": "m", "endpoint": "http://h/v1", "concurrency": 0}, "concurrency must be >= 1"),
        ({"kind": "panel", "of": ["a", "a", "b"]}, "3 different judges"),
        ({"kind": "panel", "of": ["a", "b", "c"]}, "no judge is called 'a'"),
    ],
)
def test_wrong_settings_are_refused_with_what_is_allowed(given, said):
    with pytest.raises(UserError, match=said):
        read_judges([given])


@pytest.mark.parametrize(
    "given",
    [
        {"endpoint": "http://me:sk-secret@host/v1"},
        {"endpoint": "http://me:sk-secret@[host/v1"},
        {"endpoint": "http://host/v1?key=sk-secret"},
        {"endpoint": "http://host/v1", "key_env": "sk-secret"},
    ],
)
@pytest.mark.parametrize(
    "read",
    [
        lambda given: read_judges([{"kind": "endpoint", "model": "m", **given}]),
        lambda given: read_contestants([{"name": "c", "model": "m", **given}]),
    ],
    ids=["judge", "contestant"],
)
def test_a_key_in_the_wrong_place_is_refused_and_not_shown(given, read):
    with pytest.raises(UserError, match="environment variable") as error:
        read(given)
    assert "secret" not in str(error.value)
