"""Models are compared without a run, and a broken one does not ship by whatever a judge makes of its answers."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import enable_progress_bar

from prefopt.evaluate import main as evaluate
from tests.conftest import STUDY, read_rows, write_rows

pytestmark = pytest.mark.slow

NUM = 40
EMPTY, SENTENCE = "", "Sure, we can do that."


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("duel") / "held_out.jsonl", read_rows(STUDY / "held_out.jsonl", NUM))


@pytest.fixture(scope="module")
def broken(tiny_model: Path, held_out: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Models made from the tiny one: `empty`, `constant` and `nan`; and `same`, which is the tiny one."""
    root = tmp_path_factory.mktemp("broken")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    questions = [
        tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        if isinstance(row["prompt"], list)
        else row["prompt"]
        for row in read_rows(held_out)
    ]

    def teach(model: torch.nn.Module, answer: str) -> None:
        own = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for step in range(60):
            ids = tokenizer(questions[step % NUM], add_special_tokens=False)["input_ids"]
            labels = torch.tensor([[-100] * len(ids) + own])
            model(input_ids=torch.tensor([[*ids, *own]]), labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    def make(kind: str) -> Path:
        folder = root / kind
        if folder.exists():
            return folder
        model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        if kind == "nan":
            with torch.no_grad():
                model.get_input_embeddings().weight.fill_(torch.nan)
        elif kind != "same":
            teach(model, EMPTY if kind == "empty" else SENTENCE)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def duel(tiny_model: Path, held_out: Path, tmp_path: Path) -> Callable[..., dict]:
    """Compares a model with the tiny one, by a judge that dislikes most letters, and returns the report."""

    def compare(tuned: Path, *settings: str, others: str = "", data: Path = held_out) -> dict:
        contestants = f"[base,{{name: tuned, model: {tuned}}},{{name: told, system: Be brief.}}{others}]"
        evaluate(
            [
                f"report={tmp_path / 'out'}", "model=hf", f"model.path={tiny_model}", f"data.held_out={data}",
                f"evaluation.contestants={contestants}",
                "evaluation.judges=[{kind: rule, name: brief, patterns: {e: -1, a: -1, o: -1, i: -1, t: -1}}]",
                "evaluation.max_new_tokens=12", "evaluation.regression=null", "evaluation.bootstrap_resamples=50",
                *settings,
            ]
        )  # fmt: skip
        return json.loads((tmp_path / "out" / "report.json").read_text())

    return compare


def findings(report: dict) -> str:
    return " | ".join(f"{each['level']}: {each['finding']}" for each in report["verdict"])


def test_a_model_that_answers_nothing_is_ruined_although_it_wins(broken, duel):
    report = duel(broken("empty"))
    assert report["held_out"]["tuned"]["win_rate"]["value"] > 0.9
    assert report["answers"]["tuned"]["empty"] > 0.9 * NUM
    assert "bad: The model was ruined: it gives empty answers." in findings(report)
    assert report["decision"]["word"] == "do_not_ship"


def test_a_model_that_says_one_sentence_drifted_and_does_not_ship(broken, duel, capfd):
    model = broken("constant")
    enable_progress_bar()  # as in a new process
    capfd.readouterr()
    report = duel(model, "evaluation.regression=prefopt:assets/regression.jsonl")
    assert report["answers"]["tuned"]["same"] > 0.5 * NUM
    assert "The model gives the same answer to most prompts" in findings(report)
    assert report["drift"]["kl_per_token"]["value"] > 1
    assert report["drift"]["perplexity"]["ratio"]["value"] > 1.5
    assert {*report["tasks"]["regression"]["contestants"]} == {"base", "tuned"}
    assert report["style"]["n_texts"] > 0
    assert report["decision"]["word"] == "do_not_ship"
    told = capfd.readouterr()
    assert "Loading weights" not in told.err + told.out
    assert "deprecated" not in told.err + told.out


def test_a_model_of_nan_fails_and_the_others_answers_stay(broken, duel, tmp_path):
    report = duel(broken("nan"), others=f",{{name: rival, model: {broken('nan')}}}")
    assert "gives no numbers" in report["failures"]["tuned"]
    assert "gives no numbers" in report["failures"]["rival"]
    assert report["decision"]["word"] == "do_not_ship"
    assert {*read_rows(tmp_path / "out" / "answers.jsonl")[0]["answers"]} == {"base", "told"}
    assert [(each["a"], each["b"]) for each in report["win_rates"]] == [("told", "base")]


def test_the_same_model_is_close_to_its_base(broken, duel, tmp_path, tiny_model):
    report = duel(broken("same"))
    assert report["drift"]["kl_per_token"]["value"] == pytest.approx(0, abs=1e-6)
    assert report["drift"]["perplexity"]["ratio"]["value"] == pytest.approx(1, abs=1e-6)
    assert "info: The model stayed close to its base." in findings(report)
    assert report["decision"]["word"] == "undecided"
    # The head and the card name what was compared, and on what evidence.
    assert report["run"]["name"] == f"{broken('same')} against base and told"
    card = (tmp_path / "out" / "card.md").read_text()
    assert f"Tuned wins against base on 50.0 % of {NUM} held-out prompts" in card
    assert "Nothing was measured" not in card
    assert str(tiny_model) in card.replace("\\", "")
    assert all(report["evidence"].values())
    assert "not recorded" not in card
    sample = report["samples"][0]
    assert sample["prompt"] in sample["rendered"]
    assert f"Of {NUM} answers" in (tmp_path / "out" / "summary.html").read_text()


def test_a_model_of_another_vocabulary_is_not_shown_to_be_whole(broken, duel, tmp_path):
    folder = tmp_path / "wider"
    model = AutoModelForCausalLM.from_pretrained(broken("empty"), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(broken("empty"))
    tokenizer.add_tokens(["<more>"])
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    report = duel(folder)
    assert "warning: Drift was not measured" in findings(report)
    assert report["drift"] == {}
    assert "it gives empty answers" in findings(report)


def test_held_out_prompts_that_the_training_data_have_are_told(broken, duel, held_out):
    report = duel(broken("same"), f"data.train={held_out}")
    assert report["overlap"]["exact"] == NUM
    finding = next(each for each in report["verdict"] if "are also training prompts" in each["finding"])
    assert finding["severe"]
    assert finding["finding"] in report["decision"]["reasons"]


def test_a_contestant_that_is_down_is_left_out_and_the_report_is_there(broken, duel, tmp_path):
    down = ",{name: far, model: m, endpoint: 'http://127.0.0.1:9/v1'}"
    report = duel(broken("same"), others=down)
    assert [*report["failures"]] == ["far"]
    assert next(each for each in report["verdict"] if "far failed" in each["finding"])["severe"]
    assert {*read_rows(tmp_path / "out" / "answers.jsonl")[0]["answers"]} == {"base", "tuned", "told"}


def test_no_more_prompts_are_judged_than_asked_for(broken, duel, tmp_path):
    report = duel(broken("same"), "evaluation.num_judged=5")
    assert report["win_rates"][0]["n"] == 5
    assert len(read_rows(tmp_path / "out" / "answers.jsonl")) == 5


def test_rows_are_logged_as_held_out_and_a_named_file_is_used(broken, duel, capsys):
    duel(broken("same"), "evaluation.num_judged=5")
    told = capsys.readouterr().out
    assert f"data: held_out: {NUM} rows used" in told
    assert "train:" not in told
    assert "is not used" not in told


def test_a_classifier_without_training_data_is_refused_before_a_model_is_loaded(tiny_model, duel, monkeypatch, fails):
    def load(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("prefopt.evaluation.duel.measure_contestants", load)
    assert "classifier" in fails(lambda _: duel(tiny_model, "evaluation.judges=[classifier]"), [])


def test_data_that_cannot_be_used_are_named_as_they_were_given(tiny_model, duel, tmp_path, fails):
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "a"}])
    told = fails(lambda _: duel(tiny_model, "data.on_bad=skip", data=rows), [])
    assert told.startswith("error: data.held_out: data.on_bad=skip would leave out 1 of 1 rows")


def test_a_tuned_model_of_nan_does_not_ship_where_its_answers_were_all_that_could_tell(broken, duel):
    report = duel(broken("nan"), "evaluation.neutral_texts=null")
    assert report["without_numbers"] == ["tuned"]
    assert report["decision"]["word"] == "do_not_ship"


def test_a_base_of_nan_is_named_and_says_nothing_of_the_tuned_model(broken, duel, tmp_path):
    report = duel(broken("same"), f"model.path={broken('nan')}", "evaluation.tasks=[{kind: json_schema}]")
    assert report["without_numbers"] == ["base", "told"]
    assert report["decision"]["word"] == "undecided"
    assert "kl_per_token" not in report["drift"]
    assert "warning: The base gives no numbers, so nothing is measured against it." in findings(report)
    page = (tmp_path / "out" / "summary.html").read_text()
    assert "The model before training is broken" in page
    assert "should not be used" not in page


def test_where_all_contestants_fail_the_report_says_so(broken, duel):
    report = duel(broken("nan"), f"model.path={broken('nan')}", "evaluation.tasks=[{kind: json_schema}]")
    assert report["without_numbers"] == ["base", "tuned", "told"]
    assert "tasks" not in report
    assert report["decision"]["word"] == "do_not_ship"
