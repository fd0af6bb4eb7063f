"""Checkpoints that bitsandbytes quantised: which of their tensors are parts of one weight.

X.weight   codes      X.weight.absmax, .quant_map, .nested_absmax, .nested_quant_map, and as JSON in bytes
                      X.weight.quant_state.bitsandbytes__nf4 (or fp4): blocksize, dtype, shape, nested_*
X.weight   int8       X.SCB, X.weight_format
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorica.errors import ModelError
from lorica.kernels.quantised import EightBit, FourBit, Quantised
from lorica.models.stored import Stored

STATE = ".quant_state.bitsandbytes__"
PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")


@dataclass(frozen=True)
class Packed:
    """One weight of a checkpoint: `shape` of the dense weight, and the stored names of its parts."""

    name: str
    form: str
    shape: tuple[int, ...]
    facts: Mapping[str, Any]
    parts: tuple[str, ...]

    def weight(self, read: Mapping[str, Tensor], dtype: torch.dtype) -> Quantised:
        """read: its tensors by stored name.  dtype: what products are computed in."""
        codes = read[self.name]
        if self.form == "int8":
            scales = read[self.name.removesuffix("weight") + "SCB"]
            return EightBit(codes=codes, absmax=scales.float().reshape(-1), kind=dtype)
        double = "nested_offset" in self.facts
        return FourBit(
            codes=codes.view(torch.uint8).reshape(-1, 1),
            absmax=read[f"{self.name}.absmax"],
            scales=read[f"{self.name}.nested_absmax"] if double else None,
            levels=read[f"{self.name}.nested_quant_map"] if double else None,
            offset=torch.tensor(float(self.facts["nested_offset"]), device=codes.device) if double else None,
            form=self.form,  # type: ignore[arg-type]
            block=int(self.facts["blocksize"]),
            scale_block=int(self.facts.get("nested_blocksize", 256)),
            size=self.shape,
            kind=dtype,
        )


def packed_weights(stored: Stored) -> dict[str, Packed]:
    """By the name of their codes.  ModelError where parts of one are missing or do not fit together."""
    four = {name.partition(STATE)[0]: name for name in stored.entries if STATE in name}
    eight = [name.removesuffix("SCB") + "weight" for name in stored.entries if name.endswith(".SCB")]
    found = {name: _four_bit(stored, name, state) for name, state in four.items()}
    return {**found, **{name: _eight_bit(stored, name) for name in eight}}


def _four_bit(stored: Stored, name: str, state: str) -> Packed:
    form = state.partition(STATE)[2]
    try:
        facts = json.loads(stored.entries[state].bytes())
        shape = tuple(int(size) for size in facts["shape"])
        block = int(facts["blocksize"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{stored.folder}: {state} is no state that bitsandbytes writes; fetch the base again"
        ) from error
    double = "nested_offset" in facts
    wanted = [name, *(name + part for part in (PARTS if double else PARTS[:2]))]
    missing = [part for part in wanted if part not in stored.entries]
    if missing or form not in ("nf4", "fp4") or len(shape) != 2 or block <= 0:
        what = f"lacks {', '.join(missing)}" if missing else f"is stored as {form} of shape {list(shape)}"
        raise ModelError(f"{stored.folder}: {name} {what}, which no 4-bit weight is; fetch the base again")
    numbers = shape[0] * shape[1]
    held = 2 * (stored.entries[name].stop - stored.entries[name].start)
    scales = stored.entries[f"{name}.absmax"].shape
    if held not in (numbers, numbers + 1) or scales != (-(-numbers // block),):
        raise ModelError(f"{stored.folder}: {name} holds {held} numbers, {list(shape)} has {numbers}; fetch it again")
    return Packed(name, form, shape, facts, (*wanted, state))


def _eight_bit(stored: Stored, name: str) -> Packed:
    entry, scales = stored.entries.get(name), name.removesuffix("weight") + "SCB"
    if entry is None or entry.dtype != "I8" or stored.entries[scales].shape[:1] != entry.shape[:1]:
        raise ModelError(
            f"{stored.folder}: {scales} has no int8 weight of as many rows beside it; fetch the base again"
        )
    layout = stored.entries.get(f"{name}_format")
    if layout is None:
        return Packed(name, "int8", entry.shape, {}, (name, scales))
    if any(layout.bytes()):
        raise ModelError(
            f"{stored.folder}: {name} lies in tiles of an older bitsandbytes; have it write the base again, in rows"
        )
    return Packed(name, "int8", entry.shape, {}, (name, scales, layout.name))
