"""What this room asks of a tokenizer and of a chat template; both are given to it as arguments."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

Message = Mapping[str, Any]
Span = tuple[int, int]


class Tokenizer(Protocol):
    """Text to token ids and back. `encode` adds no special tokens, but reads those written out in the text.

    Also used where offered: `encode_batch(texts) -> list[list[int]]`, and the texts `bos_token` and `eos_token`.
    """

    @property
    def eos_token_id(self) -> int | None: ...

    @property
    def bos_token_id(self) -> int | None: ...

    def encode(self, text: str, /) -> list[int]: ...

    def decode(self, ids: Sequence[int], /) -> str: ...


class Renderer(Protocol):
    """Messages (`role`, `content`, ...) to the text that the model reads: a chat template."""

    def __call__(
        self,
        messages: Sequence[Message],
        /,
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Any] | None = None,
    ) -> str: ...


@runtime_checkable
class MarksGeneration(Protocol):
    """A renderer whose template may mark what the assistant says with `{% generation %}`."""

    def spans(self, messages: Sequence[Message], /, *, tools: Sequence[Any] | None = None) -> "Marked | None":
        """The text and the character spans inside it that the assistant says; None where nothing is marked."""
        ...


Marked = tuple[str, tuple[Span, ...]]
