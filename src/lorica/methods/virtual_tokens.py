"""What PEFT writes of methods with virtual tokens: one tensor, `prompt_embeddings`, and beside it heads saved whole.

    prefix           (P, 2 L K E)   keys of layer 0, values of layer 0, keys of layer 1, ...
    soft tokens      (P, d)         for an encoder-decoder (2 P, d), of which PEFT itself reads the first half

Whatever computed them in training is gone from the file: the result alone is kept.
"""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from pydantic import Field, ValidationError
from torch import Tensor

from lorica.errors import AdapterError, RecipeError, by_field
from lorica.methods import peft_config
from lorica.methods.contract import Edit
from lorica.methods.saved import Saving
from lorica.site import Site

KEY = "prompt_embeddings"
PREFIX = "base_model."
MOST = 100_000
"""Of tokens, layers, heads and channels: a file that says more only wants the memory."""
SHAPES = frozenset(
    {"num_virtual_tokens", "token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules"}
)


class VirtualTokens(Saving):
    """A method of P learned tokens, in `length`."""

    mergeable: ClassVar[bool] = False
    batchable: ClassVar[bool] = False
    file_prefix: ClassVar[str] = PREFIX
    understood: ClassVar[frozenset[str]] = SHAPES
    """Fields of PEFT's config that are translated, or say of a finished adapter nothing."""

    parts: ClassVar[tuple[str, ...]] = ("vectors",)
    """What the method's modules call their tensors, as far as a file's keys may end so."""

    length: int = Field(10, ge=1, le=MOST)

    def note(self, edit: Edit) -> str:
        return f"{self.length} tokens" if edit.place != "instead" else ""

    @classmethod
    def site_name(cls, key: str) -> str:
        own = next((part for part in cls.parts if key.endswith("." + part)), "")
        return key.removesuffix("." + own) if own else cls.parameter_name(key)

    @classmethod
    def numbers(cls, config: Mapping[str, Any], *names: str) -> list[int]:
        """These fields of a file's config, which must be positive numbers of a size that some model has."""
        strange = [name for name in names if not isinstance(config.get(name), int) or not 1 <= config[name] <= MOST]
        if strange:
            raise RecipeError.of(
                [f"{name}: expected a positive number, found {config.get(name)!r}" for name in strange]
            )
        return [config[name] for name in names]

    @classmethod
    def of_file(cls, config: Mapping[str, Any], keys: Collection[str], **fields: Any) -> Any:
        """The finished method of a file of PEFT."""
        if problems := peft_config.problems(config, cls.understood | {"modules_to_save"}):
            raise RecipeError.of(problems)
        (length,) = cls.numbers(config, "num_virtual_tokens")
        own = {key for key in keys if key == KEY or cls.site_name(key) != cls.parameter_name(key)}
        return cls.made(length=length, modules_to_save=cls.saved_in(keys, own), **fields)

    @classmethod
    def made(cls, **fields: Any) -> Any:
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise RecipeError.of(by_field(error)) from None

    def packed_as(self, tensor: Tensor, tensors: Mapping[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
        return {KEY: tensor, **{key: value for key, value in tensors.items() if key not in own}}

    def shapes(self, sites: tuple[Site, ...], token_dim: int, heads: int, layers: int) -> dict[str, Any]:
        """What every config of PEFT for virtual tokens says."""
        return {
            "peft_type": self.peft_type,
            "num_virtual_tokens": self.length,
            "token_dim": token_dim,
            "num_attention_heads": heads,
            "num_layers": layers,
            "num_transformer_submodules": 1,
            "modules_to_save": list(self.modules_to_save) or None,
        }


def require_shape(tensor: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise AdapterError(f"{KEY}: {tuple(tensor.shape)} in the file, {expected} by this base and adapter_config.json")
