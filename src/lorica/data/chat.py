"""Where in a rendered chat the assistant speaks.

    render(messages[:i], add_generation_prompt) |  what turn i says, end mark included  |  the rest
                    masked                                    learned                       masked ...

A template that marks what the assistant says with `{% generation %}` is believed. For any other, the text before a
turn must be a true prefix of the whole, or masking would be a guess.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorica.data.faces import Marked, MarksGeneration, Message, Renderer, Span
from lorica.data.shapes import Chat
from lorica.errors import DataError

REMEDY = "give data.template a template that marks the assistant's turns with {% generation %}, or split the row"


@dataclass(frozen=True)
class Spoken:
    """A rendered chat. `spans` are the characters to learn; `ended` says that the template ends a turn by itself."""

    text: str
    spans: tuple[Span, ...]
    ended: bool


def spoken(chat: Chat, renderer: Renderer) -> Spoken:
    """A chat up to the assistant's last turn, and what of it is learned. Raises `DataError`."""
    turns = [number for number, message in enumerate(chat.messages) if message["role"] == "assistant"]
    chat = Chat(chat.messages[: turns[-1] + 1], chat.tools, chat.skipped)
    text, spans = _from_marks(chat, renderer, len(turns)) or _from_prefixes(chat, renderer, turns)
    _require_tools(chat, renderer)
    spans = with_end_marks(text, spans)
    learned = tuple(span for turn, span in zip(turns, spans, strict=True) if learns(chat, turn))
    return Spoken(text, learned, ended=_ended(chat, text[: spans[-1][1]]))


def whole(chat: Chat, renderer: Renderer) -> Spoken:
    """A chat of which everything is learned. Raises `DataError`."""
    text = _render(renderer, chat, chat.messages).rstrip()
    _require_tools(chat, renderer)
    return Spoken(text, ((0, len(text)),), ended=_ended(chat, text))


def _require_tools(chat: Chat, renderer: Renderer) -> None:
    """A template that leaves a call out would teach the model to say nothing in its place.  They are written under
    other names to see it: their own may be words of the chat."""
    marks: list[tuple[str, str, str]] = []

    def marked(at: str, tool: Any) -> Any:
        if (name := _name_of(tool)) is None:
            return tool
        marks.append((at, name, f"tool_{len(marks)}_of_this_row"))
        under = {**tool.get("function", tool), "name": marks[-1][2]}
        return {**tool, "function": under} if "function" in tool else under

    messages = tuple(
        {**turn, "tool_calls": [marked(f"messages[{n}]", call) for call in turn["tool_calls"]]}
        if turn.get("tool_calls")
        else turn
        for n, turn in enumerate(chat.messages)
    )
    tools = tuple(marked("tools", tool) for tool in chat.tools or ()) or None
    text = _render(renderer, Chat(messages, tools), messages) if marks else ""
    for at, name, mark in marks:
        if mark not in text:
            raise DataError(
                f"{at}: the chat template does not write {name!r}; give data.template one that writes tools and their "
                "calls, or take them out of the row"
            )


def _name_of(tool: Any) -> str | None:
    inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
    name = inner.get("name") if isinstance(inner, Mapping) else None
    return name if isinstance(name, str) else None


def _ended(chat: Chat, text: str) -> bool:
    """Whether anything follows the last content: an end mark of the template's own."""
    last = chat.messages[-1]["content"].rstrip()
    return not last or not text.endswith(last)


def _from_marks(chat: Chat, renderer: Renderer, turns: int) -> Marked | None:
    if not isinstance(renderer, MarksGeneration):
        return None
    found = renderer.spans(chat.messages, tools=chat.tools)
    if found and len(found[1]) != turns:
        raise DataError(f"the chat template marks {len(found[1])} of the assistant's {turns} turns; {REMEDY}")
    return found


def _from_prefixes(chat: Chat, renderer: Renderer, turns: Sequence[int]) -> Marked:
    text = _render(renderer, chat, chat.messages)
    spans: list[Span] = []
    for turn in turns:
        before = _render(renderer, chat, chat.messages[:turn], prompt=True)
        if not text.startswith(before):
            raise DataError(f"messages[{turn}]: the chat template changes earlier turns; {REMEDY}")
        spans.append((len(before), _end(text, len(before), chat, turn, renderer)))
    return text, tuple(spans)


def _end(text: str, start: int, chat: Chat, turn: int, renderer: Renderer) -> int:
    """Where a turn ends: with the text up to it, or, where a last turn is written differently, with its content."""
    upto = _render(renderer, chat, chat.messages[: turn + 1])
    if text.startswith(upto) and len(upto) >= start:
        return len(upto)
    content = chat.messages[turn]["content"].strip()
    said = len(text) - len(text[start:].lstrip())
    ending = upto[upto.rfind(content) :].rstrip()
    if not content or content not in upto or not text.startswith(ending, said):
        raise DataError(f"messages[{turn}]: the chat template writes this turn differently later; {REMEDY}")
    return said + len(ending)


def _render(renderer: Renderer, chat: Chat, messages: Sequence[Message], prompt: bool = False) -> str:
    try:
        return renderer(messages, add_generation_prompt=prompt, tools=chat.tools)
    except DataError:
        raise
    except Exception as error:
        # A template is a program of its own, and its failures reach here as any type at all.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"the chat template refuses the row: {reason}") from error


def with_end_marks(text: str, spans: Sequence[Span]) -> tuple[Span, ...]:
    """Spans that take in the end mark, which a template may leave outside, and no blanks after it."""
    spans = [(start, start + len(text[start:end].rstrip())) for start, end in spans]
    mark = text[spans[-1][1] :].rstrip()
    return tuple((start, end + len(mark) if text.startswith(mark, end) else end) for start, end in spans)


def learns(chat: Chat, turn: int) -> bool:
    """Whether this turn of the assistant says anything to learn."""
    message = chat.messages[turn]
    said = message["content"] or message.get("tool_calls")
    return message["role"] == "assistant" and turn not in chat.skipped and bool(said)
