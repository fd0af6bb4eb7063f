"""LoRA-FA: what is kept of the input, and that a file gives back the method it was saved by."""

import json
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from lorica.adapter import Attached, attach, inspect, load, plan
from lorica.kernels import Noise
from lorica.methods import LoRA, LoRAFA, Method
from lorica.models import ambient
from tiny_bases import GPT2, LLAMA, VIT, Base, stir

R = 3


def training() -> Any:
    return ambient.entered(ambient.Pass(noise=Noise(4, 9, torch.tensor([11, 3, 8]))))


def stirred(method: LoRAFA, dtype: torch.dtype = torch.float64) -> Attached:
    attached = attach(LLAMA.build(dtype), method, seed=5)
    stir(attached.named_parameters())
    return attached


def kept(base: Base, method: Method | None) -> Counter[tuple[int, ...]]:
    """Shapes of what a training pass saves for the gradient, each storage once, beside what base and adapter hold."""
    model: Any = base.build()
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, y: y.requires_grad_(True))
    if method is not None:
        stir(attach(model, method).train().named_parameters())
    own = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    seen: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        return seen.setdefault(tensor.data_ptr(), tensor)

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), training():
        base.output(model)
    return Counter(tuple(tensor.shape) for pointer, tensor in seen.items() if pointer not in own)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize(("base", "corrected"), [(LLAMA, False), (LLAMA, True), (GPT2, False), (VIT, False)])
def test_a_site_keeps_r_numbers_a_token_and_nothing_else(base: Base, corrected: bool, dropout: float):
    """Beside what the bare base keeps to pass a gradient on; LoRA keeps the input."""
    bare = kept(base, None)
    method = LoRAFA(r=R, alpha=8, dropout=dropout, corrected=corrected)
    sites = len(plan(base.build(), method).edits)
    more = kept(base, method) - bare
    assert {rows for rows, _ in more} == {R}
    assert more.total() == sites
    wide = kept(base, LoRA(r=R, alpha=8, dropout=dropout)) - bare
    assert sum(count for shape, count in wide.items() if R not in shape) >= sites / 3


def test_its_file_is_read_as_what_it_is_here_and_as_lora_by_others(tmp_path):
    method = LoRAFA(r=R, alpha=8, corrected=True, target_modules="minimal", rank_pattern={"q_proj": 2})
    attached = stirred(method, torch.float32)
    attached.save(tmp_path)
    again = load(LLAMA.build(torch.float32), tmp_path)
    (found,) = again.plan.methods
    assert isinstance(found, LoRAFA)
    assert found.corrected
    assert again.state().keys() == attached.state().keys()
    assert [key for key, _ in again.named_parameters()] == [key for key in again.state() if "lora_B" in key]
    assert "lora-fa" in str(inspect(tmp_path))
    told = json.loads((tmp_path / "adapter_config.json").read_text())
    assert told["peft_type"] == "LORA"
    assert not {"corrected", "lorica_method"} & told.keys()
    (tmp_path / "lorica.json").unlink()
    others = load(LLAMA.build(torch.float32), tmp_path)
    assert type(others.plan.methods[0]) is LoRA
    # as LoRA, q and v share one product with their A, which may be summed in another order
    found, wanted = (LLAMA.output(each.model).detach() for each in (others, attached))
    assert float((found - wanted).abs().max()) <= 64 * torch.finfo(torch.float32).eps * float(wanted.abs().max())


def test_frozen_tensors_are_counted_as_parameters_but_not_as_trained():
    fa, lora = (plan(LLAMA.build(), kind(r=R)) for kind in (LoRAFA, LoRA))
    assert fa.trainable_parameters + fa.frozen_parameters == lora.trainable_parameters
    assert fa.total_parameters == lora.total_parameters
    assert fa.tensors.keys() == lora.tensors.keys()


def test_a_state_brings_its_frozen_tensors_along():
    first, other = (attach(LLAMA.build(), LoRAFA(r=R), seed=seed) for seed in (1, 2))
    stir(first.named_parameters())
    assert (LLAMA.output(first.model) - LLAMA.output(other.model)).abs().max() > 0.1
    other.load_state(first.state())
    assert torch.equal(LLAMA.output(first.model), LLAMA.output(other.model))


def test_correction_changes_the_gradient_of_B_alone():
    plain, corrected = (stirred(LoRAFA(r=R, alpha=8, dropout=0.2, corrected=correct)) for correct in (False, True))
    for attached in (plain, corrected):
        with training():
            LLAMA.loss(attached.train().model).backward()
    state, found = plain.state(), dict(corrected.named_parameters())
    for key, parameter in plain.named_parameters():
        A = state[key.replace("lora_B", "lora_A")]
        assert parameter.grad is not None
        expected = parameter.grad @ torch.linalg.inv(A @ A.T) / (8 / R) ** 2
        torch.testing.assert_close(found[key].grad, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
