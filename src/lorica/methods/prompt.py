"""Prompt tuning: P learned vectors before the token embeddings.        Lester et al. 2021, arXiv:2104.08691, section 2

    [p_1 ... p_P; x_1 ... x_n]      p (P, d) is all that is trained

The vectors begin as rows of the vocabulary: those of `init_tokens` (the words of an instruction, or of the classes), or
others drawn at random; or as noise, uniform in [-0.5, 0.5] (section 3.2).
"""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lorica.errors import AdapterError, RecipeError, TargetError
from lorica.methods import peft_config
from lorica.methods.contract import Edit, Start, TokensBefore
from lorica.methods.virtual_tokens import KEY, MOST, VirtualTokens, require_shape
from lorica.site import Site

TASKS = frozenset({"CAUSAL_LM", "SEQ_2_SEQ_LM", "TOKEN_CLS", "FEATURE_EXTRACTION"})
"""Not those where PEFT's head reads the first place of the row, which is a soft token there and a real one here."""
STACKS = "num_transformer_submodules"
INITS = {"RANDOM": "random", "SAMPLE_VOCAB": "vocabulary"}


class SoftTokens(VirtualTokens):
    """What prompt tuning and P-tuning have in common: where they sit, and PEFT's file."""

    peft_tasks: ClassVar[frozenset[str] | None] = TASKS

    def edits(self, sites: tuple[Site, ...], statistics: Mapping[str, Any] | None = None) -> tuple[Edit, ...]:
        tokens = [site for site in sites if site.kind == "tokens"]
        if not tokens:
            raise TargetError(
                f"{self.kind}: this base reads no tokens; use prefix, or a method on linears such as lora"
            )
        self.require_fit(tokens[0])
        return (*(TokensBefore(site, lambda start, site=site: self.module(site, start)) for site in tokens),
                *self.saved(sites))  # fmt: skip

    def require_fit(self, site: Site) -> None:
        """TargetError where the config does not fit the vocabulary."""

    def module(self, site: Site, start: Start) -> nn.Module:
        raise NotImplementedError

    def packed(self, tensors: Mapping[str, Tensor], edits: tuple[Edit, ...]) -> dict[str, Tensor]:
        (name,) = (f"{edit.site.name}.vectors" for edit in edits if edit.place == "tokens_before")
        return self.packed_as(tensors[name], tensors, (name,))

    def unpacked(
        self, tensors: Mapping[str, Tensor], config: Mapping[str, Any], sites: tuple[Site, ...]
    ) -> dict[str, Tensor]:
        """Of an encoder-decoder's, the half that PEFT reads."""
        (site,) = (site for site in sites if site.kind == "tokens")
        packed = tensors.get(KEY)
        if packed is None:
            raise AdapterError(f"{KEY}: missing from the file")
        stacks = self.numbers(config, STACKS)[0] if config.get(STACKS) else 1
        require_shape(packed, (stacks * self.length, site.shape[-1]))
        rest = {key: value for key, value in tensors.items() if key != KEY}
        return {f"{site.name}.vectors": packed[: self.length].contiguous(), **rest}

    def numbered_sites(self, config: Mapping[str, Any]) -> tuple[Site, ...]:
        (width,) = self.numbers(config, "token_dim")
        return (Site(name="tokens", kind="tokens", shape=(MOST_ROWS, width)),)

    def site_of_file(self, name: str, shapes: Mapping[str, tuple[int, ...]]) -> Site | None:
        shape = next((shape for key, shape in shapes.items() if key.endswith(".vectors")), None)
        if shape is None:
            return super().site_of_file(name, shapes)
        return Site(name=name, kind="tokens", shape=(self.length, shape[-1]))

    def peft_shapes(self, edits: tuple[Edit, ...], sites: tuple[Site, ...]) -> dict[str, Any]:
        """What PEFT's config says of a prompt; it asks for heads and layers, and uses neither."""
        (width,) = (edit.site.shape[-1] for edit in edits if edit.place == "tokens_before")
        attentions = [site for site in sites if site.kind == "attention"]
        return self.shapes(sites, width, attentions[0].shape[0] if attentions else 1, len(attentions))

    @classmethod
    def of_file(cls, config: Mapping[str, Any], keys: Collection[str], **fields: Any) -> Any:
        task = config.get("task_type")
        if task in ("SEQ_CLS", "QUESTION_ANS"):
            raise RecipeError(
                f"task_type: in {task} PEFT's head reads soft tokens as if they were the row's own; train it here"
            )
        return super().of_file(config, keys, **fields)


MOST_ROWS = 1 << 31
"""Of the vocabulary that a file without its base is read for."""


class Prompt(SoftTokens):
    """Soft tokens at the input.

    length          P, soft tokens
    init            vocabulary (rows of the embedding, drawn at random) or random
    init_tokens     token ids whose rows the vectors begin as, repeated or cut to P; they count more than `init`
    modules_to_save modules trained in full and saved whole, such as a new head
    """

    kind: ClassVar[str] = "prompt"
    peft_type: ClassVar[str | None] = "PROMPT_TUNING"
    understood: ClassVar[frozenset[str]] = VirtualTokens.understood | {
        "prompt_tuning_init",
        "prompt_tuning_init_text",
        "tokenizer_name_or_path",
        "tokenizer_kwargs",
    }
    peft_names: ClassVar[Mapping[str, str]] = {
        "num_virtual_tokens": "write length",
        "prompt_tuning_init": "write init: vocabulary or random",
        "prompt_tuning_init_text": "write init_tokens: the token ids of the text",
        "tokenizer_name_or_path": "leave it out, and write init_tokens: the token ids of the text",
        "task_type": "leave it out, the task is named in the recipe",
    }

    length: int = Field(20, ge=1, le=MOST)
    init: Literal["vocabulary", "random"] = "vocabulary"
    init_tokens: tuple[int, ...] = ()

    def require_fit(self, site: Site) -> None:
        beyond = [token for token in self.init_tokens if not 0 <= token < site.shape[0]]
        if beyond:
            raise TargetError(
                f"init_tokens: {beyond[0]} is beyond {site.name}, whose rows are 0 to {site.shape[0] - 1}"
            )

    def module(self, site: Site, start: Start) -> nn.Module:
        return Vectors(self._begun(site, start))

    def _begun(self, site: Site, start: Start) -> nn.Parameter:
        P, d = self.length, site.shape[-1]
        if start.weight is None or start.device.type == "meta":
            return start.empty(P, d)
        if self.init == "random" and not self.init_tokens:
            return start.uniform(0.5, P, d)
        table = start.weight.dense()
        given = torch.tensor(self.init_tokens).repeat(-(-P // len(self.init_tokens)))[:P] if self.init_tokens else None
        rows = torch.randint(len(table), (P,), generator=start.generator) if given is None else given
        return nn.Parameter(table[rows.to(table.device)].to(start.device, start.dtype, copy=True))

    def finished(self) -> "Prompt":
        return self.model_copy(update={"init_tokens": ()}) if self.init_tokens else self

    def advice(self) -> str:
        return "learning rate for prompt tuning: start at 0.3 with Adafactor; AdamW takes less"

    def peft_config(self, edits: tuple[Edit, ...], sites: tuple[Site, ...]) -> dict[str, Any]:
        return {**self.peft_shapes(edits, sites), "prompt_tuning_init": "RANDOM"}

    @classmethod
    def from_peft(cls, config: Any, sites: tuple[Site, ...] = ()) -> "Prompt":
        """The `peft.PromptTuningConfig` (or a dict of its fields)."""
        given = peft_config.fields(config)
        init = given.get("prompt_tuning_init")
        start = INITS.get(str(getattr(init, "value", init)))
        problems = peft_config.problems(given, cls.understood | {"modules_to_save"})
        if start is None:
            problems.append(f"prompt_tuning_init: {init!r} needs a tokenizer; give the ids of its text in init_tokens")
        if problems:
            raise RecipeError.of(problems)
        (length,) = cls.numbers(given, "num_virtual_tokens")
        return cls.made(length=length, init=start, modules_to_save=cls.asked_to_save(given, sites))

    @classmethod
    def from_file(cls, config: Mapping[str, Any], keys: Collection[str]) -> "Prompt":
        return cls.of_file(config, keys)


class Vectors(nn.Module):
    """vectors (P, d), trained themselves."""

    def __init__(self, vectors: nn.Parameter) -> None:
        super().__init__()
        self.vectors = vectors

    def forward(self) -> Tensor:
        return self.vectors
