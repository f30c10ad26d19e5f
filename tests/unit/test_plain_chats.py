"""Plain chats rendered together: transformers' own rendering is the oracle."""

from typing import Any

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from prefopt.data.plain_chats import are_plain, render_plain
from prefopt.process.paths import shipped
from tests.unit.test_tokenize import CHATML, build_tokenizer

TEMPLATES = {
    "chatml": CHATML,
    "special tokens": "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] | trim }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}",
    "what is defined": "{% if tools is defined %}T{% endif %}{% if tools %}t{% endif %}{% if documents is none %}D"
    "{% endif %}{% if date is not defined %}-{% endif %}{{ pad_token }}{{ messages | length }}"
    "{{ messages[0].get('name', 'x') if messages else '' }}{{ range(3) | list }}{{ dict(a=1) | tojson }}",
    "state": "{% set ns = namespace(n=0) %}{% macro say(m) %}<{{ m.role }}>{{ m.content }}{% endmacro %}"
    "{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ say(m) }}{{ ns.n }}{% endfor %}{{ strftime_now('%Y') }}",
    "thoughts": "{% for m in messages %}{% if m.reasoning_content is defined %}R{% endif %}"
    "{{ m.content.split('</think>')[-1] }}{% generation %}{{ m.role }}{% endgeneration %}{% endfor %}",
    "refusal": "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ m.content }}{% endfor %}",
}
MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": st.text()})
CHATS = st.lists(st.lists(MESSAGE, max_size=4), min_size=1, max_size=4)


def outcome(render: Any) -> Any:
    try:
        return render()
    except jinja2.TemplateError as error:
        return type(error), str(error)


@pytest.mark.parametrize("name", TEMPLATES)
@given(chats=CHATS, add_generation_prompt=st.booleans())
def test_the_text_is_that_of_transformers(name: str, chats: Any, add_generation_prompt: bool) -> None:
    tokenizer = build_tokenizer(TEMPLATES[name])
    arguments = {"add_generation_prompt": add_generation_prompt}
    expected = outcome(lambda: tokenizer.apply_chat_template(chats, tokenize=False, **arguments))
    assert outcome(lambda: render_plain(tokenizer, chats, **arguments)) == expected


def test_the_shipped_template_is_rendered_alike() -> None:
    tokenizer = AutoTokenizer.from_pretrained(shipped("assets/base_model"))
    chats = [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello\n"}]] * 2
    expected = tokenizer.apply_chat_template(chats, tokenize=False)
    assert render_plain(tokenizer, chats, add_generation_prompt=False) == expected


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user"},
        {"role": "user", "content": None},
        {"role": "user", "content": ["part"]},
        {"role": "assistant", "content": "a", "thinking": "b"},
        {"role": type("Role", (str,), {})("user"), "content": "a"},
    ],
)
def test_other_messages_are_left_to_transformers(message: Any) -> None:
    assert not are_plain([[{"role": "user", "content": "a"}, message]])
    assert render_plain(build_tokenizer(CHATML), [[message]], add_generation_prompt=False) is None


def test_a_tokenizer_that_renders_in_its_own_way_does_so() -> None:
    class Own(PreTrainedTokenizerFast):
        def apply_chat_template(self, *arguments: Any, **more: Any) -> Any:
            return "own"

    tokenizer = build_tokenizer(CHATML)
    tokenizer.__class__ = Own
    assert render_plain(tokenizer, [[{"role": "user", "content": "a"}]], add_generation_prompt=False) is None
