"""A chat template in sandboxed Jinja, and the one used when a tokenizer brings none.

The default writes each turn as its role and its text, and ends what the assistant says with the end token:

    <|user|>
    How many rows?
    <|assistant|>
    Two.{end token}

`{% generation %}` marks what the assistant says, as in transformers' templates. The marks are rendered as two
private characters around the text and taken out again.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lorica.data.faces import Marked, Message, Tokenizer
from lorica.errors import DataError

DEFAULT_TEMPLATE = """\
{%- for message in messages -%}
<|{{ message.role }}|>{{ '\\n' }}
{%- if message.role == 'assistant' -%}
{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}
{%- else -%}
{{ message.content }}
{%- endif -%}
{{ '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|assistant|>{{ '\\n' }}
{%- endif -%}
"""
LARGEST = 64 * 1024
ASKED_DATE = re.compile(r"""strftime_now\(\s*(["'])([^"'\\]*)\1\s*\)""")
OPEN, CLOSE = "\ue0f0\ue0f1", "\ue0f1\ue0f0"


class Generation(Extension):
    """`{% generation %}...{% endgeneration %}`: what stands inside is said by the assistant."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("mark"), [], [], body).set_lineno(line)

    def mark(self, caller: Any) -> str:
        return f"{OPEN}{caller()}{CLOSE}"


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _tojson(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _compile(source: str) -> Template:
    if len(source) > LARGEST:
        raise DataError(f"chat template: {len(source)} characters; the largest allowed is {LARGEST}")
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise DataError(f"chat template: {error}") from error


@dataclass(frozen=True)
class JinjaRenderer:
    """Renders messages with one template. Raises `DataError` for a template that cannot be read or fails."""

    template: str
    bos_token: str = ""
    eos_token: str = ""

    @cached_property
    def compiled(self) -> Template:
        return _compile(self.template)

    def __call__(
        self, messages: Sequence[Message], /, *, add_generation_prompt: bool = False, tools: Sequence[Any] | None = None
    ) -> str:
        return self._marked(messages, tools, add_generation_prompt).replace(OPEN, "").replace(CLOSE, "")

    def spans(self, messages: Sequence[Message], /, *, tools: Sequence[Any] | None = None) -> Marked | None:
        """The text and what the assistant says in it, as character spans; None for a template without marks."""
        if "generation" not in self.template:
            return None
        pieces, spans, length = [], [], 0
        for number, chunk in enumerate(self._marked(messages, tools, False).replace(CLOSE, OPEN).split(OPEN)):
            if number % 2:
                spans.append((length, length + len(chunk)))
            pieces.append(chunk)
            length += len(chunk)
        return ("".join(pieces), tuple(spans)) if spans else None

    def _marked(self, messages: Sequence[Message], tools: Sequence[Any] | None, prompt: bool) -> str:
        content = json.dumps([list(messages), tools], ensure_ascii=False, default=str)
        if OPEN in content or CLOSE in content:
            raise DataError("the characters U+E0F0 U+E0F1 mark the assistant's turns; take them out of the row")
        try:
            return self.compiled.render(
                messages=list(messages),
                tools=list(tools) if tools else None,
                add_generation_prompt=prompt,
                bos_token=self.bos_token,
                eos_token=self.eos_token,
            )
        except (TemplateError, TypeError, ValueError, KeyError, OverflowError) as error:
            raise DataError(f"the chat template refuses the row: {error}") from error


def special_text(tokenizer: Tokenizer, name: str) -> str:
    """How a special token (`bos_token`, `eos_token`) is written so that it is read back as itself; "" if it cannot."""
    token = getattr(tokenizer, f"{name}_id")
    if token is None:
        return ""
    text = getattr(tokenizer, name, None) or tokenizer.decode([token])
    return text if text and tokenizer.encode(text) == [token] else ""


def own_renderer(tokenizer: Tokenizer, template: str = DEFAULT_TEMPLATE) -> JinjaRenderer:
    """A renderer for a template that did not come with the tokenizer: Jinja text, or a path ending in `.jinja`."""
    if template.endswith(".jinja"):
        template = text_of(template)
    elif "{{" not in template and "{%" not in template:
        raise DataError(f"data.template: {template[:40]!r} is neither Jinja text nor a path ending in .jinja")
    rendering = JinjaRenderer(template, special_text(tokenizer, "bos_token"), special_text(tokenizer, "eos_token"))
    _ = rendering.compiled  # What is wrong with it is told even where no row needs it.
    return rendering


def text_of(template: str) -> str:
    """The Jinja text, of a file where a path ending in `.jinja` is given."""
    if not template.endswith(".jinja"):
        return template
    try:
        return Path(template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.template: {template} cannot be read: {error}") from error


def dated(template: str, moment: datetime) -> str:
    """The template with this moment in the place of each date that it asks for, so that a row reads the same on any
    day.  transformers lets no other clock into its renderer; a form that the template computes is left to that one."""
    return ASKED_DATE.sub(lambda asked: json.dumps(moment.strftime(asked[2]), ensure_ascii=False), template)
