"""residual: a base without the principal part of its weights, and that part as an adapter: PiSSA on a quantised base.

R = W - s B A      a checkpoint of its own, which quantising takes less from than from W
q(R) + s B A       what training starts from: near W.  Meng, Wang and Zhang 2024, arXiv:2404.02948, section 5
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorica import adapter
from lorica.adapter import AdapterFile, Plan, merge_checkpoint
from lorica.adapter import plan as plan_of
from lorica.adapter.plan import PlannedEdit
from lorica.api.merging import without_room
from lorica.errors import RequestError, TargetError
from lorica.kernels import DenseWeight
from lorica.methods import LoRA
from lorica.methods.contract import Start
from lorica.methods.starts import Kaiming, PiSSA
from lorica.methods.starts.leading import wide
from lorica.models import Quantisation, load_base, original_weight, shapes_only
from lorica.models.folder import folder_of
from lorica.models.loading import parse_dtype


@dataclass(frozen=True, kw_only=True)
class Residual:
    """Two folders, and what quantising takes from the adapted weights: |W - q(W)| and |W - q(R) - s B A| over |W|."""

    base: str
    adapter: str
    load: dict[str, Any]
    plain_error: float
    error: float

    def to_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.load.items())
        return (
            f"{self.base}: load it with {options}, and {self.adapter} onto it; of the adapted weights "
            f"{self.error:.4%} is lost, where quantising {self.plain_error:.4%} would be"
        )


@torch.no_grad()
def residual(
    model: str | Path,
    method: LoRA,
    out: str | Path,
    *,
    quantize: str = "nf4",
    double_quant: bool = False,
    dtype: str | None = None,
) -> Residual:
    """Writes `out/base`, a checkpoint in the type of the base or in `dtype`, and `out/adapter`, a LoRA of rank r on it.

    The base itself stays as it is; the residual has a fingerprint of its own, and an adapter trained on it belongs to
    it alone.  Weights are read and written one shard at a time; that both together answer as the base does is checked
    where there is room for the whole.  RequestError where the method does not start from PiSSA.
    """
    form = Quantisation.of(quantize, double_quant)
    assert form is not None
    shapes: Any = shapes_only(model, dtype, quantize=quantize, double_quant=double_quant)
    planned = plan_of(shapes, _as_file(method))
    _require_linears(planned)
    part = _Principal(shapes, method, form, parse_dtype(dtype))
    tensors = {key: tensor for each in planned.edits for key, tensor in part.of(each).items()}
    negative = {key: -tensors[key] if held.name == "B" else tensors[key] for key, held in planned.tensors.items()}
    base, folder = Path(out) / "base", Path(out) / "adapter"
    taken = AdapterFile.of(shapes, planned, negative)
    merge_checkpoint(model, taken, base, dtype=dtype, unprobed=without_room(folder_of(model), dtype))
    attached = adapter.attach(load_base(base, dtype=dtype, device="cpu", **form.to_dict()), _as_file(method))
    attached.load_state(tensors)
    attached.save(folder)
    return Residual(base=str(base), adapter=str(folder), load=form.to_dict(), **part.errors())


def _as_file(method: LoRA) -> LoRA:
    """What the start leaves: a LoRA like any other."""
    if not isinstance(method.init, PiSSA):
        raise RequestError("residual: takes the principal part of each weight; give lorica.LoRA(r=16, init='pissa')")
    return method.model_copy(update={"init": Kaiming()})


def _require_linears(planned: Plan) -> None:
    others = [p.site.name for p in planned.edits if p.edit.place != "around" or not p.site.stored]
    if others:
        raise TargetError(f"residual: {others[0]} is not quantised as it is loaded; leave it out of the method")


@dataclass(eq=False)
class _Principal:
    """A and B of one weight after another, and the squares of what quantising takes."""

    shapes: Any
    method: LoRA
    form: Quantisation
    asked: torch.dtype | None
    whole: float = 0.0
    plain: float = 0.0
    left: float = 0.0

    def of(self, planned: PlannedEdit) -> dict[str, Tensor]:
        site, scale = planned.site, self.method.scale(planned.site)
        stored = original_weight(self.shapes, site, self.shapes.source, None)
        W = wide(stored)
        start = Start(torch.Generator().manual_seed(0), W.device, W.dtype, DenseWeight(W))
        A, B = self.method.init.factors(site, self.method.rank(site), scale, start)  # type: ignore[attr-defined]
        written = torch.addmm(W, B, A, alpha=-scale).to(self.asked or stored.dtype)
        kind = getattr(torch, site.dtype)
        self.whole += float(W.square().sum())
        self.plain += float((W - self.form.store(stored.to(kind)).dense()).square().sum())
        self.left += float(
            (W - torch.addmm(wide(self.form.store(written.to(kind)).dense()), B, A, alpha=scale)).square().sum()
        )
        return {key: {"A": A, "B": B}[tensor.name] for key, tensor in planned.tensors.items()}

    def errors(self) -> dict[str, float]:
        return {"plain_error": math.sqrt(self.plain / self.whole), "error": math.sqrt(self.left / self.whole)}
