"""prefopt from Python: docs/api.md runs as it stands, and what a user's own code computes is what is trained."""

import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch.nn.functional import logsigmoid
from transformers import TrainerCallback

from prefopt import evaluate, load_config, train
from prefopt.algorithms.dpo import ScoredPairs
from prefopt.compare import main as compare
from prefopt.comparison.metrics import from_report, from_summary
from prefopt.config.load import fingerprint, identity, to_yaml
from prefopt.distributed import group
from prefopt.evaluate import main as evaluate_command
from prefopt.evaluation import metrics, summary
from prefopt.evaluation.metrics import NUMBER, PERCENT, Better, Metric
from prefopt.evaluation.sampling import Answer
from prefopt.evaluation.scoring import PairScores, Scores
from prefopt.evaluation.summary import register
from prefopt.process.errors import UserError
from prefopt.reports.render import json_ready
from prefopt.runs.directory import RunDirectory
from prefopt.runs.settings import read_config
from prefopt.tracking.wandb import _values
from prefopt.train import main as train_command
from prefopt.training.own_code import OwnCode, with_names
from tests.conftest import REPOSITORY, STUDY, quick_run, read_rows, write_rows

pytestmark = pytest.mark.slow

PAGE = (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8")


def sigmoid(pairs):
    """DPO's own loss, as a user would write it."""
    policy = pairs.chosen_logps - pairs.rejected_logps
    reference = pairs.ref_chosen_logps - pairs.ref_rejected_logps
    return -logsigmoid(pairs.beta * (policy - reference))


class Listener(TrainerCallback):
    """Notes what it is told."""

    def __init__(self):
        self.steps, self.losses, self.held_out = [], [], []

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append(state.global_step)

    def on_log(self, args, state, control, logs, **kwargs):
        if "loss" in logs:
            self.losses.append(logs["loss"])

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.held_out.append(metrics["eval_loss"])


class Stopper(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = True


class Evaluator(TrainerCallback):
    """Asks for an evaluation after every second step."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_evaluate = state.global_step % 2 == 0


class GoesOn(TrainerCallback):
    """Says at every turn that training is not to stop, as an early stop does that assigns what it compared."""

    def _go_on(self, args, state, control, **kwargs):
        control.should_training_stop = False

    on_step_begin = on_substep_end = on_step_end = on_log = on_evaluate = on_save = on_epoch_end = _go_on


class EndsOnce(TrainerCallback):
    """Ends training at the first turn of a kind from a step on; `last_words` is called at the end of training."""

    def __init__(self, turn, step, last_words=lambda: None):
        def ask(args, state, control, **kwargs):
            control.should_training_stop = state.global_step >= step

        setattr(self, turn, ask)
        self.last_words = last_words

    def on_train_end(self, args, state, control, **kwargs):
        self.last_words()


class Demanding(TrainerCallback):
    def __init__(self, limit):
        self.limit = limit


def losses_of(run):
    """The training and the held-out losses of metrics.jsonl."""
    return [(record.get("split"), record["loss"]) for record in run.read_records() if "loss" in record]


@pytest.fixture
def overrides(overrides):
    """Without neutral texts a run is half as long."""
    return [*overrides, "evaluation.neutral_texts=null"]


@pytest.fixture
def own_metrics():
    """What a test registers is gone after it."""
    lists, tables = (metrics.METRICS, metrics.COMPARED), (metrics.BY_KEY, summary.OF_PAIRS, summary.OF_ANSWERS)
    before = [list(each) for each in lists], [dict(each) for each in tables]
    yield
    for each, values in zip(lists, before[0], strict=True):
        each[:] = values
    for each, values in zip(tables, before[1], strict=True):
        each.clear()
        each.update(values)


@pytest.mark.parametrize("order", ["modules first", "functions first"])
def test_train_and_evaluate_are_functions_whatever_was_imported_before(order):
    modules = "import prefopt.train, prefopt.evaluate\nfrom prefopt.train import main\n"
    functions = "from prefopt import evaluate, load_config, train\n"
    program = (modules + functions if order == "modules first" else functions + modules) + (
        "import prefopt, importlib, inspect\n"
        "for name in ('train', 'evaluate', 'load_config'):\n"
        "    assert inspect.isfunction(getattr(prefopt, name)), name\n"
        "    assert getattr(prefopt, name) is globals()[name]\n"
        "assert importlib.import_module('prefopt.train').main is main\n"
        "assert inspect.ismodule(importlib.import_module('prefopt.evaluate'))\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=600)


def test_to_import_prefopt_loads_neither_torch_nor_hydra():
    program = "import sys, prefopt\nassert not {'torch', 'hydra', 'transformers', 'prefopt.train'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=600)
    with pytest.raises(ImportError, match="cannot import name 'fit' from 'prefopt'"):
        from prefopt import fit  # type: ignore[attr-defined]  # noqa: F401


def test_a_run_from_python_is_the_run_of_the_command(overrides, tmp_path):
    train_command([*overrides, "run.name=command", "trainer.eval_every=3"])
    config = load_config([*overrides, "run.name=python", "trainer.eval_every=3"])
    before = fingerprint(config)
    run = train(config)
    assert fingerprint(config) == before
    other = run.path.with_name("command")
    assert losses_of(run) == [
        (record.get("split"), record["loss"])
        for record in map(json.loads, (other / "metrics.jsonl").read_text().splitlines())
        if "loss" in record
    ]
    assert run.read_status()["state"] == "done"
    assert run.read_report()["held_out"] == json.loads((other / "report/report.json").read_text())["held_out"]
    assert (run.model / "model.safetensors").read_bytes() == (other / "model/model.safetensors").read_bytes()
    report = evaluate(run, ["evaluation.num_samples=2"])
    assert json_ready(report["held_out"]) == run.read_report()["held_out"]
    assert report["drift"]["response_length"]["tuned"]["n"] == 2
    assert evaluate(str(run.path))["drift"]["response_length"]["tuned"]["n"] == 3


def test_the_provenance_of_a_run_from_python_names_the_program_without_its_arguments(overrides, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["study.py", "--token=secret"])
    run = train(load_config(overrides))
    provenance = run.read_provenance()
    assert "command" not in provenance
    assert provenance["program"].endswith(" study.py")
    run.config.write_text("algorithm: [", encoding="utf-8")
    with pytest.raises(UserError, match=r"begun by prefopt.train\(config\) in: .*to_yaml\(config\)"):
        read_config(run.config)


def test_a_mistake_in_a_configuration_that_was_changed_by_hand_is_told(overrides):
    config = load_config(overrides)
    config.trainer.keep_best = "loss"
    with pytest.raises(UserError, match=r"set trainer\.eval_every"):
        train(config)
    config.trainer.keep_best = None
    config.trainer.log_every = 0
    with pytest.raises(UserError, match=r"trainer\.log_every: must be >= 1"):
        train(config)
    assert not Path(config.run.root).exists()


@pytest.mark.parametrize(
    ("group", "name", "value", "told"),
    [
        ("optim", "lr", 1.0, r"optim\.lr: no such setting\. Did you mean optim\.learning_rate"),
        ("algorithm", "betta", 9, r"algorithm\.betta: no such setting\. Did you mean algorithm\.beta"),
        ("optim", "learning_rate", "abc", r"^the configuration: optim\.learning_rate: Value 'abc'"),
        ("run", "name", None, r"run\.name: must be a name"),
        ("trainer", "callbacks", None, r"trainer\.callbacks: must be a list of module:Class, found None"),
    ],
)
def test_a_value_that_no_setting_can_have_is_told_by_its_name(overrides, group, name, value, told):
    config = load_config(overrides)
    setattr(getattr(config, group), name, value)
    with pytest.raises(UserError, match=told):
        train(config)
    assert not Path(config.run.root).exists()


@pytest.mark.parametrize("callbacks", [None, Stopper()])
def test_callbacks_are_a_list(overrides, callbacks):
    with pytest.raises(UserError, match="callbacks: must be a list, found"):
        train(load_config(overrides), callbacks=callbacks)


def test_overrides_are_a_list(overrides, tmp_path):
    for call in (load_config, lambda text: evaluate(tmp_path, text)):
        with pytest.raises(UserError, match=r"must be a list of settings, found the text 'trainer\.max_steps=3'"):
            call("trainer.max_steps=3")


def test_paths_and_numpys_numbers_are_values_like_others(overrides):
    config = load_config(overrides)
    plain = with_names(config, OwnCode())
    config.data.train = Path(config.data.train)
    config.run.seed, config.optim.learning_rate = np.int64(config.run.seed), np.float64(config.optim.learning_rate)
    assert with_names(config, OwnCode()) == plain
    assert to_yaml(config) == to_yaml(plain)


@pytest.mark.parametrize("engine", ["shared_prefix", "trl"])
def test_a_loss_that_is_written_out_trains_as_trls_to_the_last_bit(overrides, engine):
    settings = [*overrides, "trainer.eval_every=3", f"engine={engine}", "trainer.gradient_accumulation_steps=2"]
    plain = train(load_config([*settings, "run.name=trl"]))
    own = train(load_config([*settings, "run.name=own"]), loss=sigmoid)
    assert losses_of(own) == losses_of(plain)
    assert any(split == "held_out" for split, _ in losses_of(own))
    assert (own.model / "model.safetensors").read_bytes() == (plain.model / "model.safetensors").read_bytes()


def test_another_loss_is_what_is_trained_and_held_out(overrides):
    seen = []

    def twice(pairs):
        seen.append(pairs)
        return 2 * sigmoid(pairs)

    settings = [*overrides, "trainer.eval_every=1", "trainer.max_steps=1", "optim.max_grad_norm=0"]
    plain, own = (
        losses_of(train(load_config([*settings, f"run.name={name}"]), loss=loss))
        for name, loss in (("plain", None), ("twice", twice))
    )
    by_split = dict(plain)
    assert dict(own)[None] == pytest.approx(2 * by_split[None], rel=1e-6)
    assert dict(own)["held_out"] > 1.5 * by_split["held_out"]
    for pairs in seen:
        assert all(value.shape == pairs.chosen_logps.shape for value in pairs[1:])
        assert (pairs.chosen_lengths > 0).all()
        assert not pairs.ref_chosen_logps.requires_grad
    assert seen[0].chosen_logps.requires_grad


@pytest.mark.parametrize(
    ("loss", "found"), [(lambda pairs: sigmoid(pairs).mean(), r"\(\)"), (lambda pairs: 0.5, "float")]
)
def test_a_loss_that_is_not_one_per_pair_is_refused(overrides, loss, found):
    with pytest.raises(UserError, match=rf"one loss per pair, of shape \(4,\), found {found}\."):
        train(load_config(overrides), loss=loss)


@pytest.mark.parametrize(
    "loss",
    [
        lambda pairs: pairs.chosen_logps.detach(),
        lambda pairs: pairs.chosen_logps > 0,
        lambda pairs: pairs.chosen_lengths,
    ],
)
def test_a_loss_that_does_not_depend_on_the_policy_is_refused(overrides, loss):
    with pytest.raises(UserError, match=r"must be computed from pairs\.chosen_logps or pairs\.rejected_logps"):
        train(load_config(overrides), loss=loss)


def test_a_loss_that_changes_what_it_gets_changes_no_other_number(overrides):
    def spoils(pairs):
        losses = sigmoid(pairs)
        for name in ("ref_chosen_logps", "ref_rejected_logps", "chosen_lengths", "rejected_lengths"):
            getattr(pairs, name).mul_(2)
        return losses

    settings = [*overrides, "trainer.eval_every=2"]
    clean, spoilt = (
        train(load_config([*settings, f"run.name={loss.__name__}"]), loss=loss).read_records()
        for loss in (sigmoid, spoils)
    )
    for record in (*clean, *spoilt):
        for name in ("time_s", "training_s"):
            record.pop(name, None)
    assert clean == spoilt


def test_a_run_does_not_go_on_with_another_loss_or_other_callbacks(overrides):
    config = load_config(overrides)
    run = train(config, loss=sigmoid, callbacks=[Listener()])
    name = f"{__name__}:sigmoid"
    assert read_config(run.config).algorithm.loss_function == name
    with pytest.raises(UserError, match=rf"algorithm.loss_function: {name} -> None; trainer.callbacks: .*Listener"):
        train(config)
    assert losses_of(train(config, loss=sigmoid, callbacks=[Listener()])) == losses_of(run)


def test_a_callback_hears_the_exact_numbers_and_can_stop(overrides):
    listener = Listener()
    run = train(load_config([*overrides, "trainer.eval_every=2"]), callbacks=[listener])
    assert listener.steps == [1, 2, 3, 4, 5, 6]
    assert [(None, loss) for loss in listener.losses] == [row for row in losses_of(run) if row[0] is None]
    assert listener.held_out == [loss for split, loss in losses_of(run) if split == "held_out"]


@pytest.mark.parametrize("algorithm", ["dpo", "sft"])
def test_a_callback_can_ask_for_an_evaluation_where_none_is_planned(overrides, tmp_path, algorithm):
    settings = overrides
    if algorithm == "sft":
        rows = write_rows(tmp_path / "sft.jsonl", read_rows(STUDY / "sft_train.jsonl", 14))
        settings = [*overrides, "algorithm=sft", f"data.train={rows}", "data.held_out=null"]
    planned = train(load_config([*settings, "trainer.eval_every=2", "run.name=planned"]))
    asked = train(load_config([*settings, "run.name=asked"]), callbacks=[Evaluator])
    assert any(split == "held_out" for split, _ in losses_of(asked))
    assert losses_of(asked) == losses_of(planned)


def test_a_callback_that_asks_for_an_evaluation_of_nothing_is_told_what_to_set(overrides):
    config = load_config([*overrides, "data.held_out=null", "data.held_out_fraction=0"])
    with pytest.raises(UserError, match=r"asks to evaluate after step 2, but nothing is held out: set data\.held_out"):
        train(config, callbacks=[Evaluator])


@pytest.mark.parametrize("length", [["trainer.max_steps=3"], ["trainer.max_steps=null", "trainer.num_epochs=0.5"]])
def test_no_callback_trains_past_the_last_step(overrides, length):
    settings = [*overrides, *length, "trainer.eval_every=2", "trainer.save_every=1", "optim.scheduler=constant"]
    plain = train(load_config([*settings, "run.name=plain"]))
    own = train(load_config([*settings, "run.name=own"]), callbacks=[GoesOn])
    assert losses_of(own) == losses_of(plain)
    assert own.read_report()["run"]["steps"] == plain.read_report()["run"]["steps"] < 6
    assert (own.model / "model.safetensors").read_bytes() == (plain.model / "model.safetensors").read_bytes()


def test_no_callback_takes_back_the_stop_of_another(overrides):
    run = train(load_config([*overrides, "trainer.save_every=1"]), callbacks=[Stopper, GoesOn])
    assert run.read_report()["run"]["steps"] == 1


def die(*_):
    raise RuntimeError("the attempt dies")


@pytest.mark.parametrize(
    ("turn", "steps"),
    [("on_step_end", 3), ("on_log", 3), ("on_substep_end", 3), ("on_evaluate", 4), ("on_save", 5)],
)
@pytest.mark.parametrize("death", ["in on_train_end", "before the model is sealed"])
def test_a_run_that_a_callback_has_ended_trains_no_further_when_it_dies_before_its_model(
    overrides, monkeypatch, turn, steps, death
):
    settings = [*overrides, "trainer.eval_every=4", "trainer.save_every=5", "trainer.gradient_accumulation_steps=2"]
    config = load_config([*settings, "trainer.per_device_batch_size=2"])
    callback = EndsOnce(turn, 3, *([die] if death == "in on_train_end" else []))
    with monkeypatch.context() as patched:
        if death == "before the model is sealed":
            patched.setattr("prefopt.training.training.finish_model", die)
        with pytest.raises(RuntimeError, match="the attempt dies"):
            train(config, callbacks=[callback])
    run = RunDirectory.of(config)
    losses = losses_of(run)
    assert not run.model.exists()
    train(config, callbacks=[EndsOnce(turn, 99)])
    assert losses_of(run) == losses
    assert run.read_report()["run"]["steps"] == run.read_status()["step"] == steps
    weights = f"checkpoints/step-{steps}/model.safetensors"
    assert (run.model / "model.safetensors").read_bytes() == (run.path / weights).read_bytes()


def test_a_run_that_a_callback_has_ended_trains_on_when_its_length_is_raised(overrides):
    settings = [*overrides, "optim.scheduler=constant"]
    plain = train(load_config([*settings, "trainer.max_steps=8", "run.name=plain"]))
    train(load_config([*settings, "run.name=raised"]), callbacks=[EndsOnce("on_step_end", 3)])
    longer = load_config([*settings, "run.name=raised", "trainer.max_steps=8"])
    assert losses_of(train(longer, callbacks=[EndsOnce("on_step_end", 99)])) == losses_of(plain)


def test_callbacks_and_a_loss_that_settings_name_are_imported_from_the_current_folder(
    overrides, own_metrics, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    code = "import sys\nfrom transformers import TrainerCallback\nfrom tests.integration.test_api import sigmoid\n"
    code += "class Tell(TrainerCallback):\n    def on_step_end(self, args, state, control, **_):\n"
    code += "        print('told', state.global_step)\n"
    code += "from prefopt.evaluation.metrics import NUMBER, Better, Metric\n"
    code += "from prefopt.evaluation.summary import register\n"
    code += (
        "register(Metric('e', 'E', 'e', 'Letters e', NUMBER, Better.lower), of_answers=lambda a: a.text.count('e'))\n"
    )
    (tmp_path / "named_code.py").write_text(code, encoding="utf-8")
    named = ["trainer.callbacks=[named_code:Tell]", "algorithm.loss_function=named_code:sigmoid"]
    train_command([*overrides, *named])
    assert "told 6" in capsys.readouterr().out
    assert RunDirectory.of(load_config(overrides)).read_report()["drift"]["e"]["tuned"]["n"] == 3
    (tmp_path / "named_code.py").write_text("raise RuntimeError('must not be imported')", encoding="utf-8")
    del sys.modules["named_code"]
    run = load_config(overrides).run
    evaluate_command([f"run={run.root}/{run.name}"])
    assert "named_code" not in sys.modules


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["trainer.callbacks=[nowhere_to_be_found:Tell]"], "ModuleNotFoundError"),
        (["trainer.callbacks=[json:Tell]"], 'python -c "import json; json.Tell"'),
        (["trainer.callbacks=[json:JSONDecoder]"], "must be a class that extends transformers.TrainerCallback"),
        ([f"trainer.callbacks=[{__name__}:Demanding]"], "cannot be built without arguments"),
        (["trainer.callbacks=[json]"], "must be module:name, such as my_module:MyName, found 'json'"),
        (["algorithm.loss_function=json"], "must be module:name"),
        (["algorithm.loss_function=json:decoder"], "must be a function, found module"),
        (["algorithm.loss_function=json:loads", "algorithm.loss_type=ipo"], "algorithm.loss_type=ipo has no effect"),
        (["algorithm.loss_function=json:loads", "reference=live"], "Set reference=store"),
    ],
)
def test_code_that_is_not_there_or_is_something_else_is_one_sentence(overrides, fails, settings, told):
    assert told in fails(train_command, [*overrides, *settings])
    assert not Path(load_config(overrides).run.root).exists()


def test_an_algorithm_without_pairs_takes_no_loss(overrides):
    config = load_config(["+experiment=sft_brand_voice"])
    with pytest.raises(UserError, match="algorithm=sft takes none"):
        train(config, loss=sigmoid)
    config = load_config([*overrides, "algorithm.loss_function=json:loads"])
    with pytest.raises(UserError, match=r"algorithm.loss_function=json:loads names another one"):
        train(config, loss=sigmoid)


def test_a_metric_stands_in_the_report_in_the_comparison_and_in_the_summary_of_wandb(
    own_metrics, overrides, tmp_path, capsys
):
    wins = Metric(
        "wide", "Wide wins", "wide", "Wide wins", PERCENT, Better.higher, note="wider than 0", trap="A trap."
    )
    register(wins, of_pairs=lambda pairs: pairs.margins > 0)
    register(Metric("spread", "Spread", "spread", "Spread", NUMBER, Better.lower), of_pairs=lambda p: p.margins)
    letters = Metric("letters", "Letters", "letters", "Letters per answer", NUMBER, Better.lower)
    register(letters, of_answers=lambda answer: len(answer.text))
    report = (run := train(load_config(overrides))).read_report()
    for model in ("base", "tuned"):
        found = report["held_out"][model]
        assert found["wide"] == found["preference_accuracy"]
        assert found["spread"] == found["mean_margin"]
        assert report["drift"]["letters"][model]["n"] == 3
        assert len(report["drift"]["letters"][model]["ci95"]) == 2
    shown = (run.report / "report.md").read_text(encoding="utf-8")
    assert all(words in shown for words in ("Wide wins", "wider than 0", "A trap.", "Spread", "Letters"))
    assert from_report(report)["wide"].value == report["held_out"]["tuned"]["wide"]["value"]
    in_wandb = _values(report["held_out"], "held_out") | _values(report["drift"], "drift")
    assert from_summary(in_wandb)["letters"].value == report["drift"]["letters"]["tuned"]["value"]
    compare([str(run.path), "--rank-by", "wide", "--no-html", "--output", str(tmp_path)])
    assert {"wide", "wide_low", "letters"} <= set((tmp_path / "compare.csv").read_text().splitlines()[0].split(","))


def test_a_metric_of_a_taken_name_or_without_one_function_or_one_value_per_pair_is_refused(own_metrics):
    def metric(key):
        return Metric(key, "M", "m", "M", NUMBER, Better.higher)

    for key in ("loss", "tuned", "no name"):
        with pytest.raises(UserError, match="that prefopt does not use"):
            register(metric(key), of_answers=len)
    with pytest.raises(UserError, match="either of_pairs or of_answers"):
        register(metric("mine"))
    scores = Scores(np.ones(2), np.ones(2))
    for values in (1.0, [1.0], ["a", "b"]):
        register(metric("mine"), of_pairs=lambda pairs, values=values: values)
        with pytest.raises(UserError, match=r"metric mine: .* of shape \(2,\), found"):
            summary.OF_PAIRS["mine"](PairScores(scores, scores))
    register(metric("mine"), of_answers=len)
    assert "mine" not in summary.OF_PAIRS
    assert [each.key for each in metrics.METRICS].count("mine") == 1


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("unit", "percent", "unit must be a Unit, such as NUMBER or PERCENT, found 'percent'"),
        ("better", "higher", r"better must be a member of Better, such as Better.higher, found 'higher'"),
        ("label", None, "label must be text, found None"),
    ],
)
def test_a_metric_with_a_field_of_another_type_is_refused_when_it_is_registered(own_metrics, field, value, told):
    metric = replace(Metric("mine", "M", "m", "M", NUMBER, Better.higher), **{field: value})
    with pytest.raises(UserError, match=told):
        register(metric, of_answers=len)
    with pytest.raises(UserError, match="its function cannot be called, found 3"):
        register(Metric("mine", "M", "m", "M", NUMBER, Better.higher), of_pairs=3)


def test_a_metric_that_changes_what_it_gets_changes_no_other_number(own_metrics):
    def gap(pairs):
        difference = pairs.chosen.logps
        difference -= pairs.rejected.logps
        return difference

    def cut(answer):
        answer.ids.clear()
        return 0.0

    register(Metric("widest", "G", "g", "G", NUMBER, Better.higher), of_pairs=gap)
    register(Metric("cut", "C", "c", "C", NUMBER, Better.higher), of_answers=cut)
    pairs = PairScores(Scores(np.array([3.0, 2.0]), np.ones(2)), Scores(np.array([1.0, 1.0]), np.ones(2)))
    assert summary.OF_PAIRS["widest"](pairs).tolist() == [2.0, 1.0]
    assert pairs.chosen.logps.tolist() == [3.0, 2.0]
    answer = Answer([1, 2], finished=True)
    summary.OF_ANSWERS["cut"]([answer])
    assert answer.ids == [1, 2]


def test_ranks_that_torchrun_started_take_one_run(overrides, monkeypatch):
    monkeypatch.setattr(group, "_was_stopped", True)
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(UserError, match="its ranks can be connected once"):
        train(load_config(overrides))


def test_own_code_is_part_of_the_identity_only_where_it_is_named():
    default = load_config(["+experiment=dpo_brand_voice"])
    assert default.run.name == "dpo_brand_voice-2d1b0fca"
    assert "callbacks" not in identity(default)["trainer"]
    names = {default.run.name}
    for setting in ("trainer.callbacks=[mine:Tell]", "algorithm.loss_function=mine:loss"):
        names.add(load_config(["+experiment=dpo_brand_voice", setting]).run.name)
    assert len(names) == 3


def test_the_page_runs_as_it_stands(own_metrics, tiny_model, pair_files, tmp_path, monkeypatch):
    """Its settings, and then those of a quick run; a block that begins with the name of a file is that file."""
    quick = [each for each in quick_run(tiny_model, pair_files, tmp_path / "runs") if not each.startswith("run.name")]
    quick += ["evaluation.neutral_texts=null", "trainer.max_steps=5"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("prefopt.config.load.load_config", lambda overrides: load_config([*overrides, *quick]))
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    for language, block in blocks:
        if language == "bash":
            python, _, module, *arguments = shlex.split(block)
            assert (python, module) == ("python", "prefopt.train")
            train_command([*arguments, *quick])
        elif named := re.match(r"# (\w+\.py)\n", block):
            (tmp_path / named.group(1)).write_text(block, encoding="utf-8")
        else:
            exec(compile(block, "docs/api.md", "exec"), {"__name__": "__main__"})
    assert len(blocks) == 8
    runs = {path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()}
    assert {"voice-1", "voice-2", "cautious", "stops", "measured"} < runs
    assert len(runs) == 7


def test_the_page_names_every_field_of_a_losss_pairs():
    assert {field for field in ScoredPairs._fields if f"`{field}`" not in PAGE} == set()
