"""Judges that are models: tiny ones in this process, and one behind `transformers serve` on loopback."""

import functools
import gc
import json
import math
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from prefopt.config.judges import EndpointJudgeConfig, ModelJudgeConfig, RewardModelJudgeConfig
from prefopt.config.load import load_config
from prefopt.config.schema import TrainConfig
from prefopt.evaluate import main as evaluate
from prefopt.evaluation.endpoint import Endpoint
from prefopt.evaluation.judges import build_judges, loading, next_token
from prefopt.evaluation.judges.judge import JudgeContext, Matchup
from prefopt.evaluation.judges.model import ModelJudge
from prefopt.evaluation.judges.next_token import NextToken
from prefopt.evaluation.judges.reward_model import RewardModelJudge
from prefopt.evaluation.judges.rubric import BY_LETTER, Rubric
from prefopt.process.errors import UserError
from tests.conftest import STUDY, read_rows, write_rows
from tests.serving import serve

SHORT = "{prompt} A: {a} B: {b} Better?"


@pytest.fixture
def settings(overrides: list[str]) -> TrainConfig:
    return load_config(overrides)


@pytest.fixture(scope="session")
def matchups() -> list[Matchup]:
    answers = ["Yes, we do.", "It is possible to rent one of them from us, for a price.", "No", "tents " * 30, ""]
    return [
        Matchup(prompt, first, second)
        for prompt in ("Do you rent tents?", "May I send it back?")
        for first in answers
        for second in answers
        if first != second
    ]


def without_template(model: Path, folder: Path) -> Path:
    shutil.copytree(model, folder)
    (folder / "chat_template.jinja").unlink()
    return folder


# --- a causal model


def by_hand(folder: Path, asked: str, letters: tuple[list[int], list[int]]) -> tuple[float, float]:
    """P(A) - P(B) given one of both, and P(A) + P(B), of a single text."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    ids = torch.tensor([tokenizer(asked, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        p = model(ids).logits[0, -1].softmax(-1)
    a, b = (float(p[letter].sum()) for letter in letters)
    return (a - b) / (a + b), a + b


@pytest.mark.parametrize("has_template", [True, False])
@pytest.mark.parametrize("tokens_per_batch", [1, 2**14])
def test_the_likelier_letter_wins_whatever_the_batches(
    settings, tiny_model, matchups, tmp_path, monkeypatch, has_template, tokens_per_batch
):
    monkeypatch.setattr(loading, "TOKENS_PER_BATCH", tokens_per_batch)
    folder = tiny_model if has_template else without_template(tiny_model, tmp_path / "model")
    judge = ModelJudge.load(ModelJudgeConfig(model=str(folder)), settings)
    verdicts = judge.read(matchups)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    letters = tuple(
        {tokenizer(form + letter, add_special_tokens=False)["input_ids"][-1] for form in ("", " ")} for letter in "AB"
    )
    assert all(set(own) <= all_ and own for own, all_ in zip(judge._letters, letters, strict=True))
    for matchup, verdict in list(zip(matchups, verdicts, strict=True))[::7]:
        asked = Rubric(BY_LETTER).fill(matchup)
        if has_template:
            asked = f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"
        else:
            asked += "\n\nBetter answer:"
        gap, mass = by_hand(folder, asked, judge._letters)
        assert judge._opinions[matchup].gap == pytest.approx(gap, abs=1e-5)
        assert judge._opinions[matchup].mass == pytest.approx(mass, rel=1e-4)
        assert verdict == np.sign(gap)
    assert judge.sees_order
    facts = judge.describe()
    assert facts["num_read"] == len(matchups)
    assert 0 < facts["verdict_mass"] < 1
    assert len(facts["fingerprint"]) == 64
    json.dumps(facts, allow_nan=False)


def test_near_probabilities_tie(settings, tiny_model, matchups):
    judge = ModelJudge.load(ModelJudgeConfig(model=str(tiny_model), tie_within=0.999), settings)
    assert not judge.read(matchups).any()


def test_a_model_is_loaded_for_what_it_has_not_read_only(settings, tiny_model, matchups, monkeypatch):
    judge = ModelJudge.load(ModelJudgeConfig(model=str(tiny_model)), settings)
    first = judge.read(matchups)
    monkeypatch.setattr(judge._reader, "get", lambda: pytest.fail("it was asked for again"))
    assert judge.read(matchups[::-1]).tolist() == first[::-1].tolist()


def test_one_judge_s_model_is_in_memory_at_a_time_and_none_after_the_judges(settings, tiny_model):
    first, second = (ModelJudge.load(ModelJudgeConfig(model=str(tiny_model)), settings) for _ in range(2))
    first.read([Matchup("p", "a", "b")])
    model = weakref.ref(first._reader.get()._model)
    first.read([Matchup("p", "a", "c")])
    assert first._reader.get()._model is model()  # it is loaded once for many readings
    second.read([Matchup("p", "a", "b")])
    gc.collect()
    assert model() is None
    model = weakref.ref(second._reader.get()._model)
    del second
    assert model() is None


def test_matchups_beyond_the_context_have_no_verdict_and_are_counted(settings, tiny_model, tmp_path, caplog):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 120}))
    judge = ModelJudge.load(ModelJudgeConfig(model=str(folder), rubric=SHORT), settings)
    found = judge.read([Matchup("p", "a", "b"), Matchup("p", "a " * 200, "b")])
    assert np.isnan(found).tolist() == [False, True]
    assert "1 of 2 matchups are longer than the 120 tokens" in caplog.text
    assert judge.describe()["num_too_long"] == 1


def test_a_model_that_gives_no_numbers_has_no_verdicts_and_it_is_said(settings, tiny_model, tmp_path, caplog):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(math.nan)
    model.save_pretrained(tmp_path / "nan")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "nan")
    judge = ModelJudge.load(ModelJudgeConfig(model=str(tmp_path / "nan")), settings)
    assert np.isnan(judge.read([Matchup("p", "a", "b")])).all()
    assert "gives 1 of 1 matchups no number" in caplog.text
    assert np.isnan(judge.read([Matchup("p", "b", "a")])).all()
    assert caplog.text.count("no number") == 1, "said once, and counted all"
    assert judge.describe()["num_without_number"] == 2
    json.dumps(judge.describe(), allow_nan=False)


def test_a_tokenizer_that_writes_both_letters_alike_is_refused(settings, tiny_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"Regex": "[AB]$"}, "content": "?"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match=r"evaluation.judges: model: .* no tokens by which A and B could be told"):
        ModelJudge.load(ModelJudgeConfig(model=str(folder)), settings)


@pytest.mark.parametrize("where", ["no/such/folder", "/no/such/folder"])
@pytest.mark.parametrize("kind", [ModelJudgeConfig, RewardModelJudgeConfig])
def test_a_judge_s_model_that_is_not_there_is_told_by_the_judge_s_name(settings, kind, where):
    judge = {ModelJudgeConfig: ModelJudge, RewardModelJudgeConfig: RewardModelJudge}[kind]
    with pytest.raises(UserError, match=rf"^evaluation.judges: mine: model={where}: no such folder") as error:
        judge.load(kind(name="mine", model=where), settings)
    assert "model.path" not in str(error.value)


def test_a_common_beginning_is_computed_once_and_changes_nothing(tiny_model, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    beginning = torch.randint(3, 2000, (40,), generator=generator).tolist()
    rows = [beginning + torch.randint(3, 2000, (n,), generator=generator).tolist() for n in (5, 1, 17, 5)]
    widths = []
    forward = model.forward

    @functools.wraps(forward)
    def watched(**given: Any) -> Any:
        widths.append(tuple(given["input_ids"].shape))
        return forward(**given)

    with torch.no_grad():
        alone = torch.cat([model(torch.tensor([row])).logits[:, -1].log_softmax(-1) for row in rows])
        monkeypatch.setattr(model, "forward", watched)
        reader = NextToken(model)
        for _ in range(2):
            torch.testing.assert_close(reader(rows), alone, atol=1e-4, rtol=1e-4)
    assert widths == [(4, 57), (1, 40), (4, 17), (1, 40), (4, 17)]


def test_a_model_that_cannot_share_beginnings_reads_whole_rows(tiny_model, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    rows = [[*range(3, 40), last] for last in (50, 51)]

    def broken(config: Any) -> Any:
        raise AttributeError("no such cache")

    monkeypatch.setattr(next_token, "DynamicCache", broken)
    reader = NextToken(model)
    with torch.no_grad():
        first, second = reader(rows), reader(rows)
        alone = torch.cat([model(torch.tensor([row])).logits[:, -1].log_softmax(-1) for row in rows])
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(first, alone, atol=1e-4, rtol=1e-4)


# --- a reward model


@pytest.fixture
def reward_model(tiny_model: Path, tmp_path: Path) -> Callable[..., Path]:
    def build(*, kind: Any = LlamaForSequenceClassification, num_labels: int = 1, **changes: Any) -> Path:
        folder = tmp_path / "reward"
        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        torch.manual_seed(1)
        sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
        sizes |= {"num_attention_heads": 4, "pad_token_id": tokenizer.pad_token_id, "num_labels": num_labels}
        config = (BertConfig if kind is BertForSequenceClassification else LlamaConfig)(**sizes | changes)
        kind(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return build


def rewards_by_hand(folder: Path, texts: list[str]) -> list[float]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float64, num_labels=1)
    rows = [tokenizer(text, add_special_tokens=False, return_tensors="pt") for text in texts]
    with torch.no_grad():
        return [float(model(**row).logits) for row in rows]


@pytest.mark.parametrize("pad", [0, None])
@pytest.mark.parametrize("has_template", [True, False])
def test_the_higher_reward_wins_whatever_the_batches(settings, reward_model, matchups, pad, has_template):
    folder = reward_model(pad_token_id=pad)
    if not has_template:
        (folder / "chat_template.jinja").unlink()
    judge = RewardModelJudge.load(RewardModelJudgeConfig(model=str(folder)), settings)
    form = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n" if has_template else "{}\n{}"
    first = rewards_by_hand(folder, [form.format(each.prompt, each.first) for each in matchups])
    second = rewards_by_hand(folder, [form.format(each.prompt, each.second) for each in matchups])
    expected = np.sign(np.subtract(first, second))
    assert judge.read(matchups).tolist() == expected.tolist()
    assert len(set(expected.tolist())) == 2
    assert judge.read([each.swapped for each in matchups]).tolist() == (-expected).tolist()
    assert [judge._scores[each.prompt, each.first] for each in matchups] == pytest.approx(first, abs=1e-5)
    assert not judge.sees_order
    facts = judge.describe()
    assert facts["num_scored"] == 10
    json.dumps(facts, allow_nan=False)


def test_a_model_that_tells_two_texts_apart_gets_prompt_and_answer_as_two(settings, reward_model):
    folder = reward_model(kind=BertForSequenceClassification)
    (folder / "chat_template.jinja").unlink()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.sep_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    judge = RewardModelJudge.load(RewardModelJudgeConfig(model=str(folder)), settings)
    assert set(judge.read([Matchup("p", "one", "two")]).tolist()) <= {1.0, -1.0}


def test_answers_beyond_the_context_are_not_cut_but_counted(settings, reward_model, caplog):
    folder = reward_model(max_position_embeddings=60)
    judge = RewardModelJudge.load(RewardModelJudgeConfig(model=str(folder)), settings)
    found = judge.read([Matchup("p", "a", "b"), Matchup("p", "a " * 100, "b")])
    assert np.isnan(found).tolist() == [False, True]
    assert "1 of 3 answers are longer than the 60 tokens" in caplog.text
    assert judge.describe()["num_too_long"] == 1


def test_a_reward_that_is_no_number_is_no_verdict(settings, reward_model, caplog):
    folder = reward_model()
    model = LlamaForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model.score.weight.fill_(math.nan)
    model.save_pretrained(folder)
    judge = RewardModelJudge.load(RewardModelJudgeConfig(model=str(folder)), settings)
    assert np.isnan(judge.read([Matchup("p", "a", "b")])).all()
    assert "gives 2 of 2 answers no number" in caplog.text
    assert np.isnan(judge.read([Matchup("p", "c", "d")])).all()
    assert caplog.text.count("no number") == 1, "said once, and counted all"
    assert judge.describe()["num_without_number"] == 4


def test_other_heads_are_refused_by_their_name(settings, reward_model, tiny_model):
    with pytest.raises(UserError, match=r"evaluation.judges: reward_model: model=.*LlamaForCausalLM.*\{kind: model"):
        RewardModelJudge.load(RewardModelJudgeConfig(model=str(tiny_model)), settings)
    with pytest.raises(UserError, match=r"has 3 outputs \(LABEL_0, LABEL_1, LABEL_2\)"):
        RewardModelJudge.load(RewardModelJudgeConfig(model=str(reward_model(num_labels=3))), settings)


def test_a_reward_model_without_its_head_s_weights_is_refused(settings, reward_model):
    folder = reward_model()
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: weight for name, weight in weights.items() if name != "score.weight"}, folder / "model.safetensors"
    )
    judge = RewardModelJudge.load(RewardModelJudgeConfig(model=str(folder)), settings)
    with pytest.raises(UserError, match=r"reward_model: model=.* lack 1 tensors, first score.weight"):
        judge.read([Matchup("p", "a", "b")])


def test_the_settings_build_judges_that_are_models(settings, reward_model, tiny_model, tmp_path):
    configs = [
        ModelJudgeConfig(name="m", model=str(tiny_model)),
        RewardModelJudgeConfig(name="r", model=str(reward_model())),
    ]
    judges = build_judges(configs, JudgeContext([], settings, tmp_path))
    assert [(judge.name, judge.sees_order) for judge in judges] == [("m", True), ("r", False)]


# --- a model behind a server


@pytest.fixture(scope="module")
def served(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of `transformers serve` with the tiny model."""
    for package in ("openai", "fastapi", "uvicorn"):
        pytest.importorskip(package)
    with serve(tiny_model, tmp_path_factory.mktemp("serve") / "serve.log") as url:
        yield url


@pytest.mark.slow
def test_transformers_serve_answers_and_judges(served, settings, tiny_model, tmp_path, caplog):
    endpoint = Endpoint("t:", url=served, model=str(tiny_model), cache=tmp_path / "a", concurrency=8)
    talks = [[{"role": "user", "content": f"Question {number}?"}] for number in range(12)]
    replies = endpoint.chat(talks, max_tokens=4, seed=7)
    assert len(replies) == 12
    assert all(reply.text for reply in replies)
    assert not any(reply.finished for reply in replies)  # the random model does not end within four tokens
    config = EndpointJudgeConfig(endpoint=served, model=str(tiny_model), max_new_tokens=8)
    (judge,) = build_judges([config], JudgeContext([], settings, tmp_path))
    verdicts = judge.read([Matchup("p", "a", "b"), Matchup("p", "b", "a")])
    assert np.isnan(verdicts).all()  # random words hold no verdict
    facts = judge.describe()
    assert (facts["num_read"], facts["num_unparsed"], facts["num_requests"]) == (2, 2, 2)
    assert "none counts" in facts["refused"]


@pytest.mark.slow
def test_a_model_behind_transformers_serve_competes_and_its_answers_are_kept(served, tiny_model, tmp_path):
    rows = write_rows(tmp_path / "held_out.jsonl", read_rows(STUDY / "held_out.jsonl", 8))
    far = f"{{name: far, endpoint: '{served}', model: {tiny_model}, system: Be brief., max_requests: %d}}"
    given = [
        f"data.held_out={rows}", "model=hf", f"model.path={tiny_model}", "evaluation.max_new_tokens=6",
        "evaluation.judges=[{kind: rule, patterns: ['[a-m]', '[n-z]{2}']}]",
    ]  # fmt: skip
    answers = []
    for name, max_requests in (("first", 8), ("again", 1)):
        evaluate([f"report={tmp_path / name}", *given, f"evaluation.contestants=[base,{far % max_requests}]"])
        lines = [json.loads(line) for line in (tmp_path / name / "answers.jsonl").read_text().splitlines()]
        answers.append([line["answers"]["far"] for line in lines])
    assert all(answers[0])
    assert answers[1] == answers[0]  # from the cache: one request would not do
    (found,) = json.loads((tmp_path / "first" / "report.json").read_text())["win_rates"]
    assert (found["a"], found["b"], found["n"]) == ("far", "base", 8)
