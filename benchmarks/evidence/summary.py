"""What the runs of a track allow to say: means with intervals, and paired differences to each reference.

A difference is of the same seed in two arms.  All differences of a track are one family for Holm's correction.
"""

from collections.abc import Mapping
from typing import Any

from benchmarks.evidence.arms import FULL, LORA
from benchmarks.evidence.statistics import equivalent, holm, interval, sign_flip_p

MARGIN = 0.02
"""Within two points of a reference an arm is called equivalent; fixed before any run."""


def summary(arms: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """`found()["arms"]` of a protocol, with `score` of each arm and `minus_full`, `minus_lora-r8` where there are."""
    pairs = {(name, other): _paired(arms, name, other) for name, other in _compared(arms)}
    adjusted = holm({f"{name}/{other}": sign_flip_p(found) for (name, other), found in pairs.items()})
    return {
        name: {
            **arm,
            "score": interval(list(arm["test"].values())).to_dict(),
            **{
                f"minus_{other}": _difference(found, adjusted[f"{name}/{other}"])
                for (of, other), found in pairs.items()
                if of == name
            },
        }
        for name, arm in arms.items()
    }


def _compared(arms: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Full fine-tuning and LoRA r=8 are compared once."""
    pairs = [(name, other) for other in (FULL, LORA) for name in arms if name != other and other in arms]
    return [pair for pair in pairs if pair != (FULL, LORA) and len(_paired(arms, *pair)) > 1]


def _paired(arms: Mapping[str, Mapping[str, Any]], name: str, other: str) -> list[float]:
    """By seed; an arm that is not trained scores the same under each."""
    mine, theirs = arms[name]["test"], arms[other]["test"]
    if not arms[name]["trained"]:
        (only,) = mine.values()
        mine = dict.fromkeys(theirs, only)
    return [mine[seed] - theirs[seed] for seed in theirs if seed in mine]


def _difference(found: list[float], p: float) -> dict[str, Any]:
    return {
        **interval(found).to_dict(),
        "pairs": len(found),
        "p": round(sign_flip_p(found), 5),
        "p_holm": round(p, 5),
        "equivalent": equivalent(found, MARGIN),
    }
