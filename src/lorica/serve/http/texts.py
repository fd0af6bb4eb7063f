"""Prompts to tokens and back, with the base's own tokenizer and chat template, beside the event loop.

A prompt is written as the rows of training are: text with the begin token before it, a chat through the template.  No
template comes from a request or from an adapter.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import nn

from lorica.data import Renderer, Tokenizer, own_renderer
from lorica.data.encode import Encoder, Piece, Speech
from lorica.errors import ModelError
from lorica.models import context_limit, renderer
from lorica.models.chat import plain_tokenizer, turn_end
from lorica.models.generate import own_stop_ids
from lorica.serve.engine import Wrote
from lorica.serve.http.errors import ApiError
from lorica.serve.http.schemas import Message, Prompt
from lorica.serve.http.unfolding import Folded, Unfolding

Tokens = tuple[int, ...]
T = TypeVar("T")
THREADS = 2
LEAST = -9999.0
SYSTEM = {"developer": "system"}
"""OpenAI's newer name of a role, which templates do not know."""


@dataclass(eq=False)
class Texts:
    """What one base reads and writes.

    stop_ids     tokens that end an answer: the base's own, and what its template ends a turn with
    limit        tokens of a prompt and its answer together; None where the base has no end of positions
    vocabulary   token ids are below it
    widest       characters of the longest token: a text of more than `limit` times as many cannot fit
    begins       whether a chat is begun with the begin token, which a base's own template writes by itself
    """

    tokenizer: Tokenizer
    renderer: Renderer
    stop_ids: frozenset[int]
    limit: int | None
    vocabulary: int
    widest: int
    begins: bool = False
    _threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(THREADS, "lorica-texts"))
    _words: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._encoder = Encoder(self.tokenizer)
        self._lead = self.tokenizer.encode(self._encoder.lead) if self._encoder.lead else []

    @classmethod
    def of(cls, model: nn.Module) -> "Texts":
        """Of a base.  ModelError where it brings no tokenizer."""
        inner: Any = getattr(model, "tokenizer", None)
        if inner is None:
            raise ModelError("this base brings no tokenizer; load it from a folder that has one")
        tokenizer, own = plain_tokenizer(inner), renderer(inner)
        end = turn_end(inner, own)
        return cls(
            tokenizer,
            own or own_renderer(tokenizer),
            frozenset((*own_stop_ids(model), *([] if end is None else [end]))),
            context_limit(model),
            _vocabulary(model, inner),
            max(map(len, inner.get_vocab())),
            begins=own is None,
        )

    async def prompts(self, prompts: Sequence[Prompt]) -> list[Tokens]:
        """ApiError 400 for one that is empty, too long, or holds what is no token."""
        return await self._beside(lambda: [self.prompt(each) for each in prompts])

    async def chat(self, messages: Sequence[Message], plain: bool) -> Tokens:
        """plain: for an adapter that was taught prompts and completions, whose prompt is the one message."""
        return await self._beside(lambda: self.conversation(messages, plain))

    def prompt(self, prompt: Prompt) -> Tokens:
        if not isinstance(prompt, str):
            return self._within(prompt)
        self._require_short(prompt)
        return self._within(self._encoded(prompt, begins=True))

    def conversation(self, messages: Sequence[Message], plain: bool) -> Tokens:
        if plain:
            return self.prompt(_alone(messages))
        self._require_short(*(message.content for message in messages))
        text = self.renderer([_turn(message) for message in messages], add_generation_prompt=True)
        return self._within(self._encoded(text, begins=self.begins))

    def reads_as_it_is(self, messages: Sequence[Message]) -> bool:
        """Whether the base alone is given one message without a template: it has none of its own, and learned none."""
        return self.begins and len(messages) == 1 and messages[0].role == "user"

    def unfolding(self, stops: Sequence[str], *, continues: bool = False) -> Unfolding:
        """continues: the answer goes on with a text, whose last word a blank may stand behind."""
        return Unfolding(self.behind if continues else self.tokenizer.decode, tuple(stops), self.stop_ids)

    def folded(self, *, continues: bool = False) -> Folded:
        return Folded(self.behind if continues else self.tokenizer.decode, ends=self.stop_ids)

    def behind(self, tokens: Sequence[int]) -> str:
        """What tokens say behind others: SentencePiece decoders (Llama 2, Mistral) take the blank off a first one."""
        return self.tokenizer.decode([*self._lead, *tokens])[len(self._encoder.lead) :]

    def word(self, token: int) -> str:
        """The text of one token by itself; a replacement character where it is a part of one."""
        if token not in self._words:
            self._words[token] = self.behind([token])
        return self._words[token]

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _beside(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _encoded(self, text: str, begins: bool) -> Tokens:
        (row,) = self._encoder([Speech((Piece(text, learned=False),), begins)])
        return tuple(row.ids.tolist())

    def _within(self, tokens: Sequence[int]) -> Tokens:
        if not tokens:
            raise ApiError(400, "the prompt is empty", param="prompt")
        if not all(0 <= token < self.vocabulary for token in tokens):
            raise ApiError(400, f"a token id is 0 to {self.vocabulary - 1}", param="prompt")
        if self.limit is not None and len(tokens) > self.limit:
            raise self._too_long(f"{len(tokens)} tokens")
        return tuple(tokens)

    def _require_short(self, *texts: str) -> None:
        """Before anything is read: a text that cannot fit is not worth the time of a tokenizer."""
        length = sum(map(len, texts))
        if self.limit is not None and length > self.limit * self.widest:
            raise self._too_long(f"{length} characters")

    def _too_long(self, length: str) -> ApiError:
        said = f"the prompt has {length}, and this base reads at most {self.limit} tokens"
        return ApiError(400, said, param="prompt", code="context_length_exceeded")


def words_of(texts: Texts, wrote: Wrote) -> tuple[str, float, list[tuple[str, float]]]:
    """A token's text and log-probability, and those of the likeliest."""
    return texts.word(wrote.token), told(wrote.logprob), [(texts.word(token), told(p)) for token, p in wrote.top]


def told(logprob: float | None) -> float:
    """What OpenAI's clients are told of a token that cannot be; JSON has no infinity."""
    return LEAST if logprob is None else max(logprob, LEAST)


def _vocabulary(model: nn.Module, tokenizer: Any) -> int:
    config: Any = getattr(model, "config", None)
    inner = config.get_text_config() if hasattr(config, "get_text_config") else config
    return getattr(inner, "vocab_size", None) or len(tokenizer)


def _turn(message: Message) -> Mapping[str, str]:
    turn = {"role": SYSTEM.get(message.role, message.role), "content": message.content}
    return turn if message.name is None else {**turn, "name": message.name}


def _alone(messages: Sequence[Message]) -> str:
    if len(messages) == 1 and messages[0].role == "user":
        return messages[0].content
    raise ApiError(
        400,
        "this adapter was taught prompts and completions, no chats: send one message of a user, or ask /v1/completions",
        param="messages",
    )
