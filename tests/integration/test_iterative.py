"""Rounds of sampling and training on this machine, and a stage that samples when it is stopped or cannot go on."""

import json
import os
import re
import signal
from pathlib import Path

import pytest

from prefopt.distributed.entry import run_entry
from prefopt.evaluation import on_policy
from prefopt.sample import main as sample
from prefopt.status import main as status
from prefopt.submit import main as submit
from tests.conftest import STUDY, read_rows, write_rows
from tests.integration.test_submit_local import DEADLINE_S, start

pytestmark = pytest.mark.slow

PATTERN = "[a-m]"
NUM_PROMPTS = 8


@pytest.fixture
def settings(tmp_path, monkeypatch) -> list[str]:
    """The shipped model, whose answers end by themselves, and as little else as possible."""
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))
    prompts = list(dict.fromkeys(json.dumps(row["prompt"]) for row in read_rows(STUDY / "train.jsonl")))
    asked = write_rows(tmp_path / "prompts.jsonl", [{"prompt": json.loads(each)} for each in prompts[:NUM_PROMPTS]])
    pairs = write_rows(tmp_path / "held_out.jsonl", read_rows(STUDY / "held_out.jsonl", 4))
    return [
        "model=prefopt_base", "data=files", f"data.train={asked}", f"data.held_out={pairs}",
        f"run.root={tmp_path / 'runs'}", "logger=none", "optim.learning_rate=1e-4", "trainer.max_steps=2",
        "trainer.per_device_batch_size=4", f"evaluation.judges=[{{kind: rule, patterns: ['{PATTERN}']}}]",
        "evaluation.max_new_tokens=120", "evaluation.num_samples=0", "evaluation.neutral_texts=null",
        "evaluation.regression=null", "evaluation.contestants=[tuned]", "evaluation.num_judged=2",
        "evaluation.num_shown_samples=1", "evaluation.bootstrap_resamples=50",
    ]  # fmt: skip


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def says(turn: list[dict]) -> str:
    return turn[0]["content"]


def test_two_rounds_each_train_on_answers_of_the_newest_model(settings, tmp_path, capsys):
    chain = ["chain=iterative_dpo", "chain.rounds=2", "chain.num_samples=3", "cluster=local", *settings]
    submitted = start("prefopt.submit", *chain)
    said, _ = submitted.communicate(timeout=DEADLINE_S)
    assert submitted.returncode == 0, said

    runs = {path.name.rpartition("-")[0]: path for path in (tmp_path / "runs").iterdir()}
    assert {*runs} == {"sample_1", "dpo_1", "sample_2", "dpo_2"}
    models = {name: read(run / "provenance.json")["model"]["path"] for name, run in runs.items()}
    base, tuned = "prefopt:assets/base_model", str(runs["dpo_1"] / "model")
    assert models == {"sample_1": base, "dpo_1": base, "sample_2": tuned, "dpo_2": tuned}
    pairs = {name: read_rows(runs[name] / "pairs.jsonl") for name in ("sample_1", "sample_2")}
    for name, rows in pairs.items():
        assert rows
        assert {row["model"] for row in rows} == {models[name]}
        assert len({json.dumps(row["prompt"]) for row in rows}) == len(rows) <= NUM_PROMPTS
        points = [[len(re.findall(PATTERN, says(row[key]), re.I)) for key in ("chosen", "rejected")] for row in rows]
        assert all(chosen > rejected for chosen, rejected in points)
        of_train = read(runs[name.replace("sample", "dpo")] / "provenance.json")["data"]
        assert of_train["tokenized"]["train"]["num_kept"] == len(rows)
    for rows in pairs.values():
        assert f"{NUM_PROMPTS} prompts: {len(rows)} pairs" in said
    answers = [{says(row["chosen"]) for row in rows} for rows in pairs.values()]
    assert not answers[0] & answers[1], "the second round has answers of its own"

    submit(chain)
    again = capsys.readouterr().out
    assert again.count("its pairs have been sampled") == 2
    assert again.count("this run is done") == 2
    status([str(tmp_path / "runs")])
    shown = capsys.readouterr().out
    assert "2 runs: 2 done; sample: 2 done" in shown
    assert f"kind sample  {NUM_PROMPTS} prompts: {len(pairs['sample_1'])} pairs" in shown


def test_a_stage_that_is_stopped_while_it_samples_begins_again_and_then_only_says_so(
    settings, tmp_path, monkeypatch, capsys
):
    def stopped(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)

    given = [*settings, "run.name=ask", "--num-samples=3"]
    run = tmp_path / "runs" / "ask"
    with monkeypatch.context() as patch:
        patch.setattr(on_policy, "sample_answers", stopped)
        with pytest.raises(SystemExit) as ended:
            run_entry(sample, given)
    assert ended.value.code == 75
    assert (read(run / "status.json")["state"], (run / "pairs.jsonl").exists()) == ("preempted", False)

    sample(given)
    rows = (run / "pairs.jsonl").read_bytes()
    seen = read(run / "status.json")
    assert (seen["state"], seen["attempts"]) == ("done", 2)
    assert seen["message"].startswith(f"{NUM_PROMPTS} prompts: ")
    capsys.readouterr()
    sample(given)
    assert "its pairs have been sampled" in capsys.readouterr().out
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": [{"role": "user", "content": "Another?"}]}])
    sample(given)
    assert "so these pairs are of the earlier data" in capsys.readouterr().out
    assert (run / "pairs.jsonl").read_bytes() == rows


def test_two_ranks_make_the_pairs_that_one_makes(settings, tmp_path):
    given = [*settings, "--num-samples=2"]
    launched = ["--standalone", "--nproc_per_node=2", "-m", "prefopt.sample", *given, "run.name=both"]
    started = start("torch.distributed.run", *launched)
    said, _ = started.communicate(timeout=DEADLINE_S)
    assert started.returncode == 0, said
    assert said.count(f"{NUM_PROMPTS} prompts: ") == 1
    sample([*given, "run.name=alone"])
    both, alone = (read_rows(tmp_path / "runs" / name / "pairs.jsonl") for name in ("both", "alone"))
    assert both == alone != []


def test_a_stage_whose_judge_likes_all_answers_alike_fails_and_leaves_no_pairs(settings, tmp_path, fails):
    given = [*settings, "run.name=ask", "evaluation.judges=[{kind: rule, patterns: [nowhere to be found]}]"]
    assert "no pair is left" in fails(sample, given)
    run = tmp_path / "runs" / "ask"
    assert not (run / "pairs.jsonl").exists()
    ended = read(run / "status.json")
    assert (ended["state"], ended["message"].partition(":")[0]) == ("failed", "UserError")


def test_a_folder_of_something_else_is_not_sampled_into(settings, tmp_path, fails):
    run = tmp_path / "runs" / "ask"
    run.mkdir(parents=True)
    (run / "notes.txt").write_text("mine")
    assert "exists and is no run of prefopt" in fails(sample, [*settings, "run.name=ask"])
    assert [path.name for path in run.iterdir()] == ["notes.txt"]
