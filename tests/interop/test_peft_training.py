"""Twenty steps in PEFT and here, from the same start, data and optimiser, give the same losses."""

import pytest
import torch
from peft import get_peft_model
from peft_bases import BASES, VOCABULARY, only_their_own_warnings
from test_peft_both_ways import save_with_peft, theirs

from lorica import adapter
from lorica.models import load_base

STEPS, ROWS = 20, 4


def batches(base):
    generator = torch.Generator().manual_seed(5)
    for _ in range(STEPS):
        ids = torch.randint(3, VOCABULARY, (ROWS, 12), generator=generator)
        labels = torch.randint(0, 3, (ROWS,), generator=generator) if base.name == "bert" else ids
        yield {"input_ids": ids, "labels": labels}


def losses(model, parameters, base):
    optimiser = torch.optim.AdamW(parameters, lr=5e-3, weight_decay=0.01)
    seen = []
    for batch in batches(base):
        loss = model(**batch).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        seen.append(loss.item())
    return seen


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_twenty_steps_give_the_losses_of_peft(name, tmp_path):
    base = next(base for base in BASES if base.name == name)
    folder = base.saved(tmp_path / "base")
    torch.manual_seed(3)
    with only_their_own_warnings():
        model = get_peft_model(theirs(base, folder), base.peft_config()).eval()
        save_with_peft(model, tmp_path / "start")
        expected = losses(model, [p for p in model.parameters() if p.requires_grad], base)
    attached = adapter.load(load_base(folder), tmp_path / "start", untrained=True).eval()
    found = losses(attached, attached.parameters(), base)
    assert min(expected) < expected[0]
    assert found == pytest.approx(expected, rel=1e-5)
