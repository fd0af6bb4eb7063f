"""What a file keeps of an adapter: what only helps to train is folded into what it computes.

an MLP behind a prefix, an LSTM behind soft tokens   ->   the keys and values, the vectors
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from lorica.adapter.installed import Modules
from lorica.adapter.plan import Plan
from lorica.adapter.plan import plan as plan_of


def folds(plan: Plan) -> bool:
    """Whether a file holds less than is trained."""
    return any(method.folded() is not method for method in plan.methods)


@torch.no_grad()
def folded(plan: Plan, modules: Modules) -> tuple[Plan, dict[str, Tensor]]:
    """The plan of what a file keeps, and its tensors by key."""
    kept = plan
    if folds(plan):
        kept = plan_of(plan.base, [method.folded() for method in plan.methods], source=plan.source, trained=True)
    return kept, dict(_tensors(kept, modules))


def _tensors(plan: Plan, modules: Modules) -> Iterator[tuple[str, Tensor]]:
    for planned in plan.edits:
        held = _named(modules[planned.key])
        yield from ((key, held[tensor.name].detach()) for key, tensor in planned.tensors.items())


def _named(module: nn.Module) -> Mapping[str, Tensor]:
    return module.folded() if hasattr(module, "folded") else dict(module.named_parameters())  # type: ignore[operator]
