"""A trained adapter as its file holds it, where the method of the file is not the one that trained it.

PiSSA's starting product, subtracted in one of its own  ->  a plain LoRA of twice the rank
an MLP behind a prefix, an LSTM behind soft tokens      ->  the keys and values, the vectors

What is written any reader of such files computes with, and training goes on from it as from any other.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lorica.adapter.installed import Modules
from lorica.adapter.plan import Plan, plan


@torch.no_grad()
def finished(trained: Plan, modules: Modules) -> tuple[Plan, dict[str, Tensor]]:
    """The plan of the file, and its tensors by their key, which may share memory with the parameters."""
    methods = [method.finished() for method in trained.methods]
    if all(method is before for method, before in zip(methods, trained.methods, strict=True)):
        return trained, _held(trained, modules)
    file = plan(trained.base, methods, source=trained.source, trained=True)
    return file, _held(file, modules)


def _held(file: Plan, modules: Modules) -> dict[str, Tensor]:
    values = {planned.key: _values(modules[planned.key]) for planned in file.edits}
    return {
        key: values[planned.key][tensor.name].detach()
        for planned in file.edits
        for key, tensor in planned.tensors.items()
    }


def _values(module: nn.Module) -> Mapping[str, Tensor]:
    """Frozen parameters too: someone may have frozen what the plan trains."""
    return module.finished() if hasattr(module, "finished") else module.state_dict(keep_vars=True)  # type: ignore[operator]
