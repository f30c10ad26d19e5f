"""How far it is from the command to an optimizer step, and that nobody finishes a trainer which is not whole."""

import re
import sys
from pathlib import Path

import torch

import prefopt
from prefopt.train import main as train

SOURCE = Path(prefopt.__file__).parent
MAIN_ROAD = (
    *("train.py", "training/runner.py", "training/training.py", "training/durable.py"),
    "algorithms/dpo.py",
)


def test_from_the_command_to_an_optimizer_step_it_is_four_calls(overrides, monkeypatch):
    calls: list[str] = []
    plain_step = torch.optim.AdamW.step

    def step(self, *args, **kwargs):
        frame, names = sys._getframe(), []
        while frame is not None:
            if Path(frame.f_code.co_filename).is_relative_to(SOURCE):
                names.append(frame.f_code.co_name)
            frame = frame.f_back
        calls[:] = names[::-1]
        return plain_step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    train([*overrides, "trainer.max_steps=1", "evaluation.num_samples=0", "evaluation.neutral_texts=null"])
    assert calls == ["main", "execute", "train_and_report", "train"]


def test_the_modules_on_the_main_road_are_short():
    lengths = {name: len((SOURCE / name).read_text(encoding="utf-8").splitlines()) for name in MAIN_ROAD}
    assert sum(lengths.values()) <= 1200, lengths


def test_no_module_sets_an_attribute_of_a_trainer():
    """But for the rehearsal, which takes back the optimizer and the schedule that it had the trainer build."""
    found = {
        (path.name, line.strip())
        for path in SOURCE.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.match(r"\s*trainer(\.\w+)+ = |\s*setattr\(trainer", line)
    }
    assert found == {("rehearsal.py", "trainer.optimizer = trainer.lr_scheduler = None")}
