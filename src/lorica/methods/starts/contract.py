"""The contract of a start: what A and B of a low-rank module are before the first step.

    Beside    A = start.A(...), B = 0                                   W' = W
    Moved     A0, B0 = start.factors(...), neither of them zero         W' = W + s (B A - B0 A0),  A = A0, B = B0
    Near      A0, B0 = start.factors(...), neither of them zero         W' = Q + s B A,            A = A0, B = B0

Of the first two step 0 is exactly the base.  Of the third it is near it: of a quantised base, whose numbers are Q, it
is nearer to the weight W that was quantised.  The base is never written.  A start that `reads` the training data has a
`statistic`, which sees the inputs of the layers, or the gradients of their weights, before anything is attached; what
it found comes back as `start.given`.  Every start is a frozen config, so that its options are a recipe's entries.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from lorica.errors import TargetError
from lorica.methods.contract import Start
from lorica.methods.statistic import Adapted, Statistic
from lorica.site import Site


class Init(BaseModel):
    """A start by its name, with its options."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: ClassVar[str]
    moves: ClassVar[bool] = False
    """Whether the start is subtracted in a product of its own."""
    reads: ClassVar[Literal["inputs", "gradients"] | None] = None
    """What of the training data it is made from."""
    embeddings: ClassVar[bool] = False
    """Whether it starts embeddings too."""

    def pair(self, site: Site, r: int, scale: float, start: Start) -> tuple[nn.Parameter, nn.Parameter]:
        """A (r, d_in) and B (d_out, r) of a module that is that product and nothing else."""
        raise NotImplementedError

    def kept(self, A: Tensor, B: Tensor) -> dict[str, Tensor]:
        """What a checkpoint holds of these factors, so that a resumed run does not look for them again."""
        return {}

    def problems(self, linears: Sequence[Adapted]) -> list[str]:
        """Why some of these layers cannot start so with their ranks."""
        return []

    def statistic(self, sites: Sequence[Adapted]) -> Statistic | None:
        """What sees the training data on these sites; None for a start that needs none of it."""
        return None

    def remark(self, sites: Sequence[Site]) -> str:
        """What a plan says about it on these layers; empty when there is nothing to say."""
        return ""

    def peft(self) -> str | bool:
        """`init_lora_weights` of an adapter that is finished, to which its start no longer matters."""
        return True

    @classmethod
    def of_peft(cls, named: str, config: Mapping[str, Any]) -> "tuple[Init | None, list[str]]":
        """The start that `init_lora_weights: named` of a PEFT config means, if it is one of this kind, and what of its
        options has no counterpart."""
        return (cls(), []) if named == cls.kind else (None, [])


class Beside(Init):
    """B is zero and A is not."""

    def pair(self, site: Site, r: int, scale: float, start: Start) -> tuple[nn.Parameter, nn.Parameter]:
        return self.A(site, r, start), start.zeros(site.d_out, r)

    def A(self, site: Site, r: int, start: Start) -> nn.Parameter:
        """(r, d_in)"""
        raise NotImplementedError


class Started(Init):
    """B A is not zero at the start."""

    def factors(self, site: Site, r: int, scale: float, start: Start) -> tuple[Tensor, Tensor]:
        """A0 (r, d_in) and B0 (d_out, r) as the start's own type and device; those that were given come first, so that
        a run that is resumed goes on from the ones that it began with."""
        if start.device.type == "meta":
            return start.empty(r, site.d_in).data, start.empty(site.d_out, r).data
        if not start.given:
            A, B = self.found(site, r, scale, start)
        else:
            A, B = given(site, start, "A", (r, site.d_in)), given(site, start, "B", (site.d_out, r))
        # contiguous, and never a view that shares its memory with the base
        return tuple(F.to(start.device, start.dtype, copy=True).contiguous() for F in (A, B))  # type: ignore[return-value]

    def found(self, site: Site, r: int, scale: float, start: Start) -> tuple[Tensor, Tensor]:
        """A0 and B0 from the weight alone."""
        raise NotImplementedError


class Moved(Started):
    """B0 A0 is subtracted."""

    moves: ClassVar[bool] = True


class Near(Started):
    """B0 A0 is what the adapter begins with."""

    def pair(self, site: Site, r: int, scale: float, start: Start) -> tuple[nn.Parameter, nn.Parameter]:
        A, B = self.factors(site, r, scale, start)
        return nn.Parameter(A), nn.Parameter(B)

    def kept(self, A: Tensor, B: Tensor) -> dict[str, Tensor]:
        return {"A": A, "B": B}


def given(site: Site, start: Start, part: str, shape: tuple[int, ...]) -> Tensor:
    """What the statistics hold for this part of a site's module.  TargetError where it has another shape."""
    tensor = start.given.get(part)
    if tensor is None or tuple(tensor.shape) != shape:
        found = "nothing" if tensor is None else tuple(tensor.shape)
        raise TargetError(
            f"{site.name}: the statistics hold {found} for {part}, not {shape}: they are of another method"
        )
    return tensor


def need_statistics(name: str) -> TargetError:
    return TargetError(
        f"init: {name} starts from training data; give lorica.attach(model, method, "
        "statistics=lorica.statistics(model, method, rows))"
    )
