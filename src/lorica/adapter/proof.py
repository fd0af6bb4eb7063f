"""The proof of an adapter: what its base answers to a probe, bare and adapted, and the numerics it was answered under.

    effect      largest |adapted - base|                 of the recorded answers
    deviation   largest |adapted now - adapted then|     all relative to the largest recorded answer
    share       <effect now, effect then> / <effect then, effect then>; 1 where the adapter does what it did

Under the same numerics the answers are equal to the bit.  Under others the deviation stays within rounding, and the
share of the adapter's own effect within a quarter of 1; an effect that rounding hides is not proven.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorica.adapter.installed import Installed
from lorica.errors import AdapterError, ModelError
from lorica.models import Numerics, Probe, Reading, numerics
from lorica.models.numerics import changed, dtype_of

SHARE = 0.25
"""How far from 1 the share may lie: one site of four left out, or a scale of another rule, lies farther."""


@dataclass(frozen=True)
class Unprobed:
    """No outputs were recorded, and why."""

    reason: str

    def to_dict(self) -> dict[str, Any]:
        return {"unprobed": self.reason}


@dataclass(frozen=True, eq=False, kw_only=True)
class Proof:
    """The answers of one base to one probe, `bare` and `adapted`: by output, (positions, places + 1) float64."""

    numerics: Numerics
    probe: Mapping[str, Any]
    bare: Reading
    adapted: Reading

    @property
    def effect(self) -> float:
        return _largest(_relative(self, self.adapted, self.bare))

    def apart(self, bare: Reading) -> float:
        """How far answers of the bare base lie from the recorded ones; infinitely where they have other shapes."""
        if any(name not in bare or bare[name].shape != value.shape for name, value in self.bare.items()):
            return torch.inf
        return _largest(_relative(self, bare, self.bare))

    def to_dict(self) -> dict[str, Any]:
        return {
            "numerics": dict(self.numerics),
            "probe": dict(self.probe),
            "bare": {name: value.tolist() for name, value in self.bare.items()},
            "adapted": {name: value.tolist() for name, value in self.adapted.items()},
        }


Record = Proof | Unprobed


def recorded(manifest: Mapping[str, Any] | None) -> Record:
    """The proof in a lorica.json.  AdapterError where it is there and cannot be read."""
    value = (manifest or {}).get("proof")
    if value is None:
        return Unprobed("no proof was recorded when it was saved")
    try:
        if "unprobed" in value:
            return Unprobed(str(value["unprobed"]))
        bare, adapted = _reading(value["bare"]), _reading(value["adapted"])
        if not bare or {n: t.shape for n, t in bare.items()} != {n: t.shape for n, t in adapted.items()}:
            raise ValueError("answers of different shapes")
        return Proof(numerics=dict(value["numerics"]), probe=dict(value["probe"]), bare=bare, adapted=adapted)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise AdapterError(f"lorica.json: the proof is damaged ({error}); fetch or copy it again") from error


def recorded_dtype(manifest: Mapping[str, Any] | None) -> str | None:
    """The type that the base was computed in when the proof was taken; None where none tells."""
    proof = recorded(manifest)
    return dtype_of(proof.numerics) if isinstance(proof, Proof) else None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Answers now beside recorded ones; `drift` names what of the numerics differs, empty when none does."""

    equal: bool
    deviation: float
    allowed: float
    effect: float
    share: float
    drift: tuple[str, ...]

    @property
    def within_rounding(self) -> bool:
        return self.deviation <= self.allowed

    @property
    def ok(self) -> bool:
        if not self.drift:
            return self.equal
        return self.within_rounding and (self.effect == 0 or abs(self.share - 1) <= SHARE)

    def to_dict(self) -> dict[str, Any]:
        return {
            "equal": self.equal,
            "largest_difference": self.deviation,
            "allowed": self.allowed,
            "effect": self.effect,
            "share": self.share,
            "drift": list(self.drift),
        }

    def __str__(self) -> str:
        if self.equal:
            under = "the same numerics" if not self.drift else "other numerics"
            return f"equal to the bit, under {under}; the adapter moves the outputs by {self.effect:.2%}"
        found = (
            f"{self.deviation:.1e} apart ({self.allowed:.1e} is rounding), {self.share:.1%} of the effect, "
            f"which is {self.effect:.2%} of the outputs"
        )
        return f"{found}; {'; '.join(self.drift)}" if self.drift else found


def compared(proof: Proof, bare: Reading, adapted: Reading, now: Numerics, allowed: float) -> Comparison:
    """`adapted` (and `bare`, both under `now`) beside the proof.  AdapterError where they answer in other shapes."""
    for name, value in proof.adapted.items():
        if name not in adapted or adapted[name].shape != value.shape or bare[name].shape != value.shape:
            raise AdapterError(f"the model answers its probe in another shape than when it was recorded ({name})")
    then, since = _relative(proof, proof.adapted, proof.bare), _relative(proof, adapted, bare)
    size = float((then * then).sum())
    return Comparison(
        equal=all(torch.equal(adapted[name], value) for name, value in proof.adapted.items()),
        deviation=_largest(_relative(proof, adapted, proof.adapted)),
        allowed=allowed,
        effect=_largest(then),
        share=float((then * since).sum()) / size if size else 1.0,
        drift=tuple(changed(proof.numerics, now)),
    )


class Prover:
    """Takes the proof of an adapter in place, once for the same weights."""

    def __init__(self, edits: Installed) -> None:
        self.edits = edits
        self._known: dict[str, Record] = {}
        self._bare: tuple[Numerics, Reading] | None = None

    def know(self, digest: str, proof: Record) -> None:
        """The proof that came with the weights of this digest."""
        if isinstance(proof, Proof):
            self._known[digest] = proof

    def proof(self, digest: str) -> Record:
        """Of the weights in place, whose file has this digest."""
        if digest not in self._known:
            self._known = {digest: self.taken()}
        return self._known[digest]

    def taken(self, *, stored: bool = True) -> Record:
        """Of the weights in place, as a file holds them unless `stored` is false.

        A base of an unknown kind, or one whose answers are not finite, is told as such.
        """
        model = self.edits.model
        try:
            probe = Probe.of(model)
            with _as_stored(self.edits) if stored else nullcontext():
                adapted = probe.read(model)
            bare = self._bare_reading(probe)
        except ModelError as error:
            return Unprobed(str(error))
        if not all(bool(value.isfinite().all()) for value in (*adapted.values(), *bare.values())):
            return Unprobed("the answers to the probe are not finite")
        return Proof(numerics=numerics(model), probe=probe.to_dict(), bare=bare, adapted=adapted)

    def _bare_reading(self, probe: Probe) -> Reading:
        now = numerics(self.edits.model)
        if self._bare is None or self._bare[0] != now:
            with self.edits.off():
                self._bare = now, probe.read(self.edits.model)
        return self._bare[1]


@contextmanager
def _as_stored(edits: Installed) -> Iterator[None]:
    """Weights trained in float64 are rounded for a while to the float32 that the file holds."""
    wide = {p for module in edits.modules.values() for p in module.parameters() if p.dtype == torch.float64}
    kept: Sequence[tuple[nn.Parameter, Tensor]] = [(parameter, parameter.detach().clone()) for parameter in wide]
    with torch.no_grad():
        for parameter, value in kept:
            parameter.copy_(value.float())
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in kept:
                parameter.copy_(value)


def _relative(proof: Proof, one: Reading, other: Reading) -> Tensor:
    """one - other, each output divided by its largest recorded value, laid end to end."""
    parts = []
    for name, value in proof.adapted.items():
        scale = max(float(value.abs().max()), float(proof.bare[name].abs().max()))
        parts.append(((one[name] - other[name]) / (scale or 1.0)).flatten())
    return torch.cat(parts)


def _largest(value: Tensor) -> float:
    """NaN counts as infinitely far."""
    return float(value.abs().nan_to_num(nan=torch.inf).max())


def _reading(value: Mapping[str, Any]) -> Reading:
    found = {name: torch.tensor(rows, dtype=torch.float64) for name, rows in value.items()}
    if not all(t.dim() == 2 and t.numel() and bool(t.isfinite().all()) for t in found.values()):
        raise ValueError("answers that are no table of numbers")
    return found
