"""Methods with a life of their own: one call for the loss of a step, one after the optimiser's step."""

import torch

from lorica.adapter import attach
from lorica.methods.lora import LoRA
from ten_line_methods import Bottleneck, Living
from tiny_bases import LLAMA, stir


def test_a_method_without_a_life_has_none():
    assert attach(LLAMA.build(), [LoRA(r=3), Bottleneck()]).life is None


def test_the_extra_loss_is_added_once_and_its_gradient_reaches_the_method():
    attached = attach(LLAMA.build(), [Living(), LoRA(r=3)])
    stir(attached.named_parameters())
    assert attached.life is not None
    extra = attached.life.extra_loss()
    assert extra is not None
    downs = [module.get_parameter("down") for (_, place), module in attached.modules.items() if place == "after"]
    torch.testing.assert_close(extra, torch.stack([down.square().sum() for down in downs]).sum())
    extra.backward()
    assert all(torch.allclose(down.grad, 2 * down) for down in downs if down.grad is not None)
    assert all(down.grad is not None for down in downs)


def test_after_a_step_the_method_may_change_what_it_trains():
    attached = attach(LLAMA.build(), Living())
    before = {key: tensor.clone() for key, tensor in attached.state().items()}
    assert attached.life is not None
    attached.life.after_step(1, 4)
    attached.life.after_step(2, 4)
    for key, tensor in attached.state().items():
        shrunk = 0.75 * 0.5 if key.endswith("down") else 1.0
        torch.testing.assert_close(tensor, shrunk * before[key])


def test_the_running_state_of_a_life_can_be_kept_and_given_back():
    first, second = attach(LLAMA.build(), Living()), attach(LLAMA.build(), Living())
    assert first.life is not None
    assert second.life is not None
    first.life.after_step(1, 4)
    first.life.after_step(2, 4)
    second.life.load_state_dict({key: value.clone() for key, value in first.life.state_dict().items()})
    assert {key: value.item() for key, value in second.life.state_dict().items()} == dict.fromkeys(
        first.life.state_dict(), 2.0
    )
