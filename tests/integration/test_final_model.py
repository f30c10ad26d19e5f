"""The final model is the one of the last checkpoint, and a damaged copy of it never becomes `model/`."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from prefopt.comparison.places import find_places
from prefopt.comparison.read import RunReader
from prefopt.evaluate import main as evaluate
from prefopt.process.errors import UserError
from prefopt.runs import final_model
from prefopt.runs.directory import RunDirectory, State
from prefopt.storage.files import copy_file
from prefopt.train import main as train
from tests.conftest import quick_run

pytestmark = pytest.mark.slow


def test_a_copy_that_is_not_what_was_sealed_ends_the_run_and_the_next_one_mends_it(overrides, tmp_path, monkeypatch):
    def copy_badly(source, target):
        copy_file(source, target)
        if target.name == "model.safetensors":
            content = bytearray(target.read_bytes())
            content[-1] ^= 1
            target.write_bytes(content)

    monkeypatch.setattr(final_model, "copy_file", copy_badly)
    run = tmp_path / "runs" / "test"
    with pytest.raises(UserError, match=r"cannot be written .*model\.safetensors is damaged.* run the same command"):
        train(overrides)
    assert not (run / "model").exists()
    monkeypatch.undo()
    train(overrides)
    newest = run / "checkpoints" / "step-6" / "model.safetensors"
    assert (run / "model" / "model.safetensors").read_bytes() == newest.read_bytes()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_model, pair_files) -> Path:
    root = tmp_path_factory.mktemp("finished")
    train(quick_run(tiny_model, pair_files, root))
    return root


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "runs") / "test"


def zero_tail(run: Path) -> None:
    """What a loss of power leaves of a file that was not brought to the disk."""
    weights = run / "model" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-20_000] + bytes(20_000))


def truncate(run: Path) -> None:
    weights = run / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-20_000])


def lose(run: Path) -> None:
    (run / "model" / "tokenizer.json").unlink()


def break_seal(run: Path) -> None:
    (run / "model" / "manifest.json").write_text("{")


def lead_out(run: Path) -> None:
    (run / "model" / "manifest.json").write_text('{"files": {"../../secret": {"size": 1, "sha256": ""}}}')


def add_an_adapter(run: Path) -> None:
    """transformers would load it without being asked."""
    (run / "model" / "adapter_config.json").write_text("{}")


DAMAGE = [zero_tail, truncate, lose, break_seal, lead_out, add_an_adapter]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_model_is_made_anew_from_the_checkpoint_before_it_is_measured(
    run, finished, overrides, caplog, damage
):
    shutil.rmtree(run / "report")
    RunDirectory(run).set_state(State.running)
    damage(run)
    train(overrides)
    assert files_of(run / "model") == files_of(finished / "test" / "model")
    report, expected = (json.loads((root / "report" / "report.json").read_text()) for root in (run, finished / "test"))
    assert report["held_out"] == expected["held_out"]
    assert (run / "damaged-model").is_dir(), "somebody may have worked on it"


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_model_is_not_measured_again_and_what_to_type_mends_it(run, finished, overrides, fails, damage):
    damage(run)
    message = fails(evaluate, [f"run={run}"])
    assert "is not what training left there" in message
    assert f"makes it anew from {run / 'checkpoints' / 'step-6'}" in message
    move = re.search(r"If it was damaged: (mv .*?);", message)[1]
    subprocess.run(move, shell=True, check=True)
    train(overrides)
    assert files_of(run / "model") == files_of(finished / "test" / "model")


def test_a_model_that_was_edited_on_purpose_is_measured_when_its_seal_is_taken_off_and_the_report_says_so(run, fails):
    truncated = load_file(run / "model" / "model.safetensors")
    save_file({name: value + 0.01 for name, value in truncated.items()}, run / "model" / "model.safetensors")
    message = fails(evaluate, [f"run={run}"])
    subprocess.run(re.search(r"edited on purpose: (rm .*?);", message)[1], shell=True, check=True)
    evaluate([f"run={run}"])
    report = json.loads((run / "report" / "report.json").read_text())
    assert report["run"]["model_is_sealed"] is False
    assert any("model/ is what training left there" in finding["finding"] for finding in report["verdict"])


def test_without_a_checkpoint_of_the_last_step_the_message_says_from_where_it_is_trained_again(run, fails):
    shutil.rmtree(run / "checkpoints" / "step-6")
    zero_tail(run)
    assert "trains again from step 4, since there is no checkpoint of step 6" in fails(evaluate, [f"run={run}"])
    shutil.rmtree(run / "checkpoints")
    assert "trains again from the beginning" in fails(evaluate, [f"run={run}"])


def test_a_sealed_model_loads_in_plain_transformers(run):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    manifest = json.loads((run / "model" / "manifest.json").read_text())
    assert set(manifest["files"]) == {path.name for path in (run / "model").iterdir()} - {"manifest.json"}
    assert AutoModelForCausalLM.from_pretrained(run / "model").num_parameters() > 0
    assert AutoTokenizer.from_pretrained(run / "model").eos_token


def test_lines_that_metrics_jsonl_has_lost_are_said_when_the_run_goes_on_and_in_its_report(run, overrides, capsys):
    shutil.rmtree(run / "report")
    shutil.rmtree(run / "model")
    RunDirectory(run).set_state(State.running)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:2]))
    train(overrides)
    report = json.loads((run / "report" / "report.json").read_text())
    assert report["run"]["lost_records"] == len(lines) - 2
    assert any("metrics.jsonl has lost" in finding["finding"] for finding in report["verdict"])


def test_a_run_that_trains_on_after_lines_were_lost_still_says_so(run, overrides, capsys):
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join([lines[0], *lines[2:]]))
    train([*overrides, "trainer.max_steps=8"])
    assert "has lost 1 of its" in capsys.readouterr().out
    report = json.loads((run / "report" / "report.json").read_text())
    assert (report["run"]["lost_records"], report["run"]["steps"]) == (1, 8)
    (record,) = RunReader().read(find_places([run]))
    assert any("metrics.jsonl has lost 1 of its" in problem for problem in record.problems)
