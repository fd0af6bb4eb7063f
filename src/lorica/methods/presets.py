"""Sizes of LoRA for people who want no numbers.

    small     r 8    alpha 16    dropout 0.1     up to some 10,000 rows: a style, a format, labels
    medium    r 16   alpha 32    dropout 0.05    10,000 to 100,000 rows: instructions, dialogue
    large     r 64   alpha 128   dropout 0       more: a field of knowledge, as far as LoRA carries

All adapt every linear but the head: at the same number of parameters that beats attention alone (QLoRA, arXiv
2305.14314, section 4; Biderman et al., arXiv:2405.09673; Schulman et al. 2025, "LoRA Without Regret").  All have the
scale alpha / r = 2, under which the first step of an update does not depend on r: one learning rate serves the three.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorica.errors import RecipeError, did_you_mean

LEARNING_RATE = "2e-4; about ten times that of full fine-tuning; 3e-4 below 100 steps, 1e-4 from 33B parameters on"
"""LoRA Without Regret fits 9.8 over 14 models, and 15 below about 100 steps; 1e-4 is that of QLoRA's code."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """`use` says for what, `against` where popular advice differs and why it is not followed."""

    name: str
    r: int
    alpha: float
    dropout: float
    use: str
    against: str
    target_modules: str = "all-linear"

    def fields(self) -> dict[str, Any]:
        return {
            "r": self.r,
            "alpha": self.alpha,
            "dropout": self.dropout,
            "target_modules": self.target_modules,
        }

    def to_dict(self) -> dict[str, Any]:
        return {**self.fields(), "learning_rate": 2e-4, "use": self.use, "against": self.against}

    def __str__(self) -> str:
        return (
            f"{self.name:<7} r={self.r:<3} alpha={self.alpha:<4g} dropout={self.dropout:<5g}{self.target_modules}   "
            f"{self.use}\n        {self.against}"
        )


PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="small",
            r=8,
            alpha=16,
            dropout=0.1,
            use="up to some 10,000 rows: a style, a format, labels",
            against="r=4 on q,v is often named; at equal parameters all linears learn more; r=8 is 0.3 % of a 7B base",
        ),
        Preset(
            name="medium",
            r=16,
            alpha=32,
            dropout=0.05,
            use="10,000 to 100,000 rows: instructions, dialogue",
            against="q,k,v,o is often named; at equal parameters it learns less than all linears at a lower rank",
        ),
        Preset(
            name="large",
            r=64,
            alpha=128,
            dropout=0.0,
            use="more rows: a field of knowledge, as far as LoRA carries",
            against="not for continued pretraining on billions of tokens, where full fine-tuning stays ahead",
        ),
    )
}


def preset(name: Any) -> Preset:
    """RecipeError naming the nearest where there is none of this name."""
    if not isinstance(name, str) or name not in PRESETS:
        raise RecipeError(f"preset: {name!r} is none of {', '.join(PRESETS)}{did_you_mean(str(name), PRESETS)}")
    return PRESETS[name]
