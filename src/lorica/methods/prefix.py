"""Prefix tuning: every token sees P learned keys and values at every layer.     Li & Liang 2021, arXiv:2101.00190

    H = tanh(E W_1^T + b_1)      K_l, V_l = H W_l^T + b_l      shared E (P, d), W_1 (h, d); a layer's own W_l (2 K E, h)

The MLP helps to train and is gone from the file: the keys and values alone are kept (section 4.3), and train on freely.

Shapes: P virtual tokens, d width of the base, h width of the MLP, K heads of keys and values, E width of a head.
"""

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from lorica.errors import AdapterError, RecipeError, TargetError
from lorica.methods import peft_config
from lorica.methods.contract import Edit, KeysValuesBefore, Start
from lorica.methods.virtual_tokens import KEY, MOST, VirtualTokens, require_shape
from lorica.site import Site

TASKS = frozenset({"CAUSAL_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"})
SHARED = "prefix_encoder"


class KeysValues(VirtualTokens):
    """What prefix tuning and P-tuning v2 have in common: where they sit, and PEFT's file."""

    peft_type: ClassVar[str | None] = "PREFIX_TUNING"
    peft_tasks: ClassVar[frozenset[str] | None] = TASKS
    understood: ClassVar[frozenset[str]] = VirtualTokens.understood | {
        "encoder_hidden_size",
        "prefix_projection",
        "init_weights",
    }

    parts: ClassVar[tuple[str, ...]] = ("keys", "values")

    def edits(self, sites: tuple[Site, ...], statistics: Mapping[str, Any] | None = None) -> tuple[Edit, ...]:
        attentions = [site for site in sites if site.kind == "attention"]
        if not attentions:
            raise TargetError(f"{self.kind}: no attention of this base is known; use a method on linears such as lora")
        before = (KeysValuesBefore(site, partial(self.module, sites, site)) for site in attentions)
        return (*before, *self.saved(sites))

    def module(self, sites: tuple[Site, ...], site: Site, start: Start) -> nn.Module:
        return FreeKeysValues(self.length, site, start)

    def peft_config(self, edits: tuple[Edit, ...], sites: tuple[Site, ...]) -> dict[str, Any] | None:
        """None where PEFT has no such prefix: in encoder-decoders, where layers differ in their heads, and behind a
        window."""
        chosen = [edit.site for edit in edits if edit.place == "keys_values_before"]
        if any(site.window for site in chosen):
            return None
        if len({site.shape for site in chosen}) > 1 or [site.layer for site in chosen] != list(range(len(chosen))):
            return None
        heads, width = chosen[0].shape
        shapes = self.shapes(sites, heads * width, heads, len(chosen))
        return {**shapes, "prefix_projection": False, "encoder_hidden_size": heads * width}

    def packed(self, tensors: Mapping[str, Tensor], edits: tuple[Edit, ...]) -> dict[str, Tensor]:
        names = [edit.site.name for edit in edits if edit.place == "keys_values_before"]
        own = [f"{name}.{part}" for name in names for part in ("keys", "values")]
        return self.packed_as(torch.cat([tensors[key].flatten(1) for key in own], 1), tensors, own)

    def unpacked(
        self, tensors: Mapping[str, Tensor], config: Mapping[str, Any], sites: tuple[Site, ...]
    ) -> dict[str, Tensor]:
        chosen = [site for site in sites if site.kind == "attention"]
        (layers,) = self.numbers(config, "num_layers")
        if len(chosen) != layers:
            raise AdapterError(f"num_layers: {layers} in the file, and this base has {len(chosen)} attentions")
        if windows := {site.window for site in chosen if site.window}:
            raise AdapterError(
                f"peft_type: this base looks {min(windows)} tokens back, and in PEFT that window leaves the prefix "
                "behind, where every token sees it here; train it here"
            )
        packed = tensors.get(KEY)
        if packed is None:
            raise AdapterError(f"{KEY}: missing from the file")
        require_shape(packed, (self.length, sum(2 * site.shape[0] * site.shape[1] for site in chosen)))
        parts = packed.unflatten(1, (layers, 2, *chosen[0].shape)).unbind(1)
        own = {
            f"{site.name}.{name}": part[:, place]
            for site, part in zip(chosen, parts, strict=True)
            for place, name in enumerate(("keys", "values"))
        }
        return {**own, **{key: value for key, value in tensors.items() if key != KEY}}

    def numbered_sites(self, config: Mapping[str, Any]) -> tuple[Site, ...]:
        width, heads, layers = self.numbers(config, "token_dim", "num_attention_heads", "num_layers")
        shape = (heads, width // heads)
        return tuple(Site(name=f"layers.{n}", kind="attention", shape=shape, layer=n) for n in range(layers))

    def site_of_file(self, name: str, shapes: Mapping[str, tuple[int, ...]]) -> Site | None:
        shape = next((shape[1:] for key, shape in shapes.items() if key.endswith(".keys")), None)
        shape = shape or next(((1, shape[0] // 2) for key, shape in shapes.items() if key.endswith(".out")), None)
        return super().site_of_file(name, shapes) if shape is None else Site(name=name, kind="attention", shape=shape)


class Prefix(KeysValues):
    """Keys and values before those of every document, computed by an MLP while they are trained.

    length          P, virtual tokens
    projection      train through the MLP; without it the keys and values themselves are trained
    hidden          h, the MLP's width (512, the authors' code; 800 there for BART)
    modules_to_save modules trained in full and saved whole, such as a new head
    """

    kind: ClassVar[str] = "prefix"
    peft_names: ClassVar[Mapping[str, str]] = {
        "num_virtual_tokens": "write length",
        "prefix_projection": "write projection",
        "encoder_hidden_size": "write hidden",
        "token_dim": "leave it out, it is read off the base",
        "num_layers": "leave it out, it is read off the base",
        "num_attention_heads": "leave it out, it is read off the base",
        "task_type": "leave it out, the task is named in the recipe",
    }

    parts: ClassVar[tuple[str, ...]] = (
        *KeysValues.parts,
        *("out", "out_bias", "encoder.embedding", "encoder.inner", "encoder.inner_bias"),
    )

    projection: bool = True
    hidden: int = Field(512, ge=1, le=MOST)

    def module(self, sites: tuple[Site, ...], site: Site, start: Start) -> nn.Module:
        if not self.projection:
            return super().module(sites, site, start)
        return ProjectedKeysValues(self, _width(sites), site, start)

    def finished(self) -> "Prefix":
        return self.model_copy(update={"projection": False}) if self.projection else self

    def remarks(self, sites: tuple[Site, ...]) -> tuple[str, ...]:
        return ("the MLP helps to train alone: the file keeps keys and values",) if self.projection else ()

    def advice(self) -> str:
        return f"learning rate for prefix tuning: start at {'5e-5' if self.projection else '5e-3'}"

    @classmethod
    def is_meant(cls, config: Mapping[str, Any]) -> bool:
        """A finished P-tuning v2 is a prefix without its MLP, and is read as that."""
        return True

    @classmethod
    def from_peft(cls, config: Any, sites: tuple[Site, ...] = ()) -> "Prefix":
        """The `peft.PrefixTuningConfig` (or a dict of its fields)."""
        given = peft_config.fields(config)
        problems = peft_config.problems(given, (cls.understood | {"modules_to_save"}) - {"init_weights"})
        if str(getattr(given.get("task_type"), "value", given.get("task_type"))) == "SEQ_2_SEQ_LM":
            problems.append("task_type: in an encoder-decoder PEFT's prefix is another; give lorica.Prefix(length=...)")
        if problems:
            raise RecipeError.of(problems)
        (length,) = cls.numbers(given, "num_virtual_tokens")
        hidden = {"hidden": given["encoder_hidden_size"]} if given.get("encoder_hidden_size") else {}
        saved = cls.asked_to_save(given, sites)
        return cls.made(length=length, projection=bool(given.get("prefix_projection")), modules_to_save=saved, **hidden)

    @classmethod
    def from_file(cls, config: Mapping[str, Any], keys: Collection[str]) -> "Prefix":
        if config.get("num_transformer_submodules") == 2:
            raise RecipeError(
                "num_transformer_submodules: with 2, PEFT gives layer l of the decoder the prefix of layer 2 l mod L "
                "and drops the others; train it here, or in PEFT with another method"
            )
        return cls.of_file(config, keys, projection=False)


class FreeKeysValues(nn.Module):
    """keys, values (P, K, E), trained themselves."""

    def __init__(self, length: int, site: Site, start: Start) -> None:
        super().__init__()
        self.keys, self.values = start.normal(1.0, length, *site.shape), start.normal(1.0, length, *site.shape)

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.keys, self.values


class ProjectedKeysValues(nn.Module):
    """keys, values (P, K, E) of one layer by the MLP; the first layer's module owns what all of them share."""

    def __init__(self, config: Prefix, width: int, site: Site, start: Start) -> None:
        super().__init__()
        heads, d_head = site.shape
        if SHARED not in start.shared:
            self.encoder = start.shared[SHARED] = PrefixEncoder(config, width, start)
        self._encoder = (start.shared[SHARED],)  # in a tuple, since it is another module's
        self.shape = (2, heads, d_head)
        bound = config.hidden**-0.5
        self.out = start.uniform(bound, 2 * heads * d_head, config.hidden)
        self.out_bias = start.uniform(bound, 2 * heads * d_head)

    def forward(self) -> tuple[Tensor, Tensor]:
        inner = self._encoder[0]().to(self.out.device)  # layers of one base may lie on several
        both = nn.functional.linear(inner, self.out, self.out_bias).unflatten(-1, self.shape)
        return both[:, 0], both[:, 1]

    def finished(self) -> dict[str, Tensor]:
        keys, values = self()
        return {"keys": keys, "values": values}


class PrefixEncoder(nn.Module):
    """tanh(E W_1^T + b_1), (P, h)."""

    def __init__(self, config: Prefix, width: int, start: Start) -> None:
        super().__init__()
        self.embedding = start.normal(1.0, config.length, width)
        self.inner = start.uniform(width**-0.5, config.hidden, width)
        self.inner_bias = start.uniform(width**-0.5, config.hidden)

    def forward(self) -> Tensor:
        return torch.tanh(nn.functional.linear(self.embedding, self.inner, self.inner_bias))


def _width(sites: tuple[Site, ...]) -> int:
    """The width of the base: of its embedding, else of what makes the keys."""
    tokens = (site.shape[-1] for site in sites if site.kind == "tokens")
    keys = (site.d_in for site in sites if site.kind == "linear" and "k" in site.roles)
    return next(iter((*tokens, *keys)), 1)
