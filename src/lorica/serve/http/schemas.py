"""What may be asked: one class a request.  A field that would change the result and is not understood is refused.

absent or null       the default
harmless             accepted and not read: it changes nothing here
neutral              accepted at the values that ask for nothing:  tools: []
anything else        400, naming it, with the near miss or the reason
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Name = Annotated[str, Field(min_length=1, max_length=256)]
Weight = Annotated[float, Field(ge=-16, le=16)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
Prompt = str | tuple[int, ...]
MESSAGES, PROMPTS, ROWS, STOPS, CHOICES, PARTS, LOGPROBS = 1024, 256, 256, 16, 8, 8, 20
FIELDS = 64
NO_TOOLS = "this server calls no tools"
NO_FETCH = "this server reads text alone, and fetches nothing"
NO_TEMPLATES = "the base's own template is used, and no other"
SAMPLED = "tokens are drawn by temperature, top_p and top_k alone"


class Asked(BaseModel):
    """The base of every request: strict types, finite numbers, no field that is not known."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        protected_namespaces=(),
    )
    harmless: ClassVar[frozenset[str]] = frozenset()
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    reasons: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _admitted(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        if len(fields) > FIELDS:
            raise ValueError(f"at most {FIELDS} fields")  # each that is unknown would be an error of its own
        return {name: value for name, value in fields.items() if value is not None and not cls._unread(name, value)}

    @classmethod
    def _unread(cls, name: str, value: Any) -> bool:
        return name in cls.harmless or any(
            value == each and type(value) is type(each) for each in cls.neutral.get(name, ())
        )

    @classmethod
    def refusals(cls) -> dict[str, str]:
        """Every name that is known, and why it is refused where it is."""
        return {**dict.fromkeys(cls.model_fields, ""), **dict.fromkeys(cls.neutral, ""), **cls.reasons}


def _text_of(content: Any) -> Any:
    """Parts of text are one text; a part of any other kind is refused."""
    if not isinstance(content, list):
        return content
    texts = []
    for number, part in enumerate(content[:MESSAGES]):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str) or len(part) != 2:
            raise ValueError(f"part {number} is no text ({str(kind)[:32]}): {NO_FETCH}")
        texts.append(part["text"])
    if len(content) > MESSAGES:
        raise ValueError(f"at most {MESSAGES} parts")
    return "".join(texts)


def _several(value: Any) -> Any:
    """One text stands for a list of it."""
    return [value] if isinstance(value, str) else value


def _texts(value: Any) -> Any:
    """Clients that count tokens beforehand do so with the vocabulary of OpenAI's models."""
    several = _several(value)
    if isinstance(several, list) and any(isinstance(each, int | list) for each in several):
        raise ValueError("texts, not token ids: another vocabulary's (LangChain: check_embedding_ctx_length=False)")
    return several


class Message(Asked):
    harmless: ClassVar[frozenset[str]] = frozenset({"refusal", "annotations"})
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {"tool_calls": ([],)}
    reasons: ClassVar[Mapping[str, str]] = {
        "tool_calls": NO_TOOLS,
        "tool_call_id": NO_TOOLS,
        "function_call": NO_TOOLS,
        "audio": NO_FETCH,
    }

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_text_of)]
    name: Name | None = None


class Part(Asked):
    """One adapter of a blend."""

    name: Name
    weight: Weight = 1.0


class StreamOptions(Asked):
    harmless: ClassVar[frozenset[str]] = frozenset({"include_obfuscation"})

    include_usage: bool = False


class Writes(Asked):
    """What chat and completions share."""

    harmless: ClassVar[frozenset[str]] = frozenset(
        {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
    )
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "frequency_penalty": (0, 0.0),
        "presence_penalty": (0, 0.0),
        "repetition_penalty": (1, 1.0),
        "min_p": (0, 0.0),
        "logit_bias": ({},),
    }
    reasons: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(
            ("frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias", "min_p"), SAMPLED
        ),
        "prompt_embeds": "prompts are text or token ids",
        "cache_salt": "what may be reused is decided by the key",
    }

    model: Name
    adapters: Annotated[list[Part], Field(min_length=1, max_length=PARTS)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1, le=1 << 20)] = 0
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    n: Annotated[int, Field(ge=1, le=CHOICES)] = 1
    stop: Annotated[list[Stop], BeforeValidator(_several), Field(max_length=STOPS)] = []
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _streams(self) -> "Writes":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only with stream: true")
        return self

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ChatAsked(Writes):
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **Writes.neutral,
        "tools": ([],),
        "functions": ([],),
        "tool_choice": ("none", "auto"),
        "parallel_tool_calls": (True, False),
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
    }
    reasons: ClassVar[Mapping[str, str]] = {
        **Writes.reasons,
        **dict.fromkeys(("tools", "functions", "tool_choice", "function_call"), NO_TOOLS),
        **dict.fromkeys(("chat_template", "chat_template_kwargs", "continue_final_message"), NO_TEMPLATES),
        **dict.fromkeys(("image_url", "audio", "modalities", "web_search_options"), NO_FETCH),
        "response_format": "answers are text, held to no schema",
        "reasoning_effort": "this server sets no effort",
        "verbosity": "this server sets no verbosity",
    }

    messages: Annotated[list[Message], Field(min_length=1, max_length=MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=LOGPROBS)] = 0

    @model_validator(mode="after")
    def _counts(self) -> "ChatAsked":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: only with logprobs: true")
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens are one limit; give one of them")
        return self

    @property
    def length(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def likeliest(self) -> int | None:
        return self.top_logprobs if self.logprobs else None


def _prompts(value: Any) -> Any:
    """A text, token ids, or several of either; written out, since a union tells of every kind for every entry."""
    several = value if isinstance(value, list) and not _are_ids(value) else [value]
    if not 1 <= len(several) <= PROMPTS:
        raise ValueError(f"1 to {PROMPTS} prompts")
    if not all(isinstance(each, str) or (isinstance(each, list) and _are_ids(each)) for each in several):
        raise ValueError("a text, a list of token ids, or a list of either")
    return tuple(each if isinstance(each, str) else tuple(each) for each in several)


def _are_ids(value: list[Any]) -> bool:
    return bool(value) and all(type(each) is int for each in value)


class CompletionAsked(Writes):
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **Writes.neutral,
        "echo": (False,),
        "best_of": (1,),
        "suffix": ("",),
    }
    reasons: ClassVar[Mapping[str, str]] = {
        **Writes.reasons,
        "echo": "the prompt is not told back",
        "best_of": "every choice is answered; ask for n",
        "suffix": "text is written on, not filled in",
    }

    prompt: Annotated[tuple[Prompt, ...], BeforeValidator(_prompts)]
    logprobs: Annotated[int, Field(ge=0, le=LOGPROBS)] | None = None

    @property
    def length(self) -> int | None:
        return self.max_tokens or 16

    @property
    def likeliest(self) -> int | None:
        return self.logprobs


class EmbeddingsAsked(Asked):
    harmless: ClassVar[frozenset[str]] = frozenset({"user"})
    reasons: ClassVar[Mapping[str, str]] = {"dimensions": "embeddings are as wide as the base makes them"}

    model: Name
    adapters: Annotated[list[Part], Field(min_length=1, max_length=PARTS)] | None = None
    input: Annotated[list[str], BeforeValidator(_texts), Field(min_length=1, max_length=2048)]
    encoding_format: Literal["float", "base64"] = "float"


def _rows(value: Any) -> Any:
    rows = value if isinstance(value, list) else [value]
    if not 1 <= len(rows) <= ROWS:
        raise ValueError(f"1 to {ROWS} rows")
    if not all(isinstance(row, str) or (isinstance(row, dict) and _are_texts(row.values())) for row in rows):
        raise ValueError("a text, an object of texts, or a list of either")
    return rows


def _are_texts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


class ClassifyAsked(Asked):
    """input: a text, or an object of the fields that the adapter's rows have; or several."""

    harmless: ClassVar[frozenset[str]] = frozenset({"user"})

    model: Name
    input: Annotated[list[Any], BeforeValidator(_rows)]


class LoadAsked(Asked):
    """vLLM's /v1/load_lora_adapter; lora_path is a name under the adapters' root."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {"is_3d_lora_weight": (False,)}

    lora_name: Name
    lora_path: Name
    load_inplace: bool = False


class UnloadAsked(Asked):
    harmless: ClassVar[frozenset[str]] = frozenset({"lora_int_id"})

    lora_name: Name


class AdapterAsked(Asked):
    """folder: a name under the adapters' root; None: the adapter's own name."""

    name: Name
    folder: Name | None = None


class ReplaceAsked(Asked):
    folder: Name | None = None
