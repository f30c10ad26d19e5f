"""Contestants answer, judges read, and a decision follows, by the commands that a user types (issue 16)."""

import csv
import json
import shutil
from pathlib import Path

import pytest

import prefopt
from prefopt.compare import main as compare
from prefopt.evaluate import main as evaluate
from prefopt.evaluation.evidence import seal_report
from prefopt.sample import main as sample
from prefopt.train import main as train
from tests.conftest import STUDY, quick_run, read_rows, write_rows

pytestmark = pytest.mark.slow

JUDGED = [
    "evaluation.judges=[{kind: rule, patterns: ['[a-m]', '[n-z]{2}']}]",
    "evaluation.contestants=[base,tuned,{name: told, system: Be brief.},"
    "{name: shown, examples: EXAMPLES, num_examples: 1}]",
    "evaluation.tasks=[{kind: json_schema}]",
    "evaluation.max_new_tokens=6",
    "evaluation.num_shown_samples=2",
]


@pytest.fixture(scope="module")
def trained(tiny_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("judged")
    files = [
        write_rows(folder / f"{name}.jsonl", read_rows(STUDY / f"{name}.jsonl", num))
        for name, num in (("train", 24), ("held_out", 8))
    ]
    judged = [each.replace("EXAMPLES", str(files[0])) for each in JUDGED]
    train(
        [*quick_run(tiny_model, files, folder / "runs"), *judged, "trainer.max_steps=2", "evaluation.regression=null"]
    )
    return folder


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return shutil.copytree(trained / "runs" / "test", tmp_path / "test")


def read_report(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def test_a_run_is_judged_against_its_base_and_the_base_with_prompts(trained):
    folder = trained / "runs" / "test" / "report"
    report = read_report(folder)
    assert [*report["contestants"]] == ["base", "tuned", "told", "shown"]
    assert report["contestants"]["told"]["is_prompted"]
    met = [(each["a"], each["b"]) for each in report["win_rates"]]
    assert met == [("tuned", "base"), ("tuned", "told"), ("tuned", "shown"), ("told", "base"), ("shown", "base")]
    assert all(each["n_prompts"] + each["unread"] == 8 for each in report["win_rates"])
    assert report["judges"]["rule"]["facts"]["kind"] == "rule"
    assert report["held_out"]["tuned"]["win_rate"]["n"] == 8
    assert report["tasks"]["json_schema"]["contestants"]["told"]["values"]
    assert {*report["evidence"]} == {"model", "base", "models", "data", "settings", "files"}
    lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert len(lines) == 8
    assert [*lines[0]["answers"]] == ["tuned", "base", "told", "shown"] or {*lines[0]["answers"]} == {
        *report["contestants"]
    }
    mean = sum((each["outcomes"][0]["outcome"] + 1) / 2 for each in lines) / 8
    assert mean == pytest.approx(report["win_rates"][0]["value"])
    first = lines[0]["outcomes"][0]
    assert {*first} == {"a", "b", "judge", "outcome", "forward", "backward", "reading"}
    digests = {name: each.get("sha256") for name, each in report["contestants"].items()}
    assert digests.pop("tuned") is None
    assert len({*digests.values()}) == 3
    assert len(report["judge_digests"]["rule"]) == 64
    counts, samples = report["sample_counts"], report["samples"]
    lost = [each for each in lines if any(o["outcome"] == -1 and o["a"] == "tuned" for o in each["outcomes"])]
    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    wrong = sum(each["tuned_margin"] <= 0 for each in pairs)
    assert counts == {"prompts": 8, "lost": len(lost), "wrongly_ranked": wrong}
    assert len(samples) == 2
    assert samples[0]["ranking"]["lost"] >= samples[1]["ranking"]["lost"]
    assert all(each["rejected"] and each["prompt"] in each["rendered"] for each in samples)
    page = (folder / "report.html").read_text()
    assert "Whose answers are better?" in page
    assert "tuned against told" in page
    assert "too few" in " ".join(report["decision"]["reasons"])


def test_two_runs_are_compared_prompt_by_prompt_until_another_judge_reads_one_of_them(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")

    def rows_of_comparison():
        compare([str(run), str(other), "--rank-by", "win_rate", "--output", str(tmp_path)])
        return list(csv.DictReader((tmp_path / "compare.csv").open()))

    first, second = rows_of_comparison()
    assert (second["difference"], second["difference_method"]) == ("0.0", "prompt by prompt")
    assert (first["against_first"], second["against_first"]) == ("best", "within noise of #1")
    prefopt.evaluate(other, ["evaluation.judges=[{kind: rule, name: other, patterns: ['[a-z]']}]"])
    first, second = rows_of_comparison()
    assert (first["difference"], second["difference"]) == ("", "")
    assert second["against_first"].startswith("not compared: another judge read its answers")


def test_the_same_answers_come_again_and_other_judges_read_them(run):
    before = [json.loads(line)["answers"] for line in (run / "report" / "answers.jsonl").read_text().splitlines()]
    again = prefopt.evaluate(run, ["evaluation.judges=[{kind: rule, name: other, patterns: ['[a-m]']}]"])
    assert [*again["judges"]] == ["other"]
    lines = (run / "report" / "answers.jsonl").read_text().splitlines()
    assert [json.loads(line)["answers"] for line in lines] == before


def test_a_gate_passes_or_ends_with_3_and_stale_evidence_is_refused(run, fails, capsys):
    evaluate([f"run={run}", "--recorded"])  # as training left it
    assert "The recorded decision holds: undecided" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        evaluate([f"run={run}", "--require", "ship"])
    assert ended.value.code == 3
    assert "--require ship: the decision is undecided" in capsys.readouterr().err
    card = (run / "report" / "card.md").read_text()
    assert card.startswith("### ⚠️ Undecided")
    assert "tuned against told" in card
    with pytest.raises(SystemExit) as ended:
        evaluate([f"run={run}", "--require", "ship", "--recorded"])
    assert ended.value.code == 3
    capsys.readouterr()
    report = run / "report" / "report.json"
    written = json.loads(report.read_text())
    written["decision"] = {"word": "ship", "reasons": [], "would_decide": []}
    report.write_text(json.dumps(written))
    assert "is not what was measured: report.json has" in fails(
        evaluate, [f"run={run}", "--require", "ship", "--recorded"]
    )
    seal_report(run / "report")
    evaluate([f"run={run}", "--require", "ship", "--recorded"])
    assert "--require ship: the decision is ship" in capsys.readouterr().err

    for other in ("evaluation.min_gain=0.2", "data.max_length=99"):
        assert "stale: changed since: the settings" in fails(evaluate, [f"run={run}", "--recorded", other])
    weights = run / "model" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "is not what training left there" in fails(evaluate, [f"run={run}", "--recorded"])
    weights.write_bytes(content)
    manifest = run / "model" / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    assert "is stale: changed since: the tuned model" in fails(evaluate, [f"run={run}", "--recorded"])
    written["decision"] = ["ship"]
    report.write_text(json.dumps(written))
    seal_report(run / "report")
    manifest.write_text(manifest.read_text()[:-1])
    with pytest.raises(SystemExit) as ended:
        evaluate([f"run={run}", "--require", "ship", "--recorded"])
    assert ended.value.code == 3, "what is no decision is no ship"


def test_a_report_without_judges_that_replaces_a_judged_one_says_so(run, capsys):
    folder = run / "report"
    assert (folder / "answers.jsonl").exists()
    prefopt.evaluate(run, ["evaluation.judges=[]", "evaluation.tasks=[]", "evaluation.contestants=[base,tuned]"])
    assert "in which answers were judged (rule) is replaced by one without judges" in capsys.readouterr().out
    assert not (folder / "answers.jsonl").exists(), "it would be of another measurement"


def test_two_models_are_compared_without_a_run(trained, tiny_model, tmp_path, fails):
    model = trained / "runs" / "test" / "model"
    given = [
        f"report={tmp_path / 'out'}", "model=hf", f"model.path={tiny_model}",
        f"data.held_out={trained / 'held_out.jsonl'}",
        f"evaluation.contestants=[base,{{name: tuned, model: {model}}},{{name: told, system: Be brief.}}]",
        JUDGED[0], "evaluation.max_new_tokens=6", "evaluation.regression=null",
    ]  # fmt: skip
    evaluate(given)
    report = read_report(tmp_path / "out")
    of_run = read_report(trained / "runs" / "test" / "report")
    # The same prompts, seeds and models give the same answers, and so the same win rates.
    wanted = {(each["a"], each["b"]): each["value"] for each in of_run["win_rates"]}
    found = {(each["a"], each["b"]): each["value"] for each in report["win_rates"]}
    assert found == {pair: wanted[pair] for pair in found}
    # What a run measures of its model, a comparison without it measures too.
    assert {*report["drift"]} == {*of_run["drift"]}
    for key in ("kl_per_token", "kl_per_response"):
        assert report["drift"][key]["value"] == pytest.approx(of_run["drift"][key]["value"], rel=1e-6)
    assert report["answers"]["tuned"] == of_run["answers"]["tuned"]
    assert report["evidence"]["model"] == of_run["evidence"]["model"]
    assert "holds a report already" in fails(evaluate, given)
    assert "there is no run whose model is the tuned one" in fails(
        evaluate, [f"report={tmp_path / 'b'}", *given[1:4], "evaluation.contestants=[base,tuned]"]
    )


def test_a_contestant_or_judge_that_cannot_be_is_refused_before_training(overrides, fails):
    def refused(*settings: str) -> str:
        return fails(train, [*overrides, "evaluation.judges=[{kind: rule, patterns: [a]}]", *settings])

    assert "no such" in refused("evaluation.contestants=[base,tuned,{name: x, system: nowhere.md}]")
    elsewhere = refused("evaluation.contestants=[base,tuned,{name: x, model: /nowhere/model}]")
    assert "evaluation.contestants: x: model=/nowhere/model: no such folder" in elsewhere
    assert "leaves no room" in refused(f"evaluation.contestants=[base,tuned,{{name: x, system: '{'word ' * 3000}'}}]")
    assert "no kind 'ruel'" in refused("evaluation.judges=[ruel]")


def test_pairs_of_a_models_own_answers_are_rows_that_training_reads(tmp_path, overrides, fails, capsys):
    rows = [{"prompt": row["prompt"]} for row in read_rows(STUDY / "held_out.jsonl", 6)]
    prompts, made = write_rows(tmp_path / "prompts.jsonl", rows), tmp_path / "pairs.jsonl"
    given = [str(prompts), "--output", str(made), "model=prefopt_base", "evaluation.max_new_tokens=160"]
    judge = "evaluation.judges=[{kind: rule, patterns: ['[a-m]']}]"
    assert "evaluation.judges: required" in fails(sample, given)
    sample([*given, judge])
    rows = read_rows(made)
    assert f"6 prompts: {len(rows)} pairs" in capsys.readouterr().out
    assert rows
    assert all(row["score_chosen"] > row["score_rejected"] for row in rows)
    first = made.read_bytes()
    assert "exists already" in fails(sample, [*given, judge])
    sample([*given, judge, "--overwrite"])
    assert made.read_bytes() == first
    train([*overrides, f"data.train={made}", "data.held_out=null", "data.held_out_fraction=0", "trainer.max_steps=1"])


def test_no_more_prompts_are_judged_than_asked_for(run):
    report = prefopt.evaluate(run, ["evaluation.num_judged=2", "evaluation.num_samples=5"])
    assert report["win_rates"][0]["n"] == 2
    assert report["drift"]["kl_per_token"]["n"] == 2
