"""Renders many plain chats with one setup of their chat template: the same text as `apply_chat_template`, sooner.

Transformers copies each message and builds the template's surroundings anew for each chat, which takes longer than the
template itself. Neither matters for messages of a role and a content alone.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prefopt.data.messages import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN = {"role", "content"}


def are_plain(chats: Sequence[Sequence[Message]]) -> bool:
    """Returns whether all messages have a role and a content, both text, and nothing else."""
    for messages in chats:
        for message in messages:
            if type(message) is not dict or message.keys() != PLAIN:
                return False
            if type(message["content"]) is not str or type(message["role"]) is not str:
                return False
    return True


def render_plain(
    tokenizer: "PreTrainedTokenizerBase", chats: Sequence[list[Message]], *, add_generation_prompt: bool
) -> list[str] | None:
    """Returns the text of each chat; None if the chats are not plain, or the tokenizer renders in its own way.

    Raises:
        Exception: As the template raises it.
    """
    # Imported here because it is slow, and code that only reads records imports this module without need for it.
    from transformers import PreTrainedTokenizerBase
    from transformers.utils.chat_template_utils import _compile_jinja_template

    kind = type(tokenizer)
    is_usual = all(
        getattr(kind, name, None) is getattr(PreTrainedTokenizerBase, name)
        for name in ("apply_chat_template", "get_chat_template")
    )
    if not is_usual or not are_plain(chats):
        return None
    template = _compile_jinja_template(tokenizer.get_chat_template())
    given: dict[str, Any] = {
        **template.globals,
        "tools": None,
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
        **tokenizer.special_tokens_map,
    }
    environment, names = template.environment, dict.fromkeys(template.globals)
    context = environment.context_class(environment, given, template.name, template.blocks, globals=names)
    texts = []
    for messages in chats:
        given["messages"] = messages
        texts.append(environment.concat(template.root_render_func(context)))
        context.vars.clear()  # what the template has set
        context.exported_vars.clear()
    return texts
