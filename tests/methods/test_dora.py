"""What DoRA promises beyond the laws: a constant norm, rows without length, and how an untrained one is told."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lorica.adapter import Attached, Bank, attach, load
from lorica.errors import AdapterError, TargetError
from lorica.methods import DoRA
from tiny_bases import LLAMA, stir

METHOD = DoRA(r=3, alpha=8, dropout=0.2, target_modules="attention")


def stirred(dtype: torch.dtype = torch.float64) -> Attached:
    attached = attach(LLAMA.build(dtype), METHOD)
    stir(attached.named_parameters())
    return attached


def test_the_norm_takes_its_new_value_in_each_forward_pass():
    attached = stirred()
    module: Any = next(iter(attached.modules.values()))
    W = attached.model.model.layers[0].self_attn.q_proj.weight
    for _ in range(2):
        stir(attached.named_parameters())
        torch.testing.assert_close(module.merged(W).norm(dim=1), module.magnitude.m.abs())


class Three(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 5)
        with torch.no_grad():
            self.first.weight[2] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("bias", ["none", "all"])
def test_a_row_of_zeros_starts_as_it_was_and_learns(bias: Any, dropout: float):
    """PEFT divides zero by zero there."""
    base, x = Three(), torch.randn(7, 6, generator=torch.Generator().manual_seed(0))
    before = base(x)
    attached = attach(base, DoRA(r=2, alpha=5, target_modules=("first",), dropout=dropout, bias=bias)).train()
    assert torch.equal(attached(x), before)
    optimizer = torch.optim.Adam(attached.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (attached(x) - 1).square().sum().backward()
        assert all(p.grad.isfinite().all() for p in attached.parameters() if p.grad is not None)
        optimizer.step()
    module: Any = attached.modules["first", "around"]
    assert module.B[2].any()
    assert module.magnitude.m[2] != 0
    attached.eval()
    got = attached(x)
    assert got.isfinite().all()
    torch.testing.assert_close(attached.merge(untrained=True)(x), got)


def test_only_an_untrained_adapter_is_without_effect(tmp_path):
    for name, change in {"m": 0.1, "B": 0.1, "none": 0.0}.items():
        attached = attach(LLAMA.build(torch.float32), DoRA(r=3, target_modules=("q_proj", "embed_tokens")))
        with torch.no_grad():
            for key, parameter in attached.named_parameters():
                moved = key.endswith(("lora_B.weight", "lora_embedding_A")) if name == "B" else "magnitude" in key
                parameter.add_(change * moved)
        attached.save(tmp_path / name)
        if name != "none":
            load(LLAMA.build(torch.float32), tmp_path / name)
        else:
            with pytest.raises(AdapterError, match="changes nothing"):
                load(LLAMA.build(torch.float32), tmp_path / name)


def test_rows_of_a_batch_may_choose_it():
    attached = stirred(torch.float32)
    bank = Bank(LLAMA.build(torch.float32))
    bank.add("one", attached)
    with torch.no_grad(), bank.use(["one", None, "one"]):
        mixed = LLAMA.output(bank.model)
    with torch.no_grad():
        adapted, plain = LLAMA.output(attached.model), LLAMA.output(LLAMA.build(torch.float32))
    expected = torch.stack([adapted[0], plain[1], adapted[2]])
    torch.testing.assert_close(mixed, expected, rtol=0, atol=float(1e-5 * expected.abs().max()))


def test_dropout_where_a_weight_is_read_uncalled_is_refused():
    attention = nn.MultiheadAttention(16, 2, batch_first=True)
    with pytest.raises(TargetError, match="dropout 0"):
        attach(attention, DoRA(r=2, target_modules=("out_proj",), dropout=0.1))
    x = torch.randn(2, 4, 16)
    attached = attach(attention, DoRA(r=2, alpha=5, target_modules=("out_proj",)))
    before = attention(x, x, x)[0]
    stir(attached.named_parameters())
    adapted = attention(x, x, x)[0]
    assert (adapted - before).abs().max() > 0.1 * before.abs().max()
    merged = attached.merge()(x, x, x)[0]
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-5)
