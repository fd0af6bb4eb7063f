"""One law of every task: a step is the same however it is cut into micro-batches, dropout on."""

from typing import Any

import torch
from torch import Tensor

from lorica.tasks import Draw

CPU = torch.device("cpu")


def same_however_cut(attached: Any, task: Any, examples: Any, rtol: float = 1e-12) -> dict[str, Tensor]:
    """The gradients of all examples at once, which those of one after the other equal and another seed's do not."""
    attached.train(base=False)
    whole = gradients(attached, task, [examples])
    parts = gradients(attached, task, [[example] for example in examples])
    other = gradients(attached, task, [examples], seed=6)
    assert whole.keys() == parts.keys()
    scale = max(gradient.abs().max().item() for gradient in whole.values())
    for key, gradient in whole.items():
        torch.testing.assert_close(parts[key], gradient, rtol=rtol, atol=1e-12 * scale)
    assert any((other[key] - whole[key]).abs().max() > 1e-3 * scale for key in whole)
    return whole


def gradients(attached: Any, task: Any, parts: Any, seed: int = 5) -> dict[str, Tensor]:
    """Of the mean over units, by the name of what is trained; what takes no part has none."""
    for parameter in attached.parameters():
        parameter.grad = None
    batches = [task.batch(part, device=CPU, draw=Draw(seed, 2)) for part in parts]
    units = sum(map(task.units, batches))
    for batch in batches:
        (task.loss(attached.model, batch) / units).backward()
    return {key: parameter.grad for key, parameter in attached.named_parameters() if parameter.grad is not None}
