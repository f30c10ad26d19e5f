"""Digests of judges and contestants: equal for what reads or answers alike, and another for anything that may not."""

import shutil
from dataclasses import replace

import pytest

from prefopt.config.contestants import ContestantConfig
from prefopt.config.judges import ClassifierJudgeConfig, ModelJudgeConfig, RuleJudgeConfig
from prefopt.evaluation import identity
from prefopt.evaluation.identity import digest_judge, digest_untuned
from prefopt.evaluation.judges.classifier import ClassifierJudge
from prefopt.evaluation.judges.judge import Matchup
from prefopt.evaluation.judges.model import ModelJudge
from prefopt.evaluation.judges.rule import RuleJudge
from prefopt.evaluation.material import Material, Split
from prefopt.evaluation.rivals import Rival
from tests.fake_runs import base_config, with_settings
from tests.unit.test_judges import made_up


def test_what_a_judge_has_read_does_not_change_its_digest():
    judge = RuleJudge(RuleJudgeConfig(patterns=["a"]))
    before = digest_judge(judge)
    judge.read([Matchup("p", "a", "b")])
    assert digest_judge(judge) == before
    assert digest_judge(RuleJudge(RuleJudgeConfig(name="other", patterns=["a"]))) == before, "it reads alike"


@pytest.mark.parametrize("change", [{"patterns": ["b"]}, {"patterns": {"a": 2.0}}, {"tie_within": 1.0}])
def test_a_rule_that_may_read_otherwise_has_another_digest(change):
    first = RuleJudgeConfig(patterns=["a"])
    assert digest_judge(RuleJudge(replace(first, **change))) != digest_judge(RuleJudge(first))


def test_a_classifier_is_another_if_it_learned_from_other_pairs_and_not_if_it_was_tried_on_other_folds():
    pytest.importorskip("sklearn")
    pairs = made_up(60)

    def digest(pairs, seed=0):
        return digest_judge(ClassifierJudge.learn(ClassifierJudgeConfig(), pairs, seed=seed))

    assert digest(pairs, seed=1) == digest(pairs)
    assert digest(pairs[1:]) != digest(pairs)


def test_a_model_that_is_asked_by_another_chat_template_is_another_judge(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "judge")

    def digest() -> str:
        return digest_judge(ModelJudge.load(ModelJudgeConfig(model=str(folder)), base_config()))

    before = digest()
    assert digest() == before
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + "\n")
    assert digest() != before


class Panel:
    name, sees_order = "panel", True

    def __init__(self, **members):
        self.members = members

    def describe(self):
        return {"kind": "panel", "of": self.members, "num_read": 3}


def test_a_panel_is_what_its_members_are():
    one, two = {"kind": "rule", "tie_within": 0.0, "num_read": 7}, {"kind": "rule", "tie_within": 1.0}
    first = digest_judge(Panel(a=one, b=two))
    assert digest_judge(Panel(a={**one, "num_read": 8}, b=two)) == first
    assert digest_judge(Panel(a=one, b=one)) != first


@pytest.fixture
def digests(monkeypatch):
    monkeypatch.setattr(identity, "describe_model", lambda model: {"fingerprint": f"files of {model.path}"})

    def compute(prompts=((1, 2), (3,)), told=((9, 1, 2), (9, 3)), reading="tokenizer", **settings):
        monkeypatch.setattr(identity, "fingerprint_reading", lambda model: f"{reading} of {model.path}")
        rivals = [
            Rival(ContestantConfig(name="told", system="Be brief."), None, prompts=told),
            Rival(ContestantConfig(name="far", model="m", endpoint="http://127.0.0.1:1/v1"), None, messages=[["m"]]),
            Rival(ContestantConfig(name="run", model="a"), None, is_untuned=False),
        ]
        material = Material(Split(), Split(), [], [list(each) for each in prompts], [], [], rivals=rivals)
        return digest_untuned(with_settings(base_config(), settings), material)

    return compute


def test_only_contestants_without_tuning_have_digests_and_they_differ(digests):
    found = digests()
    assert [*found] == ["base", "told", "far"]
    assert len({*found.values()}) == 3


@pytest.mark.parametrize(
    ("change", "others"),
    [
        ({"run.seed": 7}, set()),
        ({"evaluation.batch_size": 3}, set()),
        ({"optim.learning_rate": 1.0}, set()),
        ({"model.path": "another"}, {"base", "told"}),
        ({"reading": "another tokenizer"}, {"base", "told"}),
        ({"evaluation.max_new_tokens": 9}, {"base", "told", "far"}),
        ({"told": ((8, 1, 2), (9, 3))}, {"told"}),
        ({"prompts": ((1, 2), (4,))}, {"base"}),
    ],
)
def test_a_contestant_that_may_answer_otherwise_has_another_digest(digests, change, others):
    first, second = digests(), digests(**change)
    assert {name for name in first if first[name] != second[name]} == others
