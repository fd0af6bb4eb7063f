"""What a pass carries (noise, route) reaches every edit, also where activations are computed a second time."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lorica.adapter import attach
from lorica.errors import ModelError
from lorica.kernels import Noise
from lorica.methods.lora import LoRA
from lorica.models import ambient, checkpoint, enter
from lorica.models.layout import Layout
from ten_line_methods import Bottleneck, Magnitude
from tiny_bases import BASES, BERT, GPT2, LLAMA, Base, stir

DROPPING = LoRA(r=3, alpha=8, dropout=0.3)


def training(base: Base, method: Any = DROPPING) -> tuple[nn.Module, Any]:
    model = base.build()
    attached = attach(model, method, seed=4)
    stir(attached.named_parameters())
    return model, attached.train()


def gradients(
    base: Base, model: nn.Module, attached: Any, backward: Callable[[Tensor], None] = Tensor.backward
) -> list[Tensor]:
    for parameter in attached.parameters():
        parameter.grad = None
    with ambient.entered(ambient.Pass(noise=Noise(4, 9, torch.tensor([11, 3, 8])))):
        loss = base.loss(model)
    backward(loss)
    return [parameter.grad.clone() for parameter in attached.parameters()]


def in_another_thread(loss: Tensor) -> None:
    """As autograd's own threads do on a GPU: the context variable is at its default there."""
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()


@pytest.mark.parametrize("layers", [None, 1])
@pytest.mark.parametrize("base", BASES, ids=str)
def test_recomputation_sees_the_masks_of_the_forward(base: Base, layers: int | None):
    model, attached = training(base)
    kept = gradients(base, model, attached)
    attached.checkpoint(layers)
    again = gradients(base, model, attached, in_another_thread)
    close(kept, again, 1e-12)


def close(first: list[Tensor], second: list[Tensor], tolerance: float) -> None:
    for one, other in zip(first, second, strict=True):
        assert (one - other).abs().max() <= tolerance * one.abs().max()


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("base", [GPT2, BERT], ids=str)
def test_checkpointing_that_the_user_switches_on_sees_them_too(base: Base):
    model, attached = training(base)
    kept = gradients(base, model, attached)
    model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    close(kept, gradients(base, model, attached, in_another_thread), 1e-12)


def test_the_check_above_can_fail():
    """Another step has other masks, and so other gradients."""
    model, attached = training(LLAMA)
    kept = gradients(LLAMA, model, attached)
    with ambient.entered(ambient.Pass(noise=Noise(4, 10, torch.tensor([11, 3, 8])))):
        attached_loss = LLAMA.loss(model)
    for parameter in attached.parameters():
        parameter.grad = None
    attached_loss.backward()
    other = [parameter.grad for parameter in attached.parameters()]
    assert any((one - two).abs().max() > 1e-2 * one.abs().max() for one, two in zip(kept, other, strict=True))


@pytest.mark.parametrize("base", BASES, ids=str)
def test_outside_our_trainer_the_step_counts_training_forwards(base: Base):
    model = base.build()
    attached = attach(model, LoRA(r=3, alpha=8, dropout=0.3), seed=4)
    stir(attached.named_parameters())
    calm = base.output(model)
    assert attached.clock.step == 0
    model.train()
    first, second = base.output(model), base.output(model)
    assert attached.clock.step == 2
    assert not torch.equal(first, second)
    assert not torch.equal(first, calm)
    attached.clock.step = 0
    assert torch.equal(base.output(model), first)
    assert ambient.current.get() == ambient.Pass() or ambient.current.get().noise is None
    assert torch.equal(base.output(model.eval()), calm)


def test_the_context_is_left_when_a_forward_fails():
    model, _ = training(BERT)
    model.train()
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
        model(attention_mask=torch.ones(2, 3))
    assert ambient.current.get().noise is None


def test_packed_documents_draw_the_masks_of_separate_ones():
    model: Any
    model, _ = training(LLAMA, [DROPPING, Bottleneck()])
    generator = torch.Generator().manual_seed(2)
    documents = [torch.randint(3, 60, (count,), generator=generator) for count in (5, 1, 8)]
    packed = model.hidden(torch.cat(documents), Layout.of([5, 1, 8]).with_noise(4, 9, [11, 3, 8]))
    alone = [
        model.hidden(tokens, Layout.of([len(tokens)]).with_noise(4, 9, [row]))
        for tokens, row in zip(documents, (11, 3, 8), strict=True)
    ]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=0, atol=1e-10)
    other = model.hidden(torch.cat(documents), Layout.of([5, 1, 8]).with_noise(4, 9, [11, 4, 8]))
    assert torch.equal(packed[:5], other[:5])
    assert not torch.equal(packed[5:6], other[5:6])


@pytest.mark.parametrize("method", [DROPPING, Magnitude(dropout=0.3)], ids=lambda method: method.kind)
@pytest.mark.parametrize("base", BASES, ids=str)
def test_a_batch_draws_the_masks_of_its_rows_alone(base: Base, method: Any):
    """Micro-batches of one, whatever their order."""
    model, _ = training(base, method)
    rows = torch.tensor([11, 3, 8])

    def output(batch: slice) -> Tensor:
        with ambient.entered(ambient.Pass(noise=Noise(4, 9, rows[batch]))):
            return base.output(model, batch)

    together = output(slice(None))
    for row in (2, 0, 1):
        alone = output(slice(row, row + 1))[0]
        torch.testing.assert_close(together[row], alone, rtol=0, atol=1e-10)


def test_a_base_without_known_blocks_cannot_be_recomputed():
    with pytest.raises(ModelError, match="Sequential has no blocks that can be recomputed"):
        checkpoint(nn.Sequential(nn.Linear(2, 2)))


def test_entering_leaves_no_trace():
    model = BERT.build()
    hooks = len(model._forward_pre_hooks), len(model._forward_hooks)
    undo = enter(model, ambient.Clock(0))
    BERT.output(model)
    undo()
    assert (len(model._forward_pre_hooks), len(model._forward_hooks)) == hooks
