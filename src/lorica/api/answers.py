"""generate and chat: prompts are written to the model as the rows it was taught with were."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from lorica.adapter import Attached
from lorica.api.lessons import longest, reader_of, tokenizer_of
from lorica.api.recorded import data_config, loaded, shape
from lorica.api.tasked import task_for
from lorica.data import Renderer, Tokenizer, own_renderer
from lorica.data.encode import Encoder, Piece, Speech
from lorica.errors import RequestError
from lorica.models import generate as generate_tokens
from lorica.models.chat import turn_end
from lorica.models.generate import own_stop_ids
from lorica.tasks import Task, require_task

OnText = Callable[[str], None]
CHATS = {"messages", "sharegpt", "alpaca"}
LONGEST = 256
"""Tokens of an answer where nothing else is said."""


@dataclass(frozen=True)
class Answer:
    """`tokens` are the ids that were written, the end token included; `text` is what they say."""

    text: str
    tokens: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"text": self.text, "tokens": list(self.tokens)}

    def __str__(self) -> str:
        return self.text


def generate(
    adapter: str | Path | Attached,
    prompt: str,
    *,
    model: str | nn.Module | None = None,
    max_tokens: int | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    base: bool = False,
    dtype: str | None = None,
    untrained: bool = False,
    other_base: bool = False,
) -> Answer:
    """The answer to one prompt; greedy unless a temperature is given.  Of a classifier and its like, the answer to one
    row: its text, or a JSON object of its fields.

    max_tokens   of the answer; None: 256, or what the task says.  RequestError for an answer that is not written token
                 by token, as for a temperature where answers are always the likeliest
    """
    options = {"untrained": untrained, "other_base": other_base}
    holder, manifest = _held(adapter, model, base, dtype, options)
    task = task_for(holder, None, manifest)
    if not task.writes_on:
        asked = _within(task, max_tokens, temperature)
        return Answer(asked.answer(holder, reader_of(holder, asked), _fields(asked, prompt)), ())
    most = LONGEST if max_tokens is None else max_tokens
    return Speaker.on(holder, manifest).answer(prompt, max_tokens=most, temperature=temperature, seed=seed)


def _within(task: Task, max_tokens: int | None, temperature: float) -> Task:
    """The task with answers of at most so many tokens."""
    problems = ["temperature: an answer is always the likeliest; leave it out"] if temperature else []
    if max_tokens is not None and "max_tokens" not in type(task).model_fields:
        problems.append("max_tokens: an answer is not written token by token; leave it out")
    if problems:
        raise RequestError.of([f"{task.name}: {problem}" for problem in problems])
    if max_tokens is None:
        return task
    return require_task({"name": task.name, **task.model_dump(), "max_tokens": max_tokens})


def _held(
    adapter: str | Path | Attached,
    model: str | nn.Module | None,
    base: bool,
    dtype: str | None,
    accepted: Mapping[str, bool],
) -> tuple[nn.Module, Mapping[str, Any]]:
    if isinstance(adapter, Attached):
        return adapter.eval().model, {}
    return loaded(adapter, model, base=base, dtype=dtype, **accepted)


def _fields(task: Task, prompt: str) -> Mapping[str, Any]:
    """The row that a prompt is: its one field, or the JSON object of several."""
    if prompt.lstrip().startswith("{"):
        try:
            return json.loads(prompt)
        except json.JSONDecodeError as error:
            raise RequestError(f"the prompt is no JSON object: {error}") from error
    if task.prompt_field is None:
        raise RequestError(f"{task.name}: a row has several fields; give the prompt as a JSON object of them")
    return {task.prompt_field: prompt}


@dataclass
class Speaker:
    """A model that is talked with.  `renderer` is None where rows were no chats: each prompt then stands alone."""

    model: nn.Module
    tokenizer: Tokenizer
    renderer: Renderer | None
    begins: bool
    history: list[dict[str, str]] = field(default_factory=list)
    forgotten: int = 0
    """Exchanges that the last answer had no room for."""

    @classmethod
    def of(
        cls,
        adapter: str | Path | Attached,
        *,
        model: str | nn.Module | None = None,
        base: bool = False,
        dtype: str | None = None,
        untrained: bool = False,
        other_base: bool = False,
    ) -> "Speaker":
        options = {"untrained": untrained, "other_base": other_base}
        return cls.on(*_held(adapter, model, base, dtype, options))

    @classmethod
    def on(cls, holder: nn.Module, manifest: Mapping[str, Any]) -> "Speaker":
        task = task_for(holder, None, manifest)
        if not task.writes_on:
            raise RequestError(f"chat: this adapter was trained for {task.name}; ask it with lorica generate --prompt")
        tokenizer, own = tokenizer_of(holder)
        template = data_config(manifest, "rows").template
        written = own_renderer(tokenizer, template) if template else own or own_renderer(tokenizer)
        chats = shape(manifest) in CHATS or (shape(manifest) is None and own is not None)
        # A stated template writes its own begin token; the default one leaves it to the encoder.
        return cls(
            holder, tokenizer, written if chats else None, begins=not chats or (own is None and template is None)
        )

    @cached_property
    def ends(self) -> frozenset[int]:
        """Tokens that end an answer: the base's own, and what the template ends a turn with."""
        end = turn_end(getattr(self.model, "tokenizer", None), self.renderer)
        return frozenset((*own_stop_ids(self.model), *([] if end is None else [end])))

    def __str__(self) -> str:
        named = getattr(self.model, "source", type(self.model).__name__)
        return f"{named}: {'a chat' if self.renderer else 'each line is a prompt of its own'}"

    def answer(
        self,
        said: str,
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
        on_text: OnText | None = None,
    ) -> Answer:
        """Answers, and remembers both sides in a chat, of an interrupted answer what was told; `on_text` is called with
        each piece of text as it is written."""
        if not said:
            raise RequestError("the prompt is empty")
        most = longest(self.model)
        # an answer that may be as long as the context would leave a chat no memory
        prompt = self._prompt(said, room=most - min(max_tokens, most // 2))
        written = Stream(self.tokenizer, self.ends, on_text or (lambda text: None))
        try:
            generate_tokens(
                self.model,
                [prompt],
                max_tokens,
                stop_ids=self.ends,
                temperature=temperature,
                seed=seed,
                on_token=lambda row, token: written.add(token),
            )
        except KeyboardInterrupt:
            self._remember(said, written.text)
            raise
        self._remember(said, written.end())
        return Answer(written.text, tuple(written.tokens))

    def _remember(self, said: str, answered: str) -> None:
        if self.renderer:
            self.history += [{"role": "user", "content": said}, {"role": "assistant", "content": answered}]

    def _prompt(self, said: str, room: int) -> list[int]:
        """The earliest turns of a chat are forgotten when there is no room for them; `forgotten` says how many."""
        before = len(self.history)
        ids = self._encoded(said)
        while self.history and len(ids) > room:
            del self.history[:2]
            ids = self._encoded(said)
        self.forgotten = (before - len(self.history)) // 2
        return ids

    def _encoded(self, said: str) -> list[int]:
        text = said
        if self.renderer:
            text = self.renderer([*self.history, {"role": "user", "content": said}], add_generation_prompt=True)
        (row,) = Encoder(self.tokenizer)([Speech((Piece(text, learned=False),), self.begins)])
        return row.ids.tolist()


@dataclass
class Stream:
    """Tokens to text as they come; a character whose bytes are spread over tokens is told when it is whole."""

    tokenizer: Tokenizer
    stops: frozenset[int]
    on_text: OnText
    tokens: list[int] = field(default_factory=list)
    text: str = ""

    def add(self, token: int) -> None:
        self.tokens.append(token)
        text = self._decoded()
        if not text.endswith("\ufffd"):
            self._tell(text)

    def end(self) -> str:
        self._tell(self._decoded())
        return self.text

    def _decoded(self) -> str:
        ends = bool(self.tokens) and self.tokens[-1] in self.stops
        return self.tokenizer.decode(self.tokens[:-1] if ends else self.tokens)

    def _tell(self, text: str) -> None:
        new, self.text = text[len(self.text) :], text
        if new:
            self.on_text(new)
