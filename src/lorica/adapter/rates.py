"""Learning rates of an adapter's tensors: one for all, LoRA+'s two, or factors by name.

    role                    rate                  LoRA+, Hayou et al. 2024, arXiv:2402.12354, and the authors' code
    A, matrix, table        eta
    B, vector               lora_plus_ratio eta
    embedding               lr_embedding          both factors around an embedding

eta is A's rate, so the ratio is not applied to a rate that was tuned for plain LoRA's B.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, get_args

from torch import nn

from lorica.adapter.plan import Plan, PlannedEdit, PlannedTensor
from lorica.errors import TargetError, did_you_mean
from lorica.methods.contract import Role

ROLES = get_args(Role)
LR_EMBEDDING = 1e-6
"""The default of the authors' code."""


@dataclass(frozen=True)
class RateGroup:
    """Tensors of one learning rate, `factor` times the run's, by their keys in the adapter file."""

    label: str
    factor: float
    keys: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Rates:
    """learning_rate: eta.  learning_rates: factors by a glob over `<site>.<tensor>`, the first that matches."""

    learning_rate: float
    lora_plus_ratio: float | None = None
    lr_embedding: float | None = None
    learning_rates: Mapping[str, float] | None = None

    def groups(self, plan: Plan) -> tuple[RateGroup, ...]:
        """Every trained tensor once.  TargetError where a ratio or a glob finds nothing to apply to."""
        held = ((edit, key, tensor) for edit in plan.edits for key, tensor in edit.tensors.items())
        named = [(key, tensor, full_name(edit, tensor)) for edit, key, tensor in held if tensor.trained]
        named.sort(key=lambda entry: ROLES.index(entry[1].role))
        self._require_use([tensor for _, tensor, _ in named], [name for _, _, name in named])
        found: dict[tuple[float, str | None], dict[str, str]] = {}
        for key, tensor, name in named:
            glob = next((glob for glob in self.learning_rates or () if fnmatchcase(name, glob)), None)
            found.setdefault((self._factor(tensor, glob), glob), {})[key] = tensor.role
        return tuple(RateGroup(_label(keys, glob), factor, tuple(keys)) for (factor, glob), keys in found.items())

    def _factor(self, tensor: PlannedTensor, glob: str | None) -> float:
        by_name = 1.0 if glob is None else (self.learning_rates or {})[glob]
        return by_name * self._by_role(tensor.role)

    def _by_role(self, role: str) -> float:
        if self.lora_plus_ratio is None:
            return 1.0
        if role == "embedding":
            return (self.lr_embedding or LR_EMBEDDING) / self.learning_rate
        return self.lora_plus_ratio if role in ("B", "vector") else 1.0

    def _require_use(self, tensors: list[PlannedTensor], names: list[str]) -> None:
        ends = {".".join(name.split(".")[-2:]) for name in names}
        problems = [
            f"learning_rates: {glob!r} matches no trained tensor{did_you_mean(glob.lstrip('*.'), ends)}; "
            f"they are called like {names[0]!r}"
            for glob in self.learning_rates or ()
            if not any(fnmatchcase(name, glob) for name in names)
        ]
        if self.lora_plus_ratio is not None and not any(tensor.role == "B" for tensor in tensors):
            problems.append("lora_plus_ratio: nothing trained here is the B of a low-rank product; leave it out")
        if problems:
            raise TargetError.of(problems)


def full_name(edit: PlannedEdit, tensor: PlannedTensor) -> str:
    """`model.layers.0.self_attn.q_proj.A`; of a copy, the name of the parameter."""
    return edit.site.name if edit.edit.place == "instead" else f"{edit.site.name}.{tensor.name}"


def _label(roles: Mapping[str, str], glob: str | None) -> str:
    label = ", ".join(dict.fromkeys(roles.values()))
    return label if glob is None else f"{label} of {glob}"


def parameter_groups(
    rates: Rates, plan: Plan, parameters: Mapping[str, nn.Parameter], weight_decay: float
) -> list[dict[str, Any]]:
    """What a torch optimiser takes: each group with its `lr`; vectors, which do not decay, apart."""
    groups = []
    for group in rates.groups(plan):
        held = [key for key in group.keys if key in parameters]
        for decays in (True, False):
            alike = [parameters[key] for key in held if (plan.tensors[key].role != "vector") is decays]
            if alike:
                decay = weight_decay if decays else 0.0
                lr = rates.learning_rate * group.factor
                groups.append({"params": alike, "lr": lr, "weight_decay": decay, "label": group.label})
    return groups
