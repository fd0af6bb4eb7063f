"""The arms that are compared: a method, and the middle of the first grid of its learning rates.

Every low-rank arm sits on all linears with s = alpha / r = 2, so that the arms differ in their rank or method alone.
On a base with a head every arm trains the head as well, at its own rate.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lorica
from lorica.methods.contract import Method

FULL, LORA = "full", "lora-r8"
"""The references: every other arm is compared with each of them."""
METHODS: Mapping[str, Any] = lorica.METHODS


@dataclass(frozen=True)
class Arm:
    """`method` None: nothing is trained.  rate: where the search for its learning rate begins."""

    name: str
    told: str
    method: Method | None
    rate: float = 0.0


def settings(arms: tuple[Arm, ...]) -> dict[str, Any]:
    """What the arms are, as a digest takes it."""
    return {arm.name: arm.method and [arm.method.kind, arm.method.model_dump(mode="json")] for arm in arms}


def low_rank(rate: float) -> tuple[Arm, ...]:
    where: dict[str, Any] = {"target_modules": "all-linear"}
    loras = (Arm(f"lora-r{r}", f"LoRA r={r}", lorica.LoRA(r=r, alpha=2 * r, **where), rate) for r in (1, 4, 8))
    dora = Arm("dora-r8", "DoRA r=8", METHODS["dora"](r=8, alpha=16, **where), rate)
    # AdaLoRA's L starts at zero beside small P and Q, and wants a larger rate.
    ada = Arm("adalora-r8", "AdaLoRA r=12 to 8", METHODS["adalora"](r=8, init_r=12, alpha=24, **where), 3 * rate)
    return (*loras, dora, ada)


def full(rate: float) -> Arm:
    return Arm(FULL, "full fine-tuning", METHODS["full"](), rate)


WITH_HEAD = (
    Arm("head", "frozen base, head alone", METHODS["head"](), 1e-2),
    Arm("bitfit", "BitFit", METHODS["bitfit"](), 3e-3),
    *low_rank(1e-3),
    full(1e-4),
)
WITHOUT_HEAD = (Arm("base", "frozen base", None), *low_rank(2.5e-3), full(2.5e-4))
