"""The table of methods, and the costs that it measures."""

import torch

from lorica.api import method_table
from lorica.api.measuring import TRAINED_BYTES, costs
from lorica.methods import METHODS, Full, LoRA
from tiny_bases import LLAMA
from traces import traces


def test_every_method_has_a_row_whose_count_is_its_plans():
    rows = {row["name"]: row for row in method_table().to_dict()}
    assert rows.keys() == METHODS.keys()
    assert rows["lora"]["trainable_parameters"] == 261_120
    assert rows["full"]["trainable_parameters"] == 7_458_880


def test_costs_are_of_the_methods_and_leave_the_base_as_it_was():
    model = LLAMA.build(torch.float32)
    before = traces(model)
    found = costs(model, {"narrow": LoRA(r=1), "wide": LoRA(r=8), "full": Full()})
    assert traces(model) == before
    assert found["wide"].trained == 8 * found["narrow"].trained
    assert found["full"].trained == TRAINED_BYTES * sum(parameter.numel() for parameter in model.parameters())
    assert found["wide"].kept > found["narrow"].kept, "LoRA keeps x A^T, r numbers a token and site"
    assert all(cost.step > 0 for cost in found.values())
