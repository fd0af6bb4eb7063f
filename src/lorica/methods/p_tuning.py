"""P-tuning: soft tokens that a small network computes while they are trained.    Liu et al. 2021, arXiv:2103.10385

    lstm    p = MLP_2(LSTM(e))      e (P, d), a bidirectional LSTM of width h over the P tokens, two linears with ReLU
    mlp     p = MLP_3(e)            three linears with ReLU between

The network helps to train and is gone from the file: the vectors p (P, d) alone are kept, before the token embeddings.
The paper's few-shot runs trained the base as well; here it stays as it is, as in PEFT.
"""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lorica.errors import RecipeError
from lorica.methods import peft_config
from lorica.methods.contract import Edit, Start
from lorica.methods.prompt import SoftTokens, Vectors
from lorica.methods.virtual_tokens import MOST, VirtualTokens
from lorica.site import Site


class PTuning(SoftTokens):
    """Soft tokens at the input, through an encoder.

    length          P, soft tokens
    encoder         mlp, lstm, or none: the vectors themselves, as a file holds them
    hidden          h, the encoder's width; None: the base's
    layers          of the LSTM
    modules_to_save modules trained in full and saved whole, such as a new head
    """

    kind: ClassVar[str] = "p-tuning"
    peft_type: ClassVar[str | None] = "P_TUNING"
    understood: ClassVar[frozenset[str]] = VirtualTokens.understood | {
        "encoder_reparameterization_type",
        "encoder_hidden_size",
        "encoder_num_layers",
        "encoder_dropout",
    }
    peft_names: ClassVar[Mapping[str, str]] = {
        "num_virtual_tokens": "write length",
        "encoder_reparameterization_type": "write encoder: mlp or lstm",
        "encoder_hidden_size": "write hidden",
        "encoder_num_layers": "write layers",
        "encoder_dropout": "leave it out, the encoder has none",
        "task_type": "leave it out, the task is named in the recipe",
    }

    length: int = Field(20, ge=1, le=MOST)
    encoder: Literal["mlp", "lstm", "none"] = "mlp"
    hidden: int | None = Field(None, ge=1, le=MOST)
    layers: int = Field(2, ge=1, le=MOST)

    def module(self, site: Site, start: Start) -> nn.Module:
        if self.encoder == "none":
            return Vectors(start.normal(1.0, self.length, site.shape[-1]))
        kind = MLPVectors if self.encoder == "mlp" else LSTMVectors
        return kind(self, site.shape[-1], start)

    def finished(self) -> "PTuning":
        return self if self.encoder == "none" else self.model_copy(update={"encoder": "none"})

    def note(self, edit: Edit) -> str:
        return f"{super().note(edit)} {self.encoder}".removesuffix(" none") if edit.place != "instead" else ""

    def remarks(self, sites: tuple[Site, ...]) -> tuple[str, ...]:
        return () if self.encoder == "none" else (f"the {self.encoder} helps to train alone: the file keeps vectors",)

    def advice(self) -> str:
        return "learning rate for P-tuning: start at 1e-4 and search"

    def peft_config(self, edits: tuple[Edit, ...], sites: tuple[Site, ...]) -> dict[str, Any]:
        shapes = self.peft_shapes(edits, sites)
        encoder = {"encoder_reparameterization_type": "MLP", "encoder_hidden_size": self.hidden or shapes["token_dim"]}
        return {**shapes, **encoder, "encoder_num_layers": 2, "encoder_dropout": 0.0}

    @classmethod
    def from_peft(cls, config: Any, sites: tuple[Site, ...] = ()) -> "PTuning":
        """The `peft.PromptEncoderConfig` (or a dict of its fields)."""
        given = peft_config.fields(config)
        problems = peft_config.problems(given, cls.understood | {"modules_to_save"})
        if given.get("encoder_dropout"):
            problems.append("encoder_dropout: the encoder here has none; set it to 0")
        if problems:
            raise RecipeError.of(problems)
        (length,) = cls.numbers(given, "num_virtual_tokens")
        kind = given.get("encoder_reparameterization_type", "MLP")
        encoder = str(getattr(kind, "value", kind)).lower()
        fields = {"hidden": given.get("encoder_hidden_size"), "layers": given.get("encoder_num_layers") or 2}
        return cls.made(length=length, encoder=encoder, modules_to_save=cls.asked_to_save(given, sites), **fields)

    @classmethod
    def from_file(cls, config: Mapping[str, Any], keys: Collection[str]) -> "PTuning":
        return cls.of_file(config, keys, encoder="none")


class MLPVectors(nn.Module):
    """p = W_3 relu(W_2 relu(W_1 e)), biases beside."""

    def __init__(self, config: PTuning, d: int, start: Start) -> None:
        super().__init__()
        h = config.hidden or d
        self.embedding = start.normal(1.0, config.length, d)
        self.first, self.first_bias = start.uniform(d**-0.5, h, d), start.uniform(d**-0.5, h)
        self.second, self.second_bias = start.uniform(h**-0.5, h, h), start.uniform(h**-0.5, h)
        self.third, self.third_bias = start.uniform(h**-0.5, d, h), start.uniform(h**-0.5, d)

    def forward(self) -> Tensor:
        x = torch.relu(nn.functional.linear(self.embedding, self.first, self.first_bias))
        x = torch.relu(nn.functional.linear(x, self.second, self.second_bias))
        return nn.functional.linear(x, self.third, self.third_bias)

    def finished(self) -> dict[str, Tensor]:
        return {"vectors": self()}


class LSTMVectors(nn.Module):
    """p = W_2 relu(W_1 LSTM(e)), biases beside; both directions of the LSTM side by side, (P, 2 h)."""

    def __init__(self, config: PTuning, d: int, start: Start) -> None:
        super().__init__()
        h = config.hidden or d
        self.embedding = start.normal(1.0, config.length, d)
        self.lstm = nn.LSTM(d, h, config.layers, bidirectional=True, device="meta")
        for name, parameter in list(self.lstm.named_parameters()):
            setattr(self.lstm, name, start.uniform(h**-0.5, *parameter.shape))
        bound = (2 * h) ** -0.5
        self.first, self.first_bias = start.uniform(bound, 2 * h, 2 * h), start.uniform(bound, 2 * h)
        self.second, self.second_bias = start.uniform(bound, d, 2 * h), start.uniform(bound, d)

    def forward(self) -> Tensor:
        x = torch.relu(nn.functional.linear(self.lstm(self.embedding)[0], self.first, self.first_bias))
        return nn.functional.linear(x, self.second, self.second_bias)

    def finished(self) -> dict[str, Tensor]:
        return {"vectors": self()}
