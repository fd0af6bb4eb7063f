"""A probe: small fixed inputs for a base of a known kind, and the numbers that are read off its outputs.

    inputs    16 token ids, each a hash of its place; an image, sounds: (2654435761 i mod 2^32) / 2^31 - 1 at element i
    reading   of every output, at up to 16 positions: its values at 8 fixed places of the last axis, and one number of
              all of them, the logsumexp of logits or the root mean square of hidden states; in float64

Nothing is drawn from a generator, so that a probe is the same for ever and leaves a run as it was.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorica.errors import ModelError
from lorica.models.causal_lm import CausalLM
from lorica.models.walking import context_limit, text_config

TOKENS, POSITIONS, PLACES, OUTPUTS = 16, 16, 8, 4
SAMPLES = 4000
"""Of sound, for bases that read a wave: a quarter of a second."""
SHIFTING = ("ForSequenceClassification", "ForQuestionAnswering")
"""Heads on an encoder and decoder that make the decoder's ids from the encoder's."""

Reading = Mapping[str, Tensor]
"""By the name of an output: (positions, places + 1) float64."""


@dataclass(frozen=True, eq=False)
class Probe:
    """The inputs of one base, by the names its forward takes."""

    inputs: Mapping[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module) -> "Probe":
        """ModelError where nothing is known of what the base reads: a module of the user's own."""
        config = getattr(model, "config", None)
        if not isinstance(model, CausalLM) and not (hasattr(model, "main_input_name") and hasattr(config, "to_dict")):
            raise ModelError(f"what {type(model).__name__} takes as input is not known here")
        return cls(dict(_inputs(model, config)))

    def read(self, model: nn.Module) -> Reading:
        """What the model, as it stands, answers in evaluation mode.  ModelError where it does not."""
        first = next(model.parameters())
        given = {name: value.to(first.device, _kind(value, first)) for name, value in self.inputs.items()}
        try:
            with torch.no_grad(), torch.autocast(first.device.type, enabled=False), evaluating(model):
                answered = model(**given)
        except Exception as error:  # every family computes by code of its own, which may raise anything
            raise ModelError(f"{type(model).__name__} does not answer its probe ({_line(error)})") from error
        return _read(model, answered)

    def to_dict(self) -> dict[str, Any]:
        """What makes two probes the same."""
        return {name: {"shape": list(value.shape), "sha256": _digest(value)} for name, value in self.inputs.items()}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; every module has its own mode back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def hashed(what: str, index: int, bound: int) -> int:
    """A number below `bound` that is the same for ever."""
    return int.from_bytes(hashlib.sha256(f"lorica probe {what} {index}".encode()).digest()[:8]) % bound


def _inputs(model: nn.Module, config: Any) -> Iterator[tuple[str, Tensor]]:
    main = getattr(model, "main_input_name", "input_ids")
    seeing = getattr(config, "vision_config", None)
    if main == "input_ids":
        yield main, _tokens(text_config(config), min(TOKENS, context_limit(model) or TOKENS))
    if main == "pixel_values" or (seeing is not None and hasattr(config, "projection_dim")):
        yield "pixel_values", _wave(*_image(seeing or config))
    if main == "input_features":
        yield main, _wave(config.num_mel_bins, 2 * config.max_source_positions)
    if main == "input_values":
        yield main, _wave(SAMPLES)
    if main not in ("input_ids", "pixel_values", "input_features", "input_values"):
        raise ModelError(f"what {type(model).__name__} takes as {main} is not known here")
    start = _decoder_start(model, config)
    if start is not None:
        words = getattr(config, "decoder", None) or config
        yield "decoder_input_ids", _tokens(words, TOKENS // 2, first=start)


def _decoder_start(model: nn.Module, config: Any) -> int | None:
    """The first id that a decoder behind an encoder is given, where it is given any."""
    start = getattr(config, "decoder_start_token_id", None)
    given = getattr(config, "is_encoder_decoder", False) and not type(model).__name__.endswith(SHIFTING)
    return start if given and isinstance(start, int) else None


def _tokens(config: Any, count: int, first: int | None = None) -> Tensor:
    """(1, count) ids, none of them special but the end token, which some heads look for, in the last place."""
    vocabulary, special = config.vocab_size, _special(config)
    ordinary = [token for index in range(64 * count) if (token := hashed("token", index, vocabulary)) not in special]
    ids = ordinary[:count]
    end = getattr(config, "eos_token_id", None)
    if first is not None:
        ids[0] = first
    elif isinstance(end, int) and 0 <= end < vocabulary:
        ids[-1] = end
    return torch.tensor([ids])


def _special(config: Any) -> set[int]:
    named = config.to_dict().items() if hasattr(config, "to_dict") else ()
    return {value for name, value in named if name.endswith(("_token_id", "_token_index")) and isinstance(value, int)}


def _image(config: Any) -> tuple[int, int, int]:
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return getattr(config, "num_channels", 3), height, width


def _wave(*shape: int) -> Tensor:
    count = int(torch.Size(shape).numel())
    return (torch.arange(count).mul(2654435761).remainder(2**32).double() / 2**31 - 1).view(1, *shape)


def _kind(value: Tensor, like: Tensor) -> torch.dtype:
    return like.dtype if value.is_floating_point() else value.dtype


def _read(model: nn.Module, answered: Any) -> Reading:
    named = answered.items() if hasattr(answered, "items") else [("output", answered)]
    found = {
        name: value
        for name, value in named
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1 and value.numel()
    }
    if not found:
        raise ModelError(f"{type(model).__name__} answers its probe with no tensor that can be read")
    return {name: _numbers(name, found[name]) for name in list(found)[:OUTPUTS]}


def _numbers(name: str, output: Tensor) -> Tensor:
    """(..., width) -> (positions, places + 1)."""
    rows = output.detach().reshape(-1, output.shape[-1])
    step = max(1, len(rows) // POSITIONS)
    rows = rows[::step][:POSITIONS].to("cpu", torch.float64)
    width = rows.shape[1]
    places = sorted({hashed("place", index, width) for index in range(PLACES)})
    whole = rows.logsumexp(1) if "logits" in name else rows.square().mean(1).sqrt()
    return torch.cat([rows[:, places], whole[:, None]], 1)


def _digest(value: Tensor) -> str:
    return hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
