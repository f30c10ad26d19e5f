"""FlashAttention 3 and 4 are tried before they are trusted, and torch's own kernels are back where they fail."""

import importlib
import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import attention

from prefopt.config.choices import Precision
from prefopt.config.load import load_config
from prefopt.models.shared_prefix import choice, flash
from prefopt.models.shared_prefix.attention import split_attention
from tests.tiny_models import SUPPORTED, build

CUDA = torch.device("cuda")
CPU = torch.device("cpu")

needs_seam = pytest.mark.skipif(
    not hasattr(attention, "activate_flash_attention_impl"),
    reason="torch 2.13 and later let flash kernels be replaced",
)
pytestmark = needs_seam


class Handle:
    """What a registered implementation returns to torch."""

    def __init__(self, log: list[str], name: str) -> None:
        self._log, self._name = log, name

    def remove(self) -> None:
        self._log.append(f"-{self._name}")


@pytest.fixture
def card(monkeypatch):
    """A Hopper card on which both implementations are installed, with stand-ins in torch's own registry."""
    log: list[str] = []

    def register(name: str) -> Any:
        def activate() -> Handle:
            log.append(f"+{name}")
            return Handle(log, name)

        attention.register_flash_attention_impl(name, register_fn=activate)

    registry = importlib.import_module("torch.nn.attention._registry")
    monkeypatch.setattr(registry, "_FLASH_ATTENTION_IMPLS", {})
    for name in ("FA3", "FA4"):
        register(name)
    monkeypatch.setattr(flash, "_can_be_found", lambda module: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    yield SimpleNamespace(log=log, register=register)
    flash.activate(None)


@pytest.fixture
def varlen(monkeypatch):
    """Runs the engine on the CPU as if each of `forms` had been chosen in turn; the forms are all the split one."""

    def install(forms: dict[str | None, str], differs: dict[str, str] | None = None) -> None:
        def choose(*_: Any) -> tuple[str, str]:
            return forms[attention.current_flash_attention_impl()], "agrees"

        monkeypatch.setattr("prefopt.models.shared_prefix.engine.choose_form", choose)
        monkeypatch.setattr("prefopt.models.shared_prefix.attention.varlen_attention", split_attention)
        monkeypatch.setattr(flash, "installed", lambda device: ["FA3", "FA4"])
        wrong = differs or {}
        monkeypatch.setattr(
            flash, "differs_with_window", lambda device: wrong.get(attention.current_flash_attention_impl() or "")
        )

    return install


@pytest.mark.parametrize(("major", "expected"), [(9, ["FA3", "FA4"]), (10, ["FA4"]), (8, [])])
def test_what_is_tried_follows_from_the_card(card, monkeypatch, major, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
    assert flash.installed(CUDA) == expected
    assert flash.installed(CPU) == []


def test_what_is_not_installed_or_not_registered_is_not_tried(card, monkeypatch):
    monkeypatch.setattr(flash, "_can_be_found", lambda module: module == flash.MODULES["FA4"])
    assert flash.installed(CUDA) == ["FA4"]
    registry = importlib.import_module("torch.nn.attention._registry")
    monkeypatch.setattr(registry, "_FLASH_ATTENTION_IMPLS", {})
    assert flash.installed(CUDA) == []


def test_a_torch_without_the_seam_goes_on_with_its_own_kernels(monkeypatch):
    """torch 2.11 and 2.12 have none of these functions."""
    for name in ("activate", "restore", "current"):
        monkeypatch.delattr(attention, f"{name}_flash_attention_impl")
    monkeypatch.delattr(attention, "list_flash_attention_impls")
    assert flash.installed(CUDA) == []
    flash.activate(None)


def test_the_modules_that_are_looked_for_are_those_that_torch_imports():
    for name in ("fa3", "fa4"):
        register = getattr(importlib.import_module(f"torch.nn.attention._{name}"), f"register_flash_attention_{name}")
        (default,) = register.__defaults__
        assert default.startswith(flash.MODULES[name.upper()])


def test_the_first_that_agrees_is_used_and_said(card, varlen, caplog):
    varlen({"FA3": "varlen", "FA4": "varlen", None: "varlen"})
    with caplog.at_level(logging.INFO):
        engine = choice.share_prompts(build(SUPPORTED["llama"]), load_config([]), CPU)
    assert engine is not None
    assert attention.current_flash_attention_impl() == "FA3"
    assert caplog.messages == [f"engine: shared_prefix, {engine}"]
    assert str(engine).startswith("varlen attention (FA3; agrees; tried")
    choice.share_prompts(build(SUPPORTED["llama"]), load_config([]), CPU)
    assert card.log == ["+FA3"], "a second model finds it activated"


@pytest.mark.parametrize("how", ["differs", "window", "import", "model"])
def test_one_that_fails_is_put_back_with_the_reason_and_the_next_is_tried(card, varlen, caplog, monkeypatch, how):
    varlen(
        {"FA3": "split" if how == "differs" else "varlen", "FA4": "varlen", None: "varlen"},
        {"FA3": "its sliding windows are off by 1"} if how == "window" else None,
    )
    reason = {"differs": "agrees", "window": "windows are off", "import": "no kernels", "model": "log-probs would be"}
    if how == "import":

        def missing() -> None:
            raise RuntimeError("Module 'flash_attn_interface' does not expose FA3: no kernels")

        attention.register_flash_attention_impl("FA3", register_fn=missing)
    if how == "model":
        is_third = {"FA3": 1.0, "FA4": 0.0}
        monkeypatch.setattr(choice, "verify", lambda *_: is_third[attention.current_flash_attention_impl() or ""])
    with caplog.at_level(logging.INFO):
        engine = choice.share_prompts(build(SUPPORTED["llama"]), load_config([]), CPU)
    assert attention.current_flash_attention_impl() == "FA4"
    assert str(engine).startswith("varlen attention (FA4; ")
    first, _ = caplog.messages
    assert first.startswith("engine: FA3 is installed and not used, because ")
    assert reason[how] in first
    assert card.log == (["+FA4"] if how == "import" else ["+FA3", "-FA3", "+FA4"])


def test_where_none_agrees_torchs_own_kernels_are_used(card, varlen, caplog):
    varlen({"FA3": "split", "FA4": "split", None: "varlen"})
    with caplog.at_level(logging.INFO):
        engine = choice.share_prompts(build(SUPPORTED["llama"]), load_config([]), CPU)
    assert attention.current_flash_attention_impl() is None
    assert str(engine).startswith("varlen attention (agrees; tried")
    assert [message.split(" is ")[0] for message in caplog.messages[:2]] == ["engine: FA3", "engine: FA4"]
    assert card.log == ["+FA3", "-FA3", "+FA4", "-FA4"]


def test_running_out_of_memory_is_no_reason_to_try_another(card, varlen, monkeypatch):
    varlen({"FA3": "varlen", "FA4": "varlen", None: "varlen"})

    def verify(*_: Any) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(choice, "verify", verify)
    with pytest.raises(torch.OutOfMemoryError):
        choice._install_on_flash(build(SUPPORTED["llama"]), Precision.bf16, CPU, logging.INFO)


def test_scaled_dot_product_attention_stays_off_the_flash_kernels_while_they_are_compared():
    with flash.independent():
        assert not torch.backends.cuda.flash_sdp_enabled()
        assert torch.backends.cuda.math_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()


def test_windows_that_a_kernel_ignores_are_found(monkeypatch):
    def ignoring(query: Any, key: Any, value: Any, layout: Any, *, window: int | None = None) -> Any:
        return split_attention(query, key, value, layout)

    assert flash.LIMIT < 0.1
    monkeypatch.setattr(flash, "varlen_attention", split_attention)
    assert flash.differs_with_window(CPU) is None
    monkeypatch.setattr(flash, "varlen_attention", ignoring)
    assert "sliding windows are off" in str(flash.differs_with_window(CPU))
