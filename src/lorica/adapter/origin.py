"""Whether a base is the one an adapter was made on: by its fingerprint, or, where none can be compared, by its answers.

recorded   here              same                            other
checkpoint checkpoint        equal                           not equal
memory     any               equal to memory or checkpoint   not equal, and held in the same types
checkpoint memory            equal to memory                 its answers to the probe lie beyond rounding
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from lorica.adapter.peft_format import base_name
from lorica.adapter.proof import Proof, recorded
from lorica.errors import AdapterError, ModelError
from lorica.models import Probe, Quantisation, Reading, fingerprint, numerics
from lorica.models.fingerprint import fingerprint_in_memory
from lorica.models.numerics import changed, rounding

CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class Verdict:
    """`same` is None where nothing tells."""

    same: bool | None
    reason: str


def base_facts(model: nn.Module) -> dict[str, Any]:
    """Where a base came from, and its fingerprint; `hashed` says of what, `digest` is of every byte where known, and
    `load` how it was quantised as it was loaded."""
    stored = isinstance(getattr(model, "base_fingerprint", None), str)
    facts = {
        "source": base_name(model),
        "fingerprint": fingerprint(model),
        "hashed": CHECKPOINT if stored else _in_memory(model),
    }
    digest, form = getattr(model, "base_digest", None) if stored else None, getattr(model, "quantised_here", None)
    facts = facts if digest is None else {**facts, "digest": digest}
    return facts if form is None else {**facts, "load": form.to_dict()}


def loading_of(manifest: Mapping[str, Any] | None) -> dict[str, Any]:
    """The options of `load_base` with which the base of an adapter is loaded as it was.  AdapterError if damaged."""
    facts = (manifest or {}).get("base")
    recorded = facts.get("load") if isinstance(facts, Mapping) else None
    if recorded is None:
        return {}
    try:
        form = Quantisation.of(recorded["quantize"], bool(recorded["double_quant"]))
    except (ModelError, KeyError, TypeError) as error:
        raise AdapterError(f"lorica.json: base.load is no way to load a base ({error})") from error
    return {} if form is None else form.to_dict()


def judged(manifest: Mapping[str, Any] | None, model: nn.Module) -> Verdict:
    """Whether `model`, bare, is the base that a lorica.json records."""
    facts = (manifest or {}).get("base")
    then = facts.get("fingerprint") if isinstance(facts, Mapping) else None
    if not isinstance(facts, Mapping) or not isinstance(then, str):
        return Verdict(None, "no fingerprint of the base was recorded")
    loaded, meta = getattr(model, "base_fingerprint", None), next(model.parameters()).is_meta
    if then == loaded or (not meta and then == fingerprint_in_memory(model)):
        return Verdict(True, f"fingerprint {then[:12]}")
    if _comparable(facts.get("hashed"), loaded, model):
        return Verdict(False, f"fingerprint {fingerprint(model)[:12]}, and {then[:12]} was recorded")
    return Verdict(None, "its fingerprint is of other things") if meta else _by_answers(manifest, model)


def _comparable(hashed: Any, loaded: str | None, model: nn.Module) -> bool:
    return (hashed == CHECKPOINT and loaded is not None) or hashed == _in_memory(model)


def _in_memory(model: nn.Module) -> str:
    dtypes = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()})
    return f"memory {' '.join(dtypes)}"


def _by_answers(manifest: Mapping[str, Any] | None, model: nn.Module) -> Verdict:
    try:
        proof = recorded(manifest)
        probe = Probe.of(model)
        if not isinstance(proof, Proof) or probe.to_dict() != dict(proof.probe):
            return Verdict(None, "neither its fingerprint nor its answers can be compared")
        return answers(proof, model, probe.read(model))
    except (ModelError, AdapterError) as error:
        return Verdict(None, str(error))


def answers(proof: Proof, model: nn.Module, bare: Reading) -> Verdict:
    """Whether the bare base answers as it did: to the bit under the same numerics, else within rounding."""
    now, apart = numerics(model), proof.apart(bare)
    if not changed(proof.numerics, now):
        return Verdict(apart == 0, "equal to the bit" if apart == 0 else f"{apart:.1e} apart under the same numerics")
    allowed = rounding(model, proof.numerics, now)
    return Verdict(apart <= allowed, f"{apart:.1e} apart ({allowed:.1e} is rounding)")
