"""Encoders without padding: the same answers, gradients and dropout as with it, and no product over padding."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    CamembertConfig,
    CamembertForTokenClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForTokenClassification,
)

from lorica.adapter import attach
from lorica.kernels import Noise
from lorica.methods import Bottleneck, DoRA, LoRA, Prefix, Prompt
from lorica.models import foreign_attention
from lorica.models.ambient import Pass, entered
from lorica.models.unpadded import stack_of, unpadded
from tiny_bases import filled

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
FAMILIES: dict[str, Any] = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**SIZES)),
    "bert, answers": lambda: BertForQuestionAnswering(BertConfig(**SIZES)),
    "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**SIZES)),
    "xlm-roberta": lambda: XLMRobertaForTokenClassification(XLMRobertaConfig(**SIZES)),
    "camembert": lambda: CamembertForTokenClassification(CamembertConfig(**SIZES)),
    "electra": lambda: ElectraForSequenceClassification(ElectraConfig(embedding_size=8, **SIZES)),
}
LENGTHS = (3, 4, 4, 17, 30)
MASK = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
IDS = torch.randint(3, 40, MASK.shape, generator=torch.Generator().manual_seed(1)).masked_fill(~MASK, 0)


def base(family: str, dtype: torch.dtype = torch.float64) -> Any:
    """Under our attention, which `use` gives a model in bfloat16 alone."""
    model: Any = filled(FAMILIES[family]()).to(torch.bfloat16).eval().requires_grad_(False)
    foreign_attention.use(model)
    return model.to(dtype)


def answers(model: Any, noise: Noise | None = None, packed: bool = True) -> Tensor:
    """Of real places, in float64."""
    with entered(Pass(noise)), unpadded(model, MASK if packed else None):
        output = model(input_ids=IDS, attention_mask=MASK.long())
    logits = [value.double() for name, value in output.items() if "logits" in name]
    return torch.cat([value[MASK] if value.shape[:2] == MASK.shape else value.flatten() for value in logits])


class Rows:
    """Rows of every product with a weight inside the layers."""

    def __init__(self, model: nn.Module) -> None:
        self.seen: set[int] = set()
        stack = next(module for module in model.modules() if type(module).__name__.endswith("Encoder"))
        for module in stack.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_pre_hook(lambda module, args: self.seen.add(args[0][..., 0].numel()))


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_padded_rows(family: str) -> None:
    model = base(family)
    padded = answers(model, packed=False)
    rows = Rows(model)
    found = answers(model)
    assert rows.seen == {sum(LENGTHS)}
    torch.testing.assert_close(found, padded, rtol=0, atol=1e-13)


@pytest.mark.parametrize("method", [LoRA, DoRA, Bottleneck], ids=lambda method: method.kind)
def test_gradients_and_dropout_are_those_of_padded_rows(method: Any) -> None:
    model = base("bert")
    options = {} if method is Bottleneck else {"r": 2, "dropout": 0.3}
    attached = attach(model, method(**options), seed=5)
    trained = dict(attached.named_parameters())
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.2)
    attached.train(base=False)
    noise = Noise(7, 3, torch.tensor([11, 5, 8, 2, 9]))
    found = []
    for packed in (False, True):
        said = answers(model, noise, packed)
        found.append((said.detach(), torch.autograd.grad((said * torch.arange(len(said))).sum(), [*trained.values()])))
    (padded, gradients), (row, of_row) = found
    torch.testing.assert_close(row, padded, rtol=0, atol=1e-6)
    for ours, theirs in zip(of_row, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max() + 1))
    still = answers(model, None)
    assert options == {} or (still - row).abs().max() > 1e-3, "nothing was dropped"


def test_in_bfloat16_rows_are_rounded_up_and_answers_are_as_near() -> None:
    exact = answers(base("bert"), packed=False)
    model = base("bert", torch.bfloat16)
    padded, rows = answers(model, packed=False), Rows(model)
    found = answers(model)
    assert rows.seen == {64}
    assert (found - exact).abs().max() <= 2 * (padded - exact).abs().max() + torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("method", [Prefix.model_validate({"length": 3}), Prompt(length=2)], ids=lambda m: m.kind)
def test_edits_that_want_rows_get_them(method: Any) -> None:
    model = base("bert")
    attach(model, method, seed=5)
    torch.testing.assert_close(answers(model), answers(model, packed=False), rtol=0, atol=1e-13)


def test_rows_of_one_length_stay_as_they_are_so_that_whoever_watches_a_layer_sees_tokens_alone() -> None:
    model, mask = base("bert", torch.bfloat16), torch.ones(3, 5, dtype=torch.bool)
    rows = Rows(model)
    with unpadded(model, mask):
        model(input_ids=IDS[-3:, :5], attention_mask=mask.long())
    assert rows.seen == {15}


def test_other_models_are_left_as_they_are() -> None:
    assert stack_of(nn.Sequential(nn.Linear(2, 2))) is None
    plain: Any = filled(FAMILIES["bert"]()).eval()
    assert stack_of(plain) is None, "torch's attention takes no documents"
    assert stack_of(base("bert").train()) is None, "its own dropout is drawn by rows"


def test_a_document_that_sees_its_neighbour_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model = base("bert")
    padded = answers(model, packed=False)
    monkeypatch.setattr(foreign_attention, "_real", lambda rectangle, device: None)
    assert (answers(model) - padded).abs().max() > 1e-3
