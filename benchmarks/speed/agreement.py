"""Whether all sides computed the same thing: their losses at every step, or of one probe before the first.

bfloat16 keeps 8 bits, so what is computed at one place is off by about 2^-8 of itself, to either side; the mean over n
places by 2^-8 / sqrt(n).  Four times that is allowed, at every step, relative to the loss.
"""

import math
from collections.abc import Mapping
from typing import Any

HELD_IN_BFLOAT16 = "in bfloat16"
"""In the name of a side whose trained weights are so held."""


def allowed(places: int) -> float:
    return 4 * 2.0**-8 / math.sqrt(places)


def of_losses(sides: Mapping[str, Mapping[str, Any]], *, places: int) -> dict[str, Any]:
    """Each side against the first, step by step, as far as both went.

    Where what is trained is held in bfloat16, the first step alone: what is below half a unit of a weight is lost of
    each update, so that it learns less from the second on.
    """
    (reference, first), *others = sides.items()
    apart = {name: _apart(first["losses"][: _steps(name)], side["losses"]) for name, side in others}
    steps = min(len(side["losses"]) for side in sides.values())
    return _judged("losses", reference, apart, places, steps=steps)


def of_probes(sides: Mapping[str, Mapping[str, Any]], *, places: int) -> dict[str, Any]:
    """Each side against the first, on the same rows before anything is learned."""
    (reference, first), *others = sides.items()
    apart = {name: _apart([first["ready"]["probe"]], [side["ready"]["probe"]]) for name, side in others}
    return _judged("probe", reference, apart, places, steps=0)


def _steps(name: str) -> int | None:
    return 1 if HELD_IN_BFLOAT16 in name else None


def _apart(first: list[float], second: list[float]) -> float:
    """The largest difference relative to the first; all of it where one is missing or not a number."""
    pairs = list(zip(first, second, strict=False))
    apart = [abs(a - b) / abs(a) if a is not None and b is not None else 1.0 for a, b in pairs]
    return max((value if math.isfinite(value) else 1.0 for value in apart), default=1.0)


def _judged(what: str, reference: str, apart: Mapping[str, float], places: int, steps: int) -> dict[str, Any]:
    bound = allowed(places)
    agree = all(value <= bound for value in apart.values())
    rounded = {name: float(f"{value:.3g}") for name, value in apart.items()}
    return {
        "of": what,
        "reference": reference,
        "apart": rounded,
        "allowed": float(f"{bound:.3g}"),
        "steps": steps,
        "agree": agree,
    }
