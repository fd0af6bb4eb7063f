"""The head of a transformers model at learned places: what its forward says, without the logits of all places."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from lorica.kernels import head_cross_entropy
from lorica.models.foreign_head import asked_at

SIZES: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
BASES: dict[str, Any] = {
    "plain": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2)),
    "bias": lambda: PhiForCausalLM(PhiConfig(vocab_size=50, **SIZES)),
    "capped": lambda: Gemma2ForCausalLM(
        Gemma2Config(vocab_size=50, num_key_value_heads=1, head_dim=8, pad_token_id=0, **SIZES)
    ),
    "divided": lambda: GraniteForCausalLM(GraniteConfig(vocab_size=50, logits_scaling=6.0, pad_token_id=0, **SIZES)),
    "multiplied": lambda: CohereForCausalLM(CohereConfig(vocab_size=50, logit_scale=0.0625, pad_token_id=0, **SIZES)),
}
ROWS, COLUMNS = torch.tensor([0, 0, 1]), torch.tensor([1, 4, 2])
TOKENS = torch.arange(10).view(2, 5) + 3
TARGETS = torch.tensor([7, 11, 13])


def filled(model: Any, scale: float) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.requires_grad_(False).eval()


class Asked:
    """Rows of each batch that the forward has shown its head."""

    def __init__(self, model: Any) -> None:
        self.shown: list[int] = []
        model.get_output_embeddings().register_forward_hook(self)

    def __call__(self, module: nn.Module, args: Any, logits: Tensor) -> None:
        if logits.dim() == 3:
            self.shown.append(logits[..., 0].numel())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [0.02, 0.6], ids=["small", "large"])
@pytest.mark.parametrize("name", BASES)
def test_loss_is_that_of_the_models_own_logits(name: str, scale: float, dtype: torch.dtype) -> None:
    model = filled(BASES[name](), scale).to(dtype)
    embedded = model.get_input_embeddings()(TOKENS).detach().requires_grad_(True)

    def call() -> Tensor:
        return model(inputs_embeds=embedded, use_cache=False).logits

    whole = nn.functional.cross_entropy(call()[ROWS, COLUMNS].float(), TARGETS, reduction="sum")
    (expected,) = torch.autograd.grad(whole, embedded)
    asked = Asked(model)
    for _ in range(2):
        asked.shown.clear()
        loss = head_cross_entropy(*asked_at(model, (ROWS, COLUMNS), call), TARGETS)
        (found,) = torch.autograd.grad(loss, embedded)
        # Logits are rounded alike; their gradient is rounded once more on its way back.
        epsilon = torch.finfo(dtype).eps
        torch.testing.assert_close(loss, whole, rtol=8 * torch.finfo(torch.float32).eps, atol=0)
        assert (found - expected).abs().max() <= 4 * epsilon * expected.abs().max()
    assert asked.shown == [0], "no logits are made in the forward once its head is known"


def test_what_is_added_behind_the_head_is_not_lost() -> None:
    sizes: dict[str, Any] = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads: dict[str, Any] = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    model = filled(BartForConditionalGeneration(BartConfig(vocab_size=50, d_model=16, **sizes, **heads)), 0.3)

    def call() -> Tensor:
        return model(input_ids=TOKENS, decoder_input_ids=TOKENS, use_cache=False).logits

    model.final_logits_bias.copy_(torch.arange(50.0)[None])
    x, head = asked_at(model, (ROWS, COLUMNS), call)
    torch.testing.assert_close(head(x), call()[ROWS, COLUMNS])


def test_a_model_without_a_known_head_is_asked_as_it_is() -> None:
    class Bare(nn.Module):
        def forward(self) -> Tensor:
            return torch.arange(500.0).view(2, 5, 50)

    model = Bare()
    x, head = asked_at(model, (ROWS, COLUMNS), model)
    assert torch.equal(head(x), model()[ROWS, COLUMNS])


def test_a_cap_is_found_while_logits_still_are_too_small_to_be_bent() -> None:
    """A cap of 32 divides without a rounding, and tanh of a small number in bfloat16 is that number."""
    config: dict[str, Any] = {"num_key_value_heads": 1, "head_dim": 8, "final_logit_softcapping": 32.0, **SIZES}
    model = filled(Gemma2ForCausalLM(Gemma2Config(vocab_size=50, pad_token_id=0, **config)), 0.002).bfloat16()

    def call() -> Tensor:
        return model(input_ids=TOKENS, use_cache=False).logits

    asked_at(model, (ROWS, COLUMNS), call)
    model.model.norm.weight.fill_(8000.0)
    assert call().abs().max() > 20
    x, head = asked_at(model, (ROWS, COLUMNS), call)
    torch.testing.assert_close(head(x), call()[ROWS, COLUMNS])


class Odd(nn.Module):
    """hidden (2, 5, 8) -> logits, in a way that no family here has."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.words, self.head = way, nn.Embedding(50, 8), nn.Linear(8, 50)

    def get_output_embeddings(self) -> nn.Module:
        return self.words if self.way == "embedding" else self.head

    def forward(self, hidden: Tensor) -> Tensor:
        if self.way == "embedding":
            return (self.words(TOKENS) + hidden) @ self.words.weight.T
        if self.way == "ahead":
            return self.head(hidden[:, None].expand(2, 3, 5, 8))[:, 0]
        if self.way == "twice":
            return self.head(hidden) + self.head(2 * hidden)
        return self.head(nn.functional.dropout(hidden, 0.5)) ** 3


@pytest.mark.parametrize("way", ["embedding", "ahead", "twice"])
def test_a_head_that_is_asked_in_another_way_is_left_to_the_forward(way: str) -> None:
    model, hidden = filled(Odd(way), 0.5), torch.randn(2, 5, 8)
    for _ in range(2):
        x, head = asked_at(model, (ROWS, COLUMNS), lambda: model(hidden))
        assert torch.equal(head(x), model(hidden)[ROWS, COLUMNS])


def test_dropout_of_the_base_is_drawn_as_if_it_had_been_asked_once() -> None:
    model, hidden = filled(Odd("cubed"), 0.5), torch.randn(2, 5, 8)
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        x, head = asked_at(model, (ROWS, COLUMNS), lambda: model(hidden))
        found.append((head(x), torch.rand(1)))
    torch.manual_seed(3)
    torch.testing.assert_close(found[0][0], model(hidden)[ROWS, COLUMNS])
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
