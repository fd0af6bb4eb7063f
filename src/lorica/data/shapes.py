"""The shapes of rows people have, and the three things they mean: a text, a prompt with its completion, a chat.

prompt_completion  {prompt, completion}                       -> Pair
messages           {messages: [{role, content}, ...]}         -> Chat
sharegpt           {conversations: [{from, value}, ...]}      -> Chat
alpaca             {instruction, input?, output, system?}     -> Chat
text               {text}                                     -> Text
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lorica.data.config import ShapeName
from lorica.data.reading import kind_of
from lorica.errors import DataError, did_you_mean

Fields = Mapping[str, Any]
ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Pair:
    prompt: str
    completion: str


@dataclass(frozen=True)
class Chat:
    """`messages` as a chat template takes them; `skipped` are the assistant's turns that are not learned."""

    messages: tuple[dict[str, Any], ...]
    tools: tuple[Any, ...] | None = None
    skipped: frozenset[int] = frozenset()


Turns = Text | Pair | Chat


def _text(fields: Fields) -> Text:
    return Text(text_of(fields, "text"))


def _pair(fields: Fields) -> Pair:
    return Pair(text_of(fields, "prompt"), text_of(fields, "completion"))


def _alpaca(fields: Fields) -> Chat:
    if fields.get("history"):
        raise DataError("field 'history': alpaca's history is not read; write the turns as messages")
    asked = text_of(fields, "instruction")
    if fields.get("input"):
        asked = f"{asked}\n\n{text_of(fields, 'input')}"
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": text_of(fields, "output")}]
    return Chat((*_system(fields), *turns))


def _system(fields: Fields) -> tuple[dict[str, Any], ...]:
    return ({"role": "system", "content": text_of(fields, "system")},) if fields.get("system") else ()


def _sharegpt(fields: Fields) -> Chat:
    turns = []
    for number, turn in enumerate(_list_of(fields, "conversations")):
        at = f"conversations[{number}]"
        role = _known(text_of(turn, "from", at), SHAREGPT_ROLES, f"{at}.from")
        turns.append({"role": SHAREGPT_ROLES[role], "content": text_of(turn, "value", at)})
    return Chat((*_system(fields), *turns), _tools(fields))


def _chat(fields: Fields) -> Chat:
    listed = _list_of(fields, "messages")
    skipped = frozenset(number for number, message in enumerate(listed) if _weight(message, number) == 0)
    return Chat(tuple(_message(message, f"messages[{n}]") for n, message in enumerate(listed)), _tools(fields), skipped)


def _message(message: Fields, at: str) -> dict[str, Any]:
    _known(text_of(message, "role", at), ROLES, f"{at}.role")
    # Parquet gives every message the fields of all of them, null where it has none.
    kept = {key: value for key, value in message.items() if value is not None and key != "weight"}
    if isinstance(kept.get("tool_calls"), list):
        calls = kept["tool_calls"]
        kept["tool_calls"] = [_call(call, f"{at}.tool_calls[{number}]") for number, call in enumerate(calls)]
    return kept | {"content": _content(message, at)}


def _call(call: Any, at: str) -> Any:
    """With its arguments as the object that they are: OpenAI keeps them as JSON in a text, which templates that write
    JSON would quote once more."""
    if not isinstance(call, Mapping):
        return call
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _call(call["function"], f"{at}.function")}
    written = call.get("arguments")
    if not isinstance(written, str):
        return call
    try:
        arguments = json.loads(written or "{}")
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise DataError(f"field '{at}.arguments': an object, or one as JSON, not {written[:40]!r}")
    return {**call, "arguments": arguments}


def _content(message: Fields, at: str) -> str:
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return ""
    if not isinstance(content, list):
        return text_of(message, "content", at)
    parts = []
    for number, part in enumerate(content):
        inside = f"{at}.content[{number}]"
        if not isinstance(part, dict) or part.get("type") != "text":
            raise DataError(f"field '{inside}': only parts of type 'text' can be learned")
        parts.append(text_of(part, "text", inside))
    return "".join(parts)


def _weight(message: Fields, number: int) -> int:
    """OpenAI's mark on an assistant's turn: 0 is shown and not learned."""
    weight = message.get("weight")
    if weight is None:
        return 1
    if isinstance(weight, bool) or weight not in (0, 1):
        raise DataError(f"field 'messages[{number}].weight': 0 or 1, not {weight!r}")
    return int(weight)


def _tools(fields: Fields) -> tuple[Any, ...] | None:
    tools = fields.get("tools")
    if not tools:
        return None
    if not isinstance(tools, list):
        raise DataError(f"field 'tools': a list of tools, not {kind_of(tools)}")
    return tuple(tools)


def _list_of(fields: Fields, key: str) -> list[dict[str, Any]]:
    value = fields[key]
    if not isinstance(value, list):
        raise DataError(f"field {key!r}: a list of turns, not {kind_of(value)}")
    for number, item in enumerate(value):
        if not isinstance(item, dict):
            raise DataError(f"field '{key}[{number}]': an object with a role and a content, not {kind_of(item)}")
    return value


def text_of(fields: Fields, key: str, at: str = "") -> str:
    """The text of a field. Raises `DataError` that names it when it is missing or anything else."""
    name = f"{at}.{key}" if at else key
    if key not in fields:
        raise DataError(f"field {name!r} is missing{did_you_mean(key, fields)}")
    value = fields[key]
    if not isinstance(value, str):
        raise DataError(f"field {name!r}: text, not {kind_of(value)}")
    return value


def _known(word: str, known: Mapping[str, str] | tuple[str, ...], name: str) -> str:
    if word not in known:
        raise DataError(f"field {name!r}: {word!r} is none of {', '.join(known)}{did_you_mean(word, known)}")
    return word


@dataclass(frozen=True)
class Shape:
    """The fields a row must have to be of this shape, and how they are understood."""

    needs: tuple[str, ...]
    understand: Callable[[Fields], Turns]


SHAPES: Mapping[ShapeName, Shape] = {
    "prompt_completion": Shape(("prompt", "completion"), _pair),
    "messages": Shape(("messages",), _chat),
    "alpaca": Shape(("instruction", "output"), _alpaca),
    "sharegpt": Shape(("conversations",), _sharegpt),
    "text": Shape(("text",), _text),
}


def recognise(fields: Fields) -> ShapeName:
    """The one shape whose fields the row has. Raises `DataError` when none or several fit."""
    fitting: list[ShapeName] = [name for name, shape in SHAPES.items() if all(key in fields for key in shape.needs)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise DataError(f"the fields fit {' and '.join(fitting)}; say which with data.shape")
    wanted = [key for shape in SHAPES.values() for key in shape.needs if key not in fields]
    near = next((hint for key in fields if (hint := did_you_mean(str(key), wanted))), "")
    half = [(name, shape.needs) for name, shape in SHAPES.items() if any(key in fields for key in shape.needs)]
    if half and not near:
        (name, needs), *_ = half
        near = f"; for {name} it lacks {', '.join(repr(key) for key in needs if key not in fields)}"
    have = ", ".join(map(str, list(fields)[:8])) or "none"
    shapes = "; ".join(f"{name} ({', '.join(shape.needs)})" for name, shape in SHAPES.items())
    raise DataError(f"the fields ({have}) fit no shape: {shapes}{near}")


def understand(fields: Fields, shape: ShapeName) -> Turns:
    """A row of a known shape. Raises `DataError` that names the field when it does not fit."""
    for key in SHAPES[shape].needs:
        if key not in fields:
            raise DataError(f"field {key!r} is missing for the shape {shape}{did_you_mean(key, fields)}")
    return SHAPES[shape].understand(fields)
