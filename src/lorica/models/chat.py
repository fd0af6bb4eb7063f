"""A tokenizer and its chat template, as the data room asks for them.

A template is a program from elsewhere: it runs in Jinja's immutable sandbox, through transformers' own renderer, which
also reads `{% generation %}` marks.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorica.errors import ModelError
from lorica.models.quiet import first_line

Message = Mapping[str, Any]
Span = tuple[int, int]
SAID = "qzx"
_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class ChatRenderer:
    """Messages (`role`, `content`, ...) to the text that the model reads.  ModelError where the template refuses."""

    template: str
    special: Mapping[str, str]

    def __call__(
        self, messages: Sequence[Message], /, *, add_generation_prompt: bool = False, tools: Sequence[Any] | None = None
    ) -> str:
        return self._rendered(messages, tools, add_generation_prompt=add_generation_prompt)[0]

    def spans(
        self, messages: Sequence[Message], /, *, tools: Sequence[Any] | None = None
    ) -> tuple[str, tuple[Span, ...]] | None:
        """The text and the character spans in it that the assistant says; None for a template without marks."""
        if not _MARK.search(self.template):
            return None
        text, marked = self._rendered(messages, tools, return_assistant_tokens_mask=True)
        return (text, tuple((start, end) for start, end in marked)) if marked else None

    def _rendered(
        self, messages: Sequence[Message], tools: Sequence[Any] | None, **options: bool
    ) -> tuple[str, list[Span]]:
        from jinja2 import TemplateError
        from transformers.utils import chat_template_utils

        render: Any = chat_template_utils.render_jinja_template
        try:
            texts, spans = render(
                conversations=[list(messages)],
                tools=list(tools) if tools else None,
                chat_template=self.template,
                **options,
                **self.special,
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise ModelError(f"the chat template refuses the messages: {first_line(error)}") from error
        return texts[0], spans[0] if spans else []


def renderer(tokenizer: Any) -> ChatRenderer | None:
    """The renderer of a tokenizer's own chat template; None where it has none."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        return None
    return ChatRenderer(template, dict(tokenizer.special_tokens_map))


def turn_end(tokenizer: Any, render: Callable[[Sequence[Message]], str] | None) -> int | None:
    """The added token that a template writes behind what an assistant says, as <|im_end|> of ChatML; None where it is
    none.  Chats are taught to end with it, while the end token of many bases is another (Qwen2.5's <|endoftext|>)."""
    if render is None:
        return None
    try:
        text = render([{"role": "user", "content": "-"}, {"role": "assistant", "content": SAID}])
    except Exception:
        # A template is a program of its own, and its failures reach here as any type at all.
        return None
    mark = text.rpartition(SAID)[2].strip()
    first = tokenizer(mark, add_special_tokens=False)["input_ids"][:1] if mark else []
    return next((token for token in first if token in tokenizer.added_tokens_decoder), None)


@dataclass(frozen=True)
class PlainTokenizer:
    """A tokenizer of transformers that adds no special tokens by itself, but reads those written out in the text."""

    inner: Any

    @property
    def eos_token_id(self) -> int | None:
        return self.inner.eos_token_id

    @property
    def bos_token_id(self) -> int | None:
        return self.inner.bos_token_id

    @property
    def eos_token(self) -> str | None:
        return self.inner.eos_token

    @property
    def bos_token(self) -> str | None:
        return self.inner.bos_token

    def encode(self, text: str, /) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], /) -> list[list[int]]:
        if not texts:
            return []
        encoded = self.inner(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
        return encoded["input_ids"]

    def decode(self, ids: Sequence[int], /) -> str:
        return self.inner.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def plain_tokenizer(tokenizer: Any) -> PlainTokenizer:
    """What the data room takes, from what stands at a base's `.tokenizer`."""
    return PlainTokenizer(tokenizer)
