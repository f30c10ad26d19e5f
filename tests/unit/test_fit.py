"""What fits on a device: found by trial, the same on all ranks, kept with the run, without a trace of the trial."""

import threading
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from prefopt.config.load import load_config
from prefopt.process.errors import UserError
from prefopt.training import fit
from prefopt.training.fit import CPU_TOKENS, MIN_STEPS, DeviceTrial, Fit, Workload, find_fit, find_largest
from tests.numerics.test_dpo_trainer import build

BOTH = ["trainer.tokens_per_device=auto", "trainer.gradient_checkpointing=auto"]


def work(lengths: list[int], *, padded: bool = False, per_forward: int = 4, forwards: int = 1) -> Workload:
    sources = [f"pairs.jsonl:{row + 1}" for row in range(len(lengths))]
    return Workload(np.array(lengths), padded, per_forward, forwards, sources)


class Card:
    """A device on which a forward fits up to a number of tokens, more with checkpointing; notes what is tried."""

    def __init__(self, work: Workload, limit: int, with_checkpointing: int | None = None) -> None:
        self._work, self._limits = work, (limit, limit if with_checkpointing is None else with_checkpointing)
        self.tried: list[tuple[int, bool]] = []

    def __call__(self, rows: list[int], checkpointing: bool) -> bool:
        cost = self._work.cost(rows)
        self.tried.append((cost, checkpointing))
        return cost <= self._limits[checkpointing]


@pytest.mark.parametrize("limit", [100, 101, 399, 400, 401, 1000, 1313, 9999, 10_000, 20_000])
def test_the_largest_number_that_fits_is_found_within_a_sixteenth_and_in_few_trials(limit):
    tried: list[int] = []

    def fits(number: int) -> bool:
        tried.append(number)
        return number <= limit

    found = find_largest(fits, 100, 10_000)
    most = min(limit, 10_000)
    assert found is not None
    assert most * (1 - 1 / fit.RESOLUTION) - 1 <= found <= most
    assert max(tried) <= 2 * most
    assert len(tried) <= 14


def test_nothing_fits_where_the_least_does_not():
    assert find_largest(lambda number: False, 100, 10_000) is None
    assert find_largest(lambda number: True, 100, 100) == 100


@pytest.mark.parametrize("padded", [False, True])
def test_the_budget_is_the_largest_that_fits_with_the_costliest_examples(padded):
    rng = np.random.default_rng(0)
    data = work(rng.integers(50, 400, 20_000).tolist(), padded=padded)
    card = Card(data, 30_000)
    found = find_fit(data, card, load_config(["trainer.tokens_per_device=auto"]))
    assert found.tokens is not None
    assert 30_000 * (1 - 1 / 16) - 800 <= found.tokens <= 30_000
    assert data.cost(data.costliest(found.tokens)) == found.tokens, "no batch may hold more than was tried"
    assert not found.checkpointing
    assert not any(checkpointing for _, checkpointing in card.tried)


def test_an_epoch_keeps_some_steps_however_large_the_device():
    data = work([300] * 1000, forwards=2)
    found = find_fit(data, Card(data, 10**9), load_config(["trainer.tokens_per_device=auto"]))
    assert found.tokens == 300 * 1000 // (MIN_STEPS * 2) == 7500


@pytest.mark.parametrize(
    ("plain", "recomputed", "expected"),
    [(4000, 9000, (4000, False)), (300, 9000, (300, False)), (299, 9000, (9000, True)), (299, 300, (300, True))],
)
def test_activations_are_recomputed_only_where_the_longest_example_does_not_fit(plain, recomputed, expected):
    data = work([300] + [100] * 5000)
    found = find_fit(data, Card(data, plain, recomputed), load_config(BOTH))
    assert found.tokens is not None
    assert expected[0] * 15 / 16 - 100 <= found.tokens <= expected[0]
    assert found.checkpointing is expected[1]


@pytest.mark.parametrize(
    ("settings", "cost"), [(["trainer.tokens_per_device=700"], 600), (["trainer.per_device_batch_size=5"], 1500)]
)
def test_a_given_size_is_tried_on_the_longest_examples_that_share_a_forward(settings, cost):
    data = work([300] * 10 + [20] * 50, per_forward=5)
    config = load_config(["trainer.gradient_checkpointing=auto", *settings])
    large, small = Card(data, cost), Card(data, cost - 1, cost)
    assert not find_fit(data, large, config).checkpointing
    assert find_fit(data, small, config).checkpointing
    assert large.tried == [(cost, False)]
    assert small.tried == [(cost, False), (cost, True)]


@pytest.mark.parametrize(
    ("settings", "remedies"),
    [
        (["trainer.tokens_per_device=auto"], "trainer.gradient_checkpointing=true, or peft=lora"),
        (
            BOTH,
            "Set peft=lora, or data.max_length=175; or on several GPUs trainer.tokens_per_device=null "
            "trainer.gradient_checkpointing=true deepspeed=zero3.",
        ),
        (["trainer.gradient_checkpointing=auto"], "Set trainer.per_device_batch_size=2, or peft=lora"),
        ([*BOTH, "peft=lora"], "Set data.max_length=175; or on several GPUs"),
    ],
)
def test_a_longest_example_that_does_not_fit_is_named_with_remedies(settings, remedies):
    data = work([100, 350, 100, 100])
    with pytest.raises(UserError, match=r"pairs\.jsonl:2 \(350 tokens\).* does not fit on a device") as refused:
        find_fit(data, Card(data, 99), load_config(settings))
    assert remedies in str(refused.value)


def on_two_ranks(monkeypatch: pytest.MonkeyPatch, run: Any) -> list[Any]:
    """Runs `run(rank)` on two ranks, threads here, whose `agree` is the largest of both as in `distributed.group`."""
    barrier, said, results = threading.Barrier(2, timeout=20), {}, {}

    def agree(*values: float) -> list[float]:
        me = threading.current_thread().name
        barrier.wait()
        said[me] = values
        barrier.wait()
        return [max(pair) for pair in zip(*said.values(), strict=True)]

    def call(rank: int) -> None:
        try:
            results[rank] = run(rank)
        except UserError as error:
            results[rank] = str(error)

    monkeypatch.setattr(fit, "agree", agree)
    threads = [threading.Thread(target=call, args=(rank,), name=str(rank)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[rank] for rank in (0, 1)]


def test_two_ranks_take_the_smaller_budget_and_both_recompute_where_one_must(monkeypatch):
    data, config = work([300] + [100] * 5000, forwards=2), load_config(BOTH)
    cards = [Card(data, 9000), Card(data, 5000)]
    first, second = on_two_ranks(monkeypatch, lambda rank: find_fit(data, cards[rank], config))
    assert first == second == find_fit_alone(monkeypatch, data, Card(data, 5000), config)
    cards = [Card(data, 9000), Card(data, 200, 5000)]
    first, second = on_two_ranks(monkeypatch, lambda rank: find_fit(data, cards[rank], config))
    assert first == second
    assert first.checkpointing
    assert first.tokens is not None
    assert first.tokens <= 5000


def find_fit_alone(monkeypatch: Any, data: Workload, card: Card, config: Any) -> Fit:
    monkeypatch.setattr(fit, "agree", lambda *values: list(values))
    return find_fit(data, card, config)


@pytest.mark.parametrize("settings", [BOTH, ["trainer.gradient_checkpointing=auto"]])
def test_a_rank_on_which_nothing_fits_ends_both_with_the_same_words(monkeypatch, settings):
    data, config = work([300] + [100] * 5000, forwards=2), load_config(settings)
    cards = [Card(data, 9000), Card(data, 99)]
    first, second = on_two_ranks(monkeypatch, lambda rank: find_fit(data, cards[rank], config))
    assert first == second
    assert "does not fit on a device" in first


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [([300] * 5000, CPU_TOKENS), ([9000] + [300] * 5000, 9000), ([300] * 100, 300 * 100 // MIN_STEPS)],
)
def test_a_cpu_has_a_fixed_budget_that_holds_the_longest_example_and_leaves_steps(lengths, expected):
    assert fit.fit_on_cpu(work(lengths), load_config(BOTH)) == Fit(expected, checkpointing=False)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("trainer.tokens_per_device='4096'", 4096),
        ("trainer.tokens_per_device=${oc.env:SIZE}", 512),
        ("trainer.gradient_checkpointing=yes", True),
        ("trainer.gradient_checkpointing=0", False),
        ("trainer.gradient_checkpointing=${oc.env:CHECKPOINTING}", True),
    ],
)
def test_values_are_converted_as_those_of_other_settings(setting, expected, monkeypatch):
    monkeypatch.setenv("SIZE", "512")
    monkeypatch.setenv("CHECKPOINTING", "true")
    name = setting.partition("=")[0].removeprefix("trainer.")
    found = getattr(load_config([setting]).trainer, name)
    assert (type(found), found) == (type(expected), expected)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("trainer.tokens_per_device=automatic", "must be a whole number, null or auto, found 'automatic'"),
        ("trainer.tokens_per_device=0", "must be >= 1, auto or null, found 0"),
        ("trainer.tokens_per_device=true", "must be a whole number, null or auto, found True"),
        ("trainer.tokens_per_device=1.5", "must be a whole number, null or auto, found 1.5"),
        ("trainer.gradient_checkpointing=maybe", "must be true, false or auto, found 'maybe'"),
        ("trainer.gradient_checkpointing=null", "must be true, false or auto"),
        ("algorithm.loss_type=aot", "look at a micro-batch as a whole"),
        ("trainer.batch_size=8", "a number of pairs or a budget of tokens"),
    ],
)
def test_other_values_are_refused_with_the_allowed_ones(setting, message):
    with pytest.raises(UserError, match=message):
        load_config([*BOTH, setting])


@pytest.mark.parametrize("setting", BOTH)
def test_sharded_weights_cannot_be_tried(setting, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(UserError, match=r"auto with deepspeed\.stage=2: .*nothing can be tried before"):
        load_config([setting, "deepspeed=zero2"])


class FullDevice:
    """Stands in for the memory of a CUDA device: forwards above a number of tokens find it full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, trainer: Any, limit: int) -> None:
        self.fractions: list[float] = []
        self.sizes: list[int] = []
        self.saw_gradients: list[bool] = []

        @contextmanager
        def fork_rng(devices: Any) -> Any:
            state = torch.get_rng_state()
            try:
                yield
            finally:
                torch.set_rng_state(state)

        def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            tokens = kwargs["pair_layout"].num_tokens if "pair_layout" in kwargs else kwargs["input_ids"].numel()
            self.sizes.append(tokens)
            self.saw_gradients.append(all(p.grad is not None for p in trainer.model.parameters() if p.requires_grad))
            torch.rand(1)
            if tokens > limit:
                raise torch.OutOfMemoryError("CUDA out of memory")

        trainer.model.register_forward_pre_hook(look, with_kwargs=True, prepend=True)
        monkeypatch.setattr(torch.random, "fork_rng", fork_rng)
        monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda f, device: self.fractions.append(f))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30, 2**31))
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2**30)
        for name in ("reset_peak_memory_stats", "synchronize"):
            monkeypatch.setattr(torch.cuda, name, lambda device: None)


@pytest.mark.parametrize("settings", [[], ["engine=trl", "reference=live"], ["peft=lora"]])
def test_a_trial_leaves_no_trace_and_its_budget_holds_in_training(overrides, monkeypatch, settings):
    trainer = build(load_config([*overrides, *settings]))
    monkeypatch.setattr(fit, "MIN_STEPS", 1)
    weights = [p.detach().clone() for p in trainer.model.parameters()]
    device, state = FullDevice(monkeypatch, trainer, 1500), torch.get_rng_state()
    with DeviceTrial(trainer) as trial:
        found = find_fit(Workload.of(trainer), trial, load_config([*overrides, *settings, *BOTH]))
        assert trial.describe_memory() == "1.0 of 2.0 GiB, of which 10% are left free"
    assert found.tokens is not None
    assert 1000 < found.tokens <= 1500
    assert found.tokens in device.sizes
    assert max(device.sizes) > 1500, "more was tried than fits"
    assert all(device.saw_gradients), "gradients are held while trying"
    assert device.fractions == [1 - fit.HEADROOM, 1.0]
    assert all(torch.equal(a, b) for a, b in zip(trainer.model.parameters(), weights, strict=True))
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert not trainer._metrics["train"]
    assert trainer.window.count_tokens() == 0
    assert not trainer.model.is_gradient_checkpointing


def test_a_trial_that_needs_it_leaves_checkpointing_to_its_result(overrides, monkeypatch):
    trainer = build(load_config(overrides))
    trial_of = FullDevice(monkeypatch, trainer, 10**9)

    def try_rows(rows: list[int]) -> None:
        if not trainer.model.is_gradient_checkpointing:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer, "try_rows", try_rows)
    config = load_config([*overrides, "trainer.gradient_checkpointing=auto"])
    with DeviceTrial(trainer) as trial:
        found = find_fit(Workload.of(trainer), trial, config)
    assert found == Fit(None, checkpointing=True)
    assert not trainer.model.is_gradient_checkpointing
    assert trial_of.fractions[-1] == 1.0


@pytest.mark.parametrize(("optimizer", "expected"), [("adamw_torch", 8), ("sgd", 0)])
def test_the_optimizers_states_are_counted_as_it_makes_them(overrides, optimizer, expected):
    trainer = build(load_config([*overrides, f"optim.name={optimizer}"]))
    assert fit.count_state_bytes(trainer) == pytest.approx(expected, abs=0.01)
